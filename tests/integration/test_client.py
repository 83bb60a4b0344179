"""What the SDK owes its callers when somebody else is quicker."""

import asyncio
import math
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import inturn
from inturn import Client, InvalidInputError, NoWorkerError, SendTimeoutError, Session, TurnNotFoundError, aio, waiting
from inturn.cli import run
from inturn.cli.exits import Exit
from inturn.models.states import TurnState
from inturn.models.store import concluding
from inturn.models.store.batches import BatchRecord
from ops.servers import free_port
from tests.integration.stores import Store
from tests.integration.test_store_batches import tend, work

Refused = Callable[[Client, Session], object]


def test_a_session_deleted_between_the_commit_of_a_send_and_its_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Client(home=tmp_path) as client:
        session = client.create_session("gone")
        monkeypatch.setattr(client.connections.hints, "publish", lambda work, key: client.delete_session(key))
        turn = session.send("hello")
        assert (turn.state, turn.prompt, turn.number) == (TurnState.QUEUED, "hello", 1), "what was stored"
        with pytest.raises(TurnNotFoundError):
            turn.wait(5)


def test_a_batch_that_somebody_else_concludes_during_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Client(home=tmp_path) as client:
        batch = client.submit_batch(["hello"])
        conclude = concluding.conclude

        def be_overtaken(*how: Any) -> BatchRecord:
            monkeypatch.undo()
            row = conclude(*how)
            with closing(Store(client.connections.database.url.render_as_string(False))) as store:
                assert work(store) == ["hello"]
                tend(store, batch.id)
            return row

        monkeypatch.setattr(concluding, "conclude", be_overtaken)
        assert (batch.progress().is_final, batch.is_final) == (True, True)


@pytest.mark.parametrize(("takes", "pause"), [(0.001, 0.25), (1.0, 10.0), (160.0, 30.0)])
def test_who_watches_looks_seldom_where_a_look_takes_long_but_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: float, pause: float
):
    clock = iter([0.0, takes])
    with Client(home=tmp_path) as client:
        watch = client.connections.waiter.watch(lambda: ("seen", False), math.inf)
        monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        assert next(watch) == ("seen", pause)
        monkeypatch.undo()


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


REFUSED: list[tuple[str, Refused]] = [
    ("timeout is -1: it is a number of seconds", lambda client, session: session.send_and_wait("hi", timeout=-1)),
    ("timeout is '60': it is", lambda client, session: session.send_and_wait("hi", timeout=wrong("60"))),
    ("timeout is nan", lambda client, session: session.stream("hi", timeout=float("nan"))),
    ("timeout is datetime.timedelta", lambda client, session: session.stream("hi", timeout=timedelta(seconds=-1))),
    ("timeout is True", lambda client, session: session.stream("hi", timeout=True)),
    ("model is \\[\\]: name 1 to 5 models", lambda client, session: client.create_session("new", model=[])),
    ("model '' cannot be used", lambda client, session: client.create_session("new", model="")),
    ("model '' cannot be used", lambda client, session: client.get_or_create_session("new", model="")),
    ("model is \\[\\]", lambda client, session: client.resume_session("ann", model=[])),
    ("labels are 'team': they are a dict", lambda client, session: client.create_session("new", labels=wrong("team"))),
    ("labels are \\[\\]", lambda client, session: client.list_sessions(labels=wrong([]))),
    ("halts is 'no': it is True or False", lambda client, session: client.create_session("new", halts=wrong("no"))),
    ("no turn None", lambda client, session: client.get_turn(wrong(None))),
    ("5 is no session ID", lambda client, session: client.why(wrong(5))),
    ("'7d' is no moment: use a datetime", lambda client, session: client.usage(since=wrong("7d"))),
    ("5 is no moment", lambda client, session: client.list_sessions(active_after=wrong(5))),
    ("prefix is 5: it is a str", lambda client, session: client.list_sessions(prefix=wrong(5))),
    ("prefix is 5: it is a str", lambda client, session: client.usage(prefix=wrong(5))),
    ("model is 5: it is a str", lambda client, session: client.list_sessions(model=wrong(5))),
    ("limit is -1: it is a number from 0", lambda client, session: client.list_sessions(limit=-1)),
    ("limit is 'all'", lambda client, session: client.list_quarantined(limit=wrong("all"))),
    ("limit is -1", lambda client, session: session.get_messages(limit=-1)),
    ("limit is -1", lambda client, session: session.get_events(limit=-1)),
    ("last is -1", lambda client, session: session.tail(-1)),
    ("5 is no cursor", lambda client, session: client.list_sessions(after=wrong(5))),
    ("5 is no ID of a message", lambda client, session: session.get_messages(after=wrong(5))),
    ("5 is no ID of an event", lambda client, session: session.get_events(after=wrong(5))),
    ("is no state of a turn", lambda client, session: session.get_turns(state=wrong(["failed"]))),
    ("no option 'latncy'", lambda client, session: client.create_session("bob", options={"latncy": 1})),
    ("no option 'latncy'", lambda client, session: client.get_or_create_session("bob", options={"latncy": 1})),
    ("no option 'latncy'", lambda client, session: client.send_many([{"prompt": "hi", "options": {"latncy": 1}}])),
    ("None is no image", lambda client, session: inturn.image(wrong(None))),
]


def wrong(value: Any) -> Any:
    """What no type checker would let pass."""
    return value


def test_what_cannot_be_meant_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    with Client(home=tmp_path) as client:
        session = client.create_session("ann")
        for sentence, ask in REFUSED:
            with pytest.raises((InvalidInputError, TurnNotFoundError), match=sentence):
                ask(client, session)
        turn = session.send("hello")
        for ask_turn in turn.wait, turn.stream:
            with pytest.raises(InvalidInputError, match="timeout is -5:"):
                ask_turn(-5)
        assert [(one.session_id, one.turns) for one in client.list_sessions()] == [("ann", 1)]


def test_for_asyncio_it_is_refused_before_anything_is_stored_as_well(tmp_path: Path) -> None:
    async def ask() -> int:
        async with aio.Client(home=tmp_path) as client:
            session = await client.create_session("ann")
            with pytest.raises(InvalidInputError, match="timeout is -1"):
                await session.send_and_wait("hi", timeout=-1)
            with pytest.raises(InvalidInputError, match="timeout is -1"):
                await anext(session.stream("hi", timeout=-1))
            return (await session.metadata()).turns

    assert asyncio.run(ask()) == 0


def test_an_empty_model_on_the_command_line_is_none(tmp_path: Path) -> None:
    for words in ("session", "create", "new"), ("send", "new", "hi", "--create"), ("chat", "new"):
        assert run(["--home", str(tmp_path), *words, "--model", ""]) == Exit.USAGE
    with Client(home=tmp_path) as client:
        assert list(client.list_sessions()) == []


def test_a_client_counts_the_hints_that_redis_did_not_take(tmp_path: Path) -> None:
    client = Client(home=tmp_path, broker_url=f"redis://127.0.0.1:{free_port()}/0")
    assert client.failed_hints == 0, "it need not be connected to say so"
    with client:
        session = client.create_session("ann")
        assert client.failed_hints == 0
        for number in range(1, 3):
            session.send(f"hello {number}")
            assert client.failed_hints == number
            session = client.create_session(f"ann-{number}")  # a waiting session needs no other hint
