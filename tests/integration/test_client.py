"""What the SDK owes its callers when somebody else is quicker."""

from pathlib import Path

import pytest

from inturn import Client, NoWorkerError, SendTimeoutError, TurnNotFoundError, waiting
from inturn.models.states import TurnState


def test_a_session_deleted_between_the_commit_of_a_send_and_its_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Client(home=tmp_path) as client:
        session = client.create_session("gone")
        monkeypatch.setattr(client.connections.hints, "publish", lambda work, key: client.delete_session(key))
        turn = session.send("hello")
        assert (turn.state, turn.prompt, turn.number) == (TurnState.QUEUED, "hello", 1), "what was stored"
        with pytest.raises(TurnNotFoundError):
            turn.wait(5)


@pytest.mark.parametrize(("broker_url", "command"), [("redis://127.0.0.1:1", "inturn worker"), ("", "inturn up")])
def test_where_no_worker_is_alive_a_wait_ends_with_that_and_not_with_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker_url: str, command: str
):
    monkeypatch.setattr(waiting, "LOOK_FOR_WORKERS_SECONDS", 0.3)
    with Client(home=tmp_path, database_url=f"sqlite:///{tmp_path}/inturn.db", broker_url=broker_url) as client:
        turn = client.create_session().send("is anybody there?")
        with pytest.raises(SendTimeoutError):
            turn.wait(0.1)  # a worker that is being started may not have shown itself yet
        with pytest.raises(NoWorkerError, match=f"start `{command}`"):
            turn.wait(0.5)
