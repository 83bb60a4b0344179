"""Holds, on both databases: who has one keeps it, and what is over is not forgotten."""

import pytest

from inturn.models.errors import SessionHeldError, SessionNotFoundError
from inturn.models.pace import Pace
from inturn.models.store import expiry, forking, holding, reading, retention
from inturn.models.store.expiry import Expiry
from inturn.models.store.holding import Hold
from inturn.models.tables import SESSIONS
from tests.integration.stores import Store, meet

CLAIM = Hold("claim 4711", "ann@host")


def test_a_second_hold_is_refused_and_says_who_has_the_first(store: Store):
    store.session()
    holding.hold(store.database, "s", CLAIM)
    first = reading.get_session(store.database, "s")
    for other in (Hold(None, "bob@host"), Hold("claim 4712", "ann@host"), Hold("claim 4711", "bob@host")):
        with pytest.raises(SessionHeldError, match=r"'s' is held by ann@host since 2.* UTC \(claim 4711\)") as refused:
            holding.hold(store.database, "s", other)
        assert (refused.value.reason, refused.value.held_at) == ("claim 4711", first.held_at)
    holding.hold(store.database, "s", CLAIM)
    assert reading.get_session(store.database, "s") == first, "the same once more changes nothing"
    assert holding.list_past(store.database, "s") == []


def test_what_is_replaced_or_released_is_not_forgotten(store: Store):
    session = store.session()
    holding.hold(store.database, "s", CLAIM)
    first = reading.get_session(store.database, "s")
    holding.hold(store.database, "s", Hold(None, "bob@host"), replaces=True)
    assert (held := reading.get_session(store.database, "s")).held_by == "bob@host"
    assert holding.release(store.database, "s", "carl@host")
    assert not holding.release(store.database, "s", "dora@host")
    assert not reading.get_session(store.database, "s").held
    forking.rename(store.database, session, "s", "t")
    last, before = holding.list_past(store.database, "t")
    assert (before.reason, before.held_by, before.held_at, before.released_by) == (
        "claim 4711", "ann@host", first.held_at, "bob@host",
    )  # fmt: skip
    assert (last.reason, last.held_by, last.held_at, last.released_by) == (None, "bob@host", held.held_at, "carl@host")
    assert before.released_at <= last.released_at
    assert holding.list_past(store.database, "s") == []


def test_when_its_session_goes_the_reason_goes_and_the_rest_stays(store: Store):
    """Reasons are text, and may name somebody."""
    for key in ("s", "other"):
        store.session(key)
        holding.hold(store.database, key, CLAIM)
        holding.release(store.database, key, "bob@host")
    store.write(lambda db: db.execute(SESSIONS.update().where(SESSIONS.c.key == "s").values(next_turn=1001)))
    retention.remove(store.database, "s")
    (gone,), (there,) = (holding.list_past(store.database, key) for key in ("s", "other"))
    assert (gone.reason, gone.held_by, gone.released_by) == (None, "ann@host", "bob@host")
    assert there.reason == "claim 4711"
    assert expiry.remove(store.database, Expiry("old receipts", 3600), 0, Pace(50)) == 0
    assert holding.list_past(store.database, "s")
    assert expiry.remove(store.database, Expiry("old receipts", -3600), 0, Pace(50)) == 2
    assert not holding.list_past(store.database, "s")


def test_of_two_at_once_one_gets_it(store: Store, other: Store):
    store.session()
    with pytest.raises(SessionHeldError, match="ann@host"):
        meet(
            lambda: holding.hold(store.database, "s", CLAIM),
            store,
            lambda: holding.hold(other.database, "s", Hold(None, "bob@host")),
        )


def test_a_fork_is_held_by_nobody(store: Store):
    session = store.session()
    holding.hold(store.database, "s", CLAIM)
    forking.fork(store.database, session, "s", "fork", None)
    fork = reading.get_session(store.database, "fork")
    assert (fork.held, fork.hold_reason, fork.held_by, fork.held_at) == (False, None, None, None)


def test_what_is_not_there_cannot_be_held(store: Store):
    for ask in (lambda: holding.hold(store.database, "s", CLAIM), lambda: holding.release(store.database, "s", "bob")):
        with pytest.raises(SessionNotFoundError):
            ask()
