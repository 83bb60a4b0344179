"""The jobs in examples/batches as docs/batches.md walks through them: its commands and programs are run from top to bottom,
and what it says of codes is what is said.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inturn import BatchState, Client, InvalidBatchError
from ops.chaos.model import ModelServer
from tests.acceptance.command import Inturn, Up

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "examples" / "batches"
DOCS = (ROOT / "docs" / "batches.md").read_text()
PREFACE = 'inturn() { "$PYTHON" -m inturn "$@"; }; python() { "$PYTHON" "$@"; }; set -euo pipefail\n'
MARK = "--- this command is over ---"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the examples, and what commands leave in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


@pytest.fixture
def up(place: Path) -> Iterator[Inturn]:
    """A home in which a worker is alive."""
    inturn = Inturn(place / "home")
    stack = Up(inturn)
    try:
        stack.await_words("ready")
        yield inturn
    finally:
        stack.stop()


def blocks(language: str, page: str = DOCS) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def commands(page: str = DOCS) -> Iterator[tuple[str, str]]:
    """Each command that the page shows, with what it shows that it prints."""
    for block in blocks("console", page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, said = part.partition("\n")
            yield command, said


def rows(heading: str) -> list[list[str]]:
    """The cells of a table, by the name of its first column."""
    table = DOCS.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]


def python(program: str, place: Path, inturn: Inturn) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, env=inturn.environment, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_of_the_page_do_what_it_shows(place: Path, up: Inturn) -> None:
    shown = list(commands())
    script = PREFACE + "".join(f"{command}\necho '{MARK}'\n" for command, _ in shown)
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=up.environment | {"PYTHON": sys.executable}, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip
    printed = done.stdout.split(f"{MARK}\n")
    assert done.returncode == 0, (shown[len(printed) - 1], done.stderr)
    assert len(printed) == len(shown) + 1
    for (command, said), found in zip(shown, printed, strict=False):
        assert not said or found == said, command

    with Client(home=up.home) as client:
        assert {batch.state for batch in client.list_batches()} <= {BatchState.COMPLETED, BatchState.IN_PROGRESS}
    summaries = [json.loads(line) for line in (place / "summaries.jsonl").read_text().splitlines()]
    tickets = (JOBS / "summaries.txt").read_text().splitlines()
    assert sorted(int(one["custom_id"]) for one in summaries) == list(range(1, len(tickets) + 1))
    assert all(tickets[int(one["custom_id"]) - 1][:100] in one["reply"] for one in summaries)


def test_the_interview_is_held_once_and_goes_on(place: Path, up: Inturn) -> None:
    program = (JOBS / "interview.py").read_text().replace("__file__", repr(str(JOBS / "interview.py")))
    first, second = python(program, place, up), python(program, place, up)
    assert (
        first.splitlines()[:2] == second.splitlines()[:2] == ["32 questions to 16 people", "32 answers, 0 without one"]
    )
    with Client(home=up.home) as client:
        assert sum(1 for _ in client.list_batches()) == 1
        said = {one.session_id: one.turns for one in client.list_sessions(prefix="meals-2026:")}
        assert said.pop("meals-2026:ines") == 4  # two of the batch, and one each time
        assert set(said.values()) == {2}
        lines = [json.loads(line) for line in (JOBS / "interview.jsonl").read_text().splitlines()]
        asked = [line for line in lines if line["session"] == "meals-2026:marek"]
        messages = list(client.resume_session("meals-2026:marek").get_messages())
        assert [one.data.content for one in messages if one.type == "user.message"] == [one["prompt"] for one in asked]
        assert messages[0].data.content == asked[0]["system"]


def test_a_file_for_openai_runs_unchanged_and_its_results_are_read(tmp_path: Path, model: ModelServer) -> None:
    """As OpenAI's own examples have it: with options in the bodies, and a bare name of a model."""
    lines = [json.loads(line) for line in (JOBS / "reviews.jsonl").read_text().splitlines()]
    options = {"max_tokens": 5, "temperature": 0, "response_format": {"type": "text"}}
    for line in lines:
        line["body"] |= options
    refused = lines[3]
    refused["body"]["messages"][-1]["content"] += ' !{"status": 400}'  # the server does as it is told
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    inturn = Inturn(tmp_path / "home")
    inturn.environment |= {"OPENAI_API_KEY": "sk-reviews", "OPENAI_BASE_URL": model.base_url}
    out = tmp_path / "labels.jsonl"
    done = inturn.run("batch", "run", str(tmp_path / "in.jsonl"), "-o", str(out))
    assert done.returncode == 3, done.stderr

    calls = [call for call in model.calls() if "household goods" in json.dumps(call.messages)]  # others ask it, too
    assert {call.model for call in calls} == {"gpt-4.1-mini"}
    assert all(call.options.items() >= options.items() for call in calls)
    asked = Counter(json.dumps(call.messages) for call in calls)
    assert asked == Counter(json.dumps(line["body"]["messages"]) for line in lines)

    said = labels(out)
    assert said.startswith(f"{len(lines) - 1} reviews, ")
    assert f" {len(lines) - 1} unclear\n" in said
    assert f"  {refused['custom_id']} has no label: invalid_request: " in said


def labels(output: Path) -> str:
    """What the example reads in result files."""
    words = [JOBS / "read_reviews.py", output, output.with_name(f"{output.stem}.errors.jsonl")]
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_reader_reads_what_openai_writes(tmp_path: Path) -> None:
    """The shape is that of OpenAI's guide to its Batch API."""
    out = tmp_path / "out.jsonl"
    out.write_text("".join(f"{json.dumps(of_openai(number, said))}\n" for number, said in enumerate(SAID)))
    expired = {
        "code": "batch_expired",
        "message": "This request could not be executed before the completion window expired.",
    }
    failed = {"id": "batch_req_9", "custom_id": "review-9", "response": None, "error": expired}
    (tmp_path / "out.errors.jsonl").write_text(f"{json.dumps(failed)}\n")
    read = labels(out).splitlines()
    assert read[:5] == ["4 reviews, 128 tokens", "    1 positive", "    0 mixed", "    2 negative", "    1 unclear"]
    assert read[5:] == [f"  review-9 has no label: batch_expired: {expired['message']}"]


SAID = ("Negative.", "positive", "negative\n", "I would say that it is mixed")


def of_openai(number: int, said: str) -> dict[str, Any]:
    body = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1711652795,
        "model": "gpt-4.1-mini-2025-04-14",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": said}, "logprobs": None, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 22, "completion_tokens": 10, "total_tokens": 32},
        "system_fingerprint": "fp_123",
    }
    answer = {"status_code": 200, "request_id": f"req_{number}", "body": body}
    return {"id": f"batch_req_{number}", "custom_id": f"review-{number}", "response": answer, "error": None}


def test_the_programs_of_the_page_run(place: Path, up: Inturn) -> None:
    submitting, sending = (python(program, place, up) for program in blocks("python"))
    assert submitting.splitlines()[0] == "42"
    assert "review-20411 You said: " in submitting
    assert sending == 'You said: "Hello"\n' * 3


def test_every_code_is_told_as_the_page_says(tmp_path: Path) -> None:
    told = {code.strip("`"): (line, message) for code, line, message in rows("code | such as | is told")}
    repeated = '{"custom_id": "a", "prompt": "Hello"}'
    in_words = {
        "duplicate_custom_id": f"{repeated}\n{repeated}",
        "prompt_too_large": json.dumps({"prompt": "x" * 300_000}),
        "empty_file": "\n",
    }
    with Client(home=tmp_path) as client:
        for code, (line, message) in told.items():
            (tmp_path / "in.jsonl").write_text(in_words.get(code) or line.strip("`"))
            with pytest.raises(InvalidBatchError) as refused:
                client.submit_batch(tmp_path / "in.jsonl")
            assert [(bad.code, bad.message) for bad in refused.value.errors] == [(code, message)]
        assert list(client.list_batches()) == []


def test_what_the_readme_shows_of_batches_is_run_above() -> None:
    section = (ROOT / "README.md").read_text().partition("\n## Batches\n")[2].partition("\n## ")[0]
    shown = {command for command, _ in commands(section)}
    assert shown
    assert shown <= {command for command, _ in commands()}


def test_the_page_has_every_state() -> None:
    assert {cells[0].strip("`") for cells in rows("state | what it means | who moves it on")} == set(BatchState)
