"""What `inturn why` says of real deployments, and lanes that are paused while real workers are at them."""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from inturn import Client
from inturn.cli.exits import Exit
from inturn.client import Reason
from inturn.models.states import TurnState
from inturn.models.store.situation import Code
from inturn.workers.stack import inturn_command
from tests.acceptance.command import Inturn
from tests.acceptance.deployment import PACE, SLOTS, Deployment
from tests.stacks import wait_until

REPLY_SECONDS = 20
WATCHED_SECONDS = 2.0
LAST_CLAIM_SECONDS = 0.5
"""A claim that was under way when the lane was paused may begin its turn a moment later."""

pytestmark = pytest.mark.timeout(180)


def command_line(deployment: Deployment) -> Inturn:
    urls = ("", "") if deployment.is_embedded else (deployment.settings.database_url, deployment.settings.broker_url)
    inturn = Inturn(deployment.home, *urls)
    values = {"PROVIDERS": json.dumps(deployment.providers), **{name.upper(): value for name, value in PACE.items()}}
    inturn.environment |= {f"INTURN_{name}": str(value) for name, value in values.items()}
    return inturn


def awaited(client: Client, asked: str, code: Code) -> Reason:
    """The reason, as soon as it is this one."""
    found: list[Reason] = []

    def look() -> bool:
        found.append(client.why(asked))
        return found[-1].code is code

    try:
        wait_until(look, REPLY_SECONDS)
    except AssertionError as error:
        raise AssertionError(f"{[(one.code, one.sentence) for one in found[-3:]]}") from error
    return found[-1]


def test_the_life_of_a_turn_as_why_tells_it(deserted: Deployment):
    inturn = command_line(deserted)
    with deserted.client() as client:
        session = client.create_session("told", model="server/m")
        assert inturn.ok("why", "told") == "session told waits for nothing: nothing was sent\n"
        first = session.send('slow !{"latency": 4}')
        second = session.send('busy !{"status": 429, "retry_after": 60}')
        start = "inturn up" if deserted.is_embedded else "inturn worker --lanes chat"
        said = inturn.ok("why", "told")
        assert f"turn {first.id} waits for a worker" in said
        assert f"Start `{start}`; 1 turn waits behind it\n" in said

        deserted.start(1)
        reason = awaited(client, "told", Code.RUNNING)
        assert re.search(r"attempt 1 of 4 began at .* by worker .*/\d+; its deadline is ", reason.sentence)
        said = client.why(second.id).sentence
        assert said.startswith(f"turn {second.id} waits for turn {first.id}, which is running: turn {first.id} runs:")

        reason = awaited(client, "told", Code.RETRY)
        assert "1 of 4 attempts is used up, the last one failed with rate_limited" in reason.sentence
        record = json.loads(inturn.ok("why", "told", "--json"))
        assert (record["code"], record["rows"]["turn"]["number"]) == ("retry", 2)
        assert (record["rows"]["attempt"]["outcome"], record["besides"]) == ("safe", [])
        assert "slow" not in json.dumps(record)

        assert inturn.run("lane", "pause", "chat").returncode == Exit.OK
        assert [one.code for one in client.why("told").besides] == [Code.LANE_PAUSED]
        second.cancel()
        third = session.send("later", not_before=timedelta(minutes=10))
        assert client.why("told").code is Code.SCHEDULED
        third.cancel()
        other = client.create_session("beside", model="server/m").send("hello")
        session = client.resume_session("told", model="server/another")
        fourth = session.send("now")
        assert "until `inturn lane resume chat`" in awaited(client, "told", Code.LANE_PAUSED).sentence
        assert "lane chat goes on" in inturn.run("lane", "resume", "chat").stderr
        assert fourth.wait(REPLY_SECONDS).turn == 4
        assert "waits for server/m, which asked all workers" in awaited(client, "beside", Code.PROVIDER_LIMIT).sentence
        assert other.refresh().attempts == 0
        assert inturn.ok("why", "told") == "session told waits for nothing: all of its 4 turns are over\n"
        assert f"turn {fourth.id} is completed since" in inturn.ok("why", fourth.id)


def test_all_slots_taken_and_a_worker_that_stands_still(deserted: Deployment):
    deserted.start(1)
    with deserted.client() as client:
        held = [client.create_session(f"held-{n}", model="server/m").send('x !{"latency": 15}') for n in range(SLOTS)]
        for turn in held:
            awaited(client, turn.session_id, Code.RUNNING)
        client.create_session("late").send("x")
        reason = awaited(client, "late", Code.SLOTS_BUSY)
        assert f"all {SLOTS} that 1 worker has for the lane chat are taken" in reason.sentence

        [worker] = [one for one in client.list_workers() if one.kind == "worker"]
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            reason = awaited(client, "held-0", Code.WORKER_LOST)
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert f"/{worker.pid} was last heard of at" in reason.sentence
        assert "the sweep takes it over by about" in reason.sentence


def test_a_halted_session(deserted: Deployment):
    deserted.start(1)
    inturn = command_line(deserted)
    with deserted.client() as client:
        assert inturn.ok("session", "create", "careful", "--model", "server/m", "--halts") == "careful\n"
        session = client.get_session("careful")
        poison, behind = session.send('too much !{"act": "huge"}'), session.send("after")
        awaited(client, "careful", Code.HALTED)
        said = inturn.ok("why", "careful")
        assert f"session careful is halted behind turn {poison.id}, which failed at" in said
        assert "reply_too_large" in said
        assert "1 turn waits until `inturn session continue careful`" in said
        metadata = session.metadata()
        assert (metadata.halts, metadata.halted_by) == (True, poison.id)
        assert behind.refresh().state is TurnState.QUEUED

        assert [turn.id for turn in client.list_quarantined()] == [poison.id]
        for words in ((), ("careful",)):
            heading, line = inturn.ok("turn", "list", "--quarantined", *words).splitlines()
            assert heading.split("\t") == ["TURN", "SESSION", "REASON", "ATTEMPTS", "ENDED", "PROMPT"]
            assert line.split("\t")[:4] == [poison.id, "careful", "reply_too_large", "1"]
        assert json.loads(inturn.ok("turn", "list", "--quarantined", "--json"))["id"] == poison.id
        assert inturn.run("turn", "list").returncode == Exit.USAGE
        assert inturn.run("turn", "list", "--quarantined", "ghost").returncode == Exit.NOT_FOUND

        assert f"its turn {poison.id} stays as it is" in inturn.run("session", "continue", "careful").stderr
        assert behind.wait(REPLY_SECONDS).turn == 2
        assert "it was not halted" in inturn.run("session", "continue", "careful").stderr
        assert session.metadata().halted_by is None
        assert inturn.run("session", "continue", "ghost").returncode == Exit.NOT_FOUND

        client.create_session("careless", model="server/m").send('too much !{"act": "huge"}')
        after = client.get_session("careless").send("after")
        assert after.wait(REPLY_SECONDS).turn == 2, "which goes on by default"


def test_a_lane_is_paused_under_load(deserted: Deployment, calls: Callable[[str], list[Any]]):
    name = f"load-{deserted.home.parent.name}"
    inturn = command_line(deserted)
    deserted.start(1)
    with deserted.client() as client:
        turns = [
            session.send(f'{name} !{{"latency": 0.3}}', lane="batch")
            for session in (client.create_session(f"{name}-{n}", model="server/m") for n in range(30))
            for _ in range(3)
        ]
        wait_until(lambda: len(calls(name)) >= 10, REPLY_SECONDS)
        assert client.pause_lane("batch")
        paused_at = time.time()
        assert "lane batch is paused already" in inturn.run("lane", "pause", "batch").stderr
        talk = client.create_session(f"talk-{name}", model="server/m")
        until = time.monotonic() + WATCHED_SECONDS
        said = 0
        while time.monotonic() < until:
            talk.send_and_wait(f"chat {said}", timeout=REPLY_SECONDS)
            said += 1
        assert said >= 3
        began = calls(name)
        assert len(began) < len(turns), "nothing was left to be paused: nothing was tested"
        assert [call for call in began if call.start > paused_at + LAST_CLAIM_SECONDS] == []
        _, _, batch, _ = inturn.ok("lane", "list").splitlines()
        lane, waiting, running, workers, since = batch.split("\t")
        assert (lane, running, workers) == ("batch", "0", "1")
        assert int(waiting) > 0
        assert since.startswith("20")
        late = client.create_session(f"{name}-late").send("accepted all the same", lane="batch")
        assert client.why(late.session_id).code is Code.LANE_PAUSED

        resumed = time.monotonic()
        assert client.resume_lane("batch")
        assert not client.resume_lane("batch")
        wait_until(lambda: len(calls(name)) > len(began), REPLY_SECONDS)
        assert time.monotonic() - resumed < 2
        for turn in (*turns, late):
            turn.wait(REPLY_SECONDS)
        assert {turn.refresh().attempts for turn in turns} == {1}


def test_who_is_not_there(deserted: Deployment):
    inturn = command_line(deserted).prepare()
    for asked, sentence in (("ghost", "no session 'ghost'"), ("9.9", "no turn '9.9'")):
        assert sentence in inturn.refused(Exit.NOT_FOUND, "why", asked)
    assert "a b" in inturn.refused(Exit.USAGE, "why", "a b")


def test_a_terminal_gets_whole_words(deserted: Deployment):
    inturn = command_line(deserted).prepare()
    inturn.ok("send", "s", "hello")
    terminal, inside = pty.openpty()
    environment = inturn.environment | {"COLUMNS": "40"}
    done = subprocess.run(
        inturn_command("why", "s"), env=environment, stdout=inside, stdin=inside, timeout=60, check=True
    )
    os.close(inside)
    shown = os.read(terminal, 4096).decode().replace("\r\n", "\n")
    os.close(terminal)
    assert done.returncode == 0
    assert max(map(len, shown.splitlines())) <= 40
    assert " ".join(shown.split()).startswith("turn 1.1 waits for a worker: no worker is alive to serve the lane chat.")
