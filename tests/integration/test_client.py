"""What the SDK owes its callers when somebody else is quicker."""

from pathlib import Path
from typing import Any

import pytest

from inturn import Client, NoWorkerError, SendTimeoutError, SessionNotFoundError, waiting
from inturn.models.store import reading


def test_a_session_deleted_between_the_commit_of_a_send_and_its_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    look = reading.get_turn

    def late(*where: Any) -> Any:
        client.delete_session("gone")
        return look(*where)

    with Client(home=tmp_path) as client:
        session = client.create_session("gone")
        monkeypatch.setattr(reading, "get_turn", late)
        with pytest.raises(SessionNotFoundError, match="'gone'"):
            session.send("hello")


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
