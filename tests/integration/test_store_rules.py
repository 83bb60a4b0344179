"""Rules of retention: which session each covers, and when it is due, on both databases."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest
from sqlalchemy import func, select

from inturn.archives import objects
from inturn.archives.reading import opened
from inturn.archives.writing import Archive
from inturn.cleaning import ALL_RULES, FEW, Cleanup
from inturn.models.clock import now
from inturn.models.cron import checked_cron
from inturn.models.errors import ArchiveError, RemovalShareError, SessionNotFoundError
from inturn.models.pace import Pace
from inturn.models.states import Retention, SessionState
from inturn.models.store import expiry, forking, opening, reading, receipts, retention, schedules
from inturn.models.store.expiry import Expiry
from inturn.models.store.outlook import outlook
from inturn.models.store.receipts import Removal
from inturn.models.store.rules import OWN, Rule, default_rule, older_than
from inturn.models.store.schedules import NewSchedule
from inturn.models.store.selecting import SessionFilter
from inturn.models.tables import REMOVALS, SESSIONS, TURNS
from tests.integration.stores import Store, only_sqlite

DAY = 86400.0
DEFAULT = default_rule(30 * DAY)


@pytest.fixture
def bucket() -> Iterator[str]:
    yield "memory://bucket/archives"
    fsspec.filesystem("memory").store.clear()


def there(store: Store, key: str, idle: float = 0.0, age: float | None = None, **how: Any) -> None:
    """A session that was active so many days ago."""
    store.session(key, **how)
    made = idle if age is None else age
    store.change(SESSIONS, SESSIONS.c.key == key, last_activity_at=now(-idle * DAY), created_at=now(-made * DAY))


def cleanup(store: Store, *rules: Rule, **how: Any) -> Cleanup:
    return Cleanup(store.database, [OWN, *rules, DEFAULT], "a test", **how)


def by_rule(removals: list[Removal]) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for removal in removals:
        found.setdefault(removal.rule, set()).add(removal.session_id)
    return found


def left(store: Store) -> set[str]:
    return {row.key for row in reading.list_sessions(store.database, SessionFilter())}


def test_the_first_rule_that_covers_a_session_counts(store: Store):
    rules = (
        Rule("vip", match="vip-*"),
        Rule("drafts", match="*draft-?", idle_seconds=DAY),
        Rule("legal", labels={"team": "legal", "öffentlich": "ja"}, idle_seconds=2 * DAY),
        Rule("gpt", model="openai/*", age_seconds=3 * DAY),
        Rule("batches", from_batch=True, idle_seconds=4 * DAY),
    )
    there(store, "vip-1", 5000)
    there(store, "vip-draft-1", 5000)
    there(store, "a-draft-1", 1.1)
    there(store, "a-draft-12", 5)
    there(store, "a-draft-2", 0.9)
    there(store, "legal", 2.1, labels={"team": "legal", "öffentlich": "ja", "more": "x"})
    there(store, "half-legal", 2.1, labels={"team": "legal"})
    there(store, "gpt", 0, age=3.1)
    there(store, "young-gpt", 2, age=2.9)
    for key in ("gpt", "young-gpt"):
        store.change(SESSIONS, SESSIONS.c.key == key, model="openai/gpt-5")
    there(store, "of-a-batch", 4.1)
    store.change(SESSIONS, SESSIONS.c.key == "of-a-batch", batch_id=7)
    there(store, "own", 1.1, retention=Retention.IDLE, retention_seconds=DAY)
    there(store, "own-draft-1", 1.1, retention=Retention.IDLE, retention_seconds=2 * DAY)
    there(store, "never-draft-1", 5000, retention=Retention.NEVER)
    there(store, "old", 31)
    expected = {
        "own": {"own"}, "drafts": {"a-draft-1"}, "legal": {"legal"}, "gpt": {"gpt"}, "batches": {"of-a-batch"},
        "default": {"old"},
    }  # fmt: skip
    work = cleanup(store, *rules)
    due = list(work.due())
    assert by_rule(due) == expected
    everybody = left(store)
    assert list(work.run()) == due, "cleanup removes exactly what its dry run lists"
    assert left(store) == everybody - set().union(*expected.values())
    assert list(work.run()) == []
    assert {run.rule for run in receipts.list_runs(store.database)} == set(expected), (
        "where nothing is due, nothing ran"
    )
    found = outlook(store.database, work.rules, "a-draft-2")
    assert (found.rule and found.rule.name, found.due) == ("drafts", False)
    kept = outlook(store.database, work.rules, "never-draft-1")
    assert (kept.rule, kept.due, kept.due_at, kept.counts_from) == (None, False, None, None)


def test_when_a_session_is_due_and_from_where_that_counts(store: Store):
    rules = [
        OWN,
        Rule("both", match="both-*", idle_seconds=2 * DAY, age_seconds=3 * DAY),
        Rule("few", match="few-*", more_than=0),
        Rule("vip", match="vip"),
        DEFAULT,
    ]
    there(store, "both-idle", 0.5, age=0.6)
    there(store, "both-age", 0.5, age=2.9)
    there(store, "both-imported", 0.5, age=900)
    store.change(SESSIONS, SESSIONS.c.key == "both-imported", imported_at=now(-2.8 * DAY))
    there(store, "both-over", 5)
    for key in ("few-1", "vip", "held", "busy", "sent", "paused"):
        there(store, key, 40)
    there(store, "own", 1, retention=Retention.IDLE, retention_seconds=5 * DAY)
    store.hold("held")
    store.send("busy")
    store.change(SESSIONS, SESSIONS.c.key == "busy", last_activity_at=now(-40 * DAY))
    for key in ("sent", "paused"):
        schedules.add(store.database, a_schedule(key))
    schedules.pause(store.database, "paused")
    expected = {
        "both-idle": ("both", False, 1.5, "last_activity_at"),
        "both-age": ("both", False, 0.1, "created_at"),
        "both-imported": ("both", False, 0.2, "imported_at"),
        "both-over": ("both", True, -3, "last_activity_at"),
        "few-1": ("few", True, None, None),
        "vip": ("vip", False, None, None),
        "own": ("own", False, 4, "last_activity_at"),
        "held": ("default", False, -10, "last_activity_at"),
        "busy": ("default", False, -10, "last_activity_at"),
        "sent": ("default", False, -10, "last_activity_at"),
        "paused": ("default", True, -10, "last_activity_at"),
    }
    for key, (rule, is_due, days, counts_from) in expected.items():
        it = outlook(store.database, rules, key)
        assert (it.rule and it.rule.name, it.due, it.counts_from) == (rule, is_due, counts_from), key
        away = it.due_at and (it.due_at - datetime.now(UTC)).total_seconds() / DAY
        assert away == (days if days is None else pytest.approx(days, abs=0.01)), key
        assert (it.held, it.busy) == (key == "held", key == "busy")
        assert (it.schedules, it.paused_schedules) == ([key] * (key == "sent"), [key] * (key == "paused"))
    with pytest.raises(SessionNotFoundError):
        outlook(store.database, rules, "none")


@pytest.mark.parametrize("pattern", ["50%", "50%*", "a_b", "a[b]?", "*[b]*", "A*", "\\*", "*\\"])
def test_only_stars_and_question_marks_stand_for_others(store: Store, pattern: str):
    """Not what SQL takes for such, and case counts."""
    models = {"50%": "50%", "50%x": "50%x", "a_b": "a_b", "axb": "axb", "a[b]c": "a[b]c", "abc": "abc", "\\x": "\\x"}
    models["x\\"] = "x\\"
    for number, model in enumerate(models.values()):
        there(store, f"s{number}", 2)
        store.change(SESSIONS, SESSIONS.c.key == f"s{number}", model=model)
    wanted = {
        "50%": {"50%"}, "50%*": {"50%", "50%x"}, "a_b": {"a_b"}, "a[b]?": {"a[b]c"}, "*[b]*": {"a[b]c"}, "A*": set[str](),
        "\\*": {"\\x"}, "*\\": {"x\\"},
    }[pattern]  # fmt: skip
    due = cleanup(store, Rule("r", model=pattern, idle_seconds=DAY)).due()
    assert {list(models)[int(removal.session_id[1:])] for removal in due} == wanted


def test_of_more_than_so_many_the_oldest_go(store: Store):
    rule = Rule("few", match="guest-*", more_than=2)
    for number, idle in enumerate([5, 1, 3, 2, 4]):
        there(store, f"guest-{number}", idle)
    there(store, "else", 29)
    store.hold("guest-0")
    work = cleanup(store, rule, chunk=1)
    assert by_rule(list(work.due())) == {"few": {"guest-2", "guest-4"}}
    assert [removal.session_id for removal in work.run()] == ["guest-4", "guest-2"]
    assert left(store) == {"guest-0", "guest-1", "guest-3", "else"}
    assert list(cleanup(store, replace(rule, more_than=5)).due()) == []
    assert by_rule(list(cleanup(store, replace(rule, more_than=0)).due())) == {"few": {"guest-1", "guest-3"}}


def test_what_is_held_or_sent_to_by_a_schedule_stays(store: Store):
    for key in ("held", "scheduled", "paused", "prefix"):
        there(store, key, 40)
    store.hold("held", "a lawsuit", by="the counsel")
    for name in ("scheduled", "paused", "prefix"):
        schedules.add(store.database, a_schedule(name, new_session=name == "prefix"))
    schedules.pause(store.database, "paused")
    assert {removal.session_id for removal in cleanup(store).run()} == {"paused", "prefix"}
    held = reading.get_session(store.database, "held")
    assert (held.hold_reason, held.held_by) == ("a lawsuit", "the counsel")
    assert held.held_at is not None
    store.release("held")
    released = reading.get_session(store.database, "held")
    assert (released.held, released.hold_reason, released.held_by, released.held_at) == (False, None, None, None)


def test_one_rule_for_once_covers_all_but_what_is_kept(store: Store):
    there(store, "a", 2)
    there(store, "own", 2, retention=Retention.IDLE, retention_seconds=90 * DAY)
    there(store, "never", 2, retention=Retention.NEVER)
    there(store, "held", 2)
    store.hold("held")
    there(store, "young", 0.5)
    work = Cleanup(store.database, [older_than(DAY)], "a test")
    assert by_rule(list(work.run())) == {"older-than": {"a", "own"}}


def test_receipts_say_what_went_by_which_rule_and_for_whom(store: Store, tmp_path: Path):
    rule = Rule("drafts", match="draft-*", idle_seconds=DAY, archive=str(tmp_path))
    for number in range(3):
        there(store, f"draft-{number}")
        store.answer(f"draft-{number}", prompt="Grüße, CANARY")
        store.change(SESSIONS, SESSIONS.c.key == f"draft-{number}", last_activity_at=now(-2 * DAY))
    assert len(list(cleanup(store, rule, chunk=2).run())) == 3
    (run,) = receipts.list_runs(store.database)
    assert (run.rule, run.asked_by, run.sessions, run.turns, run.messages) == ("drafts", "a test", 3, 3, 6)
    assert run.bytes > 3 * len("Grüße, CANARY".encode())
    assert run.error is None
    assert run.ended_at is not None
    assert run.archive is not None
    with opened(Path(run.archive)) as archive:
        assert sorted(it.session_id for it in archive.sessions()) == ["draft-0", "draft-1", "draft-2"]
    (receipt,) = receipts.list_receipts(store.database, "draft-1")
    assert (receipt.rule, receipt.turns, receipt.messages, receipt.run) == ("drafts", 1, 2, run)
    with store.database.reading() as db:
        assert "CANARY" not in repr(db.execute(select(REMOVALS)).all()) + repr(run)
    for seconds, counts in ((DAY, 0), (-DAY, 3), (-DAY, 0)):
        assert expiry.remove(store.database, Expiry("old receipts", seconds), 0, Pace(2)) == counts
    assert receipts.list_runs(store.database) == []


def test_what_cannot_be_archived_stays_and_other_rules_go_on(store: Store, tmp_path: Path):
    rules = (
        Rule("gone", match="a*", idle_seconds=DAY, archive=str(tmp_path / "missing")),
        Rule("b", match="b*", idle_seconds=DAY),
    )
    there(store, "a", 2)
    there(store, "b", 2)
    with pytest.raises(ArchiveError, match="missing"):
        list(cleanup(store, *rules).run())
    assert left(store) == {"a"}
    failed = {run.rule: run for run in receipts.list_runs(store.database)}["gone"]
    assert "missing" in (failed.error or "")
    assert (failed.sessions, failed.archive) == (0, None)
    (tmp_path / "missing").mkdir()
    assert by_rule(list(cleanup(store, *rules).run())) == {"gone": {"a"}}


def test_an_erasure_takes_what_is_there_by_whatever_name(store: Store):
    """Since it was listed a session may have been renamed, held, or taken by a remover that died."""
    ids = {key: store.session(key) for key in ("a", "held", "begun", "gone")}
    store.answer("a")
    run = receipts.begin_run(store.database, retention.ERASURE, "a test")
    forking.rename(store.database, ids["a"], "a", "b")
    store.hold("held")
    retention.remove(store.database, "gone")
    store.write(retention.fence_off, ids["begun"])
    erased = {key: retention.erase(store.database, ids[key], run, held_too=False) for key in ids}
    assert {key: it and (it.session_id, it.rule, it.turns) for key, it in erased.items()} == {
        "a": ("b", "erasure", 1), "held": None, "begun": None, "gone": None,
    }  # fmt: skip
    assert left(store) == {"held"}
    assert retention.erase(store.database, ids["held"], run, held_too=True)
    assert [receipt.rule for receipt in receipts.list_receipts(store.database, "b")] == ["erasure"]
    (found,) = receipts.list_runs(store.database)
    assert (found.sessions, found.turns) == (2, 1)


def test_a_transaction_takes_few_turns_and_one_session_at_least(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "TURNS_A_TRANSACTION", 2)
    for number, turns in enumerate([1, 1, 1, 3, 0]):
        there(store, f"s{number}")
        for _ in range(turns):
            store.answer(f"s{number}")
        store.change(SESSIONS, SESSIONS.c.key == f"s{number}", last_activity_at=now(-40 * DAY))
    chunks = []
    while chunk := store.remove_due(DEFAULT):
        chunks.append([removal.session_id for removal in chunk])
    assert chunks == [["s0", "s1"], ["s2"], ["s3"], ["s4"]]


def test_where_an_archive_broke_off_is_in_the_receipts(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rule = Rule("drafts", match="draft-*", idle_seconds=DAY, archive=str(tmp_path))
    for number in range(2):
        there(store, f"draft-{number}", 2)
    real, calls = Archive.sync, iter([1])

    def full(archive: Archive) -> None:
        if next(calls, None) is None:
            raise ArchiveError(str(tmp_path), "no room left", "free some")
        real(archive)

    monkeypatch.setattr(Archive, "sync", full)
    with pytest.raises(ArchiveError):
        list(cleanup(store, rule, chunk=1).run())
    (run,) = receipts.list_runs(store.database)
    assert (run.sessions, run.checksum) == (1, None)
    assert [str(path) for path in tmp_path.glob("inturn-*")] == [run.archive]
    assert left(store) == {"draft-1"}


@pytest.mark.parametrize("use", ["send", "resume", "rename", "hold", "delete"])
def test_while_chunks_are_uploaded_everybody_else_goes_on(
    store: Store, other: Store, bucket: str, monkeypatch: pytest.MonkeyPatch, use: str
):
    """Also with what is being archived: who was used since stays, and is archived anew when it is due again."""
    rule = Rule("drafts", match="draft-*", age_seconds=DAY, archive=bucket)
    for number in range(3):
        there(store, f"draft-{number}", 2)
        store.answer(f"draft-{number}")
    put, uses = objects.ObjectDraft.sync, iter([1])

    def slow(draft: objects.ObjectDraft) -> None:
        if next(uses, None):
            with ThreadPoolExecutor(1) as meanwhile:
                meanwhile.submit(USES[use], other).result(5)
        put(draft)

    monkeypatch.setattr(objects.ObjectDraft, "sync", slow)
    removed = [removal.session_id for removal in cleanup(store, rule, chunk=2).run()]
    assert removed == ["draft-0", "draft-2"]
    assert left(store) == {"rename": {"draft-x"}, "delete": set[str]()}.get(use, {"draft-1"})
    (run,) = receipts.list_runs(store.database)
    assert (run.sessions, run.error) == (2, None)
    with opened(str(run.archive)) as archive:
        assert [it.session_id for it in archive.sessions()] == ["draft-0", "draft-1", "draft-2"]


USES: dict[str, Callable[[Store], object]] = {
    "send": lambda store: store.answer("draft-1", "one more"),
    "resume": lambda store: opening.resume_session(store.database, "draft-1", None, "be brief"),
    "rename": lambda store: forking.rename(
        store.database, reading.get_session(store.database, "draft-1").id, "draft-1", "draft-x"
    ),
    "hold": lambda store: store.hold("draft-1"),
    "delete": lambda store: retention.remove(store.database, "draft-1"),
}


@only_sqlite
def test_too_large_a_share_at_once_takes_somebodys_word(store: Store):
    with store.database.writing() as db:
        for number in range(FEW + 51):
            opening.create(db, opening.NewSession(f"s{number}", "echo/echo"))
    old = [f"s{number}" for number in range(FEW + 1)]
    store.change(SESSIONS, SESSIONS.c.key.in_(old), last_activity_at=now(-31 * DAY))
    with pytest.raises(RemovalShareError, match=r"101 of 151 sessions .* 'default'.*--yes"):
        list(cleanup(store, share=0.5).run())
    assert len(left(store)) == 100, "a page of them: nothing is removed"
    (run,) = receipts.list_runs(store.database)
    assert (run.rule, run.sessions) == (ALL_RULES, 0)
    assert "101 of 151" in (run.error or "")
    store.hold("s0")
    assert len(list(cleanup(store, share=0.5).run())) == FEW, "few may always go"


def a_schedule(key: str, *, new_session: bool = False) -> NewSchedule:
    return NewSchedule(key, key, "hello", checked_cron("0 9 * * *", "UTC", datetime.now(UTC)), new_session)


def test_a_session_of_very_many_turns_goes_in_several_transactions(store: Store, monkeypatch: pytest.MonkeyPatch):
    for most in "MANY_TURNS", "TURNS_A_STEP":
        monkeypatch.setattr(retention, most, 2)
    there(store, "long", 40)
    for _ in range(5):
        store.answer("long")
    store.change(SESSIONS, SESSIONS.c.key == "long", last_activity_at=now(-40 * DAY))
    turns_left = list[int]()

    def look(_name: str) -> None:
        with store.database.reading() as db:
            assert db.execute(select(SESSIONS.c.state)).scalar() == SessionState.DELETING
            turns_left.append(db.execute(select(func.count()).select_from(TURNS)).scalar_one())

    monkeypatch.setattr(retention, "reached", look)
    (removed,) = store.remove_due(DEFAULT)
    assert (removed.session_id, removed.turns, removed.messages) == ("long", 5, 10)
    assert turns_left[:2] == [5, 3]
    assert turns_left[-1] == 0
    assert not left(store)
    assert [receipt.turns for receipt in receipts.list_receipts(store.database, "long")] == [5]
