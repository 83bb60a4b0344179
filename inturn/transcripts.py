"""A session as a file: a transcript, which can be read by people and programs, and imported again, here or elsewhere.

As ``jsonl``, it is a line about the session, a line for each turn, with its messages, and a line that says that it is whole:

    {"type": "session", "version": 1, "session_id": "s", "model": "openai/gpt-5", ..., "turns": 2, ...}
    {"type": "turn", "number": 1, "state": "completed", ..., "messages": [{"position": 1, "role": "user", ...}, ...]}
    {"type": "turn", "number": 2, ...}
    {"type": "end", "turns": 2, "sha256": "..."}        of all lines before it

As ``json``, it is the first of these objects, with the others as its ``turns``. Both can be imported; ``md`` is for people.
Fields are those of the tables (``inturn.models.tables`` says what they mean), without those that are about the work of one
deployment: calls, leases, batches, idempotency keys. Nothing of the settings is in it, and no key.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from inturn.models.content import (
    checked_context,
    checked_labels,
    checked_overflow,
    checked_tokens,
    checked_tools,
    storable,
    storable_json,
)
from inturn.models.errors import InvalidInputError
from inturn.models.states import Lane, Overflow, Retention, Role, TurnState
from inturn.models.store.opening import PROMPT, REPLY, SYSTEM
from inturn.models.store.transcripts import OF_SESSION, Transcript
from inturn.models.tables import SUMMARY

VERSION = 1
LONGEST_LINE = 256 * 1024 * 1024
"""In bytes: a turn with tools has many messages."""


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class MessageEntry(Entry):
    """A message of a turn."""

    position: NonNegativeInt
    role: Role
    content: str
    data: dict[str, Any] | None = None
    created_at: AwareDatetime


class TurnEntry(Entry):
    """A turn that is finished, with its messages."""

    type: Literal["turn"] = "turn"
    number: PositiveInt
    state: Literal[TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED]
    lane: Lane
    model: str = Field(max_length=200)
    fallbacks: list[str] | None
    system_turn: PositiveInt | None
    options: dict[str, Any]
    attempts: NonNegativeInt
    rounds: NonNegativeInt
    steps: NonNegativeInt
    cuts: bool
    retry_of: PositiveInt | None
    merged_into: PositiveInt | None
    partial: str | None
    error_type: str | None = Field(max_length=60)
    error_message: str | None
    error_status: int | None
    error_retryable: bool | None
    input_tokens: NonNegativeInt | None
    output_tokens: NonNegativeInt | None
    price: float | None
    finish_reason: str | None = Field(max_length=60)
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime
    messages: list[MessageEntry]


class SessionEntry(Entry):
    """The session that a transcript is of."""

    type: Literal["session"] = "session"
    version: Literal[1]
    session_id: str
    model: str = Field(max_length=200)
    fallbacks: list[str] | None
    options: dict[str, Any]
    labels: dict[str, str]
    context_turns: NonNegativeInt | None
    context_tokens: PositiveInt | None
    overflow: Overflow
    tools: list[str] | None
    retention: Retention
    retention_seconds: float | None = Field(gt=0)
    halts: bool
    created_at: AwareDatetime
    content_removed_at: AwareDatetime | None = None
    content_removed_to: NonNegativeInt = 0
    turns: NonNegativeInt
    system_turn: PositiveInt | None
    system_message: MessageEntry | None


class EndEntry(Entry):
    """The line that says that all lines before it are there."""

    type: Literal["end"] = "end"
    turns: NonNegativeInt
    sha256: str


def header(key: str, it: Transcript) -> dict[str, Any]:
    about = {"turns": it.last, "system_turn": it.system_turn, "system_message": it.waiting}
    whole = {"type": "session", "version": VERSION, "session_id": key, **it.session, **about}
    return (
        whole if it.session["content_removed_at"] else {name: whole[name] for name in whole if name not in OF_REMOVAL}
    )


def as_jsonl(key: str, it: Transcript) -> Iterator[bytes]:
    """Raises: SessionNotFoundError: it is deleted meanwhile."""
    digest = hashlib.sha256()
    for entry in chain([header(key, it)], turns_of(it)):
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        digest.update(line)
        yield line
    yield orjson.dumps(
        {"type": "end", "turns": it.last, "sha256": digest.hexdigest()}, option=orjson.OPT_APPEND_NEWLINE
    )


def as_json(key: str, it: Transcript) -> Iterator[bytes]:
    """Raises: SessionNotFoundError: it is deleted meanwhile."""
    whole = header(key, it)
    del whole["turns"]  # comes last, as the list that it counts
    yield orjson.dumps(whole)[:-1] + b',"turns":['
    for number, turn in enumerate(turns_of(it)):
        yield (b",\n" if number else b"\n") + orjson.dumps(turn)
    yield b"\n]}\n"


def turns_of(it: Transcript) -> Iterator[dict[str, Any]]:
    return ({"type": "turn", **turn} for turn in it.turns())


OF_REMOVAL = ("content_removed_at", "content_removed_to")
"""Stand in a transcript where retention has removed what was said up to a turn: the turns up to there have no messages."""

WHO = {Role.SYSTEM: "System", Role.USER: "User", Role.ASSISTANT: "Assistant", Role.TOOL: "Tool"}


def as_markdown(key: str, it: Transcript) -> Iterator[bytes]:
    """Raises: SessionNotFoundError: it is deleted meanwhile."""
    labels = "".join(f", {name}={value}" for name, value in it.session["labels"].items())
    begun = f"{it.session['created_at']:%Y-%m-%d %H:%M} UTC"
    yield f"# {key}\n\n{it.session['model']}, {it.last:,} turns, since {begun}{labels}\n".encode()
    if (removed_at := it.session["content_removed_at"]) is not None:
        to = it.session["content_removed_to"]
        yield f"\n*What was said up to turn {to} was removed by retention on {removed_at:%Y-%m-%d %H:%M} UTC.*\n".encode()
    for turn in it.turns():
        yield f"\n## {turn['number']}\n".encode()
        for message in turn["messages"]:
            who = "Summary" if message["position"] == SUMMARY else WHO[Role(message["role"])]
            called = [f"calls `{call['name']}`" for call in (message["data"] or {}).get("tool_calls", ())]
            text = "\n\n".join(filter(None, (message["content"], *called)))
            yield f"\n**{who}**, {message['created_at']:%Y-%m-%d %H:%M}\n\n{text}\n".encode()
        if turn["state"] != TurnState.COMPLETED:
            why = f": {turn['error_type']}: {turn['error_message']}" if turn["error_type"] else ""
            yield f"\n*{turn['state']}{why}*\n".encode()


WRITERS: dict[str, Callable[[str, Transcript], Iterator[bytes]]] = {
    "jsonl": as_jsonl, "json": as_json, "md": as_markdown,
}  # fmt: skip


def writer(form: str) -> Callable[[str, Transcript], Iterator[bytes]]:
    """Raises: InvalidInputError: there is none for that form."""
    if form not in WRITERS:
        raise InvalidInputError(f"{form!r:.50} is no form of a transcript: there are {', '.join(WRITERS)}")
    return WRITERS[form]


def copied(source: Path | str | IO[bytes]) -> IO[bytes]:
    """A private copy, so that what was checked is what is imported. Raises: InvalidInputError: it cannot be read."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - its user closes it
    try:
        if isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                shutil.copyfileobj(file, copy)
        else:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        copy.close()
        raise InvalidInputError(f"{source} cannot be read: {error.strerror or error}") from error
    return copy


def read(file: IO[bytes], name: str, ahead: int | None = None) -> tuple[str, Transcript]:
    """A transcript in a file, checked whole. Its turns are read anew each time that they are asked for.

    Args:
        name: what the file is called in errors.
        ahead: how many lines of an archive stand before those in the file; None: it is a file by itself, of either form.

    Returns: the ID that the session had, and the transcript.

    Raises:
        InvalidInputError: it is no transcript, or it is damaged, with the place.
    """
    form = _Jsonl(file, name, ahead or 0)
    source: _Jsonl | _Json = form if ahead is not None or form.is_one() else _Json(file, name)
    head = source.head()
    checked = _Checked(source, head)
    for _ in checked.turns():
        pass
    session = {field: getattr(head, field) for field in OF_SESSION} | _settled(head)
    waiting = None if head.system_message is None else checked.waiting(head.system_message)
    return head.session_id, Transcript(session, head.turns, head.system_turn, waiting, checked.turns)


def _settled(head: SessionEntry) -> dict[str, Any]:
    """What a session is made with. Raises: InvalidInputError: it cannot be."""
    checked_overflow(head.overflow, head.context_turns)
    return {
        "options": storable_json(head.options),
        "labels": checked_labels(head.labels),
        "context_turns": checked_context(head.context_turns),
        "context_tokens": checked_tokens(head.context_tokens),
        "tools": checked_tools(head.tools),
    }


def begins_lines(file: IO[bytes]) -> bool:
    """Whether a file begins with a transcript of lines, rather than one that is an object, or with something else."""
    file.seek(0)
    try:
        return isinstance(orjson.loads(file.readline(LONGEST_LINE))["turns"], int)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


class _Jsonl:
    """A transcript of lines."""

    def __init__(self, file: IO[bytes], name: str, ahead: int) -> None:
        self._file, self._name, self._ahead = file, name, ahead

    def is_one(self) -> bool:
        return begins_lines(self._file)

    def head(self) -> SessionEntry:
        self._file.seek(0)
        return parsed(SessionEntry, self._file.readline(LONGEST_LINE), self.bad, 1)

    def turns(self) -> Iterator[tuple[int, TurnEntry]]:
        """Raises: InvalidInputError: a line is damaged, or the last one is missing."""
        self._file.seek(0)
        digest, number = hashlib.sha256(self._file.readline(LONGEST_LINE)), 1
        while line := self._file.readline(LONGEST_LINE):
            number += 1
            if line.startswith(b'{"type":"end"'):
                self._check_end(parsed(EndEntry, line, self.bad, number), digest.hexdigest(), number)
                return
            digest.update(line)
            yield number, parsed(TurnEntry, line, self.bad, number)
        raise self.bad(number, "the file ends here, without the line that says that it is whole: it was cut off")

    def _check_end(self, end: EndEntry, digest: str, number: int) -> None:
        if end.sha256 != digest:
            raise self.bad(number, "the lines before it are not those that were written: their checksum is another one")
        if self._file.readline(LONGEST_LINE).strip():
            raise self.bad(
                number + 1,
                "something follows the line that says that the transcript is whole (an archive of several sessions is "
                "imported without naming an ID: `inturn session import FILE`, client.import_archive; or name one of them "
                "with --only)",
            )

    def bad(self, number: int, what: str) -> InvalidInputError:
        return InvalidInputError(f"{self._name}, line {self._ahead + number}: {what}. Nothing was imported")


class _Json:
    """A transcript that is one object."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._name = name
        file.seek(0)
        try:
            self._whole = orjson.loads(file.read())
        except orjson.JSONDecodeError as error:
            raise self.bad(0, f"it is no transcript: neither JSON ({error}), nor lines of JSON") from None
        if not isinstance(self._whole, dict) or not isinstance(self._whole.get("turns"), list):
            raise self.bad(0, "it is no transcript: `inturn session export` writes them, as jsonl or json")

    def head(self) -> SessionEntry:
        return parsed(SessionEntry, orjson.dumps(self._whole | {"turns": len(self._whole["turns"])}), self.bad, 0)

    def turns(self) -> Iterator[tuple[int, TurnEntry]]:
        for number, turn in enumerate(self._whole["turns"], 1):
            yield number, parsed(TurnEntry, orjson.dumps(turn), self.bad, number)

    def bad(self, number: int, what: str) -> InvalidInputError:
        place = f", turn {number}" if number else ""
        return InvalidInputError(f"{self._name}{place}: {what}. Nothing was imported")


Bad = Callable[[int, str], InvalidInputError]
SomeEntry = TypeVar("SomeEntry", bound=Entry)


def parsed(kind: type[SomeEntry], line: bytes, bad: Bad, number: int) -> SomeEntry:
    """Raises: InvalidInputError: the line is no such entry."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise bad(number, f"{f'{place}: ' if place else ''}{first['msg']}") from None


class _Checked:
    """What the lines say together."""

    def __init__(self, source: _Jsonl | _Json, head: SessionEntry) -> None:
        self._source, self._head = source, head
        self._systems: set[int] = set()

    def turns(self) -> Iterator[dict[str, Any]]:
        """Raises: InvalidInputError: they contradict each other."""
        self._systems.clear()
        last, head = 0, self._head
        if head.content_removed_to > (head.turns if head.content_removed_at else 0):
            raise self._source.bad(1, f"content_removed_to is {head.content_removed_to}, of {head.turns} turns")
        for place, turn in self._source.turns():
            for fault in self._faults(turn, last):
                raise self._source.bad(place, fault)
            last = turn.number
            found = turn.model_dump(exclude={"type"}) | {"options": storable_json(turn.options)}
            yield found | {"messages": [storable_message(message) for message in turn.messages]}
        if last != head.turns:
            raise self._source.bad(1, f"it says that there are {head.turns} turns, and there are {last}")
        waits = {last + 1} if head.system_message else set()
        if head.system_turn is not None and head.system_turn not in self._systems | waits:
            raise self._source.bad(1, f"system_turn is {head.system_turn}, which has no system message")

    def _faults(self, turn: TurnEntry, last: int) -> Iterator[str]:
        messages, removed_to = {it.position: it.role for it in turn.messages}, self._head.content_removed_to
        if turn.number != last + 1:
            yield f"turn {turn.number} follows turn {last}"
        if list(messages) != sorted(messages) or len(messages) != len(turn.messages):
            yield "its messages are not in order"
        if SYSTEM in messages:
            self._systems.add(turn.number)
        if turn.system_turn is not None and turn.system_turn > removed_to and turn.system_turn not in self._systems:
            yield f"system_turn is {turn.system_turn}, which has no system message"
        is_removed = turn.number <= removed_to
        if is_removed and messages:
            yield f"it has messages, and what was said up to turn {removed_to} was removed"
        if not is_removed and (messages.get(PROMPT) != Role.USER or messages.get(SYSTEM, Role.SYSTEM) != Role.SYSTEM):
            yield "it has no prompt"
        is_answered = turn.state == TurnState.COMPLETED and not is_removed
        if is_answered != (messages.get(REPLY + turn.steps) == Role.ASSISTANT):
            yield f"it is {turn.state}, and {'has a' if REPLY + turn.steps in messages else 'has no'} reply"
        if (turn.state == TurnState.FAILED) != (turn.error_type is not None):
            yield f"it is {turn.state}, and its error_type is {turn.error_type}"
        if turn.merged_into is not None and not turn.number < turn.merged_into <= self._head.turns:
            yield f"merged_into is {turn.merged_into}"
        if turn.retry_of is not None and turn.retry_of >= turn.number:
            yield f"retry_of is {turn.retry_of}"

    def waiting(self, message: MessageEntry) -> dict[str, Any]:
        if (message.position, message.role, self._head.system_turn) != (SYSTEM, Role.SYSTEM, self._head.turns + 1):
            raise self._source.bad(1, "system_message is none that waits for the next turn")
        return storable_message(message)


def storable_message(message: MessageEntry) -> dict[str, Any]:
    data = None if message.data is None else storable_json(message.data)
    return message.model_dump() | {"content": storable(message.content), "data": data}
