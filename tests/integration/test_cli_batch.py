"""Batches on the command line, with nobody at work: what is stored, shown, written and taken back, and how it fails."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from inturn.models.states import Lane, TurnState
from inturn.models.store import retention
from inturn.models.store.standing import Numbers, of_lines
from tests.integration.stores import Store
from tests.integration.test_cli_commands import Shell, shell
from tests.integration.test_store_batches import lines, submit, tend, work

__all__ = ["shell"]


@pytest.fixture
def embedded(shell: Shell) -> Iterator[Store]:
    """The shell's database, once a command has made it."""
    shell.ok("batch", "list")
    with closing(Store(f"sqlite:///{shell.home / 'inturn.db'}")) as store:
        yield store


def write(tmp_path: Path, *its: Any, name: str = "prompts.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in its))
    return str(path)


def prompts(tmp_path: Path, many: int = 3, **more: Any) -> str:
    return write(tmp_path, *({"prompt": f"prompt {number}"} | more for number in range(1, many + 1)))


def work_at(store: Store, becomes: TurnState = TurnState.COMPLETED, most: int = 1000) -> None:
    assert work(store, becomes, most), "nothing was ready"


def entries(path: Path) -> dict[str, dict[str, Any]]:
    """Of a result file, by custom ID; none stands in it twice."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    assert len({one["custom_id"] for one in found}) == len(found), "a line stands in the file twice"
    return {one["custom_id"]: one for one in found}


def test_what_is_submitted_is_one_batch_however_often(shell: Shell, tmp_path: Path) -> None:
    file = prompts(tmp_path)
    first = shell.run("batch", "submit", file, "--name", "reviews", "--window", "24h", "--keep", "7d")
    assert (first.returncode, first.stdout) == (0, first.stdout.strip() + "\n")
    batch = first.stdout.strip()
    assert f"3 lines are stored as batch {batch}" in first.stderr
    assert "no worker is alive: `inturn up`" in first.stderr
    again = shell.run("batch", "submit", file, "--name", "reviews", "--window", "24h", "--keep", "7d")
    assert again.stdout.strip() == batch
    assert f"this was submitted before: batch {batch} is in_progress. --again runs it once more" in again.stderr
    conflict = shell.run("batch", "submit", file, "--name", "reviews", "--window", "12h")
    assert conflict.returncode == 1
    assert "another --name" in conflict.stderr
    assert "again=True" not in conflict.stderr
    other = shell.ok("batch", "submit", file, "--name", "reviews", "--again").strip()
    assert [one["id"] for one in shell.records("batch", "list")] == [other, batch]
    assert [one["id"] for one in shell.records("batch", "list", "--limit", "1")] == [other]
    [record] = shell.records("batch", "status", batch)
    assert record | {"name": "reviews", "state": "in_progress", "total": 3, "queued": 3, "completed": 0} == record
    assert record["expires_at"] is not None


def test_prompts_are_piped_in(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def piped(text: str) -> str:
        with monkeypatch.context() as patch:
            patch.setenv("INTURN_HOME", str(shell.home))
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            from inturn import cli

            assert cli.run(["batch", "submit", "-", "--text", "--json"]) == 0
        return capsys.readouterr().out

    [record] = map(json.loads, piped("one prompt\n\nanother\n").splitlines())
    assert record["total"] == 2
    assert [one["prompt"] for one in shell.records("turn", "list", f"{record['id']}:3")] == ["another"]


def test_lines_that_are_not_valid_are_told_and_nothing_is_stored(shell: Shell, tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "well"}, *["{nope"] * 30, {"prompt": 3}, {"prompt": "x", "model": "ghost/x"})
    done = shell.run("batch", "submit", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "32 of 33 lines" in done.stderr
    assert f"lines {', '.join(map(str, range(2, 22)))}: the line is no JSON" in done.stderr
    assert done.stderr.count("the line is no JSON") == 1
    assert "and 12 more" in done.stderr
    assert "(--skip-invalid)" in done.stderr
    assert shell.records("batch", "list") == []

    skipped = shell.run("batch", "submit", file, "--skip-invalid")
    batch = skipped.stdout.strip()
    assert f"1 line is stored as batch {batch}, 32 not valid: they are among the errors" in skipped.stderr
    [record] = shell.records("batch", "status", batch)
    assert (record["total"], record["failed"], record["queued"]) == (33, 32, 1)


def test_lines_whose_model_does_not_have_their_options_are_not_valid(shell: Shell, tmp_path: Path) -> None:
    wrong, there = {"prompt": "ill", "options": {"latncy": 1}}, {"session": "there"}
    file = write(
        tmp_path, {"prompt": "well", "options": {"latency": 1}}, wrong, wrong | there, wrong | {"model": "echo/x"}
    )
    done = shell.run("batch", "submit", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 of 4 lines" in done.stderr, "the session may have another model"
    assert "line 2: echo/echo: echo has no option 'latncy' (did you mean latency?)" in done.stderr
    assert "line 4: echo/x: echo has no option 'latncy'" in done.stderr
    file = write(tmp_path, {"prompt": "well"}, {"prompt": "well", **there})
    assert "1 of 2 lines" in shell.run("batch", "submit", file, "--option", "fale=1").stderr
    assert shell.records("batch", "list") == []


def test_lines_that_are_not_valid_are_not_offered_to_be_sent_again(
    shell: Shell, embedded: Store, tmp_path: Path
) -> None:
    file = write(tmp_path, {"prompt": "well"}, {"prompt": "ill"}, {"prompt": 3})
    batch = shell.ok("batch", "submit", file, "--skip-invalid").strip()
    work_at(embedded, most=1)
    work_at(embedded, TurnState.FAILED)
    some = shell.run("batch", "status", batch).stderr
    assert f"2 failed. `inturn batch retry {batch}` sends those again, but for 1 that is not valid" in some
    shell.ok("batch", "retry", batch)
    work_at(embedded)
    rest = shell.run("batch", "status", batch).stderr
    assert "1 failed. It is not valid: correct it, and submit it under another --name" in rest
    assert "retry" not in rest


def test_results_are_written_as_they_come_and_once_each(shell: Shell, embedded: Store, tmp_path: Path) -> None:
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    batch = shell.ok("batch", "submit", prompts(tmp_path, 4)).strip()
    work_at(embedded, most=2)
    so_far = shell.run("batch", "results", batch, "-o", str(out))
    assert (so_far.returncode, set(entries(out))) == (0, {"1", "2"})
    assert "results of 2 of 4 lines are in" in so_far.stderr
    assert not errors.exists()

    work_at(embedded, TurnState.FAILED, 1)
    work_at(embedded)
    done = shell.run("batch", "results", batch, "-o", str(out), "--follow")
    assert (done.returncode, set(entries(out)), set(entries(errors))) == (3, {"1", "2", "4"}, {"3"})
    assert f"3 of 4 lines have a reply, in {out}; " in done.stderr
    assert (
        f"lines without a reply: 1 failed: {errors} says why. `inturn batch retry {batch}` sends it again"
        in done.stderr
    )
    before = out.read_bytes()
    again = shell.run("batch", "results", batch, "-o", str(out))
    assert (again.returncode, out.read_bytes()) == (0, before)
    assert f"in {out} already" in again.stderr


@pytest.mark.parametrize("short", [(), ("--short",)])
def test_lines_that_are_sent_again_move_to_the_output(
    shell: Shell, embedded: Store, tmp_path: Path, short: tuple[str, ...]
) -> None:
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    batch = shell.ok("batch", "submit", prompts(tmp_path, 3)).strip()
    work_at(embedded, most=1)
    work_at(embedded, TurnState.FAILED)
    shell.ok("batch", "results", batch, "-o", str(out), *short)
    assert (set(entries(out)), set(entries(errors))) == ({"1"}, {"2", "3"})

    retried = shell.run("batch", "retry", batch)
    assert (retried.returncode, retried.stdout) == (0, "")
    assert f"2 lines of batch {batch} will be called again" in retried.stderr
    assert "once it is final" in shell.run("batch", "retry", batch).stderr
    work_at(embedded)
    done = shell.run("batch", "run", str(tmp_path / "prompts.jsonl"), "-o", str(out), *short)
    assert (done.returncode, set(entries(out)), entries(errors)) == (0, {"1", "2", "3"}, {})
    nothing = shell.run("batch", "retry", batch)
    assert (nothing.returncode, "no line to be sent again" in nothing.stderr) == (0, True)


def test_a_batch_is_taken_back_once(shell: Shell, embedded: Store, tmp_path: Path) -> None:
    batch = shell.ok("batch", "submit", prompts(tmp_path, 3)).strip()
    work_at(embedded, most=1)
    first = shell.run("batch", "cancel", batch)
    assert first.returncode == 0
    assert f"batch {batch} is cancelled: 1 of 3 lines have a reply, 2 were cancelled" in first.stderr
    second = shell.run("batch", "cancel", batch, "--abort")
    assert (second.returncode, "is cancelled already" in second.stderr) == (0, True)
    seen = shell.run("batch", "status", batch)
    assert "cancelled: " in seen.stdout
    assert f"`inturn batch retry {batch}`" in seen.stderr
    watched = shell.run("batch", "watch", batch, "--json")
    [look] = map(json.loads, watched.stdout.splitlines())
    assert (watched.returncode, look["state"], look["cancelled"]) == (3, "cancelled", 2)


def test_calls_under_way_are_told_when_a_batch_is_taken_back(shell: Shell, embedded: Store, tmp_path: Path) -> None:
    batch = shell.ok("batch", "submit", prompts(tmp_path, 2)).strip()
    started = embedded.claim(lane=Lane.BATCH)
    assert started is not None
    done = shell.run("batch", "cancel", batch)
    assert f"batch {batch} is cancelling" in done.stderr
    assert "1 call under way will be finished (--abort breaks off)" in done.stderr
    aborted = shell.run("batch", "cancel", batch, "--abort").stderr
    assert "0 of 2 lines have a reply, 1 was cancelled; 1 call under way is asked back" in aborted


def test_who_watches_may_say_for_how_long(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inturn.waiting import Waiter

    monkeypatch.setattr(Waiter, "hold_stack", lambda waiter, deadline: None)  # nobody is to work on it
    batch = shell.ok("batch", "submit", prompts(tmp_path)).strip()
    late = shell.run("batch", "watch", batch, "--timeout", "0.3")
    assert (late.returncode, late.stdout) == (124, "")
    assert f"batch {batch} did not end within 0.3 s" in late.stderr
    assert f"`inturn batch watch {batch}` looks again" in late.stderr

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inturn.batch.time.sleep", interrupted)
    out = tmp_path / "out.jsonl"
    stopped = shell.run("batch", "results", batch, "-o", str(out), "--follow")
    assert (stopped.returncode, f"`inturn batch watch {batch}` looks again" in stopped.stderr) == (130, True)


@pytest.mark.parametrize(
    "words", [("status",), ("watch",), ("results",), ("cancel",), ("retry",), ("results", "--follow")]
)
def test_an_unknown_batch_is_said_so(shell: Shell, words: tuple[str, ...]) -> None:
    done = shell.run("batch", words[0], "batch-0123456789abcdef", *words[1:])
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("inturn: no batch 'batch-0123456789abcdef'")


def test_a_place_that_is_taken_is_refused_before_anything_is_stored(shell: Shell, tmp_path: Path) -> None:
    out, file = tmp_path / "out.jsonl", prompts(tmp_path)
    out.write_text("mine\n")
    for place in (out, tmp_path, tmp_path / "gone" / "out.jsonl"):
        refused = shell.run("batch", "run", file, "-o", str(place))
        assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
        assert str(place) in refused.stderr
    assert "--force" in shell.run("batch", "run", file, "-o", str(out)).stderr
    nowhere = shell.run("batch", "run", file)
    assert (nowhere.returncode, "-o -" in nowhere.stderr, "`inturn batch submit" in nowhere.stderr) == (2, True, True)
    assert out.read_text() == "mine\n"
    assert shell.records("batch", "list") == []


def test_a_place_that_is_taken_by_others_is_refused_and_nothing_else(
    shell: Shell, embedded: Store, tmp_path: Path
) -> None:
    out, file = tmp_path / "out.jsonl", prompts(tmp_path)
    out.write_text("mine\n")
    batch = shell.ok("batch", "submit", file).strip()
    refused = shell.run("batch", "run", file, "-o", str(out))
    assert (refused.returncode, "--force" in refused.stderr, "goes on as" in refused.stderr) == (2, True, False)
    work_at(embedded)
    assert "completed" in shell.ok("batch", "status", batch)
    final = shell.run("batch", "run", file, "-o", str(out))
    assert (final.returncode, "--force" in final.stderr, "goes on as" in final.stderr) == (2, True, False)
    assert f"`inturn batch results {batch} -o OTHER`" in final.stderr


def test_who_waits_is_told_whether_others_go_on(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inturn.workers import stack

    file, out = prompts(tmp_path), tmp_path / "out.jsonl"
    batch = shell.ok("batch", "submit", file).strip()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inturn.batch.Batch.watch", interrupted)
    for runs, goes_on in (
        (None, "as soon as `inturn up` runs, or somebody waits for it"),
        (stack.StackInfo(linked=True), "as soon as `inturn up` runs, or somebody waits for it"),
        (stack.StackInfo(), "by itself"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(stack, "running_stack", lambda home, runs=runs: runs)
            stopped = shell.run("batch", "run", file, "-o", str(out))
        assert stopped.returncode == 130
        assert (
            f"batch {batch} goes on {goes_on}:\n  the same command writes its results, and so does\n"
            f"  `inturn batch results {batch} -o {out} --follow`\n  `inturn batch watch {batch}` only looks\n"
        ) in stopped.stderr


def test_a_file_of_another_batch_is_refused_unless_it_is_forced(shell: Shell, embedded: Store, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = shell.ok("batch", "submit", prompts(tmp_path, 2)).strip()
    other = shell.ok("batch", "submit", prompts(tmp_path, 3)).strip()
    work_at(embedded)
    shell.ok("batch", "results", first, "-o", str(out))
    refused = shell.run("batch", "results", other, "-o", str(out))
    assert (refused.returncode, len(entries(out))) == (2, 2)
    assert "--force" in refused.stderr
    shell.ok("batch", "results", other, "-o", str(out), "--force")
    assert len(entries(out)) == 3
    short = shell.run("batch", "results", other, "-o", str(out), "--short")
    assert (short.returncode, "was written without --short: leave it out" in short.stderr) == (2, True)
    shell.ok("batch", "results", other, "-o", str(out), "--short", "--force")
    long = shell.run("batch", "results", other, "-o", str(out))
    assert (long.returncode, "was written with --short: say --short again" in long.stderr) == (2, True)


def test_a_batch_that_is_not_wanted_any_longer_goes_once_it_is_written(
    shell: Shell, embedded: Store, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    file = prompts(tmp_path, 2)
    batch = shell.ok("batch", "submit", file, "--discard").strip()
    work_at(embedded, most=1)
    shell.ok("batch", "results", batch, "-o", str(out))
    assert len(shell.records("session", "list")) == 2
    work_at(embedded)
    done = shell.run("batch", "results", batch, "-o", str(out))
    assert (done.returncode, len(entries(out))) == (0, 2)
    assert "sessions that it made were removed, as --discard asked for" in done.stderr
    assert shell.records("session", "list") == []

    gone = shell.run("batch", "results", batch)
    assert (gone.returncode, gone.stdout) == (2, "")
    assert "were discarded" in gone.stderr
    again = shell.run("batch", "run", file, "--discard", "-o", str(out))
    assert (again.returncode, len(entries(out))) == (0, 2)
    assert "is left as it is" in again.stderr
    for place in (tmp_path / "other.jsonl", "-"):
        missing = shell.run("batch", "run", file, "--discard", "-o", str(place))
        assert (missing.returncode, missing.stdout, "--again" in missing.stderr) == (2, "", True)


def test_what_a_model_said_does_nothing_in_a_terminal(
    shell: Shell, embedded: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inturn.cli.screen import Screen

    written = io.BytesIO()
    Screen(written).write('{"reply":"a\x9b2Jb\x7fü"}\n'.encode())
    assert written.getvalue().decode() == '{"reply":"a\\u009b2Jb\\u007fü"}\n'
    name = "red\x1b[31m\x07"
    shell.ok("batch", "submit", prompts(tmp_path), "--name", name)
    shown = shell.ok("batch", "list")
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_a_table_of_batches(shell: Shell, embedded: Store, tmp_path: Path) -> None:
    assert "no batches. `inturn batch submit FILE` stores one" in shell.run("batch", "list").stderr
    batch = shell.ok("batch", "submit", prompts(tmp_path, 2)).strip()
    work_at(embedded, most=1)
    work_at(embedded, TurnState.FAILED)
    heading, row = [line.split("\t") for line in shell.ok("batch", "list").splitlines()]
    found = dict(zip(heading, row, strict=True))
    assert found["NAME"] == "prompts.jsonl", "its file's, for want of another"
    assert found | {"BATCH": batch, "STATE": "completed", "LINES": "2", "COMPLETED": "1", "FAILED": "1"} == found
    assert "no batches are expired" in shell.run("batch", "list", "--state", "expired").stderr


def test_custom_ids_are_found_in_whatever_order_they_are_asked_for(store: Store) -> None:
    batch = submit(store, lines(7))
    work(store)
    tend(store)
    numbers = Numbers(store.database, batch.id, page=2)
    assert numbers.of(["id-6", "id-2", "ghost"]) == {"id-6": 6, "id-2": 2}
    assert numbers.of(["id-1", "id-7"]) == {"id-1": 1, "id-7": 7}


def test_a_line_whose_session_is_gone_stands_without_a_turn(store: Store) -> None:
    batch = submit(store, lines(2, session="shared"))
    work(store)
    found = of_lines(store.database, batch.id, [1, 2, 3])
    assert {line: key for line, (key, _) in found.items()} == {1: "id-1", 2: "id-2"}
    assert all(turn for _, turn in found.values())
    retention.remove(store.database, "shared")
    assert of_lines(store.database, batch.id, [1, 2, 3]) == {1: ("id-1", None), 2: ("id-2", None)}
    assert Numbers(store.database, batch.id).of(["id-2"]) == {"id-2": 2}
