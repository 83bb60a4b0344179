"""Retention of a whole deployment: each kind of rule, carried out by two beats and a worker; and by a beat that is back."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, make_url, select

from inturn.models.clock import now
from inturn.models.store.receipts import Run
from inturn.models.tables import SESSIONS, TICKS
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS
from ops.chaos.model import ModelServer
from ops.servers import PostgresServer, RedisServer
from tests.acceptance.failing import FAULT_SECONDS, REPAIR_SECONDS, Stage, wait_until

pytestmark = pytest.mark.timeout(240)

PERIOD = 4.0
DAY = 86400.0
YEAR = 366 * 24 * 60
"""In minutes."""
EACH_YEAR = {"cron": "0 3 1 1 *", "timezone": "Europe/Berlin"}
"""What is due only when a test says so."""
VIP = {"name": "vip", "labels": {"tier": "gold"}, "forever": True}
RULES = [
    {"name": "models", "model": "server/old-*", "idle_days": 2},
    {"name": "nightly", "match": "night-*", "idle_days": 1, **EACH_YEAR},
    {"name": "talks", "match": "talk-*", "kind": "interactive", "idle_days": 1},
    {"name": "batches", "kind": "batch", "age_days": 3},
    {"name": "guests", "match": "guest-*", "more_than": 2},
    {"name": "working", "match": "work-*", "idle_days": 1},
]
REMOVED = {
    "own": {"own-day"},
    "drafts": {"draft-a-1", "draft-b-2"},
    "models": {"of-old-model"},
    "talks": {"talk-1"},
    "batches": {"talk-of-batch", "old-of-batch"},
    "guests": {"guest-3", "guest-4"},
    "working": {"work-running"},
    "default": {"old"},
}
STAYING = {
    "gold", "draft-a-gold", "draft-1", "draft-a-young", "draft-a-held", "draft-a-scheduled", "draft-a-own",
    "draft-a-never", "of-new-model", "night-1", "young-of-batch", "guest-1", "guest-2", "work-later", "young",
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, redis: RedisServer, model: ModelServer) -> Iterator[Stage]:
    broker_url = make_url(redis.url).set(database="5").render_as_string(False)
    database_url = f"sqlite:///{tmp_path / 'home' / 'inturn.db'}"
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        database_url = postgres.create_database()
    (tmp_path / "archives").mkdir()
    drafts = {"name": "drafts", "match": "draft-?-*", "idle_days": 1, "archive": str(tmp_path / "archives")}
    how: dict[str, Any] = {"retention": [VIP, drafts, *RULES], "cleanup_interval_seconds": PERIOD, "cleanup_chunk": 100}
    stage = Stage(tmp_path / "home", database_url, broker_url, model, **how)
    assert stage.command("db", "upgrade").await_end() == 0
    yield stage
    stage.stop()


def make(stage: Stage, key: str, idle: float, **how: Any) -> None:
    stage.client.create_session(key, **how)
    age(stage, idle, key)


def age(stage: Stage, days: float, *keys: str) -> None:
    """They were made, and active last, so many days ago."""
    with stage.database.writing() as db:
        then = now(-days * DAY)
        db.execute(SESSIONS.update().where(SESSIONS.c.key.in_(keys)).values(last_activity_at=then, created_at=then))


def populate(stage: Stage) -> None:
    """Sessions of all kinds. A worker has to be there."""
    client, gold = stage.client, {"tier": "gold"}
    make(stage, "gold", 400, labels=gold)
    make(stage, "draft-a-gold", 2, labels=gold)
    make(stage, "draft-1", 2)
    make(stage, "draft-b-2", 2)
    make(stage, "draft-a-young", 0.5)
    make(stage, "draft-a-held", 2)
    client.hold_session("draft-a-held", "claim 4711")
    make(stage, "draft-a-scheduled", 2)
    client.add_schedule("draft-a-scheduled", "hello", cron="0 0 1 1 *")
    make(stage, "draft-a-own", 2, retention=timedelta(days=5))
    make(stage, "draft-a-never", 400, retention=None)
    make(stage, "own-day", 2, retention=timedelta(days=1))
    make(stage, "of-old-model", 3, model="server/old-1")
    make(stage, "of-new-model", 3)
    make(stage, "night-1", 2)
    make(stage, "talk-1", 2)
    for number in range(1, 5):
        make(stage, f"guest-{number}", number / 24)
    make(stage, "old", 31)
    make(stage, "young", 29)
    client.create_session("draft-a-1").send("remember the heron").wait(timeout=60)
    age(stage, 2, "draft-a-1")
    lines = [{"session": key, "prompt": "hello"} for key in ("talk-of-batch", "old-of-batch", "young-of-batch")]
    client.submit_batch(lines).wait(timeout=60)
    age(stage, 4, "talk-of-batch", "old-of-batch")
    age(stage, 2, "young-of-batch")
    with stage.database.writing() as db:  # they are in use, and go by their age
        db.execute(SESSIONS.update().where(SESSIONS.c.key.like("%-of-batch")).values(last_activity_at=now()))
    client.create_session("work-later").send("hello", not_before=timedelta(days=1))
    client.create_session("work-running").send('hello !{"latency": 8}')
    age(stage, 2, "work-later", "work-running")


def go_by(stage: Stage, minutes: int) -> None:
    """Let it be so long ago that a rule with a cron was carried out."""
    with stage.database.writing() as db:
        db.execute(TICKS.update().where(TICKS.c.name.like("cleanup:%")).values(slot=TICKS.c.slot - minutes))


def left(stage: Stage) -> set[str]:
    return {session.session_id for session in stage.client.list_sessions()}


def removed(stage: Stage) -> dict[str, set[str]]:
    """What receipts say, by rule."""
    found: dict[str, set[str]] = {}
    for row in stage.query("SELECT rule, session_key FROM removals"):
        found.setdefault(row.rule, set()).add(row.session_key)
    return found


def runs(stage: Stage, rule: str) -> list[Run]:
    """Newest first."""
    return [run for run in stage.client.list_removal_runs() if run.rule == rule]


def nights(stage: Stage) -> list[int]:
    """How many sessions went each time that the rule with a cron was carried out."""
    return [run.sessions for run in runs(stage, "nightly") if run.ended_at is not None]


def cleanups(stage: Stage, until: datetime) -> int:
    """How many were claimed by then."""
    mine = (TICKS.c.name == REMOVE_EXPIRED_SESSIONS) & (TICKS.c.fired_at <= until)
    with stage.database.reading() as db:
        return int(db.execute(select(func.count()).select_from(TICKS).where(mine)).scalar_one())


def test_each_rule_does_what_it_says_once(stage: Stage) -> None:
    client = stage.client
    worker = stage.worker()
    populate(stage)
    beats = [stage.command("beat"), stage.command("beat")]
    wait_until(lambda: removed(stage) == REMOVED, FAULT_SECONDS)
    wait_until(lambda: all(run.ended_at for run in client.list_removal_runs()), FAULT_SECONDS)
    assert left(stage) == STAYING
    for rule, keys in REMOVED.items():
        its_runs = runs(stage, rule)
        assert sum(run.sessions for run in its_runs) == len(keys)
        assert len(its_runs) <= cleanups(stage, its_runs[0].began_at), "two beats had it done twice"
    assert {(run.asked_by, run.error) for run in client.list_removal_runs()} == {("beat", None)}
    (receipt,) = client.list_receipts("work-running")
    assert receipt.messages == 2, "it was left alone until it had its reply"
    for beat in beats:
        assert "remove-expired-sessions" in beat.said()

    (archived,) = [run for run in runs(stage, "drafts") if run.sessions]  # a cleanup may overlap with the next one
    assert archived.archive is not None
    assert archived.checksum == hashlib.sha256(Path(archived.archive).read_bytes()).hexdigest()
    client.import_archive(archived.archive)
    assert "remember the heron" in [each.data.content for each in client.get_session("draft-a-1").get_messages()]

    rules = {one.rule.name: one for one in client.list_rules()}
    present = datetime.now(UTC)
    assert (rules["nightly"].sessions, rules["nightly"].due, rules["vip"].next_at) == (1, 1, None)
    nightly, default = rules["nightly"].next_at, rules["default"].next_at
    assert nightly is not None
    assert default is not None
    assert nightly > present + timedelta(minutes=1)
    assert default - present < timedelta(seconds=2 * PERIOD)

    go_by(stage, 2 * YEAR)
    wait_until(lambda: nights(stage) == [1], FAULT_SECONDS)
    for beat in beats:
        beat.kill()

    make(stage, "night-2", 2)
    go_by(stage, YEAR)
    worker.await_words("action=beat_missing schedules=1 cleanup_due=True", REPAIR_SECONDS)
    assert "night-2" in left(stage)
    beat = stage.command("beat")
    wait_until(lambda: nights(stage) == [1, 1], FAULT_SECONDS)
    beat.kill()

    make(stage, "night-3", 2)
    make(stage, "talk-3", 2)
    stage.command("beat")
    wait_until(lambda: "talk-3" not in left(stage), FAULT_SECONDS)
    assert "night-3" in left(stage), "a beat that comes back does again what was done"
    assert len(runs(stage, "nightly")) == 2
