"""What ``inturn top`` draws: it fits, it says what matters, and nothing that was stored does anything to the terminal."""

from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inturn.cli.invocation import Invocation
from inturn.cli.top.picture import View, curved, drawn, ordered, plain
from inturn.cli.top.snapshot import Outlook, Snapshot
from inturn.cli.top.tables import Column, table
from inturn.cli.top.units import amount, lasting, rate
from inturn.models.errors import DatabaseUnreachableError
from inturn.models.states import Lane, ProcessKind
from inturn.models.store.activity import Activity, LaneActivity, Spent, Waiting, WorkerActivity
from inturn.models.store.budgets import Budget, Standing
from inturn.models.store.presence import Recent, WorkerInfo

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
SIZES = [(80, 24), (140, 40), (60, 16), (220, 60), (20, 5), (1, 1)]
EVERYTHING = (
    "921 turns/s", "350 in flight", "● database", "● broker", "beat alive", "last cleanup 10 min ago", "next in 50 min",
    "1 schedule due", "chat", "70 s", "10k+", "1 h 6 min", "host-1.example.org/4001", "all lanes", "FAILED in 5 min  13:",
    "rate_limited 12, timeout 1", "SPENT today  1.25 US dollars", "waits-0", "waits-1", "runs-0", "runs-1", "gpt-5",
    "q quits", "p pauses", "s sorts workers: busiest",
)  # fmt: skip
EVIL = "\x1b]0;owned\x07\x1b[2Jhost\x9b31m\r\n"


def seconds(many: float) -> timedelta:
    return timedelta(seconds=many)


def worker(number: int, kind: ProcessKind = ProcessKind.WORKER, **more: Any) -> WorkerActivity:
    process = WorkerInfo(
        id=str(number),
        kind=kind,
        host=more.pop("host", f"host-{number}.example.org"),
        pid=4000 + number,
        lanes="" if kind is ProcessKind.BEAT else "chat,batch,maintenance",
        concurrency=0 if kind is ProcessKind.BEAT else 1000,
        version="0.1.0",
        started_at=NOW,
        heartbeat_at=NOW,
        alive=more.pop("alive", True),
        recent=Recent(10.0, {"chat": {"completed": 10}}),
    )
    return WorkerActivity(process, more.pop("in_flight", 0), {}, 1.0, seconds(7300), more.pop("silent", seconds(2)))


def activity(workers: int = 2, sessions: int = 10, **more: Any) -> Activity:
    known: dict[str, Any] = {
        "at": NOW,
        "lanes": [
            LaneActivity(Lane.CHAT, None, 12, seconds(70), 250, workers, 921.4, 1.5),
            LaneActivity(Lane.BATCH, NOW, 10_000, seconds(4000), 100, workers, 0.0, 0.0),
            LaneActivity(Lane.MAINTENANCE, None, 0, seconds(0), 0, workers, 0.0, 0.0),
        ],
        "workers": [*(worker(number) for number in range(workers)), worker(99, ProcessKind.BEAT)],
        "failures": {"rate_limited": 12, "timeout": 1},
        "failed_seconds": 300.0,
        "waiting": [Waiting(f"waits-{number}", Lane.CHAT, seconds(70 - number)) for number in range(sessions)],
        "running": [Waiting(f"runs-{number}", Lane.CHAT, seconds(9), "openai/gpt-5") for number in range(sessions)],
        "usd_per_second": 0.01,
        "last_tick": NOW - seconds(600),
        "next_cleanup": NOW + seconds(3000),
        "schedules_due": 1,
    }
    return Activity(**known | more)


def snapshot(seen: Activity | None, **more: Any) -> Snapshot:
    spent = [Spent("openai/gpt-5", 10, 12_345, 1.25, 0), Spent("lab/x", 3, 700, 0.0, 3)]
    return Snapshot(
        "postgresql+psycopg://inturn:***@db/inturn", "redis://cache:6379/0", seen, **{"spent": spent} | more
    )


def text(told: Snapshot, width: int = 80, height: int = 24, **view: Any) -> str:
    return "\n".join(line.plain for line in drawn(told, View(**view), width, height))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("workers", [0, 1, 3, 200])
def test_it_fits_any_terminal(width: int, height: int, workers: int) -> None:
    told = snapshot(activity(workers), database_error="no connection", broker_error="no connection")
    lines = drawn(told, View(rates=deque([(NOW, 5.0)] * 300)), width, height)
    assert len(lines) <= height
    assert max(line.cell_len for line in lines) <= width


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_everything_is_told_at_once(width: int, height: int) -> None:
    told = text(snapshot(activity()), width, height)
    for words in EVERYTHING:
        assert words in told, (words, told)
    assert ("13k tokens" in told, "3 unpriced" in told) == (True, True)
    assert told.splitlines()[-1].startswith("q quits"), "the keys stand at the bottom"


def test_who_has_fallen_silent_and_who_is_busiest_come_first() -> None:
    one, two, silent = worker(1, in_flight=3), worker(2, in_flight=900), worker(3, alive=False, silent=seconds(45))
    beat = worker(4, ProcessKind.BEAT)
    assert ordered([beat, one, two, silent], "busiest") == [silent, two, one, beat]
    assert ordered([beat, two, one, silent], "name") == [silent, one, two, beat]
    told = text(snapshot(replace(activity(), workers=[beat, one, two, silent])))
    assert told.index("host-3") < told.index("host-2") < told.index("host-1")
    assert "45 s" in told


def test_more_workers_than_there_is_room_for_are_counted() -> None:
    told = text(snapshot(activity(200)))
    shown = told.count("example.org/")
    assert f"and {201 - shown} more" in told
    assert ("waits-0" in told, "runs-0" in told) == (True, True), "sessions keep some room"


def test_what_others_chose_does_nothing_to_the_terminal() -> None:
    seen = activity(
        workers=1,
        waiting=[Waiting(EVIL, Lane.CHAT, seconds(1))],
        running=[Waiting("s", Lane.CHAT, seconds(1), EVIL)],
        failures={EVIL: 1},
    )
    seen = replace(seen, workers=[worker(1, host=EVIL)])
    budget = Standing(Budget("legal", "label:team", True, 10.0, None, False), EVIL, 9.0, 0)
    told = snapshot(seen, spent=[Spent(EVIL, 1, 1, 1.0, 1)], budgets=[budget], database_error=EVIL, broker_error=EVIL)
    for lines in ([line.plain for line in drawn(told, View(), 140, 50)], plain(told)):
        joined = "".join(lines)
        assert not [sign for sign in joined if ord(sign) < 32 or 127 <= ord(sign) < 160], joined
        assert "owned" not in joined
        assert "legal (host) 90%" in joined


def test_what_is_away_is_said_beside_what_was_seen_last() -> None:
    told = text(snapshot(activity(), database_error="no connection to it", age_seconds=12.0))
    assert "no connection to it; trying again; what follows is 12 s old" in told
    assert "host-1.example.org" in told
    told = text(snapshot(None, database_error="no connection to it", spent=None))
    assert "no connection to it; trying again" in told
    assert "q quits" in told


def test_who_is_missing_is_told() -> None:
    told = text(snapshot(replace(activity(), workers=[], last_tick=None, next_cleanup=None, schedules_due=0)))
    assert "no worker has shown itself" in told
    assert " more" not in told
    assert "no beat is alive" in told


def test_what_is_paused_and_nothing_fails() -> None:
    told = text(snapshot(activity(failures={}), spent=[]), is_paused=True)
    assert "paused: p goes on" in told
    assert "FAILED in 5 min  none" in told
    assert "SPENT today  nothing" in told


def test_a_record_has_lengths_of_time_in_seconds_and_workers_flat() -> None:
    record = snapshot(activity()).record()
    assert record["lanes"][0]["oldest_seconds"] == 70
    assert record["workers"][0]["host"] == "host-0.example.org"
    assert record["workers"][0]["silent_seconds"] == 2
    assert record["waiting"][0] == {"session_id": "waits-0", "lane": "chat", "since_seconds": 70.0, "model": None}
    assert record["spent_today"][0]["usd"] == 1.25
    assert record["database"] == {"url": "postgresql+psycopg://inturn:***@db/inturn", "error": None}


def test_a_database_that_is_away_ends_a_single_look_and_no_watch() -> None:
    flags = {"database_url": "postgresql://u:hidden@127.0.0.1:1/x", "broker_url": "redis://:hidden@127.0.0.1:1/0"}
    outlook = Outlook(Invocation(flags))
    with pytest.raises(DatabaseUnreachableError):
        outlook.look()
    seen = outlook.look(patiently=True)
    assert seen.activity is None
    assert "no connection to the database" in seen.database_error
    assert seen.broker_error
    assert "hidden" not in str(seen.record())


def test_amounts_are_short() -> None:
    assert [amount(each) for each in (0, 1234, 10_000, 12_345, 2_500_000)] == ["0", "1,234", "10k+", "12k", "2.5M"]
    assert [rate(each) for each in (0, 0.01, 3.14, 1234.5)] == ["-", "<0.1", "3.1", "1,234"]
    lengths = (0.04, 9.94, 9.96, 60, 120, 3600, 3660 * 3, 90_000)
    assert [lasting(each) for each in lengths] == [
        "0.0 s", "9.9 s", "10 s", "60 s", "2 min", "1 h 0 min", "3 h 3 min", "1 d 1 h",
    ]  # fmt: skip


def test_a_curve_is_as_high_as_its_highest_rate() -> None:
    assert curved([0.0, 1.0, 8.0], 10) == " ▂█"
    assert curved([9.0, 8.0, 0.1], 2) == "█▁"
    assert curved([0.0, 0.0], 10) == ""


def test_a_table_gives_way_column_by_column() -> None:
    from rich.text import Text

    columns = (Column("NAME", shrinks=True), Column("MANY", right=True), Column("VERSION", leaves=1))
    rows = [[Text("a-rather-long-name"), Text("1"), Text("0.1.0")]]
    assert [line.plain for line in table(columns, rows, 80)] == [
        "NAME                MANY  VERSION",
        "a-rather-long-name     1  0.1.0  ",
    ]
    assert table(columns, rows, 25)[1].plain == "a-rather-long-name     1", "the version says least"
    assert table(columns, rows, 16)[1].plain == "a-rather-…     1"
    kept = (Column("NAME", shrinks=True, keeps_end=True), *columns[1:])
    assert table(kept, rows, 16)[1].plain == "…long-name     1"
