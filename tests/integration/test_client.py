"""What the SDK owes its callers when somebody else is quicker."""

from pathlib import Path
from typing import Any

import pytest

from inturn import Client, SessionNotFoundError
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
