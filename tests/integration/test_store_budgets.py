"""What budgets count, and when they are used up, on both databases."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select

from inturn.models.clock import now
from inturn.models.store import budgets, retention
from inturn.models.store.budgets import Budget, Exceeded, accounts, spend, standings
from inturn.models.tables import SESSIONS, SPENDING
from tests.integration.stores import Store

LEGAL = {"team": "legal"}
YESTERDAY = "2026-01-01"
MONTH = 30 * 86400


def budget(scope: str = "all", usd: float | None = 20.0, tokens: int | None = None, **how: bool) -> Budget:
    return Budget(scope.rpartition("=")[2], scope, how.get("daily", True), usd, tokens, how.get("waits", False))


def exceeded(store: Store, *of: Budget, labels: dict[str, str] | None = None, session: int = 7) -> Exceeded | None:
    return store.write(budgets.reached, of, {session: labels or {}}).get(session)


def rows(store: Store) -> list[tuple[str, bool, float, int]]:
    with store.database.reading() as db:
        found = db.execute(select(SPENDING).order_by(SPENDING.c.scope, SPENDING.c.slot))
        return [(row.scope, row.slot != "", row.usd, row.tokens) for row in found]


def test_whose_money_a_session_spends():
    of = [budget("all"), budget("session"), budget("label:team"), budget("label:team=legal"), budget("label:team=hr"),
          budget("label:user"), budget("all", tokens=5), budget("all", daily=False)]  # fmt: skip
    assert accounts(of, 7, LEGAL) == (("all", True), ("session:7", True), ("label:team=legal", True), ("all", False))
    assert accounts(of[1:4], 7, {}) == (("session:7", True),)


def test_values_of_labels_that_are_too_long_for_a_key_stay_apart():
    keys = [accounts([budget("label:a")], 1, {"a": "x" * 1000 + end})[0][0] for end in "yz"]
    assert keys[0] != keys[1]
    assert {len(key) for key in keys} == {budgets.LONGEST_KEY}
    assert budget("label:a").covers(keys[0])
    assert budget("label:a=" + "x" * 1000 + "y").covers(keys[0])


def test_what_is_spent_adds_up_in_each_account(store: Store):
    store.write(spend, [(("all", True), 0.25, 10), (("session:7", False), 0.5, 20), (("all", True), 0.25, 5)])
    store.write(spend, [(("all", True), 1.0, 100), (("all", False), 2.0, 1)])
    assert rows(store) == [("all", False, 2.0, 1), ("all", True, 1.5, 115), ("session:7", False, 0.5, 20)]
    store.write(spend, [])


def test_a_budget_is_used_up_when_all_of_it_is_spent(store: Store):
    of = budget("label:team=legal")
    assert exceeded(store, of, labels=LEGAL) is None
    store.write(spend, [(("label:team=legal", True), 19.99, 10)])
    assert exceeded(store, of, labels=LEGAL) is None
    store.write(spend, [(("label:team=legal", True), 0.14, 10)])
    found = exceeded(store, of, labels=LEGAL)
    assert found is not None
    assert found.sentence == "budget 'legal' of 20.00 US dollars a day for team=legal is used up (20.13 spent)"
    assert (found.key, found.spent_tokens) == ("label:team=legal", 20)
    assert exceeded(store, of, labels={"team": "hr"}) is None


def test_tokens_are_a_budget_of_their_own(store: Store):
    store.write(spend, [(("session:7", False), 0.0, 1_000_001)])
    found = exceeded(store, budget("session", usd=None, tokens=1_000_000, daily=False))
    assert found is not None
    assert found.sentence == "budget 'session' of 1,000,000 tokens in all for this session is used up (1,000,001 spent)"
    assert found.seconds is None, "it never ends"
    assert exceeded(store, budget("session", usd=1.0, tokens=2_000_000, daily=False)) is None
    assert exceeded(store, budget("session", usd=1.0, tokens=1000, daily=False)), "whichever is used up first"


def test_a_day_ends_at_midnight_in_utc(store: Store):
    store.write(spend, [(("all", True), 20.0, 0)])
    found = exceeded(store, budget())
    assert found is not None
    assert found.seconds is not None
    clock = {"sqlite": "SELECT 86400 - strftime('%s', 'now') % 86400",
             "postgresql": "SELECT CAST(86400 - extract(epoch FROM clock_timestamp()) % 86400 AS int)"}  # fmt: skip
    until_midnight = store.count(clock[store.database.dialect])
    assert abs(found.seconds - until_midnight) % 86400 < 5
    assert 0 <= found.seconds <= 86400


def test_what_was_spent_yesterday_is_forgiven_today(store: Store):
    store.write(lambda db: db.execute(insert(SPENDING).values(scope="all", slot=YESTERDAY, usd=99.0, tokens=9)))
    assert exceeded(store, budget()) is None
    store.write(spend, [(("all", True), 1.0, 0)])
    assert exceeded(store, budget()) is None
    assert exceeded(store, budget(usd=1.0))


def test_each_of_many_sessions_is_asked_about_at_once(store: Store):
    of = [budget("session", usd=1.0), budget("label:team", usd=5.0)]
    spent = [(("session:1", True), 1.0, 0), (("session:2", True), 0.5, 0), (("label:team=legal", True), 5.0, 0)]
    store.write(spend, spent)
    asked = {number: LEGAL if number == 3 else {} for number in range(1, 1200)}
    found = store.write(budgets.reached, of, asked)
    assert {session: each.key for session, each in found.items()} == {1: "session:1", 3: "label:team=legal"}
    assert store.write(budgets.reached, of[1:], {1: {}, 2: {}}) == {}
    assert store.write(budgets.reached, of, {}) == {}


def test_of_two_that_are_used_up_the_one_that_fails_or_takes_longest_counts(store: Store):
    store.write(spend, [(("all", True), 9.0, 0), (("all", False), 9.0, 0)])
    waiting, failing = budget(usd=1.0, waits=True), budget(usd=2.0)
    for_good = budget(usd=3.0, daily=False)
    for of in [(waiting, failing), (failing, waiting)]:
        found = exceeded(store, *of)
        assert found is not None
        assert found.budget is failing
    both = exceeded(store, failing, for_good)
    assert both is not None
    assert both.budget is for_good


def test_workers_that_spend_from_the_same_accounts_do_not_block_one_another(store: Store, other: Store):
    """Sorted: else each would hold what the other one wants next."""
    keys = [(f"label:team={number}", True) for number in range(40)]

    def spend_often(through: Store, backwards: bool) -> None:
        for _ in range(20):
            with through.database.writing() as db:  # not transact, which would try again after a deadlock
                spend(db, [(key, 0.5, 1) for key in (reversed(keys) if backwards else keys)])

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(spend_often, store, False), threads.submit(spend_often, other, True)]:
            done.result(60)
    assert rows(store) == sorted((key, True, 20.0, 40) for key, _ in keys)


def test_what_was_spent_of_each_budget(store: Store):
    first, second = store.session("ann"), store.session("bob")
    of = [budget("all"), budget("session", daily=False), budget("label:team"), budget("label:team=hr")]
    assert [(each.budget, each.whose, each.usd) for each in standings(store.database, of)] == [
        (of[0], "", 0.0), (of[1], "", 0.0), (of[2], "", 0.0), (of[3], "team=hr", 0.0),
    ]  # fmt: skip
    store.write(spend, [((f"session:{first}", False), 1.0, 1), ((f"session:{second}", False), 2.0, 1)])
    store.write(
        spend, [(("label:team=legal", True), 3.0, 9), (("label:team=hr", True), 4.0, 8), (("all", True), 5.0, 0)]
    )
    store.write(lambda db: db.execute(insert(SPENDING).values(scope="all", slot=YESTERDAY, usd=99.0, tokens=9)))
    assert [(each.budget, each.whose, each.usd, each.tokens) for each in standings(store.database, of)] == [
        (of[0], "", 5.0, 0),
        (of[1], "bob", 2.0, 1),
        (of[1], "ann", 1.0, 1),
        (of[2], "team=hr", 4.0, 8),
        (of[2], "team=legal", 3.0, 9),
        (of[3], "team=hr", 4.0, 8),
    ]
    assert standings(store.database, []) == []


@pytest.mark.parametrize("by_policy", [False, True])
def test_a_removed_session_leaves_no_account(store: Store, by_policy: bool):
    gone, kept = store.session("gone"), store.session("kept")
    store.write(spend, [((f"session:{each}", daily), 1.0, 1) for each in (gone, kept) for daily in (True, False)])
    if by_policy:
        store.session("kept-too")
        store.change(SESSIONS, SESSIONS.c.key == "gone", last_activity_at=now(-2 * MONTH))
        assert len(store.remove_expired(MONTH)) == 1
    else:
        retention.remove(store.database, "gone")
    assert [key for key, *_ in rows(store)] == [f"session:{kept}"] * 2


def test_of_many_who_spend_those_that_spent_most_are_told_and_how_many_are_not(store: Store):
    budget = Budget("each", "label:team", True, 1.0, None, False)
    store.write(spend, [((f"label:team={number:02}", True), float(number), 1) for number in range(23)])
    told = standings(store.database, [budget])
    assert [(each.whose, each.unlisted) for each in told] == [(f"team={number:02}", 3) for number in range(22, 2, -1)]


def test_days_that_are_over_are_forgotten(store: Store):
    store.write(spend, [(("all", True), 1.0, 10), (("label:owner=ann", True), 1.0, 10), (("all", False), 2.0, 1)])
    with store.database.writing() as db:
        db.execute(insert(SPENDING).values(scope="label:owner=ben", slot=YESTERDAY, usd=1.0, tokens=1))
    store.write(budgets.forget_past)
    assert [row[:2] for row in rows(store)] == [("all", False), ("all", True), ("label:owner=ann", True)]
