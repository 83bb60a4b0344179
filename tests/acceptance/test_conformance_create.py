"""The conformance list, lines 0 to 4: create and identity."""

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from inturn import (
    Client,
    ClosedError,
    InvalidInputError,
    InvalidSessionIdError,
    NoWorkerError,
    SessionExistsError,
    UnknownModelError,
)
from inturn.workers.stack import running_stack
from tests.acceptance.deployment import Deployment, clean_environment
from tests.stacks import wait_until

TALK = """
from inturn import Client
with Client() as client:
    session = client.create_session()
    for prompt in ("one", "two", "three"):
        print(session.send_and_wait(prompt, timeout=30).data.content)
"""

LISTEN = """
from threading import Event
from inturn import Client
replied = Event()
with Client() as client:
    session = client.create_session()
    session.on(lambda event: event.type == "assistant.message" and replied.set())
    session.send("one")
    assert replied.wait(30)
    print(session.tail(1).__next__().data.content)
    for prompt in ("two", "three"):
        print("".join(event.data.delta_content for event in session.stream(prompt, timeout=30)))
"""


def test_00_client_works_at_once_and_raises_after_stop(deployment: Deployment, name: str, threads: ThreadPoolExecutor):
    client = deployment.client()
    session = client.create_session(name)
    turn = session.send("sent without start")
    assert turn.wait(30).data.content.startswith('You said: "sent without start"')
    client.stop()
    client.stop()
    for use in (
        client.start,
        client.create_session,
        lambda: client.resume_session(name),
        lambda: list(client.list_sessions()),
        lambda: client.get_turn(turn.id),
        client.cleanup,
        lambda: session.send("late"),
        lambda: list(session.get_messages()),
        turn.refresh,
        turn.wait,
        turn.cancel,
    ):
        with pytest.raises(ClosedError, match="stopped"):
            use()
    with deployment.client() as other:
        session = other.resume_session(name, model="server/model")
        assert session.metadata().messages == 2
        hanging = session.send('!{"act": "hang"}')
        waiting = threads.submit(hanging.wait)
    with pytest.raises(ClosedError, match="stopped"):
        waiting.result(30)
    with pytest.raises(ClosedError):
        other.get_last_session_id()
    with deployment.client() as last:
        last.get_turn(hanging.id).cancel()


def test_00_many_threads_share_one_client(deployment: Deployment, name: str, threads: ThreadPoolExecutor):
    client, together = deployment.client(), Barrier(16)

    def talk(number: int) -> tuple[Any, str]:
        together.wait()
        connection = client.connections
        return connection, client.create_session(f"{name}-{number}").send_and_wait(
            f"I am {number}", timeout=30
        ).data.content

    talks = list(threads.map(talk, range(16)))
    client.stop()
    assert [said.partition("\n")[0] for _, said in talks] == [f'You said: "I am {number}"' for number in range(16)]
    assert len({id(connection) for connection, _ in talks}) == 1, "they connect once, together"


@pytest.mark.parametrize("program", [TALK, LISTEN])
def test_00_the_embedded_default_replies_without_a_worker_started(tmp_path: Path, program: str):
    """The sweep is far away here: a hint that is not sent shows."""
    environment = {"INTURN_HOME": str(tmp_path / "home"), "INTURN_SWEEP_SECONDS": "19", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=clean_environment(tmp_path) | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("You said")] == [
        'You said: "one"',
        'You said: "two"',
        'You said: "three"',
    ]
    stack = running_stack(tmp_path / "home")
    assert stack is not None
    assert stack.supervisor is not None
    assert stack.linked, "it ends by itself, after a while"
    stack.supervisor.signal(signal.SIGTERM)
    wait_until(lambda: running_stack(tmp_path / "home") is None, 30)


@pytest.mark.parametrize("deserted", ["postgresql"], indirect=True)
def test_00_elsewhere_waiting_says_that_no_worker_is_alive(deserted: Deployment, name: str):
    with deserted.client() as client:
        turn = client.create_session(name).send("is anybody there?")
        with pytest.raises(NoWorkerError, match="inturn worker"):
            turn.wait(30)
        with pytest.raises(NoWorkerError, match="inturn worker"):
            next(turn.stream(30))
        deserted.start(workers=1, beat=False)
        assert turn.wait(30).data.content.startswith('You said: "is anybody there?"')


def test_01_an_id_of_ones_own_or_a_unique_one(deployment: Deployment, client: Client, name: str):
    assert client.create_session(name).session_id == name
    longest = name + "._:@-" + "Z" * (195 - len(name))
    assert client.create_session(longest).session_id == longest
    unnamed = [client.create_session().session_id for _ in range(5)]
    assert len(set(unnamed)) == 5
    with deployment.client() as later:
        for session_id in (name, longest, *unnamed):
            assert re.fullmatch(r"[A-Za-z0-9._:@-]{1,200}", session_id)
            assert later.resume_session(session_id).session_id == session_id


def test_02_an_id_is_given_out_once(client: Client, name: str, threads: ThreadPoolExecutor):
    first = client.create_session(name, labels={"made": "first"}, system_message="be brief")
    first.send_and_wait("hello", timeout=30)
    before, history = first.metadata(), list(first.get_messages())
    with pytest.raises(SessionExistsError, match=name) as refusal:
        client.create_session(name, model="echo/other", labels={"made": "second"}, system_message="be long")
    assert refusal.value.session_id == name
    assert first.metadata() == before
    again = client.get_or_create_session(name, model="echo/other", labels={"made": "third"})
    assert replace(again.metadata(), last_activity_at=before.last_activity_at) == before
    assert list(again.get_messages()) == history
    assert client.get_or_create_session(f"{name}-new", labels={"made": "now"}).metadata().labels == {"made": "now"}

    def create(_: int) -> bool:
        try:
            client.create_session(f"{name}-raced")
        except SessionExistsError:
            return False
        return True

    assert sum(threads.map(create, range(8))) == 1
    raced = threads.map(lambda _: client.get_or_create_session(f"{name}-both").metadata().cursor, range(8))
    assert len(set(raced)) == 1


@pytest.mark.parametrize(
    "bad", ["", "a b", "a/b", "a\n", "ä", "٣", "x" * 201, "a\x00", "\ud800", "a'; --", 17, b"bytes", ("tuple",)]
)
def test_03_an_invalid_id_is_refused_before_any_write(deployment: Deployment, client: Client, bad: Any):
    count = "SELECT count(*) FROM sessions"
    before = deployment.query(count)
    for use in (
        client.create_session,
        client.get_or_create_session,
        client.resume_session,
        client.delete_session,
        client.hold_session,
        client.get_session_metadata,
    ):
        with pytest.raises(InvalidSessionIdError, match=re.escape(repr(bad)[:150])) as refusal:
            use(bad)
        assert isinstance(refusal.value, ValueError)
        assert refusal.value.session_id == bad
    assert deployment.query(count) == before


def test_04_what_a_session_is_made_with_is_read_back(deployment: Deployment, client: Client, name: str):
    how: dict[str, Any] = {
        "model": "server/some-model",
        "system_message": "You answer\nin verse. \u2028🎭",
        "labels": {"user": "u-17", "Sprache": "Türkçe 🇹🇷", "": "empty name", 'quo"te.d\\$[0]': ""},
        "options": {"temperature": 0.25, "stop": ["\n", None], "deep": {"list": [1, [2.5, {"ß": True}]]}},
        "context_turns": 3,
        "retention": timedelta(days=2, milliseconds=500),
    }
    client.create_session(name, **how)
    plain = client.create_session(f"{name}-plain").metadata()
    with deployment.client() as other:
        stored = other.get_session_metadata(name)
    assert stored is not None
    assert {field: getattr(stored, field) for field in how} == how
    assert (stored.session_id, stored.turns, stored.messages, stored.busy, stored.held) == (name, 0, 1, False, False)
    assert stored.created_at.tzinfo is not None
    assert (plain.model, plain.system_message, plain.options, plain.labels) == ("echo/echo", None, {}, {})
    assert (plain.context_turns, plain.retention) == (None, "policy")
    kept = client.create_session(f"{name}-kept", retention=None, context_turns=0)
    assert (kept.metadata().retention, kept.metadata().context_turns) == (None, 0)


def test_04_what_it_may_be_shown_and_call_and_whom_it_falls_back_on_is_read_back(
    deployment: Deployment, client: Client, name: str
):
    chain = ["server/a", "echo/b", "nobody/c"]
    how: dict[str, Any] = {"context_tokens": 12_000, "overflow": "summarise", "tools": ["add", "ask-2", "add"]}
    client.create_session(name, model=chain, **how)
    with deployment.client() as other:
        stored = other.get_session(name).metadata()
    assert (stored.model, stored.fallbacks) == (chain[0], chain[1:])
    assert (stored.context_tokens, stored.overflow, stored.tools) == (12_000, "summarise", ["add", "ask-2"])
    assert client.create_session(f"{name}-one", model=["echo/b"]).metadata().fallbacks == []
    assert client.create_session(f"{name}-fail", overflow="fail").metadata().overflow == "fail"
    plain = client.create_session(f"{name}-plain").metadata()
    assert (plain.fallbacks, plain.context_tokens, plain.overflow, plain.tools) == (None, None, "truncate", None)


@pytest.mark.parametrize(
    "how",
    [
        {"model": "gpt-5"},
        {"model": "stranger/model"},
        {"model": "echo/"},
        {"model": "echo/a\x00b"},
        {"model": "echo/a\ud800b"},
        {"model": "echo/" + "x" * 200},
        {"labels": {"number": 1}},
        {"options": {"temperature": float("nan")}},
        {"options": {"deep": [{"most": float("inf")}]}},
        {"options": {"more than a double": 10**400}},
        {"options": {"no JSON": {1}}},
        {"model": []},
        {"model": ["echo/a", "echo/a"]},
        {"model": ["echo/a", "stranger/model"]},
        {"context_turns": -1},
        {"context_tokens": 0},
        {"context_tokens": 0.5},
        {"context_tokens": True},
        {"context_tokens": 10**12},
        {"overflow": "forget"},
        {"overflow": "summarise", "context_turns": 1},
        {"tools": "add"},
        {"tools": ["a b"]},
        {"tools": [1]},
        {"retention": timedelta(0)},
        {"retention": timedelta.max},
        {"retention": 30},
    ],
    ids=lambda how: f"{how!s:.50}",
)
def test_04_what_cannot_be_kept_is_refused_before_any_write(client: Client, name: str, how: dict[str, Any]):
    unknown = "model" in how and how["model"] not in ([], ["echo/a", "echo/a"])
    with pytest.raises(UnknownModelError if unknown else InvalidInputError):
        client.create_session(name, **how)
    assert client.get_session_metadata(name) is None
