"""The only file that prints. Data goes to stdout, talk to stderr; what was stored by others loses its terminal escapes.

With ``--json`` every line on stdout is one JSON object: one line for one thing, one line each for many.
"""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from io import TextIOWrapper
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding

ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: window titles, clipboard, links
    r"|\x1b[P^_X][^\x1b]*(?:\x1b\\)?"  # DCS, PM, APC, SOS: strings that a terminal acts on
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor, clear screen
    r"|\x1b[ -/]*[0-~]?"
)
COMMANDS = re.compile(r"`[^`]*`")
PROMPTS = re.compile(r"^(?:\$|>>>|\.\.\.)(?= |$)", re.MULTILINE)
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ROWS_TOGETHER = 1000  # in a terminal; then their headings come again
PLAIN_STEPS = 10
VERDICT_INDENT = 18
DRAWN_A_SECOND = 12
COLOURS = {"ok": "green", "note": "cyan", "warn": "yellow", "fail": "red"}


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
        return ", ".join(f"{cell(key)}={_within(one)}" for key, one in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(_within(one) for one in value) or "-"
    return " ".join(clean(str(value)).split()) or "-"


def _within(value: object) -> str:
    """A value beside others: what has parts itself is told as JSON."""
    return clean(json.dumps(value, ensure_ascii=False)) if isinstance(value, Mapping | list) else cell(value)


def data(text: str) -> None:
    """Text that was asked for, to stdout."""
    click.echo(clean(text), color=color())


def statement(sentence: str) -> None:
    """A sentence that was asked for, to stdout; a terminal gets it broken between words."""
    click.echo(_wrapped_for(sys.stdout, clean(sentence)), color=color())


def talk(sentence: str) -> None:
    """A remark to whoever sits there, to stderr."""
    click.echo(_wrapped_for(sys.stderr, clean(sentence)), err=True, color=color())


def complain(sentence: str) -> None:
    """Why it did not work, to stderr."""
    name, _, reason = _wrapped_for(sys.stderr, f"inturn: {clean(sentence)}").partition(":")
    click.echo(f"{click.style(f'{name}:', fg='red', bold=True)}{reason}", err=True, color=color())


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
    label = label if sys.stdin.isatty() and sys.stdout.isatty() else ""
    try:
        return input(label)
    except (EOFError, KeyboardInterrupt) as end:
        if label:
            click.echo()  # what is said next does not belong on its line
        if isinstance(end, KeyboardInterrupt):
            raise
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


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
    gives_way: Sequence[str] = (),
    total: Sequence[object] | None = None,
) -> None:
    """Rows under headings: a table in a terminal, tab-separated lines elsewhere (whole values, fit for cut and awk).

    Args:
        empty: what is said when there are none.
        gives_way: columns that may be shortened or left out where a terminal is too narrow, the first one first.
        total: a last row that only a terminal gets: who reads a pipe adds up by themselves, and would count twice.
    """
    values, headings = iter(rows), [column.upper() for column in columns]
    if not (first := list(islice(values, 1))):
        talk(empty)
    elif sys.stdout.isatty():
        values = chain(first, values, [] if total is None else [total])
        while some := list(islice(values, ROWS_TOGETHER)):
            _fitted_table(headings, some, [column.upper() for column in gives_way])
    else:
        for row in chain([headings], first, values):
            click.echo("\t".join(map(cell, row)))


def _fitted_table(headings: Sequence[str], rows: list[Sequence[object]], gives_way: Sequence[str]) -> None:
    from inturn.cli.layout import fitted, short_date

    cells = [[short_date(value) if isinstance(value, datetime) else cell(value) for value in row] for row in rows]
    heading, *lines = fitted(headings, cells, shutil.get_terminal_size().columns, gives_way)
    click.secho(heading, bold=True, color=color())
    for line in lines:
        click.echo(line, color=color())


def wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words; a command in backticks is not torn apart."""
    kept = COMMANDS.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    lines = textwrap.wrap(kept, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _wrapped_for(stream: TextIO, text: str) -> str:
    """The text as it is, or for a terminal with its long lines broken between words."""
    width = shutil.get_terminal_size().columns
    if not stream.isatty():
        return text
    return "\n".join("\n".join(wrapped(line, width)) if len(line) > width else line for line in text.split("\n"))


def counted(number: int, noun: str) -> str:
    """``1 session``, ``2 sessions``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def records(lines: Iterable[tuple[str, object]]) -> None:
    """One thing, told as ``name: value`` lines."""
    pairs = [(name, cell(value)) for name, value in lines]
    width = max(len(name) for name, _ in pairs) + 1
    for name, value in pairs:
        click.echo(f"{click.style(f'{name}:'.ljust(width), bold=True)} {value}", color=color())


def heading(text: str) -> None:
    """What begins here."""
    click.secho(f"\n{clean(text)}", fg="cyan", bold=True, color=color())


def command(lines: str) -> None:
    """What is typed: a command behind ``$``, or Python behind ``>>>`` and ``...``."""
    click.echo(PROMPTS.sub(lambda found: click.style(found[0], fg="green", bold=True), clean(lines)), color=color())


def utterance(speaker: str, text: str) -> None:
    """One message of a conversation."""
    click.echo(f"{click.style(f'{clean(speaker)}:', bold=True)} {clean(text)}", color=color())


class Speech(Protocol):
    """A reply that is told while it is written."""

    def say(self, piece: str) -> None: ...
    def interject(self, remark: str) -> None:
        """A remark on a line of its own, behind which the speaker begins anew."""

    def close(self) -> None:
        """It is all said."""


class PlainSpeech:
    """Pieces as they come. Escapes that are torn between two of them lose their beginning, and so their power."""

    def __init__(self, speaker: str = "") -> None:
        self._label = f"{click.style(f'{clean(speaker)}:', bold=True)} " if speaker else ""
        self._begun = False

    def say(self, piece: str) -> None:
        click.echo(("" if self._begun else self._label) + clean(piece), nl=False, color=color())
        self._begun = True

    def interject(self, remark: str) -> None:
        self.close()
        talk(remark)

    def close(self) -> None:
        if self._begun:
            click.echo()
            self._begun = False


class DrawnSpeech:
    """Markdown, drawn in a terminal: blocks that are whole stand, and the one that grows is drawn again and again."""

    def __init__(self, speaker: str) -> None:
        from rich.live import Live

        self._speaker, self._text, self._blocks = speaker, "", 0
        self._console = _console(sys.stdout)
        self._live = Live(
            console=self._console,
            transient=True,
            refresh_per_second=DRAWN_A_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def say(self, piece: str) -> None:
        from inturn.cli.markdown import split

        if not self._live.is_started:
            self._console.print(f"[bold]{self._speaker}:[/]")
            self._live.start()
        done, self._text = split(self._text + clean(piece))
        lines = self._text.splitlines()[-max(1, self._console.size.height - 3) :]
        growing = self._block("\n".join(lines), is_first=not (self._blocks or done))
        # What is put stands above what is drawn: the same block must not be both.
        self._live.update(growing, refresh=bool(done))
        self._put(done)

    def interject(self, remark: str) -> None:
        self.close()
        talk(remark)

    def close(self) -> None:
        self._live.update("")
        self._live.stop()
        self._put(self._text)
        self._text, self._blocks = "", 0

    def _put(self, markdown: str) -> None:
        if markdown.strip():
            self._console.print(self._block(markdown, is_first=not self._blocks))
            self._blocks += 1

    def _block(self, text: str, *, is_first: bool) -> "Padding":
        from rich.padding import Padding

        from inturn.cli.markdown import SPACED, Prose

        room = 0 if is_first or SPACED.match(text) else 1
        return Padding(Prose(text), (room, 0, 0, 0))


def speech(speaker: str) -> AbstractContextManager[Speech]:
    """A reply that is told while it is written, as Markdown where a person looks at it."""
    return closing(DrawnSpeech(speaker) if sys.stdout.isatty() else PlainSpeech(speaker))


def verdict(state: str, subject: str, sentence: str) -> None:
    """One line of a check-up: ``ok``, ``note``, ``warn`` or ``fail``, about what, and what to do.

    In a terminal a sentence that is longer goes on under its own beginning.
    """
    lines = [clean(sentence)]
    if sys.stdout.isatty():
        lines = wrapped(lines[0], max(shutil.get_terminal_size().columns - VERDICT_INDENT, VERDICT_INDENT))
    sign, rest = click.style(state.ljust(4), fg=COLOURS[state]), f"\n{' ' * VERDICT_INDENT}".join(lines)
    click.echo(f"{sign}  {subject:<10}  {rest}", color=color())


@contextmanager
def waiting(remark: str) -> Iterator[Callable[[str], None] | None]:
    """A sign of life on stderr while something takes its time, with a way to say something else meanwhile; None where
    nobody watches.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.text import Text  # and not markup, which brackets would be

    with _console(sys.stderr).status(Text(clean(remark))) as status:
        yield lambda other: status.update(Text(clean(other)))


@contextmanager
def live(*, stays: bool) -> Iterator[Callable[[Any], None] | None]:
    """Something drawn on stderr again and again, which ``stays`` in the end or goes; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.live import Live

    console = _console(sys.stderr)
    with Live(console=console, auto_refresh=False, transient=not stays, redirect_stdout=False) as drawn:
        yield lambda what: drawn.update(what, refresh=True)


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
