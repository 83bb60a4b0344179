"""`inturn batch` with workers: on the embedded default, which it starts itself, and on both kinds of deployment."""

import asyncio
import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inturn import BatchTimeoutError, aio
from tests.acceptance.deployment import Deployment
from tests.acceptance.test_cli import PATIENCE_SECONDS, Shell

LINES, SESSIONS = 60, 12
SLOW_LINES = 15


@pytest.fixture
def alone() -> Iterator[Shell]:
    """A home where nothing runs."""
    with tempfile.TemporaryDirectory(prefix="inturn-cli-") as directory:
        yield Shell(Path(directory) / "home")


def write(path: Path, its: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in its))
    return str(path)


def entries(path: Path) -> dict[str, dict[str, Any]]:
    """Of a result file, by custom ID; none stands in it twice."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len({one["custom_id"] for one in found}) == len(found), "a line stands in the file twice"
    return {one["custom_id"]: one for one in found}


def test_a_run_needs_nothing_and_keeps_the_order_of_sessions(alone: Shell) -> None:
    place = alone.home.parent
    its = [{"prompt": f"prompt {n}", "session": f"s-{n % SESSIONS}"} for n in range(1, LINES + 1)]
    file, out = write(place / "in.jsonl", its), place / "out.jsonl"
    done = alone.run("batch", "run", file, "-o", str(out))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert set(entries(out)) == {str(n) for n in range(1, LINES + 1)}
    assert f"{LINES} of {LINES} lines have a reply, in {out}; " in done.stderr
    said = [turn["prompt"] for turn in alone.records("turn", "list", "s-1")]
    assert said == [f"prompt {n}" for n in range(1, LINES + 1, SESSIONS)]

    written = out.read_bytes()
    again = alone.run("batch", "run", file, "-o", str(out))
    assert (again.returncode, out.read_bytes()) == (0, written)
    assert f"in {out} already" in again.stderr


def test_ctrl_c_leaves_it_running_and_the_same_command_goes_on(alone: Shell) -> None:
    place = alone.home.parent
    options = {"latency": 0.5}
    # One session: a line after the other, so that it takes a while.
    its = [{"prompt": f"prompt {n}", "session": "slow", "options": options} for n in range(1, SLOW_LINES + 1)]
    file, out = write(place / "in.jsonl", its), place / "out.jsonl"
    words = ("batch", "run", file, "-o", str(out))
    run = alone.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (out.exists() and out.read_bytes()):
        assert (run.poll(), time.monotonic() < deadline) == (None, True)
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=PATIENCE_SECONDS)
    assert (run.returncode, stdout) == (130, b"")
    [batch] = alone.records("batch", "list")
    assert batch["state"] in ("in_progress", "completed"), "who stops the workers may wait for what is under way"
    assert (
        f"the same command writes its results, and so does\n  `inturn batch results {batch['id']} -o {out} --follow`\n"
        in stderr.decode()
    )
    so_far = entries(out)
    assert 0 < len(so_far) < SLOW_LINES

    done = alone.run(*words)
    assert done.returncode == 0, done.stderr
    assert f"batch {batch['id']} is completed: {SLOW_LINES} of {SLOW_LINES} lines have a reply" in done.stderr
    assert list(entries(out)) == [str(n) for n in range(1, SLOW_LINES + 1)], "in the order of their session"
    assert so_far.items() <= entries(out).items()


def test_failed_lines_are_told_and_have_a_file_of_their_own(deployment: Deployment, tmp_path: Path, name: str) -> None:
    refused = f"{name} !{json.dumps({'status': 400})}"
    its = [{"prompt": f"{name} hello", "custom_id": "well"}, {"prompt": refused, "custom_id": "ill"}]
    file, out, errors = write(tmp_path / "in.jsonl", its), tmp_path / "out.jsonl", tmp_path / "ill.jsonl"
    words = ("--name", name, "--model", "server/model")
    done = deployment.command("batch", "run", file, "-o", str(out), "--errors", str(errors), *words)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert entries(out)["well"]["response"]["body"]["choices"][0]["message"]["content"].startswith(f"reply to: {name}")
    assert entries(errors)["ill"]["response"]["status_code"] == 400
    assert f"1 failed: {errors} says why. `inturn batch retry batch-" in done.stderr
    piped = deployment.command("batch", "run", file, "-o", "-", "--short", *words)
    assert piped.returncode == 3
    assert {json.loads(line)["custom_id"] for line in piped.stdout.splitlines()} == {"well", "ill"}

    batch = next(one["id"] for one in listed(deployment) if one["name"] == name)
    assert deployment.command("batch", "retry", batch).returncode == 0
    watched = deployment.command("batch", "watch", batch, "--json")
    looks = [json.loads(line) for line in watched.stdout.splitlines()]
    assert (watched.returncode, looks[-1]["state"], looks[-1]["failed"]) == (3, "completed", 1)
    first_turn = entries(errors)["ill"]["id"]
    assert deployment.command("batch", "results", batch, "-o", str(out), "--errors", str(errors)).returncode == 0
    assert entries(errors)["ill"]["id"] != first_turn, "what was sent again and failed again takes the old one's place"


def listed(deployment: Deployment) -> list[dict[str, Any]]:
    return [json.loads(line) for line in deployment.command("batch", "list", "--json").stdout.splitlines()]


def test_the_asyncio_client_waits_for_many_batches_and_holds_no_thread(deployment: Deployment, name: str) -> None:
    """More than it has threads."""

    async def wait(client: aio.Client, number: int) -> list[str | None]:
        lines = [{"prompt": f"{name} {number} {n}", "options": {"latency": 1}} for n in range(3)]
        batch = await client.submit_batch(lines, name=f"{name}-{number}")
        with pytest.raises(BatchTimeoutError):
            await batch.wait(0)
        progress = await batch.wait(PATIENCE_SECONDS)
        assert (progress.completed, batch.is_final) == (3, True)
        return [result.reply async for result in batch.results(follow=True)]

    async def all_of_them() -> list[list[str | None]]:
        async with aio.Client(deployment.settings) as client:
            found = await asyncio.gather(*(wait(client, number) for number in range(15)))
            turns = await client.send_many([f"{name} at once"] * 2, lane="chat")
            assert {type(turn) for turn in turns} == {aio.Turn}
            assert [batch.name async for batch in client.list_batches(limit=1)]
            return found

    for number, replies in enumerate(asyncio.run(all_of_them())):
        assert len(replies) == 3
        assert all(reply and f"{name} {number} " in reply for reply in replies)
