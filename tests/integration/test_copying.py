"""Backup, restore and copy: every column of every row, whatever the two databases are, or nothing at all."""

import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text

from inturn.models import backup, migrations, transfer
from inturn.models.cron import Cron
from inturn.models.database import Database
from inturn.models.errors import InvalidInputError, SchemaError, StorageError
from inturn.models.rows import Row
from inturn.models.states import AttemptOutcome, Lane, ProcessKind, Retention, TurnState
from inturn.models.store import batching, presence, reading, retention, schedules, sending, webhooks
from inturn.models.store.batching import NewBatch
from inturn.models.store.lines import BadLine
from inturn.models.store.presence import Process
from inturn.models.store.schedules import NewSchedule
from inturn.models.store.webhooks import Hook
from inturn.models.tables import (
    ATTEMPTS,
    LANE_PAUSES,
    LEASES,
    MESSAGES,
    PAST_USAGE,
    REMOVAL_RUNS,
    REMOVALS,
    SESSIONS,
    SPENDING,
    TURNS,
)
from tests.integration.stores import CAPS, Store, only_postgresql, only_sqlite

Make = Callable[[str], Store]

MOMENT = datetime(2026, 3, 29, 1, 59, 59, 999999, tzinfo=UTC)
AWKWARD = "\u00e9\u0301 \U0001f9d1\u200d\U0001f680 \u202eabc\ufffd '';-- \\x00 \r\n\t\x1b[2J \u2028" + "x" * 70_000
OPTIONS = {"é\"'": [None, True, 1e-300, 2**70, 0.1, {"": "\U0001f600\\u0000"}], "big": "y" * 200_000, "n": -0.0}


def ignore(done: int, total: int) -> None:
    assert done <= total


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes empty databases, ``sqlite`` or ``postgresql``."""
    made: list[Store] = []

    def make(kind: str) -> Store:
        if kind == "sqlite":
            path = tmp_path / f"made-{len(made)}.db"
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            made.append(Store(f"sqlite:///{path}"))
        else:
            made.append(Store(request.getfixturevalue("spares").take()))
        return made[-1]

    yield make
    for store in made:
        store.close()
        if not store.is_sqlite:
            request.getfixturevalue("spares").give_back(store.database.url.render_as_string(hide_password=False))


def everything(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row that goes along."""
    with database.reading() as db:
        return {
            table.name: [tuple(row) for row in db.execute(select(table).order_by(*table.primary_key))]
            for table in Row.metadata.sorted_tables
            if table.name != "worker_processes"
        }


def counters(store: Store) -> dict[str, int]:
    with store.database.reading() as db:
        return {table.name: transfer.highest_given_out(db, table) for table in transfer.NUMBERED}


def fill(store: Store) -> int:
    """Everything that a database can hold, in all its states. Returns the session with work."""
    gone = store.session("gone")
    busy = store.session("busy", system_message=AWKWARD, options=OPTIONS, labels={"é'": AWKWARD})
    store.answer("busy", AWKWARD)
    store.answer("busy", "fails", TurnState.FAILED)
    for prompt in ("waits", "waits, too"):
        store.send("busy", prompt, options=OPTIONS, idempotency_key="k" + prompt, lane=Lane.BATCH)
    store.session("idle", context_turns=0, retention=Retention.IDLE, retention_seconds=0.1 + 0.2)
    store.hold("idle", AWKWARD)
    store.release("idle")
    schedules.add(store.database, NewSchedule("weekly", "busy", AWKWARD, Cron("0 9 * * 1", "Europe/Berlin")))
    with store.database.writing() as db:
        presence.appear(db, Process("b/1/2/3", ProcessKind.WORKER, "host", 2, "chat", 1, "0"))
        presence.tick(db, "cleanup", 2**40)
        db.execute(insert(LANE_PAUSES).values(lane=Lane.MAINTENANCE, paused_at=MOMENT))
        db.execute(insert(SPENDING).values(scope=f"label:é={AWKWARD[:300]}", slot="", usd=0.1 + 0.2, tokens=2**62))
        db.execute(insert(SPENDING).values(scope=f"session:{gone}", slot="2026-11-29", usd=1.0, tokens=1))
        for number in (7, 8):
            db.execute(
                insert(REMOVALS).values(
                    id=number, session_key="old", rule="policy", turns=1, messages=2, last_activity_at=MOMENT,
                    removed_at=MOMENT - timedelta(microseconds=1),
                )
            )  # fmt: skip
        db.execute(delete(REMOVALS).where(REMOVALS.c.id == 8))
        db.execute(
            insert(REMOVAL_RUNS).values(
                rule="é",
                asked_by=AWKWARD[:200],
                began_at=MOMENT,
                sessions=1,
                bytes=2**62,
                archive=AWKWARD,
                error=AWKWARD,
            )
        )
        db.execute(
            insert(MESSAGES).values(
                session_id=busy, turn_number=2**31 - 1, position=7, role="tool", content="", created_at=MOMENT
            )
        )
        db.execute(
            TURNS.update()
            .where(TURNS.c.number == 1)
            .values(started_at=MOMENT, merged_into=2, streams=True, partial=AWKWARD)
        )
        db.execute(ATTEMPTS.update().where(ATTEMPTS.c.turn_number == 1).values(price=0.1 + 0.2, token=2**62))
        db.execute(LEASES.update().where(LEASES.c.session_id == busy).values(halted_by=2, token=2**62))
        db.execute(SESSIONS.update().where(SESSIONS.c.id == busy).values(halts=True, held=True))
    begun = batching.begin(
        store.database, NewBatch("batch-1", AWKWARD[:90], 3, AWKWARD[:90], {"model": "a/b"} | OPTIONS)
    )
    bad = BadLine(3, AWKWARD[:90], "missing_field", AWKWARD)
    in_it = {"batch_id": begun.id, "line": 2, "custom_id": AWKWARD[:90], "not_after": MOMENT, "finish_reason": "stop"}
    with store.database.writing() as db:
        batching.keep_bad(db, begun.id, [bad])
        webhooks.announce(db, [Hook("é", frozenset({"batch.failed"}))], "batch.failed", "batch-1", AWKWARD)
        db.execute(TURNS.update().where(TURNS.c.session_id == busy, TURNS.c.number == 3).values(**in_it))
    last = store.session("last")
    store.answer("last")
    for key in ("gone", "last"):
        retention.remove(store.database, key)
    assert gone < busy < last
    return busy


def move(source: Store, target: Store) -> transfer.Moved:
    return transfer.move(source.database, target.database, CAPS, progress=ignore)


@pytest.mark.parametrize("there", ["sqlite", "postgresql"])
def test_every_column_of_every_row_arrives_and_comes_back(store: Store, make: Make, there: str) -> None:
    fill(store)
    other, back = make(there), make("sqlite" if store.is_sqlite else "postgresql")
    before = everything(store.database)
    assert all(before.values()), "a table without rows proves nothing"
    moved = move(store, other)
    assert everything(other.database) == before
    assert moved.rows == {name: len(rows) for name, rows in before.items()}
    assert (moved.waiting, moved.paused) == (2, [Lane.MAINTENANCE])
    move(other, back)
    assert everything(back.database) == before
    assert everything(store.database) == before
    with other.database.reading() as db:
        assert presence.list_processes(db, 1e6) == [], "who is alive there is nobody here"


@pytest.mark.parametrize("there", ["sqlite", "postgresql"])
def test_a_backup_brings_everything_back(store: Store, make: Make, there: str, tmp_path: Path) -> None:
    fill(store)
    before, path, other = everything(store.database), tmp_path / "über ?#%.backup", make(there)
    made = backup.write(store.database, path, progress=ignore)
    assert (made.schema, made.size) == (migrations.HEAD, path.stat().st_size)
    assert made.rows == {name: len(rows) for name, rows in before.items()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(tmp_path.glob("über*")) == {path}, "a backup is one file"
    digest = path.read_bytes()
    with backup.read(path) as source:
        transfer.move(source, other.database, CAPS, progress=ignore)
    assert everything(other.database) == before
    assert path.read_bytes() == digest
    assert set(tmp_path.glob("über*")) == {path}


def test_a_backup_is_a_database_of_its_own(store: Store, tmp_path: Path) -> None:
    """Whoever has nothing but the file can put it in the place of ``inturn.db``."""
    busy = fill(store)
    backup.write(store.database, tmp_path / "backup", progress=ignore)
    with closing(Store(f"sqlite:///{tmp_path / 'backup'}")) as opened:
        migrations.check(opened.database)
        assert opened.count("SELECT count(*) FROM worker_processes") == 0
        assert opened.session("new") > counters(store)["sessions"]
        assert reading.get_session(opened.database, "busy").id == busy
        assert opened.count("SELECT auto_vacuum FROM pragma_auto_vacuum") == 2


def test_ids_go_on_above_all_that_were_ever_given_out(store: Store, make: Make) -> None:
    fill(store)
    there = "postgresql" if store.is_sqlite else "sqlite"
    other = make(there)
    for number in range(2):  # the target has a past of its own
        other.session(f"past-{number}")
        retention.remove(other.database, f"past-{number}")
    others = {"batches": 1, "webhook_deliveries": 1, "schedules": 1, "removal_runs": 1, "past_holds": 1}
    assert counters(store) == {"sessions": 4, "removals": 7 if not store.is_sqlite else 8, **others}
    move(store, other)
    assert other.session("new") == 5
    last = make(there)
    for number in range(9):
        last.session(f"past-{number}")
        retention.remove(last.database, f"past-{number}")
    move(make("sqlite"), last)
    assert last.session("new") == 10, "ids that the target gave out are not given out again, either"


def test_what_the_target_had_used_itself_is_added_to(store: Store, make: Make) -> None:
    """Its sessions are gone, or it would not be empty; what they cost is not."""
    there = "postgresql" if store.is_sqlite else "sqlite"
    other = make(there)
    for one in (store, other):
        one.session("gone")
        one.answer("gone")
        with one.database.writing() as db:
            db.execute(insert(SPENDING).values(scope="all", slot="", usd=0.5, tokens=10))
            db.execute(ATTEMPTS.update().values(started_at=MOMENT, model="m/m", input_tokens=3, price=0.25))
        retention.remove(one.database, "gone")
    move(store, other)
    with other.database.reading() as db:
        assert [(row.usd, row.tokens) for row in db.execute(select(SPENDING))] == [(1.0, 20)]
        past = [(row.attempts, row.input_tokens, row.price) for row in db.execute(select(PAST_USAGE))]
        assert past == [(2, 6, 0.5)]


def test_running_turns_wait_again(store: Store, make: Make) -> None:
    for key in ("running", "cancelled", "spent", "calm"):
        store.session(key)
    for key in ("running", "cancelled", "spent"):
        store.send(key, "one")
        store.send(key, "two")
    started = {one.key: one for one in (store.start() for _ in range(3))}
    sending.cancel(store.database, started["cancelled"].session_id, 1)
    store.change(TURNS, TURNS.c.session_id == started["spent"].session_id, attempts=CAPS.attempts)
    other = make("postgresql" if store.is_sqlite else "sqlite")
    assert move(store, other).waiting == 4
    turns = {key: reading.list_turns(other.database, one.session_id) for key, one in started.items()}
    assert {key: [turn.state for turn in mine] for key, mine in turns.items()} == {
        "running": ["queued", "queued"],
        "cancelled": ["cancelled", "queued"],
        "spent": ["failed", "queued"],
    }
    for one in started.values():
        lease = other.lease(one.session_id)
        assert (lease.owner, lease.token, bool(lease.is_ready)) == (None, one.token + 1, True)
        assert other.outcomes(one.session_id) == [(1, 1, AttemptOutcome.LOST)]
        assert not other.settle(one), "a late reply finds its lease gone"
    again = other.start(started["running"].session_id)
    assert (again.number, again.attempts) == (1, 2)
    assert store.settle(started["running"]), "the source was left as it was"


def test_only_an_empty_database_is_filled(store: Store, make: Make) -> None:
    fill(store)
    other = make("sqlite" if store.is_sqlite else "postgresql")
    other.session("theirs")
    before = everything(other.database)
    path = other.database.url.database
    away = f"{path} away, with {path}-wal and -shm" if other.is_sqlite else "this one away"
    only = r"holds 1 sessions, and only an empty one can be filled: name another one, or move "
    with pytest.raises(StorageError, match=only + re.escape(away)):
        move(store, other)
    assert everything(other.database) == before


def test_a_beat_and_a_pause_leave_a_database_empty(store: Store, make: Make) -> None:
    fill(store)
    other = make("sqlite")
    with other.database.writing() as db:
        presence.tick(db, "cleanup", 2**40)
        db.execute(insert(LANE_PAUSES).values(lane=Lane.CHAT, paused_at=MOMENT))
    assert move(store, other).paused == [Lane.CHAT, Lane.MAINTENANCE]


@pytest.mark.parametrize("there", ["sqlite", "postgresql"])
def test_what_is_refused_is_named_and_undoes_everything(store: Store, make: Make, there: str) -> None:
    busy = fill(store)
    other = make(there)
    trigger = {
        "sqlite": (
            "CREATE TRIGGER no BEFORE INSERT ON turns WHEN NEW.number = 3 BEGIN SELECT RAISE(ABORT, 'not the third'); END",
        ),
        "postgresql": ("ALTER TABLE turns ADD CONSTRAINT not_the_third CHECK (number <> 3)",),
    }
    with other.database.writing() as db:
        for statement in trigger[there]:
            db.execute(text(statement))
    expected = rf"row session_id {busy}, number 3 of table turns is refused .*not.the.third.*Nothing was changed"
    with pytest.raises(StorageError, match=expected):
        move(store, other)
    assert not any(rows for name, rows in everything(other.database).items())


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_rows_that_are_swallowed_are_missed(store: Store, make: Make) -> None:
    fill(store)
    other = make("postgresql")
    with other.database.writing() as db:
        db.execute(text("CREATE RULE swallow AS ON INSERT TO messages WHERE NEW.position = 2 DO INSTEAD NOTHING"))
    with pytest.raises(StorageError, match=r"table messages has \d rows after \d were copied"):
        move(store, other)


def test_a_use_in_the_middle_undoes_the_copy(store: Store, make: Make) -> None:
    fill(store)
    other = make("sqlite")
    seen: list[Any] = []

    def send(done: int, total: int) -> None:
        if not seen:
            seen.append(store.send("idle", "in the middle"))

    with pytest.raises(StorageError, match=r"somebody used .* while it was copied"):
        transfer.move(store.database, other.database, CAPS, progress=send)
    assert other.count("SELECT count(*) FROM sessions") == 0
    assert move(store, other).waiting == 3


def test_who_comes_in_between_is_noticed_before_the_commit(store: Store, make: Make) -> None:
    other = make("sqlite")
    fill(store)

    def recheck() -> None:
        raise StorageError("a worker has come")

    with pytest.raises(StorageError, match="a worker has come"):
        transfer.move(store.database, other.database, CAPS, progress=ignore, recheck=recheck)
    assert other.count("SELECT count(*) FROM sessions") == 0


@only_postgresql
def test_two_that_fill_one_database_wait_for_one_another(store: Store, make: Make) -> None:
    first, second = make("sqlite"), make("sqlite")
    fill(first)
    fill(second)
    errors: list[Exception] = []

    def run(source: Store) -> None:
        try:
            move(source, store)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 1
    assert "only an empty one" in str(errors[0])


def test_a_backup_is_one_moment_of_a_database_in_use(store: Store, tmp_path: Path) -> None:
    """Turns and messages are written together, and are in a backup together, or not at all."""
    store.session("s")
    for _ in range(300):
        store.send()
    stop, sent = threading.Event(), [0]

    def send() -> None:
        while not stop.is_set():
            store.send()
            sent[0] += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for number in range(5):
            path, before = tmp_path / f"backup-{number}", sent[0]
            made = backup.write(store.database, path, progress=ignore)
            assert made.rows["turns"] == made.rows["messages"] >= 300 + before
            with closing(Database(f"sqlite:///{path}")) as copy, copy.reading() as db:
                assert db.execute(select(SESSIONS.c.next_turn)).scalar_one() == made.rows["turns"] + 1
                assert db.execute(select(func.max(TURNS.c.number))).scalar_one() == made.rows["turns"]
    finally:
        stop.set()
        thread.join()
    assert sent[0] > 5, "nobody wrote meanwhile"


class Interrupted(Exception):
    pass


def test_what_is_interrupted_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)

    def interrupt(done: int, total: int) -> None:
        raise Interrupted

    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").write_bytes(b"precious")
    for name, replace in (("new", False), ("old", True)):
        with pytest.raises(Interrupted):
            backup.write(store.database, Path(name), replace=replace, progress=interrupt)
    assert {path.name for path in tmp_path.glob("[no]*")} == {"old"}
    assert (tmp_path / "old").read_bytes() == b"precious"
    backup.write(store.database, Path("old"), replace=True, progress=ignore)
    with backup.read(tmp_path / "old") as restored:
        assert everything(restored) == everything(store.database)


def test_places_that_are_no_place_for_a_backup(store: Store, tmp_path: Path) -> None:
    fill(store)
    there, link = tmp_path / "there", tmp_path / "link"
    there.write_text("something else")
    link.symlink_to(there)
    refusals = [
        (there, False, "is there already: .*--force"),
        (tmp_path, True, "and no file"),
        (link, True, "and no file"),
    ]
    refusals += [(tmp_path / "nowhere" / "b", False, f"no directory {tmp_path / 'nowhere'}")]
    if store.is_sqlite:
        own = Path(store.database.url.database or "")
        (tmp_path / "same").symlink_to(own.parent)
        refusals += [
            (one, True, "belongs to the database itself")
            for one in (own, own.with_name(own.name + "-wal"), tmp_path / "same" / own.name)
        ]
    for path, replace, reason in refusals:
        with pytest.raises(InvalidInputError, match=reason):
            backup.write(store.database, path, replace=replace, progress=ignore)
    assert there.read_text() == "something else"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_closed_is_a_sentence(store: Store, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(StorageError, match="cannot write the backup"):
        backup.write(store.database, closed / "b", progress=ignore)


def test_what_is_no_backup_is_refused(tmp_path: Path, make: Make) -> None:
    store = make("sqlite")
    fill(store)
    backup.write(store.database, tmp_path / "whole", progress=ignore)
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("-- PostgreSQL database dump")
    (tmp_path / "nothing").touch()
    with closing(Database(f"sqlite:///{tmp_path / 'theirs'}")) as theirs, theirs.writing() as db:
        db.execute(text("CREATE TABLE sessions (id INTEGER)"))
    for name, reason in {
        "half": "is damaged",
        "text": "no backup of inturn: those are SQLite files",
        "nothing": "no backup of inturn",
        "theirs": "no tables of inturn's",
        "missing": "No such file",
        ".": "Is a directory",
    }.items():
        with pytest.raises(InvalidInputError, match=reason), backup.read(tmp_path / name):
            pass


def test_a_newer_backup_is_refused(make: Make, tmp_path: Path) -> None:
    store, path = make("sqlite"), tmp_path / "backup"
    fill(store)
    backup.write(store.database, path, progress=ignore)
    with closing(backup.BackupFile(path, "rw")) as newer, newer.writing() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaError, match="newer than"), backup.read(path):
        pass


def test_a_database_is_backed_up_before_its_upgrade(database_url: str, make: Make, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    with closing(Database(database_url)) as old:
        migrations.make(old, "0001")
        with old.writing() as db:
            common = "(key, model, options, labels, held, retention, state, next_turn, created_at, last_activity_at)"
            db.execute(
                text(
                    f"INSERT INTO sessions {common} VALUES ('s', 'echo/echo', '{{}}', '{{}}', false, 'policy', 'active', 1, "
                    "'2026-03-29 01:59:59.999999', '2026-03-29 01:59:59.999999')"
                )
            )
        assert backup.write(old, path, progress=ignore).schema == "0001"
        assert migrations.current(old) == "0001"
    before = path.read_bytes()
    for kind in ("sqlite", "postgresql"):
        store = make(kind)
        with backup.read(path) as source:
            transfer.move(source, store.database, CAPS, progress=ignore)
        assert reading.get_session(store.database, "s").created_at == MOMENT
        assert everything(store.database)["sessions"][0][SESSIONS.c.keys().index("halts")] is False
    assert path.read_bytes() == before
    with closing(backup.BackupFile(path, "ro")) as untouched:
        assert migrations.current(untouched) == "0001"


def test_there_must_be_something_to_back_up(database_url: str, tmp_path: Path) -> None:
    with closing(Database(database_url)) as nothing:
        with pytest.raises(SchemaError, match="nothing"):
            backup.write(nothing, tmp_path / "b", progress=ignore)
        if nothing.dialect == "sqlite":
            assert not Path(nothing.url.database or "").exists(), "looking made it"
    assert not list(tmp_path.glob("b*"))


@only_postgresql
def test_a_backup_of_postgresql_keeps_nobody_waiting(store: Store, tmp_path: Path) -> None:
    """Locks that a backup holds are those of any reader."""
    fill(store)
    slowest = [0.0]

    def look(done: int, total: int) -> None:
        began = time.monotonic()
        store.send("idle", "meanwhile")
        slowest[0] = max(slowest[0], time.monotonic() - began)

    made = backup.write(store.database, tmp_path / "b", progress=look)
    assert made.rows["turns"] == 4
    assert slowest[0] < 2


@only_sqlite
def test_a_backup_of_sqlite_holds_no_deleted_text(store: Store, tmp_path: Path) -> None:
    store.session("secret")
    store.send("secret", "the secret word is rhubarb" * 1000)
    retention.remove(store.database, "secret")
    backup.write(store.database, tmp_path / "b", progress=ignore)
    assert b"rhubarb" not in (tmp_path / "b").read_bytes()
