"""Listening to a session: what happens in it from now on, from whichever client, as events."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from inturn.connections import Connections
from inturn.ears import QUIET, Ear
from inturn.models.errors import ClosedError, InturnError, SessionNotFoundError, StorageError
from inturn.models.states import Role
from inturn.models.store import chronicle
from inturn.models.store.chronicle import EventRecord
from inturn.records import SessionEvent
from inturn.workers.live import Entry, Transcript

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""Until a database that was away is asked again."""

PAUSE = SessionEvent.discarded(0)
"""Among events, for who must not be kept waiting: there are no more now. Told by its identity, and given to no user."""

Handler = Callable[[SessionEvent], object]


def told(transcript: Transcript, entry: Entry) -> Iterator[SessionEvent]:
    """What an entry of the live stream adds to what was heard."""
    if entry is QUIET:
        yield PAUSE
        return
    if not transcript.concerns(entry):
        return
    if entry.attempt > transcript.attempt and not transcript.is_empty:
        yield SessionEvent.discarded(transcript.turn)
    text = transcript.add(entry)
    if text:
        yield SessionEvent.delta(transcript.turn, text)


def is_anew(transcript: Transcript | None, entry: Entry) -> bool:
    """Whether it is of another call than what was heard: the one before was answered with calls of tools, or broke off."""
    return entry.attempt > max(1, transcript.attempt if transcript is not None else 0)


def gone_round(transcript: Transcript | None, steps: Iterable[EventRecord]) -> Iterator[SessionEvent]:
    """A turn's steps. What a model says before it calls tools is a message of its own, and no part of the reply."""
    for row in steps:
        if transcript is not None and row.what is Role.ASSISTANT and row.text.startswith(transcript.text):
            yield from rest(transcript, row.text)
            transcript.begin_anew(transcript.attempt + 1)
        yield SessionEvent.of(row)


def rest(transcript: Transcript, reply: str) -> Iterator[SessionEvent]:
    """What makes the sum of what was heard the reply that is stored."""
    heard = transcript.text
    if not reply.startswith(heard):
        yield SessionEvent.discarded(transcript.turn)
        heard = ""
    if len(reply) > len(heard):
        yield SessionEvent.delta(transcript.turn, reply[len(heard) :])


class Listener:
    """Follows a session from where it stands when this is made. For one thread, but for ``close``.

    Args:
        last: so many of the last messages come first.

    Raises:
        SessionNotFoundError: it was deleted.
    """

    def __init__(self, connections: Connections, session_id: int, key: str, last: int = 0) -> None:
        self._connections = connections
        self._known, self._past = chronicle.bookmark(connections.database, session_id, key, last)
        self._transcripts: dict[int, Transcript] = {}
        self._closed = False

    def close(self) -> None:
        """Nothing is given out any more. From any thread."""
        self._closed = True

    def past(self) -> list[SessionEvent]:
        """The last messages before it listened."""
        return [SessionEvent.of(row) for row in self._past]

    def events(self) -> Iterator[SessionEvent]:
        """What happens, when it happens. After an error it goes on where it was.

        Raises:
            SessionNotFoundError: the session was deleted.
            ClosedError: the client was stopped.
            StorageError: the database cannot be read now.
        """
        counted, look = self._connections.waiter.counted, True
        with Ear(self._connections.broker, self._known.session_id) as ear:
            while not self._closed:
                with counted():
                    entries = ear.entries()
                    # A reply that is told already belongs to a prompt that is stored, and perhaps to steps.
                    look = look or any(self._is_behind(entry) for entry in entries)
                    stored = chronicle.news(self._connections.database, self._known) if look else []
                yield from self._given_out(stored, entries)
                yield from [PAUSE for _ in ear.pause()]
                with counted():
                    look = ear.wait(math.inf)

    def _is_behind(self, entry: Entry) -> bool:
        return entry.turn >= self._known.next_turn or is_anew(self._transcripts.get(entry.turn), entry)

    def _given_out(self, stored: Sequence[EventRecord], entries: Sequence[Entry]) -> Iterator[SessionEvent]:
        for event in (*self._stored(stored), *self._told(entries)):
            if self._closed:
                return
            yield event

    def _stored(self, found: Sequence[EventRecord]) -> Iterator[SessionEvent]:
        for row in found:
            if row.is_step:
                yield from gone_round(self._transcripts.get(row.turn_number), [row])
                continue
            if row.what not in (Role.USER, Role.SYSTEM):
                transcript = self._transcripts.pop(row.turn_number, None)
                if transcript is not None and row.what is Role.ASSISTANT:
                    yield from rest(transcript, row.text)
            yield SessionEvent.of(row)

    def _told(self, entries: Sequence[Entry]) -> Iterator[SessionEvent]:
        for entry in entries:
            if self._known.is_open(entry.turn):
                yield from told(self._transcripts.setdefault(entry.turn, Transcript(entry.turn)), entry)


class Delivery(threading.Thread):
    """Calls a handler with every event, until it is closed, or the client is."""

    def __init__(self, connections: Connections, listener: Listener, handler: Handler) -> None:
        super().__init__(name="inturn-listener", daemon=True)
        self._connections, self._listener, self._handler = connections, listener, handler

    def close(self) -> None:
        self._listener.close()

    def run(self) -> None:
        try:
            start_stack(self._connections)
            while self._deliver():
                time.sleep(AGAIN_SECONDS)
        except (ClosedError, SessionNotFoundError) as end:
            ended(end)

    def _deliver(self) -> bool:
        """Returns whether to try again: the database was away."""
        try:
            for event in self._listener.events():
                self._hand_over(event)
        except StorageError as error:
            interrupted(error)
            return True
        return False

    def _hand_over(self, event: SessionEvent) -> None:
        with logged(event):
            self._handler(event)


def start_stack(connections: Connections) -> None:
    """On the embedded default: who wants to hear of replies wants somebody to write them.

    Raises:
        ClosedError: the client was stopped.
    """
    try:
        with connections.waiter.counted():
            connections.waiter.hold_stack(math.inf)
    except ClosedError:
        raise
    except InturnError as error:
        logger.warning("action=stack_not_started reason=%s", error)


@contextmanager
def logged(event: SessionEvent) -> Iterator[None]:
    """A handler at work: what it raises stops nobody else."""
    try:
        yield
    except Exception:
        # Its text is not ours to log, and a traceback shows what the handler wanted.
        logger.exception("action=handler_failed event=%s turn=%s", event.type, event.turn)


def interrupted(error: StorageError) -> None:
    logger.warning("action=listening_interrupted reason=%s", error)


def ended(reason: InturnError) -> None:
    logger.info("action=listening_ended reason=%s", reason)
