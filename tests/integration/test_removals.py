"""Many sessions removed at once, by rules and by request: added up, told one by one, and never all in memory."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from inturn import ArchiveError, Client, InvalidInputError, Settings
from inturn.cli import render
from inturn.client import Removal, RemovalSum
from inturn.models.clock import now
from inturn.models.store import opening, receipts
from inturn.models.store.opening import NewSession
from inturn.models.tables import SESSIONS
from inturn.retention_settings import RetentionSettings
from tests.integration.stores import Store

DAY = 86400
MANY = 700


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[Client]:
    url = store.database.url.render_as_string(hide_password=False)
    rules = [
        RetentionSettings(name="drafts", match="draft-*", idle_days=1),
        RetentionSettings(name="kept", match="kept-*", idle_days=1, archive=str(tmp_path / "none")),
    ]
    with Client(
        Settings.load(home=tmp_path, database_url=url, broker_url="redis://127.0.0.1:1/0").model_copy(
            update={"retention": rules, "max_removal_share": 1.0, "cleanup_chunk": 100}
        )
    ) as client:
        yield client


def fill(store: Store, prefix: str, many: int) -> None:
    with store.database.writing() as db:
        for number in range(many):
            opening.create(db, NewSession(f"{prefix}-{number}", "echo/echo"))
    store.change(SESSIONS, SESSIONS.c.key.startswith(f"{prefix}-"), last_activity_at=now(-2 * DAY))


def removals_in_memory() -> int:
    gc.collect()
    return sum(isinstance(each, Removal) for each in gc.get_objects())


REMOVE: dict[str, Callable[[Client, Callable[[Removal], object]], RemovalSum]] = {
    "by rules": lambda client, told: client.cleanup(on_removal=told)[0],
    "by rules, dry": lambda client, told: client.cleanup(dry_run=True, on_removal=told)[0],
    "by request": lambda client, told: client.delete_sessions(pattern="draft-*", on_removal=told),
    "by request, dry": lambda client, told: client.delete_sessions(pattern="draft-*", dry_run=True, on_removal=told),
}


@pytest.mark.parametrize("how", REMOVE)
def test_memory_does_not_grow_with_their_number(store: Store, client: Client, how: str):
    fill(store, "draft", MANY)
    counts, seen = list[int](), set[str]()

    def told(removal: Removal) -> None:
        seen.add(removal.session_id)
        if len(seen) % 100 == 50:
            counts.append(removals_in_memory())

    found = REMOVE[how](client, told)
    assert (found.sessions, len(seen), len(counts)) == (MANY, MANY, MANY // 100)
    assert max(counts) <= 2 * 100 + 10, "a chunk, and the next one"
    assert len(list(client.list_sessions())) == (MANY if "dry" in how else 0)


def test_what_is_listed_is_what_is_added_up(store: Store, client: Client):
    fill(store, "draft", 3)
    store.answer("draft-1", "hello")
    store.change(SESSIONS, SESSIONS.c.key == "draft-1", last_activity_at=now(-2 * DAY))
    store.hold("draft-2")
    (first, second) = listed = list(client.list_due())
    assert [one.session_id for one in listed] == ["draft-0", "draft-1"]
    added = RemovalSum("drafts", 2, 1, 2, second.bytes)
    assert client.cleanup(dry_run=True) == [added]
    assert (first.bytes, second.bytes > 10) == (0, True)
    matching = list(client.list_matching(pattern="draft-*", held_too=True))
    assert [one.session_id for one in matching] == ["draft-0", "draft-1", "draft-2"]
    assert client.delete_sessions(pattern="draft-*", held_too=True, dry_run=True).sessions == 3
    assert client.cleanup() == [added]
    erased = client.delete_sessions(pattern="draft-*", held_too=True)
    assert erased == RemovalSum("erasure", 1, 0, 0, 0)
    assert client.delete_sessions(pattern="draft-*") == RemovalSum("erasure")
    assert [run.rule for run in client.list_removal_runs()] == ["erasure", "drafts"], (
        "where there is none, there is no run"
    )


@pytest.mark.parametrize("pattern", ["ann[1-3]*", "ann %", "ann/*", "Ä*", "*\\n", "a" * 201, 7])
def test_a_pattern_that_no_session_can_have_is_refused(client: Client, pattern: str):
    for use in (client.delete_sessions, client.list_matching):
        with pytest.raises(InvalidInputError, match=r"can be no session's ID: use letters, digits and \. _ : @ -"):
            use(pattern=pattern)
    assert list(client.list_matching(pattern="*" + "a" * 199 + "?", labels={"é": "["})) == []


def test_what_was_removed_before_a_rule_failed_is_told(store: Store, client: Client):
    for prefix in ("draft", "kept"):
        fill(store, prefix, 2)
    seen = list[str]()
    with pytest.raises(ArchiveError) as failed:
        client.cleanup(on_removal=lambda removal: seen.append(removal.session_id))
    assert failed.value.__notes__ == ["2 sessions were removed all the same: `inturn retention history` says which"]
    assert seen == ["draft-0", "draft-1"]


def test_a_run_that_its_caller_breaks_off_is_over(store: Store, client: Client):
    def tired(removal: Removal) -> None:
        raise KeyboardInterrupt

    by_request = partial(client.delete_sessions, pattern="draft-*")
    removes: list[Callable[..., object]] = [client.cleanup, by_request]
    for place, remove in enumerate(removes, 1):
        fill(store, "draft", 2)
        with pytest.raises(KeyboardInterrupt):
            remove(on_removal=tired)
        run, *others = receipts.list_runs(store.database)
        assert (run.ended_at is None, run.error is None, len(others)) == (False, False, place - 1)
        client.delete_sessions(pattern="draft-*")


def test_a_table_of_many_rows_is_printed_as_they_come(capsys: pytest.CaptureFixture[str]):
    def rows() -> Iterator[tuple[int]]:
        for number in range(3):
            yield (number,)
            assert capsys.readouterr().out.endswith(f"{number}\n")

    render.table(["n"], rows(), empty="")
