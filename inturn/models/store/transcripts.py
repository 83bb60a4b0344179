"""Whole histories, out of one database and into another."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, insert, select

from inturn.models.clock import now
from inturn.models.database import Database
from inturn.models.errors import ContentRemovedError, SessionNotFoundError, UnfinishedTurnsError
from inturn.models.states import Lane, SessionState
from inturn.models.store.forking import found, last_turn, system_turn, under
from inturn.models.store.loading import load, written
from inturn.models.store.opening import UPSERT
from inturn.models.tables import LEASES, MESSAGES, SESSIONS, TURNS

OF_SESSION = (
    "model", "fallbacks", "options", "labels", "context_turns", "context_tokens", "overflow", "tools", "retention",
    "retention_seconds", "halts", "created_at", "content_removed_at", "content_removed_to",
)  # fmt: skip
OF_TURN = (
    "number", "state", "lane", "model", "fallbacks", "system_turn", "options", "attempts", "rounds", "steps", "cuts",
    "retry_of", "merged_into", "partial", "error_type", "error_message", "error_status", "error_retryable", "input_tokens",
    "output_tokens", "price", "finish_reason", "created_at", "started_at", "finished_at",
)  # fmt: skip
OF_MESSAGE = ("position", "role", "content", "data", "created_at")
"""What a transcript has of each."""
JSON = ("fallbacks", "options", "data")
PAGE = 200
"""Turns that are read, or stored, at a time; or sessions that are asked for."""

T = TypeVar("T")
Reading = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True, slots=True)
class Transcript:
    """A history, and what it takes to go on with it.

    Attributes:
        session: ``OF_SESSION``, by name.
        last: the number of its last turn.
        system_turn: the turn whose message at position 0 is the system message in force; None: none.
        waiting: a system message that waits for the next turn (``OF_MESSAGE``); None: none.
        turns: begins to read them: ``OF_TURN`` by name, each with its ``messages``.
    """

    session: dict[str, Any]
    last: int
    system_turn: int | None
    waiting: Mapping[str, Any] | None
    turns: Callable[[], Iterable[Mapping[str, Any]]]

    @property
    def chain(self) -> str | list[str]:
        """Who is asked, and who if that fails."""
        model, fallbacks = self.session["model"], self.session["fallbacks"]
        return model if fallbacks is None else [model, *fallbacks]

    def asking(self, model: str, fallbacks: list[str] | None) -> "Transcript":
        """The same, with somebody else who is asked from now on."""
        return replace(self, session=self.session | {"model": model, "fallbacks": fallbacks})


def transcript(database: Database, session_id: int, key: str) -> Transcript:
    """The turns of a session up to the first one that is not finished: they never change.

    Raises:
        SessionNotFoundError: it was deleted; also while the turns are read.
        ContentRemovedError: while the turns are read, retention removes what was said in them.
    """
    with database.snapshot() as db:
        original = found(db, session_id, key)
        last = last_turn(db, original, key, None)
        return _transcript(db, original, key, last, database.reading)


def transcripts(db: Connection, session_ids: Collection[int]) -> Iterator[tuple[str, Transcript]]:
    """Whole sessions as a snapshot sees them, in the order of their surrogate ids; those that are gone are left out. The
    caller goes through the turns of each before it asks for the next.

    Raises:
        UnfinishedTurnsError: a turn has no end yet, so there is no whole transcript.
    """
    names = ("id", "key", "next_turn", "system_turn", "content_removed_to")
    wanted = select(*(SESSIONS.c[name] for name in names))
    for some in batched(sorted(session_ids), PAGE):
        for original in db.execute(wanted.where(SESSIONS.c.id.in_(some)).order_by(SESSIONS.c.id)).all():
            last = last_turn(db, original, original.key, None)
            if last < original.next_turn - 1:
                raise UnfinishedTurnsError(original.key, last + 1, "only sessions without such turns are archived")
            yield original.key, _transcript(db, original, original.key, last, lambda: nullcontext(db))


def taken(database: Database, keys: Collection[str]) -> set[str]:
    """Which of these IDs sessions have."""
    found: set[str] = set()
    for some in batched(keys, PAGE):
        with database.reading() as db:
            there = select(SESSIONS.c.key).where(SESSIONS.c.key.in_(some), SESSIONS.c.state == SessionState.ACTIVE)
            found.update(db.execute(there).scalars())
    return found


def batched(them: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(them)
    while some := list(islice(left, size)):
        yield some


def _transcript(db: Connection, original: Any, key: str, last: int, reading: Reading) -> Transcript:
    """Args: reading: begins to read, when the turns are asked for."""
    system = system_turn(db, original, last)
    head = db.execute(select(*(SESSIONS.c[name] for name in OF_SESSION)).where(SESSIONS.c.id == original.id))
    ahead = _messages(db, original.id, last, last + 1).get(last + 1, []) if system == last + 1 else []
    waiting = ahead[0] if ahead else None
    removed_to = original.content_removed_to
    return Transcript(
        dict(head.mappings().one()), last, system, waiting, lambda: _turns(reading, original.id, key, last, removed_to)
    )


def _turns(reading: Reading, session_id: int, key: str, last: int, removed_to: int) -> Iterator[dict[str, Any]]:
    for after in range(0, last, PAGE):
        upto = min(after + PAGE, last)
        wanted = select(*(TURNS.c[name] for name in OF_TURN)).where(
            TURNS.c.session_id == session_id, TURNS.c.number > after, TURNS.c.number <= upto
        )
        with reading() as db:
            turns = [dict(row) for row in db.execute(wanted.order_by(TURNS.c.number)).mappings()]
            said = _messages(db, session_id, after, upto)
        if len(turns) < upto - after:
            raise SessionNotFoundError(key)  # somebody deletes it
        for turn in turns:
            number, merged_into = turn["number"], turn["merged_into"]
            if number > removed_to and number not in said:
                raise ContentRemovedError(f"{session_id}.{number}", datetime.now(UTC))
            later = merged_into is not None and merged_into > last
            yield turn | {"merged_into": None if later else merged_into, "messages": said.get(number, [])}


def _messages(db: Connection, session_id: int, after: int, upto: int) -> dict[int, list[dict[str, Any]]]:
    wanted = select(MESSAGES.c.turn_number, *(MESSAGES.c[name] for name in OF_MESSAGE)).where(
        MESSAGES.c.session_id == session_id, MESSAGES.c.turn_number > after, MESSAGES.c.turn_number <= upto
    )
    said: dict[int, list[dict[str, Any]]] = {}
    for row in db.execute(wanted.order_by(MESSAGES.c.turn_number, MESSAGES.c.position)).mappings():
        said.setdefault(row["turn_number"], []).append({name: row[name] for name in OF_MESSAGE})
    return said


def store_transcript(database: Database, key: str, it: Transcript) -> int:
    """Make a session out of a transcript, whole or not at all; returns its surrogate id.

    Raises:
        SessionExistsError: the ID is taken.
    """
    made: list[int] = []

    def store(db: Connection) -> bool:
        values = {"key": key, **it.session, "held": False, "state": SessionState.ACTIVE, "next_turn": it.last + 1}
        values |= {"system_turn": it.system_turn, "imported_at": now(), "last_activity_at": now()}
        taking = UPSERT[db.dialect.name](SESSIONS).values(values)
        new = db.execute(taking.on_conflict_do_nothing(index_elements=["key"]).returning(SESSIONS.c.id)).scalar()
        if new is None:
            return False
        db.execute(insert(LEASES).values(session_id=new, token=0, lane=Lane.CHAT))
        for some in batched(it.turns(), PAGE):
            _load(db, new, some)
        if it.waiting is not None:
            _load_messages(db, new, [(it.last + 1, it.waiting)])
        made.append(new)
        return True

    under(database, key, store)
    return made[-1]


def _load(db: Connection, session_id: int, turns: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (session_id, *(_plain(db, name, turn[name]) for name in OF_TURN), written(db, turn["created_at"]), 0, 0)
        for turn in turns
    ]
    load(db, TURNS, ("session_id", *OF_TURN, "ready_at", "ambiguous", "rescues"), rows)
    _load_messages(db, session_id, ((turn["number"], message) for turn in turns for message in turn["messages"]))


def _load_messages(db: Connection, session_id: int, messages: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    rows = [
        (session_id, number, *(_plain(db, name, message[name]) for name in OF_MESSAGE)) for number, message in messages
    ]
    load(db, MESSAGES, ("session_id", "turn_number", *OF_MESSAGE), rows)


def _plain(db: Connection, name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return written(db, value)
    if name in JSON and value is not None:
        return orjson.dumps(value).decode()
    return str(value) if name in ("state", "lane", "role") else value
