"""The frame of the command line: what is loaded when, what is printed where, which code a failure ends with."""

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import click
import pytest

import inturn
from inturn import cli
from inturn.cli import render
from inturn.cli.exits import Exit, exit_code
from inturn.cli.invocation import Invocation
from inturn.cli.words import sentence, way_back
from inturn.models import errors

ROOT = Path(__file__).parents[2]
HEAVY = ("celery", "kombu", "redis", "sqlmodel", "sqlalchemy", "pydantic", "httpx", "rich")
PROBE = """
import sys
from inturn.cli import main
sys.argv = ["inturn", *sys.argv[1:]]
try:
    main()
finally:
    print("LOADED", *sorted(sys.modules), file=sys.stderr)
"""


def inturn_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inturn", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, timeout=60)
    return set(done.stderr.rpartition("LOADED")[2].split())


def test_the_face_has_what_it_promises() -> None:
    assert inturn.__all__ == sorted(inturn.__all__)
    for name in inturn.__all__:
        assert getattr(inturn, name) is not None
    assert set(inturn.__all__) <= set(dir(inturn))
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    public = {kind.__name__ for kind in kinds}
    assert public <= set(inturn.__all__)
    with pytest.raises(AttributeError, match="Cleint"):
        _ = inturn.Cleint  # type: ignore[attr-defined]


def test_the_version_is_the_one_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project.get("version", inturn.__version__) == inturn.__version__


def test_only_render_prints() -> None:
    prints = re.compile(r"\bprint\(|click\.s?echo|sys\.std(out|err)\.write")
    files = [file for file in (ROOT / "inturn").rglob("*.py") if file.name != "render.py"]
    assert [file.name for file in files if prints.search(file.read_text())] == []


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("send", "--help"), ("session", "--help"), ("schedule", "--help"), ()]
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & set(HEAVY)


def test_help_says_what_the_commands_say() -> None:
    for name, door in cli.COMMANDS.items():
        module, _, attribute = door.target.partition(":")
        command = getattr(import_module(module), attribute)
        assert command.name == name
        assert (command.help or "").splitlines()[0] == door.help
        assert door.help in inturn_help()


def inturn_help() -> str:
    return cli.cli.get_help(click.Context(cli.cli, info_name="inturn", terminal_width=200, max_content_width=200))


def test_usage_errors_end_with_2_and_a_guess() -> None:
    done = inturn_command("sesion", "list")
    assert done.returncode == Exit.USAGE
    assert "no command 'sesion': did you mean session?" in done.stderr
    assert done.stdout == ""


def test_a_bad_setting_is_one_sentence() -> None:
    done = inturn_command("config", "show", INTURN_DATABASE_URL="mysql://u:secret@h/x")
    assert done.returncode == Exit.USAGE
    assert done.stderr.startswith("inturn: database_url is 'mysql://u:***@h/x' (environment INTURN_DATABASE_URL)")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in inturn_command("--home", "a?b", "config", "show", INTURN_DEBUG="1").stderr


def test_version() -> None:
    assert inturn_command("--version").stdout == f"inturn {inturn.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SessionNotFoundError("x"), 4),
        (errors.TurnNotFoundError("1.1"), 4),
        (errors.BatchNotFoundError("batch-x"), 4),
        (errors.ScheduleNotFoundError("x"), 4),
        (errors.ScheduleExistsError("x"), 1),
        (errors.BatchTimeoutError("batch-x", 1.0), 124),
        (errors.BatchConflictError("batch-x", "x"), 1),
        (errors.InvalidBatchError("x.jsonl", [], 1, 2), 2),
        (errors.InvalidSessionIdError("?"), 2),
        (errors.SettingsError("x"), 2),
        (errors.DatabaseUnreachableError("x"), 69),
        (errors.BrokerUnreachableError("x"), 69),
        (errors.NoWorkerError("x"), 69),
        (errors.SchemaError("x"), 1),
        (errors.SessionBusyError("x"), 1),
        (errors.ArchiveError("x", "full", "make room"), 1),
        (errors.UnfinishedTurnsError("x", 1, "wait"), 1),
        (errors.TurnFailedError("1.1", "refused", "x", None, True), 69),
        (errors.TurnFailedError("1.1", "unauthorized", "x", 401, False), 1),
    ],
)
def test_every_error_has_its_code(error: errors.InturnError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("failure", "code", "sentence"),
    [
        (errors.SessionNotFoundError("ghost"), 4, "inturn: no session 'ghost'"),
        (OSError(28, "No space left on device"), 1, "inturn: [Errno 28] No space left"),
        (KeyError("x"), 1, "inturn: KeyError: 'x'. This is a bug in inturn"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
    ],
)
def test_failures_become_a_sentence_and_a_code(
    failure: BaseException,
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise failure

    monkeypatch.setattr(cli.cli, "get_command", lambda ctx, name: click.Command(name, callback=fail))
    assert cli.run(["chat"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().startswith(sentence)
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [("session", "list"), ("chat",), ("demo",), ("db", "check")])
def test_global_flags_may_stand_anywhere_and_the_last_one_counts(words: tuple[str, ...]) -> None:
    heard = Invocation()
    context = cli.cli.make_context("inturn", ["--home", "a", "--broker-url", "b", *words], obj=heard)
    command: click.Command = cli.cli
    for number, word in enumerate(words):
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None
        command = found
        context = command.make_context(word, ["--home", f"c{number}", *words[number + 1 :]], parent=context)
        assert heard.flags == {"home": f"c{number}", "broker_url": "b"}
    assert "--broker-url" not in command.get_help(context)


@dataclass
class StoredTurn:
    id: str = "7.1"


def test_errors_speak_of_commands_and_not_of_python() -> None:
    assert sentence(errors.SendTimeoutError(StoredTurn(), 0.5)) == "no reply to turn 7.1 within 0.5 s"
    assert "`inturn chat x`" in sentence(errors.SessionExistsError("x"))
    assert "get_or_create" not in sentence(errors.SessionExistsError("x"))
    assert sentence(errors.NoWorkerError("start one, and wait for the turn again")) == "start one"
    assert sentence(errors.NoWorkerError("it hangs")) == "it hangs"
    assert sentence(errors.SessionNotFoundError("x")) == str(errors.SessionNotFoundError("x"))


@pytest.mark.parametrize(
    ("end", "noted"),
    [
        (KeyboardInterrupt(), True),
        (errors.NoWorkerError(), True),
        (errors.DatabaseUnreachableError(), True),
        (errors.TurnCancelledError("7.1"), False),
    ],
)
def test_who_stops_waiting_learns_how_to_come_back(end: BaseException, noted: bool) -> None:
    with pytest.raises(type(end)) as caught, way_back(StoredTurn(), embedded=False):
        raise end
    note = "turn 7.1 is kept: `inturn turn show 7.1` has the reply once it is answered"
    assert getattr(caught.value, "__notes__", []) == [note] * noted


def test_a_reader_that_leaves_is_no_failure_worth_a_word() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "inturn", "--help"], stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("plain, ünïcødé 🙂\n\tindented", "plain, ünïcødé 🙂\n\tindented"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]52;c;ZXZpbA==\x1b\\clip", "clip"),
        ("\x1bPq#0\x1b\\sixel", "sixel"),
        ("\x9b2Jcleared\x85", "cleared"),
        ("over\rwritten\b\b", "overwritten"),
        ("windows\r\nlines", "windows\nlines"),
        ("\x1b[", ""),
        ("\x1b", ""),
    ],
)
def test_terminal_escapes_are_not_passed_on(stored: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.clean(stored) == shown
    render.data(stored)
    assert capsys.readouterr().out == shown + "\n"


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"text": "a\nb \x9b2J\x7f ü", "at": datetime(2025, 1, 2, tzinfo=UTC), "none": None}
    render.json_line(record)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x9b" not in out
    assert "ü" in out
    assert json.loads(out) == record | {"at": "2025-01-02T00:00:00+00:00"}


def test_a_table_in_a_pipe_is_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["id", "label s"], [("a", {"k": 1}), ("b\tb\n", None)], empty="none")
    assert capsys.readouterr().out == "ID\tLABEL S\na\tk=1\nb b\t-\n"
    render.table(["id"], [], empty="nothing there")
    assert capsys.readouterr() == ("", "nothing there\n")


def test_a_table_in_a_terminal_shows_brackets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    render.table(["id"], [("[red]a[/red] \x1b[2J",)], empty="none")
    assert "[red]a[/red]" in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()


def test_long_sentences_are_broken_between_words_and_outside_of_commands() -> None:
    assert render.wrapped("it ends: `inturn up` starts it", 19) == ["it ends:", "`inturn up` starts", "it"]


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress("turns", 40) as bar:
        for done in range(41):
            bar.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "turns: 40 of 40"


@pytest.mark.parametrize("show", [render.talk, render.complain, lambda text: render.verdict("ok", "x", text)])
def test_no_color_is_honoured(
    show: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("click._compat.isatty", lambda stream: True)
    show("hello")
    assert "\x1b" not in "".join(capsys.readouterr())


def test_who_is_not_there_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(click.UsageError, match="add --yes"):
        render.ask("Delete?")
    assert render.read_prompt("you: ") is None
