"""Poison: replies that kill whoever reads them, exhaust memory, or cannot be stored. Each turn of that kind ends in
quarantine with a reason, its session goes on, and its neighbours in the same process lose nothing.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance import deployment as deployments
from tests.acceptance.deployment import Deployment, clean_environment
from tests.stacks import wait_until

MIB = 1024**2
NEIGHBOURS = 12
DRAIN_SECONDS = 90
ENDS = ("completed", "failed")

DEADLY = """
import os, signal
from inturn.workers.providers.echo import Echo

harmless = Echo.reply

async def reply(self, prompt, on_delta=None):
    answer = await harmless(self, prompt, on_delta)
    if prompt.messages[-1]["content"].startswith("poison"):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

Echo.reply = reply
"""
"""What Python runs at its start in every process of the deployment: from then on a reply to ``poison`` kills its reader."""

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def deadly(deserted: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """One worker under a supervisor, with slots for everybody at once."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY)

    def planted(config: Path) -> dict[str, str]:
        environment = clean_environment(config)
        return environment | {"PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}

    monkeypatch.setattr(deployments, "clean_environment", planted)
    monkeypatch.setitem(deployments.PACE, "concurrency", 2 * NEIGHBOURS)
    deserted._run("up")
    deserted.await_workers(1)
    return deserted


def turns_of(deployment: Deployment) -> dict[tuple[str, int], Any]:
    rows = deployment.query(
        "SELECT s.key, t.number, t.state, t.attempts, t.rescues, t.error_type, t.error_message, t.error_retryable "
        "FROM turns AS t JOIN sessions AS s ON s.id = t.session_id"
    )
    return {(row.key, row.number): row for row in rows}


def test_a_reply_that_kills_its_reader_is_quarantined_alone(deadly: Deployment):
    """All are in one process, and in flight whenever the poison strikes."""
    names = [f"neighbour-{number}" for number in range(NEIGHBOURS)]
    with deadly.client() as client:
        for name in names:
            client.create_session(name, options={"latency": 3}).send("hello")
        poisoned = client.create_session("poisoned", options={"latency": 1})
        poisoned.send("poison")
        poisoned.send("and go on")
        wait_until(lambda: all(turn.state in ENDS for turn in turns_of(deadly).values()), DRAIN_SECONDS)
    turns = turns_of(deadly)
    poison, after = turns.pop(("poisoned", 1)), turns.pop(("poisoned", 2))
    assert (poison.state, poison.error_type, poison.rescues) == ("failed", "worker_lost", 3)
    assert {(turn.state, turn.error_type) for turn in turns.values()} == {("completed", None)}, (
        "neighbours lose nothing"
    )
    assert poison.attempts == 4
    assert max(turn.attempts for turn in turns.values()) <= 4, "waiting for a cell is no attempt"
    assert (after.state, after.attempts) == ("completed", 1)
    assert "killed by SIGKILL" in poison.error_message
    assert poison.error_retryable


@contextmanager
def largest(process: psutil.Process) -> Iterator[list[int]]:
    """The most memory that a process had meanwhile, in bytes, in a list of one."""
    most, over = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("deserted", ["embedded"], indirect=True)
def test_replies_without_end_take_no_memory_and_no_neighbours(
    deserted: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Bodies of 300 MB and gzip bombs, beside neighbours in the same process."""
    monkeypatch.setitem(deployments.PACE, "concurrency", 100)
    deserted.start(workers=1)
    acts = ["huge", "gzip_bomb", "gzip_tail"] * 4
    with deserted.client() as client:
        client.create_session("warm").send_and_wait("up", timeout=30)
        (worker,) = [info.pid for info in client.list_workers() if info.kind == "worker"]
        before = psutil.Process(worker).memory_info().rss
        with largest(psutil.Process(worker)) as most:
            for number, act in enumerate(acts):
                poison = f"!{json.dumps({'act': act})}"
                client.create_session(f"poison-{number}", model="server/model").send(poison)
            for number in range(2 * NEIGHBOURS):
                answer = f"hello !{json.dumps({'latency': 3})}"
                client.create_session(f"neighbour-{number}", model="server/model").send(answer)
            wait_until(lambda: all(turn.state in ENDS for turn in turns_of(deserted).values()), DRAIN_SECONDS)
        assert [info.pid for info in client.list_workers() if info.kind == "worker"] == [worker]
    turns = turns_of(deserted)
    neighbours = [turn for (key, _), turn in turns.items() if key.startswith("neighbour")]
    assert {(turn.state, turn.attempts) for turn in neighbours} == {("completed", 1)}
    bombs = {
        acts[int(key.removeprefix("poison-"))]: turn for (key, _), turn in turns.items() if key.startswith("poison")
    }
    assert {(act, turn.state, turn.error_type) for act, turn in bombs.items()} == {
        ("huge", "failed", "reply_too_large"),
        ("gzip_bomb", "failed", "reply_too_large"),
        ("gzip_tail", "failed", "bad_reply"),
    }
    with capsys.disabled():
        print(f"\nworker's memory: {before // MIB} MiB before, {most[0] // MIB} MiB at most")
    assert most[0] - before < 200 * MIB
