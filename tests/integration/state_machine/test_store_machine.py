"""The store under everything that can happen to it, in any order, on both databases. ``machine.py`` has the rules.

    INTURN_EXAMPLES=2000 python -m pytest tests/integration/state_machine -k the_store --hypothesis-seed=7

Every run has a seed, and says it when it fails; ``-rP`` shows it also for those that pass. With INTURN_NO_SHRINKING=1 a
story that breaks a rule is told as it was found, at once; making it small takes minutes.
"""

import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from inturn.models.store import sending, sweeping, working
from inturn.models.store.dialects import postgresql, sqlite
from inturn.settings import Settings
from tests.integration.state_machine.machine import StoreMachine
from tests.integration.state_machine.workers_in_steps import House
from tests.integration.stores import Store, only_postgresql, only_sqlite

EXAMPLES = int(os.environ.get("INTURN_EXAMPLES", "60"))
SECONDS_AN_EXAMPLE = 5
"""On a machine that has much else to do."""
VIOLATIONS = (AssertionError, IntegrityError)


@pytest.fixture
def house(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    settings = Settings(home=tmp_path, slice_turns=3, context_turns=2, max_tool_rounds=2)
    house = House(Store(migrated_url).database, settings, monkeypatch)
    yield house
    house.close()


def run(house: House, examples: int, chosen: int, **how: Any) -> None:
    machine = seed(chosen)(type("StoreMachine", (StoreMachine,), {"house": house}))
    allowed = list(HealthCheck)
    how = {"stateful_step_count": 50, "deadline": None, "suppress_health_check": allowed, "print_blob": True} | how
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, **how))


@pytest.mark.timeout(120 + EXAMPLES * SECONDS_AN_EXAMPLE)
def test_the_store(house: House, request: pytest.FixtureRequest):
    given = request.config.getoption("--hypothesis-seed")
    chosen = random.SystemRandom().getrandbits(32) if given in (None, "random") else int(given)
    print(f"--hypothesis-seed={chosen} INTURN_EXAMPLES={EXAMPLES}")
    extra = {"phases": [Phase.generate]} if os.environ.get("INTURN_NO_SHRINKING") else {}
    run(house, EXAMPLES, chosen, **extra)
    assert house.steps >= EXAMPLES, "hardly anything happened"


Break = Callable[[pytest.MonkeyPatch, House], None]


def without(module: ModuleType, name: str, *parts: str, instead: str = "") -> Break:
    """Leave pieces out of a statement."""

    def patch(patches: pytest.MonkeyPatch, _: House) -> None:
        statement = str(getattr(module, name))
        for part in parts:
            assert part in statement, f"{name} is written otherwise now: {statement}"
            statement = statement.replace(part, instead)
        patches.setattr(module, name, text(statement))

    return patch


def dropped(index: str) -> Break:
    def drop(_: pytest.MonkeyPatch, house: House) -> None:
        with house.database.writing() as db:
            db.execute(text(f"DROP INDEX {index}"))

    return drop


def every(*breaks: Break) -> Break:
    def patch(patches: pytest.MonkeyPatch, house: House) -> None:
        for each in breaks:
            each(patches, house)

    return patch


def forgetful(module: ModuleType, name: str, instead: Callable[..., Any]) -> Break:
    return lambda patches, _: patches.setattr(module, name, instead)


RELEASE_LOOKS = (
    "ready_at = (SELECT ready_at FROM turns WHERE session_id = leases.session_id AND state = 'queued' "
    "ORDER BY number LIMIT 1)"
)

OVERWRITTEN = (
    "under the lease|was thrown away|in the order|duplicate key|UNIQUE constraint failed: messages|final|owner_has_until"
    "|owned by None, and its running turns"
)

A_TURN = frozenset(
    {"send", "a_hint_arrives", "the_ledger_commits", "a_model_answers", "time_passes", "a_worker_starts"}
)
NARROWED = {
    "no fence": A_TURN | {"workers_stand_still"},
    "halted sessions go on": A_TURN,
    "no index of running turns": A_TURN | {"somebody_meddles"},
    "rounds whose results are forgotten": A_TURN | {"tools_come_back"},
    "no new look after waiting for a send": A_TURN - {"time_passes", "a_worker_starts"} | {"two_meet"},
}
"""The acts that it takes to show it, so that this does not take long; where there is nothing, all of them."""

ON_SQLITE: dict[str, tuple[Break, str]] = {
    "no fence": (
        without(sqlite, "HELD", "WHERE l.token = i.value ->> 'token' AND l.owner = :owner"),
        OVERWRITTEN,
    ),
    "no look for waiting turns on release": (
        without(sqlite, "RELEASE", RELEASE_LOOKS, instead="ready_at = NULL"),
        "and its lease says None",
    ),
    "attempts are not counted before the call": (
        without(sqlite, "START", "attempts = attempts + 1,"),
        "with 0 attempts started",
    ),
    "no index of running turns": (dropped("uq_turns_running"), "the tables allow two turns at once"),
    "a cancel that wakes nobody": (
        forgetful(sending, "make_ready", lambda *_: False),
        "waits (until|in) .*, and its lease",
    ),
    "halted sessions go on": (
        every(without(sqlite, "NAMED", "halted_by IS NULL AND"), without(sqlite, "LANED", "halted_by IS NULL AND")),
        "halted",
    ),
    "rounds whose results are forgotten": (
        forgetful(working, "_go_round", lambda *_: None),
        "steps has messages at|nothing at",
    ),
    "rescues that leave the turn as it is": (
        forgetful(sweeping, "_requeue", lambda *_: []),
        "its lease is owned by None, and its running turns are",
    ),
}


@only_sqlite
@pytest.mark.parametrize("broken", ON_SQLITE)
def test_what_is_broken_is_found(house: House, broken: str, monkeypatch: pytest.MonkeyPatch):
    expect_violation(ON_SQLITE, broken, house, monkeypatch)


ON_POSTGRESQL: dict[str, tuple[Break, str]] = {
    "no fence": (
        without(postgresql, "SETTLE", "WHERE held.token = i.token AND held.owner = :owner"),
        OVERWRITTEN,
    ),
    "no index of running turns": (dropped("uq_turns_running"), "the tables allow two turns at once"),
    "no new look after waiting for a send": (
        without(postgresql, "LOCK", "FOR UPDATE"),
        "and its lease (says|in)|waits again, and its user wants it back",
    ),
}


@only_postgresql
@pytest.mark.parametrize("broken", ON_POSTGRESQL)
def test_what_is_broken_is_found_on_postgresql(house: House, broken: str, monkeypatch: pytest.MonkeyPatch):
    expect_violation(ON_POSTGRESQL, broken, house, monkeypatch)


def expect_violation(
    breaks: dict[str, tuple[Break, str]], broken: str, house: House, patches: pytest.MonkeyPatch
) -> None:
    """The same examples each time, so that this test cannot be unlucky; found is enough, and not made small.

    Nor need it be found twice: what two threads do to each other may not break on the second try, which Hypothesis makes
    and calls flaky.
    """
    break_it, sign = breaks[broken]
    found: list[Exception] = []
    patches.setattr(StoreMachine, "narrowed", NARROWED.get(broken, frozenset()))
    patches.setattr(StoreMachine, "teardown", noting(found, StoreMachine.teardown))
    break_it(patches, house)
    with pytest.raises((*VIOLATIONS, Flaky)):
        run(house, 300, 4, phases=[Phase.generate], database=None, report_multiple_bugs=False)
    assert re.search(sign, str(found[0])), f"found for another reason: {found[0]}"


def noting(found: list[Exception], teardown: Callable[[StoreMachine], None]) -> Callable[[StoreMachine], None]:
    """Ends a story, and keeps how it was broken off."""

    def note_and_tear_down(story: StoreMachine) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, VIOLATIONS):
            found.append(error)
        try:
            teardown(story)
        except VIOLATIONS as late:
            found.append(late)
            raise

    return note_and_tear_down
