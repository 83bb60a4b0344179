"""Poison: replies that kill whoever reads them, exhaust memory, or cannot be stored. Each turn of that kind ends in
quarantine with a reason, its session goes on, and its neighbours in the same process lose nothing.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance import deployment as deployments
from tests.acceptance.deployment import Deployment, clean_environment
from tests.stacks import wait_until

NEIGHBOURS = 20
DRAIN_SECONDS = 90

DEADLY = """
import os, signal
from inturn.workers.providers.echo import Echo

harmless = Echo.reply

async def reply(self, prompt):
    answer = await harmless(self, prompt)
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
            client.create_session(name, options={"latency": 4}).send("hello")
        poisoned = client.create_session("poisoned", options={"latency": 1})
        poisoned.send("poison")
        poisoned.send("and go on")
        wait_until(
            lambda: all(turn.state in ("completed", "failed") for turn in turns_of(deadly).values()), DRAIN_SECONDS
        )
    turns = turns_of(deadly)
    poison, after = turns.pop(("poisoned", 1)), turns.pop(("poisoned", 2))
    assert (poison.state, poison.error_type, poison.rescues) == ("failed", "worker_lost", 3)
    assert {(turn.state, turn.error_type) for turn in turns.values()} == {("completed", None)}, (
        "neighbours lose nothing"
    )
    assert (after.state, after.attempts) == ("completed", 1)
    assert "killed by SIGKILL" in poison.error_message
    assert poison.error_retryable
