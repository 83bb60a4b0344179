"""What the state machine has found, each made small."""

from pathlib import Path

import pytest

from inturn.models.states import Lane, TurnState
from inturn.settings import Settings
from tests.integration.state_machine.crew import FAILURES
from tests.integration.state_machine.workers_in_steps import House, Worker
from tests.integration.stores import Store


@pytest.mark.parametrize("failed_before", [1, 2])
def test_a_slot_that_is_stopped_does_not_buy_another_attempt(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed_before: int
):
    """Its turn went back to wait, whatever it had spent: the next worker made one call more than the cap allows."""
    house = House(store.database, Settings(home=tmp_path, max_attempts=3), monkeypatch)
    house.clear()
    worker, session = Worker(house, "worker"), store.session()
    store.send()

    def attempt() -> None:
        house.clock.pass_by(60)
        worker.take_hint(Lane.CHAT, session)
        worker.commit_all()

    for _ in range(failed_before):
        attempt()
        worker.calls[0].answer.set_exception(FAILURES["safe"])
        worker.go_on()
        worker.commit_all()
    attempt()
    worker.slots[0].cancel()
    worker.go_on()
    worker.commit_all()
    attempt()
    turn = store.turn(session)
    assert turn.attempts == 3
    assert turn.state == (TurnState.RUNNING if failed_before == 1 else TurnState.FAILED)
    worker.end()
    house.close()
