"""The only file that prints. Data goes to stdout, talk to stderr; what was stored by others loses its terminal escapes.

With ``--json`` every line on stdout is one JSON object: one line for one thing, one line each for many.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: window titles, clipboard, links
    r"|\x1b[P^_X][^\x1b]*(?:\x1b\\)?"  # DCS, PM, APC, SOS: strings that a terminal acts on
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor, clear screen
    r"|\x1b[ -/]*[0-~]?"
)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
PLAIN_STEPS = 10


class Progress(Protocol):
    """Something that is told how many are done."""

    def update(self, done: int) -> None: ...


def prepare() -> None:
    """Let no character end a command, coming in or going out."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def color() -> bool | None:
    """False when NO_COLOR asks for none (click does not look at it), else None: as the stream is."""
    return False if os.environ.get("NO_COLOR") else None


def clean(text: str) -> str:
    """Text without terminal escapes and control characters; new lines and tabs stay."""
    return CONTROLS.sub("", ESCAPES.sub("", text.replace("\r\n", "\n")))


def cell(value: object) -> str:
    """A value as a person reads it, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, Mapping):
        return ", ".join(f"{cell(key)}={cell(one)}" for key, one in value.items()) or "-"
    return " ".join(clean(str(value)).split()) or "-"


def data(text: str) -> None:
    """Text that was asked for, to stdout."""
    click.echo(clean(text), color=color())


def talk(sentence: str) -> None:
    """A remark to whoever sits there, to stderr."""
    click.echo(clean(sentence), err=True, color=color())


def complain(sentence: str) -> None:
    """Why it did not work, to stderr."""
    click.echo(f"{click.style('inturn:', fg='red', bold=True)} {clean(sentence)}", err=True, color=color())


def ask(question: str) -> bool:
    """Put a yes-or-no question; where nobody can answer, the answer is a usage error.

    Raises:
        click.UsageError: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody is there to answer: add --yes")
    return click.confirm(clean(question), err=True)


def read_prompt(label: str) -> str | None:
    """One line from who sits there, None at its end (Ctrl-D); the label only shows in a terminal."""
    if sys.stdin.isatty():
        # readline edits the line and keeps a history in memory; it writes its prompt to stdout unless told otherwise.
        import readline  # noqa: F401
    try:
        return input(label if sys.stdin.isatty() and sys.stdout.isatty() else "")
    except EOFError:
        return None


def read_all(limit: int) -> str:
    """What is piped in, without its last new line; reading ends at ``limit`` characters."""
    return sys.stdin.read(limit).removesuffix("\n")


def json_line(record: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout. Control characters are escaped, so it is safe in a terminal as well."""
    text = json.dumps(record, ensure_ascii=False, default=_plain)
    click.echo(CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text), color=False)


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Rows under headings: a table in a terminal, tab-separated lines elsewhere (whole values, fit for cut and awk)."""
    cells = [[cell(value) for value in row] for row in rows]
    if not cells:
        talk(empty)
        return
    if not sys.stdout.isatty():
        for row in [[column.upper() for column in columns], *cells]:
            click.echo("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in cells:
        grid.add_row(*map(Text, row))  # as Text, or [brackets] in stored words would be read as markup
    _console(sys.stdout).print(grid)


def records(lines: Iterable[tuple[str, object]]) -> None:
    """One thing, told as ``name: value`` lines."""
    pairs = [(name, cell(value)) for name, value in lines]
    width = max(len(name) for name, _ in pairs) + 1
    for name, value in pairs:
        click.echo(f"{click.style(f'{name}:'.ljust(width), bold=True)} {value}", color=color())


def utterance(speaker: str, text: str) -> None:
    """One message of a conversation."""
    click.echo(f"{click.style(f'{clean(speaker)}:', bold=True)} {clean(text)}", color=color())


def verdict(state: str, subject: str, sentence: str) -> None:
    """One line of a check-up: ``ok``, ``warn`` or ``fail``, about what, and what to do."""
    colour = {"ok": "green", "warn": "yellow"}.get(state, "red")
    click.echo(f"{click.style(state.ljust(4), fg=colour)}  {subject:<10}  {clean(sentence)}", color=color())


def waiting(remark: str) -> AbstractContextManager[object]:
    """A sign of life on stderr while something takes its time; nothing where nobody watches."""
    return _console(sys.stderr).status(clean(remark)) if sys.stderr.isatty() else nullcontext()


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """A bar on stderr, or a line at every tenth of the way where there is no terminal."""
    if not sys.stderr.isatty():
        yield _Lines(label, total)
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    with bars.Progress(*columns, console=_console(sys.stderr)) as bar:
        yield _Bar(bar, bar.add_task(label, total=total))


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def update(self, done: int) -> None:
        self._bar.update(self._task, completed=done)


class _Lines:
    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._step = label, total, 0

    def update(self, done: int) -> None:
        step = done * PLAIN_STEPS // max(self._total, 1)
        if step > self._step:
            self._step = step
            talk(f"{self._label}: {done} of {self._total}")


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    return Console(file=stream, highlight=False)
