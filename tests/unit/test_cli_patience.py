"""What who waits for long is told meanwhile."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from inturn.cli import patience, render
from inturn.models.errors import DatabaseUnreachableError

TURN: Any = SimpleNamespace(id="8.1")


class Asked:
    """A client that says why, but not the first time."""

    def __init__(self) -> None:
        self.times = 0

    def why(self, waiting: str) -> Any:
        assert waiting == "8.1"
        self.times += 1
        if self.times == 1:
            raise DatabaseUnreachableError("no connection")
        return SimpleNamespace(sentence=f"turn 8.1 waits ({self.times})")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.02)
    return Asked()


def test_who_waits_for_long_is_told_why_and_no_failed_look_ends_it(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()

    @contextmanager
    def watched(remark: str) -> Iterator[Any]:
        assert remark == "waiting"
        yield told.append

    monkeypatch.setattr(render, "waiting", watched)
    with patience.waiting_for(client, TURN, "waiting", besides=" (Ctrl-C cancels)"):
        while len(told) < 2:
            time.sleep(0.01)
    at_the_end = len(told)
    assert told[:2] == ["turn 8.1 waits (2) (Ctrl-C cancels)", "turn 8.1 waits (3) (Ctrl-C cancels)"]
    time.sleep(0.1)
    assert len(told) == at_the_end


def test_where_nobody_watches_nothing_is_asked(client: Any) -> None:
    with patience.waiting_for(client, TURN, "waiting"):
        time.sleep(0.1)
    assert client.times == 0
