"""``inturn schedule``, what the check-up and ``why`` say of schedules; and the SDK's way to the same."""

import asyncio
import re
from contextlib import closing
from datetime import timedelta
from itertools import pairwise

import pytest

from inturn import Client, InvalidInputError, ScheduleExistsError, ScheduleNotFoundError, SessionNotFoundError, aio
from inturn.models.clock import now
from inturn.models.states import ProcessKind
from inturn.models.store import presence
from inturn.models.store.presence import Process
from inturn.models.tables import SCHEDULES, SESSIONS
from inturn.workers.schedules import Firing
from tests.integration.stores import Store
from tests.integration.test_cli_commands import Shell, shell

__all__ = ["shell"]

MONDAYS = ("--cron", "0 9 * * 1")
NO_BEAT = "no beat is alive, so nothing is sent yet: `inturn up` starts one"


@pytest.fixture(autouse=True)
def session(shell: Shell) -> str:
    return shell.ok("session", "create", "ann-1").strip()


def lose_a_session(shell: Shell, name: str) -> None:
    """A schedule comes to its run, and its session is gone."""
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.change(SCHEDULES, SCHEDULES.c.name == name, session_key="gone", next_at=SCHEDULES.c.created_at)
        Firing(store.database, lambda sent: None).run()


def test_a_schedule_from_its_beginning_to_its_end(shell: Shell) -> None:
    added = shell.run("schedule", "add", "ann-1", "What is new?", *MONDAYS, "--tz", "Europe/Berlin", "--name", "weekly")
    assert (added.returncode, added.stdout) == (0, "weekly\n")
    told, warned = added.stderr.splitlines()
    assert re.fullmatch(r"schedule weekly sends to ann-1 next on Mon \d{4}-\d\d-\d\d 09:00 CES?T", told)
    assert warned == NO_BEAT

    heading, line = [line.split("\t") for line in shell.ok("schedule", "list").splitlines()]
    assert heading == ["SCHEDULE", "SESSION", "CRON", "ZONE", "STATE", "NEXT", "LAST", "TURN", "BECAUSE"]
    assert line[:5] == ["weekly", "ann-1", "0 9 * * 1", "Europe/Berlin", "active"]
    assert line[6:] == ["-", "-", "-"]
    shown = shell.ok("schedule", "show", "weekly")
    assert "What is new?" in shown
    assert len(re.findall(r"^run \d: +Mon \d{4}-\d\d-\d\d 09:00 CES?T$", shown, re.MULTILINE)) == 5

    [record] = shell.records("schedule", "list")
    assert (record["state"], record["misfire"], record["prompt"]) == ("active", "once", "What is new?")
    [shown_record] = shell.records("schedule", "show", "weekly")
    assert shown_record["next_runs"][0] == record["next_at"]
    assert len(shown_record["next_runs"]) == 5

    assert "is paused, until `inturn schedule resume weekly`" in shell.run("schedule", "pause", "weekly").stderr
    assert shell.records("schedule", "pause", "weekly") == [{"name": "weekly", "paused": True, "changed": False}]
    [paused] = shell.records("schedule", "list")
    assert (paused["state"], paused["next_at"]) == ("paused", None)
    [resumed] = shell.records("schedule", "resume", "weekly")
    assert resumed == {"name": "weekly", "paused": False, "changed": True, "next_at": record["next_at"]}
    assert "was not paused" in shell.run("schedule", "resume", "weekly").stderr
    assert "sessions and turns stay" in shell.run("schedule", "remove", "weekly").stderr
    assert shell.run("schedule", "list").stderr == "no schedules. `inturn schedule add` makes one\n"


def test_sessions_for_each_run(shell: Shell) -> None:
    made = ("--new-session", "--model", "echo/echo", "--system", "Be brief.", "--misfire", "all")
    done = shell.run("schedule", "add", "news", "-", *MONDAYS, *made, "--json", typed="What is new?\n")
    assert done.returncode == 0, done.stderr
    [record] = shell.records("schedule", "list")
    assert re.fullmatch(r"schedule-[0-9a-f]{8}", record["name"])
    expected = {"session_id": "news", "new_session": True, "model": "echo/echo", "system_message": "Be brief."}
    assert record | expected == record
    assert (record["misfire"], record["prompt"]) == ("all", "What is new?")
    assert "news-TIME" in shell.ok("schedule", "list")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("ghost", "hi", *MONDAYS), 4, "no session 'ghost'"),
        (("a b", "hi", *MONDAYS), 2, "'a b' is no session ID"),
        (("x" * 190, "hi", *MONDAYS, "--new-session"), 2, "use 182 at most"),
        (("ann-1", " ", *MONDAYS), 2, "the prompt is empty"),
        (
            ("ann-1", "hi", "--cron", "0 0 30 2 *"),
            2,
            "would never fire (there is no such day): write five fields, such as",
        ),
        (("ann-1", "hi", "--cron", "hourly"), 2, "cron is 'hourly': write five fields"),
        (("ann-1", "hi", *MONDAYS, "--tz", "Europe/Belrin"), 2, "did you mean 'Europe/Berlin'?"),
        (("ann-1", "hi", *MONDAYS, "--name", "a/b"), 2, "is no name of a schedule"),
        (("ann-1", "hi", *MONDAYS, "--model", "echo/echo"), 2, "add new_session=True (--new-session)"),
        (("news", "hi", *MONDAYS, "--new-session", "--model", "ghost/x"), 2, "model 'ghost/x' cannot be used"),
        (("ann-1", "hi", *MONDAYS, "--misfire", "some"), 2, "'some' is not one of"),
        (("ann-1", "hi"), 2, "Missing option '--cron'"),
    ],
)
def test_what_is_wrong_is_refused(shell: Shell, words: tuple[str, ...], code: int, sentence: str) -> None:
    done = shell.run("schedule", "add", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert shell.records("schedule", "list") == []


def test_names_that_are_taken_or_unknown(shell: Shell) -> None:
    shell.ok("schedule", "add", "ann-1", "hi", *MONDAYS, "--name", "weekly")
    taken = shell.run("schedule", "add", "ann-1", "hi", *MONDAYS, "--name", "weekly")
    assert (taken.returncode, "schedule 'weekly' exists already" in taken.stderr) == (1, True)
    for verb in ("show", "pause", "resume", "remove"):
        for name in ("ghost", "a b"):
            unknown = shell.run("schedule", verb, name)
            assert (unknown.returncode, f"no schedule {name!r}" in unknown.stderr) == (4, True)


def test_a_beat_that_is_there_is_not_asked_for(shell: Shell) -> None:
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.write(presence.appear, Process("b", ProcessKind.BEAT, "h", 1, "", 0, "0"))
    added = shell.run("schedule", "add", "ann-1", "hi", *MONDAYS, "--name", "weekly")
    assert NO_BEAT not in added.stderr
    why = shell.ok("why", "ann-1")
    moment = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d"  # without the day on Mondays before nine
    assert re.search(rf"; schedule weekly sends to it next, at {moment}", why)
    assert "no beat" not in why


def test_what_the_check_up_says_without_a_beat(shell: Shell) -> None:
    def beat(**environment: str) -> str:
        lines = shell.run("doctor", "--offline", **environment).stdout.splitlines()
        return next(line for line in lines if " beat" in line)

    assert "not alive, so nothing is cleaned up: `inturn up` starts it" in beat()
    for name in ("weekly", "daily"):
        shell.ok("schedule", "add", "ann-1", "hi", *MONDAYS, "--name", name)
    assert "not alive, so 2 schedules do not fire, and nothing is cleaned up: `inturn up` starts it" in beat()
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.change(SESSIONS, SESSIONS.c.key == "ann-1", created_at=now(-7300))
    assert "and nothing is cleaned up, which is due: `inturn up`" in beat()
    shell.ok("schedule", "pause", "daily")
    mine = {"INTURN_DATABASE_URL": f"sqlite:///{shell.home}/inturn.db", "INTURN_BROKER_URL": "redis://127.0.0.1:1/0"}
    found = beat(**mine)
    assert "1 schedule does not fire" in found
    assert "fail" in found


def test_a_schedule_that_cannot_be_fired_is_told_of_everywhere(shell: Shell) -> None:
    shell.ok("schedule", "add", "ann-1", "hi", *MONDAYS, "--name", "weekly")
    assert "no beat is alive to fire it: start `inturn up`" in shell.ok("why", "ann-1")
    lose_a_session(shell, "weekly")
    [record] = shell.records("schedule", "list")
    assert record["paused_because"].startswith("no session 'gone'")
    assert "no session 'gone'" in shell.ok("schedule", "show", "weekly")
    assert "weekly could not be fired, and is paused: no session 'gone'" in shell.run("doctor", "--offline").stdout
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.change(SCHEDULES, SCHEDULES.c.name == "weekly", session_key="ann-1")
    assert "; schedule weekly is paused, as it could not be fired (no session 'gone'" in shell.ok("why", "ann-1")


def test_the_sdk_has_the_same(shell: Shell) -> None:
    with Client(home=shell.home) as client:
        added = client.add_schedule("ann-1", "hi", cron="*/15 * * * *", name="often", misfire="skip")
        assert client.get_schedule("often") == added
        assert {later - sooner for sooner, later in pairwise(added.next_runs(9))} == {timedelta(minutes=15)}
        assert [client.pause_schedule("often"), client.pause_schedule("often")] == [True, False]
        assert client.get_schedule("often").is_paused
        assert [client.resume_schedule("often"), client.resume_schedule("often")] == [True, False]
        with pytest.raises(ScheduleExistsError):
            client.add_schedule("ann-1", "hi", cron="* * * * *", name="often")
        with pytest.raises(SessionNotFoundError):
            client.add_schedule("ghost", "hi", cron="* * * * *")
        for wrong in ({"misfire": "some"}, {"cron": None}, {"timezone": 3}, {"name": ""}, {"new_session": 1}):
            with pytest.raises(InvalidInputError):
                client.add_schedule("ann-1", "hi", **{"cron": "* * * * *", **wrong})  # type: ignore[arg-type]
        client.remove_schedule("often")
        with pytest.raises(ScheduleNotFoundError):
            client.get_schedule("often")


def test_the_asyncio_sdk_has_the_same(shell: Shell) -> None:
    async def talk() -> None:
        async with aio.Client(home=shell.home) as client:
            await client.add_schedule("news", "hi", cron="0 9 * * 1", new_session=True, name="weekly")
            assert [one.name for one in await client.list_schedules()] == ["weekly"]
            assert await client.pause_schedule("weekly")
            await client.remove_schedule("weekly")
            assert await client.list_schedules() == []

    asyncio.run(talk())
