"""What who looks through sessions sees: each session once, the latest first; sums; lengths, and no text."""

from datetime import UTC, datetime, timedelta

import pytest

from inturn.models.states import Role, TurnState
from inturn.models.store import browsing
from inturn.models.store.browsing import LONGEST_SHOWN, MessageGlance, Place, SessionGlance, TurnGlance
from inturn.models.store.selecting import SessionFilter
from inturn.models.tables import SESSIONS, TURNS
from tests.integration.stores import Store

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVERYBODY = SessionFilter()


def used_at(store: Store, key: str, when: datetime) -> None:
    store.change(SESSIONS, SESSIONS.c.key == key, last_activity_at=when)


def pages(store: Store, limit: int, **which: object) -> list[SessionGlance]:
    """All pages, one after the other, as who follows the link to the next one sees them."""
    seen: list[SessionGlance] = []
    before: Place | None = None
    while True:
        page = browsing.list_recent(store.database, EVERYBODY, before=before, limit=limit, **which)  # type: ignore[arg-type]
        seen += page
        if len(page) < limit:
            return seen
        before = page[-1].place


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_have_every_session_once_the_latest_first(store: Store, limit: int) -> None:
    for number in range(7):
        store.session(f"s{number}")
        # Two of them at the same moment, others a microsecond apart.
        used_at(store, f"s{number}", NOON + timedelta(microseconds=number // 2, seconds=number == 6))
    assert [one.key for one in pages(store, limit)] == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]


def test_a_session_that_is_used_meanwhile_hides_no_other(store: Store) -> None:
    for number in range(6):
        store.session(f"s{number}")
        used_at(store, f"s{number}", NOON + timedelta(minutes=number))
    first = browsing.list_recent(store.database, EVERYBODY, limit=3)
    used_at(store, "s0", NOON + timedelta(hours=1))
    rest = browsing.list_recent(store.database, EVERYBODY, before=first[-1].place, limit=3)
    assert [one.key for one in [*first, *rest]] == ["s5", "s4", "s3", "s2", "s1"]


def test_they_are_found_by_what_they_are(store: Store) -> None:
    store.session("ann-1", labels={"team": "legal"})
    store.session("ann-2")
    store.session("an.1")
    store.hold("ann-2", "a lawsuit", by="legal")
    store.send("an.1")
    asked = {
        "ann*": {"ann-1", "ann-2"},
        "*1": {"ann-1", "an.1"},
        "an??": {"an.1"},
        "ann": set[str](),
        "ann-?": {"ann-1", "ann-2"},
        "ANN*": set(),
        "a*": {"ann-1", "ann-2", "an.1"},
    }
    for pattern, found in asked.items():
        assert {one.key for one in pages(store, 2, pattern=pattern)} == found, pattern
    [held] = pages(store, 5, held=True)
    assert (held.key, held.held, held.hold_reason, held.held_by) == ("ann-2", True, "a lawsuit", "legal")
    assert {one.key for one in pages(store, 5, held=False)} == {"ann-1", "an.1"}
    store.change(SESSIONS, SESSIONS.c.key == "ann-1", batch_id=1)
    assert [one.key for one in pages(store, 5, of_batch=True)] == ["ann-1"]
    assert {one.key for one in pages(store, 5, of_batch=False)} == {"ann-2", "an.1"}
    busy = browsing.list_recent(store.database, SessionFilter(busy=True))
    assert [one.key for one in busy] == ["an.1"]
    [labelled] = browsing.list_recent(store.database, SessionFilter(labels={"team": "legal"}))
    assert labelled.labels == {"team": "legal"}
    assert browsing.get_glance(store.database, "nobody") is None


def test_sums_are_those_of_its_turns(store: Store) -> None:
    session = store.session("s")
    store.session("empty")
    for state in (TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED):
        store.send()
        assert store.settle(store.start(session), state)
    store.change(TURNS, TURNS.c.number == 1, input_tokens=100, output_tokens=10, price=0.5)
    store.change(TURNS, TURNS.c.number == 2, input_tokens=11, output_tokens=None, price=0.25)
    store.send()
    store.start(session)
    store.send()
    store.send()
    glance = browsing.get_glance(store.database, "s")
    assert glance is not None
    assert (glance.turns, glance.waiting, glance.running, glance.failed) == (6, 2, 1, 1)
    assert (glance.input_tokens, glance.output_tokens, glance.price) == (111, 10, 0.75)
    empty = browsing.get_glance(store.database, "empty")
    assert empty is not None
    assert (empty.turns, empty.waiting, empty.running, empty.failed) == (0, 0, 0, 0)
    assert (empty.input_tokens, empty.output_tokens, empty.price) == (0, 0, None)


def test_turns_come_page_by_page_the_latest_first(store: Store) -> None:
    session = store.session("s")
    other = store.session("other")
    for _ in range(5):
        store.send()
    store.send("other")
    found: list[TurnGlance] = []
    while page := browsing.list_turns(store.database, session, found[-1].number if found else None, limit=2):
        found += page
    assert [turn.number for turn in found] == [5, 4, 3, 2, 1]
    assert {turn.state for turn in found} == {TurnState.QUEUED}
    assert [turn.number for turn in browsing.list_turns(store.database, other)] == [1]


def test_of_messages_only_the_length_is_read_unless_the_text_is_asked_for(store: Store) -> None:
    session = store.session("s", system_message="Be brief.")
    store.send(prompt="Grüße, 世界 🌍")
    assert store.settle(store.start(session), TurnState.COMPLETED, reply="x" * (LONGEST_SHOWN + 5))
    store.send(prompt="and then?")
    found = browsing.list_messages(store.database, session, [1])
    assert [(one.role, one.characters, one.content) for one in found] == [
        (Role.SYSTEM, 9, None),
        (Role.USER, 11, None),
        (Role.ASSISTANT, LONGEST_SHOWN + 5, None),
    ]
    shown = browsing.list_messages(store.database, session, [1, 2], with_content=True)
    contents = ["Be brief.", "Grüße, 世界 🌍", "x" * LONGEST_SHOWN, "and then?"]
    assert [one.content for one in shown] == contents
    assert {one.turn_number for one in shown} == {1, 2}
    assert isinstance(shown[0], MessageGlance)
    assert browsing.list_messages(store.database, session, []) == []


def test_receipts_are_listed_whatever_they_are_of(store: Store) -> None:
    for number in range(3):
        store.session(f"s{number}")
    store.change(SESSIONS, SESSIONS.c.key != "", last_activity_at=NOON - timedelta(days=400))
    assert len(store.remove_expired(86_400)) == 3
    first = browsing.list_removals(store.database, limit=2)
    rest = browsing.list_removals(store.database, before=first[-1].id, limit=2)
    assert {one.session_key for one in [*first, *rest]} == {"s0", "s1", "s2"}
    assert [one.id for one in [*first, *rest]] == sorted((one.id for one in [*first, *rest]), reverse=True)
    assert {(one.rule, one.kept) for one in first} == {("default", "nothing")}
