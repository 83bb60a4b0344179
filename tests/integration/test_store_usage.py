"""What was used, and that none of it is lost or told twice when sessions go, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select

from inturn.models.clock import now
from inturn.models.errors import SessionNotFoundError, StorageError
from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store import retention, tally
from inturn.models.store.usage import REMOVED, UsageBy, UsageRecord, total_of, usage
from inturn.models.tables import ATTEMPTS, PAST_USAGE, SESSIONS
from tests.integration.stores import Store, meet, only_postgresql
from tests.integration.test_store_retention import TURN_COUNT, crash, long_session

GPT, CLAUDE = "openai/gpt-5", "anthropic/claude-sonnet-4-5"
MONDAY, TUESDAY = datetime(2026, 11, 23, 23, 30, tzinfo=UTC), datetime(2026, 11, 24, 0, 30, tzinfo=UTC)
MONTH = 30 * 86400
ANSWERED: dict[str, Any] = {"model": GPT, "input_tokens": 100, "output_tokens": 10, "price": 0.5, "started_at": MONDAY}
STATES = {"completed": TurnState.COMPLETED, "cancelled": TurnState.CANCELLED}


def attempt(store: Store, key: str = "s", outcome: str | None = "completed", lane: str = "chat", **values: Any) -> None:
    """A turn with one attempt, which ended so; None: it is under way."""
    sent = store.send(key, lane=Lane(lane))
    started = store.start(sent.session_id, lane=Lane(lane))
    if outcome is not None:
        state = STATES.get(outcome, TurnState.FAILED)
        assert store.settle(started, state, outcome=AttemptOutcome(outcome), **values.pop("error", {}))
    mine = (ATTEMPTS.c.session_id == started.session_id) & (ATTEMPTS.c.turn_number == started.number)
    store.change(ATTEMPTS, mine, **values)


def told(store: Store, by: UsageBy = "model", **which: Any) -> dict[str, UsageRecord]:
    return {record.key: record for record in usage(store.database, by, **which)}


def record(key: str, attempts: int = 1, **values: Any) -> UsageRecord:
    plain: dict[str, Any] = {
        "completed": attempts,
        "failed": 0,
        "estimated": 0,
        "uncounted": 0,
        "unpriced": 0,
        "price": 0.5,
    }
    tokens = {"input_tokens": 100 * attempts, "output_tokens": 10 * attempts}
    return UsageRecord(key, attempts, **plain | tokens | values)


@pytest.fixture
def used(store: Store) -> Store:
    store.session("ann", labels={"team": "legal"})
    store.session("bob", labels={"team": "hr"})
    attempt(store, "ann", **ANSWERED)
    attempt(store, "ann", **ANSWERED | {"price": 0.25, "estimated": True, "started_at": TUESDAY})
    attempt(store, "bob", lane="batch", **ANSWERED | {"model": CLAUDE, "price": None})
    return store


def test_usage_by_everything_there_is(used: Store):
    ann = record("ann", 2, price=0.75, estimated=1)
    bob = record("bob", price=None, unpriced=1)
    assert usage(used.database, "session") == [ann, bob]
    assert told(used, "model") == {GPT: renamed(ann, GPT), CLAUDE: renamed(bob, CLAUDE)}
    assert told(used, "provider") == {"openai": renamed(ann, "openai"), "anthropic": renamed(bob, "anthropic")}
    assert told(used, "lane") == {"chat": renamed(ann, "chat"), "batch": renamed(bob, "batch")}
    assert usage(used.database, "day") == [
        record("2026-11-23", 2, price=0.5, unpriced=1),
        record("2026-11-24", price=0.25, estimated=1),
    ]


def renamed(one: UsageRecord, key: str) -> UsageRecord:
    return total_of([one], key)


def test_usage_of_some_sessions_and_some_time(used: Store):
    assert set(told(used, "session", session_id="ann")) == {"ann"}
    assert set(told(used, "session", prefix="bo")) == {"bob"}
    assert set(told(used, "session", labels={"team": "hr"})) == {"bob"}
    assert told(used, "session", session_id="nobody") == {}
    assert set(told(used, "day", since=TUESDAY)) == {"2026-11-24"}
    assert set(told(used, "day", until=TUESDAY)) == {"2026-11-23"}
    assert told(used, "day", since=TUESDAY + timedelta(seconds=1)) == {}


@pytest.mark.parametrize(
    ("outcome", "values", "expected"),
    [
        ("completed", {}, {"completed": 1, "uncounted": 1, "unpriced": 1}),
        ("completed", {"input_tokens": 5, "output_tokens": 6}, {"completed": 1, "unpriced": 1}),
        ("completed", {"input_tokens": 5, "output_tokens": 6, "price": 0.0}, {"completed": 1, "price": 0.0}),
        ("safe", {}, {"failed": 1, "price": 0.0}),
        ("permanent", {}, {"failed": 1, "price": 0.0}),
        ("permanent", {"error_type": "reply_too_large"}, {"failed": 1, "uncounted": 1, "unpriced": 1}),
        ("permanent", {"input_tokens": 5, "output_tokens": 6}, {"failed": 1, "unpriced": 1}),
        ("ambiguous", {}, {"failed": 1, "uncounted": 1, "unpriced": 1}),
        ("cancelled", {"input_tokens": 5, "output_tokens": 6, "price": 0.5}, {"failed": 1, "price": 0.5}),
        ("lost", {}, {"failed": 1, "uncounted": 1, "unpriced": 1}),
        (None, {}, {"price": 0.0}),
    ],
)
def test_what_failed_counts_and_what_nobody_knows_is_no_zero(
    store: Store, outcome: str | None, values: dict[str, Any], expected: dict[str, Any]
):
    store.session()
    attempt(store, outcome=outcome, model=GPT, **values)
    tokens = {"input_tokens": values.get("input_tokens", 0), "output_tokens": values.get("output_tokens", 0)}
    assert told(store)[GPT] == record(GPT, **{"completed": 0, "price": None} | tokens | expected)
    retention.remove(store.database, "s")
    if outcome is None:  # now nobody will ever know
        expected = {"failed": 1, "uncounted": 1, "unpriced": 1}
    assert told(store)[GPT] == record(GPT, **{"completed": 0, "price": None} | tokens | expected)


def test_an_attempt_that_does_not_say_whom_it_asked_counts_for_its_turns_model(store: Store):
    store.session()
    attempt(store, model=None)
    assert set(told(store)) == {"echo/echo"}
    retention.remove(store.database, "s")
    assert set(told(store)) == {"echo/echo"}


BYS: tuple[UsageBy, ...] = ("model", "provider", "day")


@pytest.mark.parametrize("by_policy", [False, True])
def test_what_removed_sessions_used_stays_in_the_sums(used: Store, by_policy: bool):
    before = {by: told(used, by) for by in BYS}
    if by_policy:
        used.change(SESSIONS, SESSIONS.c.key != "", last_activity_at=now(-2 * MONTH))
        assert len(used.remove_expired(MONTH)) == 2
    else:
        retention.remove(used.database, "ann")
        assert {by: told(used, by) for by in BYS} == before, "half of it gone"
        assert set(told(used, "session")) == {"bob", REMOVED}
        retention.remove(used.database, "bob")
    assert used.count("SELECT count(*) FROM attempts") == 0
    assert {by: told(used, by) for by in BYS} == before
    midnight = TUESDAY.replace(minute=0)
    everything = record(REMOVED, 3, price=0.75, estimated=1, unpriced=1)
    for by in ("session", "lane"):
        assert told(used, by) == {REMOVED: everything}
    assert told(used, "model", prefix="ann") == {}, "whose it was is not known any more"
    assert told(used, "day", since=TUESDAY) == {"2026-11-24": before["day"]["2026-11-24"]}
    assert told(used, "day", until=midnight) == {"2026-11-23": before["day"]["2026-11-23"]}
    assert told(used, "day", until=TUESDAY) == before["day"], "the day is all that is known of them"
    assert told(used, "session", until=midnight - timedelta(days=1)) == {}


def test_removed_sessions_add_up(store: Store):
    for _ in range(3):
        store.session()
        attempt(store, **ANSWERED)
        retention.remove(store.database, "s")
    assert usage(store.database) == [record(GPT, 3, price=1.5)]
    assert past_rows(store) == 1


def past_rows(store: Store) -> int:
    return store.count("SELECT count(*) FROM past_usage")


@pytest.mark.parametrize("crash_after", [1, 2, 3])
def test_a_removal_that_is_broken_off_and_finished_by_others_counts_everything_once(
    store: Store, other: Store, monkeypatch: pytest.MonkeyPatch, crash_after: int
):
    long_session(store)
    before = told(store)
    crash(store, monkeypatch, crash_after)
    with pytest.raises(StorageError):
        retention.remove(store.database, "s")
    monkeypatch.undo()
    halfway = told(store)["echo/echo"]
    assert halfway.attempts == before["echo/echo"].attempts == TURN_COUNT + 1
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(retention.finish_removal, each.database) for each in (store, other)]:
            done.result(60)
    assert told(store)["echo/echo"].attempts == TURN_COUNT + 1
    assert store.count("SELECT count(*) FROM sessions") == 0


@only_postgresql
def test_two_removers_at_the_same_turns_count_them_once(store: Store, other: Store):
    session = long_session(store)
    store.change(SESSIONS, SESSIONS.c.id == session, state="deleting")
    first, second = (
        lambda through=through: through.write(retention._take_turns, session, 1000) for through in (store, other)
    )
    meet(first, store, second)
    with store.database.reading() as db:
        assert db.execute(select(PAST_USAGE.c.attempts)).scalar_one() == 1000


def test_removing_the_same_session_twice_counts_it_once(store: Store, other: Store):
    store.session()
    attempt(store, **ANSWERED)

    def remove(through: Store) -> bool:
        try:
            retention.remove(through.database, "s")
        except SessionNotFoundError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(remove, (store, other)))
    assert sorted(done) == [False, True]
    assert usage(store.database) == [record(GPT)]


def test_what_is_kept_goes_by_the_day_of_the_attempt(store: Store):
    store.session()
    attempt(store, **ANSWERED)
    attempt(store, **ANSWERED | {"started_at": TUESDAY})
    store.write(lambda db: tally.keep_usage(db, tally.used_by(db, ATTEMPTS.c.turn_number == 2)))
    with store.database.reading() as db:
        assert [(row.day, row.attempts) for row in db.execute(select(PAST_USAGE))] == [("2026-11-24", 1)]


def test_all_of_them_together():
    records = [record("a", price=None, unpriced=1), record("b", 2, completed=1, failed=0, estimated=1)]
    assert total_of(records) == record("total", 3, completed=2, estimated=1, unpriced=1)
    assert total_of(records[:1]).price is None
    assert total_of([*records[:1], record("echo/echo", price=0.0)]).price == 0.0, "what is priced at nothing is priced"
    assert total_of([]).price == 0.0


def test_numbers_beyond_32_bits_are_summed_up(store: Store):
    store.write(
        lambda db: db.execute(
            insert(PAST_USAGE).values(
                day="2026-11-23", model=GPT, attempts=3, completed=3, unpriced=0, estimated=0, uncounted=0,
                input_tokens=2**40, output_tokens=2**40, price=1.0,
            )
        )
    )  # fmt: skip
    assert told(store)[GPT].input_tokens == 2**40
