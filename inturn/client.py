"""The SDK: ``Client``, and the handles ``Session`` and ``Turn``.

Everything here asks; the work is done by workers in other processes, which the SDK never imports. A handle holds no
state of its own but its ID: whoever has the ID has the session, in any process, on any machine, on any day.
"""

import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self

from inturn.connections import Connections
from inturn.models.content import (
    checked_context,
    checked_labels,
    checked_lane,
    checked_session_id,
    checked_system_message,
    checked_turn_id,
    storable,
)
from inturn.models.errors import (
    ClosedError,
    InvalidInputError,
    SessionExistsError,
    SessionNotFoundError,
    UnknownModelError,
)
from inturn.models.store import halting, lanes, opening, reading, retention
from inturn.models.store.lanes import LaneInfo
from inturn.models.store.opening import NewSession
from inturn.models.store.presence import WorkerInfo
from inturn.models.store.reading import SessionFilter, TurnRecord
from inturn.models.store.retention import Removal
from inturn.models.store.situation import Reason
from inturn.reasons import why
from inturn.records import (
    EventData,
    Message,
    SessionEvent,
    SessionMetadata,
    TurnError,
    checked_cursor,
    checked_moment,
    checked_options,
    retention_rule,
)
from inturn.session import Session
from inturn.settings import Settings
from inturn.turn import Turn
from inturn.waiting import alive_workers
from inturn.workers.live import forget

__all__ = [
    "Client",
    "EventData",
    "LaneInfo",
    "Message",
    "Reason",
    "Removal",
    "Session",
    "SessionEvent",
    "SessionMetadata",
    "Turn",
    "TurnError",
    "WorkerInfo",
]

PAGE = 100
DAY_SECONDS = 86400.0


class Client:
    """The way to sessions. Use it in ``with``, or between ``start`` and ``stop``; threads may share one.

    Args:
        settings: default: read from flags, environment and files as the command line does.
        home, database_url, broker_url: ahead of what is set elsewhere.

    Raises:
        SettingsError: a setting is wrong, or contradicts another.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        home: str | Path | None = None,
        database_url: str | None = None,
        broker_url: str | None = None,
    ) -> None:
        flags = {"home": home, "database_url": database_url, "broker_url": broker_url}
        if settings is not None and any(value is not None for value in flags.values()):
            raise InvalidInputError("give Client either settings or home, database_url and broker_url, not both")
        self.settings = settings or Settings.load(**flags)
        self._connections: Connections | None = None
        self._stopped = False
        self._connecting = Lock()

    def start(self) -> Self:
        """Connect now rather than at the first use.

        Raises:
            DatabaseUnreachableError, SchemaError, StorageError: the database cannot be worked with.
            ClosedError: the client was stopped.
        """
        _ = self.connections
        return self

    def stop(self) -> None:
        """Let go of all connections; what was sent goes on. Twice is harmless."""
        with self._connecting:
            self._stopped = True
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def connections(self) -> Connections:
        """What this client is connected with; connects if need be. For the handles. Raises: ClosedError."""
        connections = self._connections
        if connections is None:
            with self._connecting:
                if self._stopped:
                    raise ClosedError("this client was stopped: make a new one")
                connections = self._connections = self._connections or Connections(self.settings)
        return connections

    def create_session(
        self,
        session_id: str | None = None,
        *,
        model: str | None = None,
        system_message: str | None = None,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        context_turns: int | None = None,
        retention: timedelta | Literal["policy"] | None = "policy",
        halts: bool = False,
    ) -> "Session":
        """Make a session.

        Args:
            session_id: an ID of your choosing (``[A-Za-z0-9._:@-]{1,200}``); default: a new unique one.
            model: ``provider/model``; default: ``settings.effective_default_model``.
            labels: for finding it again; text by name.
            options: for the provider, with every turn (``temperature``, ...).
            context_turns: how many earlier turns the model is shown; default: as configured.
            retention: idle time after which it is removed; ``"policy"``: as configured; None: never.
            halts: stop behind a quarantined turn, until ``continue_session``; default: go on with the next turn.

        Raises:
            SessionExistsError: the ID is taken; nothing was changed.
            InvalidSessionIdError, UnknownModelError, InvalidInputError: nothing was written.
        """
        key = checked_session_id(session_id) if session_id is not None else f"session-{secrets.token_hex(8)}"
        kind, seconds = retention_rule(retention)
        new = NewSession(
            key=key,
            model=self._checked_model(model or self.settings.effective_default_model),
            system_message=checked_system_message(system_message) or None,
            options=checked_options(options),
            labels=checked_labels(labels),
            context_turns=checked_context(context_turns),
            retention=kind,
            retention_seconds=seconds,
            halts=bool(halts),
        )
        return Session(self, key, opening.create_session(self.connections.database, new))

    def get_or_create_session(self, session_id: str, **how: Any) -> "Session":
        """Resume the session, or make it as ``create_session`` would; what exists is not changed."""
        try:
            return self.resume_session(session_id)
        except SessionNotFoundError:
            try:
                return self.create_session(session_id, **how)
            except SessionExistsError:  # somebody else made it in between
                return self.resume_session(session_id)

    def resume_session(
        self, session_id: str, *, model: str | None = None, system_message: str | None = None
    ) -> "Session":
        """Take a session up again, from any process, on any day.

        Args:
            model: for turns sent from now on.
            system_message: for turns sent from now on; an empty one takes it away. Stored history stays as it is.

        Raises:
            SessionNotFoundError: it was never created, or it was deleted; nothing was created.
        """
        key = checked_session_id(session_id)
        checked = self._checked_model(model) if model is not None else None
        said = checked_system_message(system_message)
        return Session(self, key, opening.resume_session(self.connections.database, key, checked, said))

    def get_session(self, session_id: str) -> Session:
        """A handle for reading and sending, without taking the session up: looking at one does not put off its removal.

        Raises:
            SessionNotFoundError: there is none of that ID.
        """
        key = checked_session_id(session_id)
        return Session(self, key, reading.get_session(self.connections.database, key).id)

    def list_sessions(
        self,
        *,
        prefix: str | None = None,
        labels: Mapping[str, str] | None = None,
        model: str | None = None,
        active_after: datetime | None = None,
        active_before: datetime | None = None,
        busy: bool | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> Iterator[SessionMetadata]:
        """Sessions in the order in which they were made, page by page; new ones that arrive meanwhile come last.

        Args:
            after: the ``cursor`` of the last one seen.
            limit: how many at most; default: all.
        """
        _ = self.connections
        wanted = SessionFilter(
            prefix=storable(prefix) if prefix else None,
            labels=checked_labels(labels),
            model=storable(model) if model is not None else None,
            active_after=checked_moment(active_after),
            active_before=checked_moment(active_before),
            busy=busy,
        )
        return self._list(wanted, checked_cursor(after), limit)

    def _list(self, wanted: SessionFilter, after: int, limit: int | None) -> Iterator[SessionMetadata]:
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = reading.list_sessions(self.connections.database, wanted, after, size)
            yield from map(SessionMetadata.of, page)
            if len(page) < size:
                return
            after, left = page[-1].id, None if left is None else left - size

    def get_session_metadata(self, session_id: str) -> SessionMetadata | None:
        """The session without its messages; None if there is none of that ID."""
        try:
            return SessionMetadata.of(reading.get_session(self.connections.database, checked_session_id(session_id)))
        except SessionNotFoundError:
            return None

    def get_last_session_id(self) -> str | None:
        """The session that was last created, resumed or sent to; None if there is none."""
        return reading.last_session_key(self.connections.database)

    def delete_session(self, session_id: str, *, missing_ok: bool = False) -> None:
        """Remove a session and everything in it, for good, whatever it is doing.

        Raises:
            SessionNotFoundError: there is none of that ID, unless ``missing_ok``.
        """
        try:
            removed = retention.remove(self.connections.database, checked_session_id(session_id))
            forget(self.connections.broker, removed)
        except SessionNotFoundError:
            if not missing_ok:
                raise

    def hold_session(self, session_id: str) -> None:
        """Exempt a session from retention. Raises: SessionNotFoundError."""
        opening.hold(self.connections.database, checked_session_id(session_id), held=True)

    def release_session(self, session_id: str) -> None:
        """Let retention apply to a held session again. Raises: SessionNotFoundError."""
        opening.hold(self.connections.database, checked_session_id(session_id), held=False)

    def continue_session(self, session_id: str) -> str | None:
        """Let a halted session go on behind the turn that halted it; harmless where it is not halted.

        Returns:
            The ID of that turn; None: the session was not halted.

        Raises:
            SessionNotFoundError: there is none of that ID.
        """
        key, connections = checked_session_id(session_id), self.connections
        halted_by, ready = halting.resume_halted(connections.database, key)
        if ready is not None:
            connections.hints.publish(ready, key)
        return halted_by

    def get_turn(self, turn_id: str) -> "Turn":
        """A turn by its ID, from any process. Raises: TurnNotFoundError."""
        return Turn(self, reading.get_turn(self.connections.database, *checked_turn_id(turn_id)))

    def list_quarantined(self, session_id: str | None = None, *, limit: int | None = None) -> Iterator["Turn"]:
        """Quarantined turns, newest first, page by page: their replies kill workers, or cannot be stored.

        Args:
            session_id: of this session only.
            limit: how many at most; default: all.

        Raises:
            SessionNotFoundError: there is no session of that ID.
        """
        surrogate = None
        if session_id is not None:
            surrogate = reading.get_session(self.connections.database, checked_session_id(session_id)).id
        return self._quarantined(surrogate, limit)

    def _quarantined(self, session: int | None, limit: int | None) -> Iterator["Turn"]:
        left, last = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page: list[TurnRecord] = reading.list_quarantined(self.connections.database, session, last, size)
            yield from (Turn(self, row) for row in page)
            if len(page) < size:
                return
            last, left = page[-1], None if left is None else left - size

    def why(self, waiting: str) -> Reason:
        """What a session waits for, or a turn: a code, a sentence, and the rows behind it.

        Args:
            waiting: a session's ID (its lowest unfinished turn is looked at), or a turn's (``"17.3"``).

        Raises:
            SessionNotFoundError, TurnNotFoundError: there is none of that ID.
        """
        return why(self.connections, self.settings, waiting)

    def list_lanes(self) -> list[LaneInfo]:
        """The lanes: whether they are paused, how much waits and runs in each, and who serves them."""
        return lanes.list_lanes(self.connections.database, self.settings.silent_seconds)

    def pause_lane(self, lane: str) -> bool:
        """Begin no more turns of a lane: prompts are taken as ever, and calls under way end as ever.

        Returns: False, if it was paused already. Raises: InvalidInputError.
        """
        return lanes.pause(self.connections.database, checked_lane(lane))

    def resume_lane(self, lane: str) -> bool:
        """Let a paused lane go on, at once. Returns: False, if it was not paused. Raises: InvalidInputError."""
        connections = self.connections
        was_paused, ready = lanes.resume(connections.database, checked_lane(lane))
        for session in ready:
            connections.hints.publish(session, session.key)
        return was_paused

    def cleanup(self, *, dry_run: bool = False) -> list[Removal]:
        """Remove now what the retention policy says; with ``dry_run``, only list it."""
        idle = self.settings.retention_days * DAY_SECONDS
        database, found, after = self.connections.database, list[Removal](), 0
        if dry_run:
            while page := retention.list_expired(database, idle, after, PAGE):
                after = page[-1][0]
                found += [removal for _, removal in page]
            return found
        while chunk := retention.remove_expired(database, idle, self.settings.cleanup_chunk):
            found += chunk
        return found

    def list_workers(self) -> list[WorkerInfo]:
        """The processes that have shown themselves, workers and beats; ``alive`` says whether lately."""
        return alive_workers(self.connections.database, self.settings)

    def _checked_model(self, model: str) -> str:
        known = self.settings.available_providers
        if not isinstance(model, str):
            raise UnknownModelError(repr(model), sorted(known))
        provider, slash, name = model.partition("/")
        if not (slash and name) or provider not in known or len(model) > 200 or storable(model) != model:
            raise UnknownModelError(model, sorted(known))
        return model
