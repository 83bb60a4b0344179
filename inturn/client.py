"""The SDK: ``Client``, and the handles ``Session`` and ``Turn``.

Everything here asks; the work is done by workers in other processes, which the SDK never imports. A handle holds no
state of its own but its ID: whoever has the ID has the session, in any process, on any machine, on any day.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self

from inturn.cleaning import caller
from inturn.connections import Connections
from inturn.importing import Imports
from inturn.models.content import (
    checked_context,
    checked_flag,
    checked_labels,
    checked_overflow,
    checked_session_id,
    checked_system_message,
    checked_text,
    checked_tokens,
    checked_tools,
    checked_turn_id,
    new_session_id,
    storable,
)
from inturn.models.errors import (
    ClosedError,
    InvalidInputError,
    SessionExistsError,
    SessionNotFoundError,
    UnknownModelError,
)
from inturn.models.store import halting, holding, opening, reading, retention
from inturn.models.store.budgets import Standing
from inturn.models.store.holding import Hold, PastHold
from inturn.models.store.lanes import LaneInfo
from inturn.models.store.opening import Chain, NewSession
from inturn.models.store.presence import WorkerInfo
from inturn.models.store.reading import Attempt
from inturn.models.store.receipts import Removal, RemovalSum
from inturn.models.store.schedules import Schedule
from inturn.models.store.selecting import SessionFilter
from inturn.models.store.situation import Reason
from inturn.models.store.usage import UsageRecord
from inturn.models.store.webhooks import WebhookDelivery
from inturn.operations import Operations
from inturn.options import checked_options
from inturn.records import (
    EventData,
    Message,
    MessageData,
    SessionEvent,
    SessionMetadata,
    TurnError,
    checked_cursor,
    checked_limit,
    checked_moment,
    retention_rule,
)
from inturn.removals import Removals
from inturn.scheduling import Schedules
from inturn.session import Session
from inturn.settings import Settings
from inturn.submission import Submissions
from inturn.turn import Turn
from inturn.workers.live import forget

__all__ = [
    "Attempt",
    "Client",
    "EventData",
    "LaneInfo",
    "Message",
    "MessageData",
    "PastHold",
    "Reason",
    "Removal",
    "RemovalSum",
    "Schedule",
    "Session",
    "SessionEvent",
    "SessionMetadata",
    "Standing",
    "Turn",
    "TurnError",
    "UsageRecord",
    "WebhookDelivery",
    "WorkerInfo",
]

PAGE = 100


class Client(Operations, Removals, Schedules, Submissions, Imports):
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
    def failed_hints(self) -> int:
        """Hints of this client that Redis did not take, since it was started: their turns wait for the next sweep."""
        return self._connections.hints.failed if self._connections is not None else 0

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
        model: str | Sequence[str] | None = None,
        system_message: str | None = None,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        context_turns: int | None = None,
        context_tokens: int | None = None,
        overflow: Literal["truncate", "fail", "summarise"] = "truncate",
        tools: Sequence[str] | None = None,
        retention: timedelta | Literal["policy"] | None = "policy",
        halts: bool = False,
    ) -> "Session":
        """Make a session.

        Args:
            session_id: an ID of your choosing (``[A-Za-z0-9._:@-]{1,200}``); default: a new unique one.
            model: ``provider/model``, or several, each of which is asked when those before it failed; default:
                ``settings.effective_default_model``.
            labels: for finding it again; text by name.
            options: for the provider, with every turn (``temperature``, ...).
            context_turns: how many earlier turns the model is shown; default: as configured, or as many as fit into
                ``context_tokens``.
            context_tokens: how many tokens it is shown at most, by our estimate; default: as many as it is known to take,
                less the reply.
            overflow: what becomes of history that is more: ``"truncate"`` leaves out the oldest turns, ``"fail"`` fails the
                turn, ``"summarise"`` has the model write a summary, which is stored and shown in their place.
            tools: names of the tools that the model may call; the workers have to have them (``docs/tools.md``).
            retention: idle time after which it is removed; ``"policy"``: as configured; None: never.
            halts: stop behind a quarantined turn, until ``continue_session``; default: go on with the next turn.

        Raises:
            SessionExistsError: the ID is taken; nothing was changed.
            InvalidSessionIdError, UnknownModelError, InvalidInputError: nothing was written.
        """
        key = new_session_id(session_id)
        kind, seconds = retention_rule(retention)
        first, fallbacks = self._checked_chain(self.settings.effective_default_model if model is None else model)
        new = NewSession(
            key=key,
            model=first,
            fallbacks=fallbacks,
            system_message=checked_system_message(system_message) or None,
            options=checked_options(options, [first, *(fallbacks or ())], self.settings.available_providers),
            labels=checked_labels(labels),
            context_turns=checked_context(context_turns),
            context_tokens=checked_tokens(context_tokens),
            overflow=checked_overflow(overflow, context_turns),
            tools=checked_tools(tools),
            retention=kind,
            retention_seconds=seconds,
            halts=checked_flag("halts", halts),
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
        self, session_id: str, *, model: str | Sequence[str] | None = None, system_message: str | None = None
    ) -> "Session":
        """Take a session up again, from any process, on any day.

        Args:
            model: for turns sent from now on; or several, as in ``create_session``.
            system_message: for turns sent from now on; an empty one takes it away. Stored history stays as it is.

        Raises:
            SessionNotFoundError: it was never created, or it was deleted; nothing was created.
        """
        key = checked_session_id(session_id)
        checked = self._checked_chain(model) if model is not None else None
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
            prefix=checked_text("prefix", prefix) or None,
            labels=checked_labels(labels),
            model=checked_text("model", model),
            active_after=checked_moment(active_after),
            active_before=checked_moment(active_before),
            busy=busy,
        )
        return self._list(wanted, checked_cursor(after), checked_limit("limit", limit))

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
        """Remove a session and everything in it, for good, whatever it is doing, also one that is held. Its receipt is under
        the rule ``erasure``.

        Raises:
            SessionNotFoundError: there is none of that ID, unless ``missing_ok``.
        """
        try:
            key = checked_session_id(session_id)
            removed = retention.remove(self.connections.database, key, asked_by=caller())
            forget(self.connections.broker, removed)
        except SessionNotFoundError:
            if not missing_ok:
                raise

    def hold_session(
        self, session_id: str, reason: str | None = None, *, by: str | None = None, replace: bool = False
    ) -> None:
        """Exempt a session from retention: cleanup never removes it; ``delete_session`` still does.

        Args:
            reason: why, for whoever finds it held.
            by: who wants that; default: ``user@host`` of this program.
            replace: also where somebody holds it already, for another reason; that hold is over then.

        Raises:
            SessionNotFoundError: there is none of that ID.
            SessionHeldError: somebody holds it already; nothing was changed.
        """
        why = Hold(checked_text("reason", reason), self._named(by))
        holding.hold(self.connections.database, checked_session_id(session_id), why, replaces=replace)

    def release_session(self, session_id: str, *, by: str | None = None) -> None:
        """Let retention apply to a held session again.

        Args:
            by: who wants that; default: ``user@host`` of this program.

        Raises:
            SessionNotFoundError: there is none of that ID.
        """
        holding.release(self.connections.database, checked_session_id(session_id), self._named(by))

    def _named(self, by: str | None) -> str:
        return checked_text("by", by) or caller()

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

    def _checked_chain(self, model: str | Sequence[str]) -> Chain:
        """The model that is asked first, and those after it. Raises: UnknownModelError, InvalidInputError."""
        if isinstance(model, str) or not isinstance(model, Sequence):
            return self._checked_model(model), None
        chain, most = [self._checked_model(one) for one in model], self.settings.max_attempts
        if not chain or len(chain) > most or len(set(chain)) < len(chain):
            raise InvalidInputError(
                f"model is {list(model)!r:.200}: name 1 to {most} models (max_attempts), each of them once"
            )
        return chain[0], chain[1:]

    def _checked_model(self, model: object) -> str:
        """A model that may be asked. Raises: UnknownModelError."""
        known = self.settings.available_providers
        if not isinstance(model, str):
            raise UnknownModelError(repr(model), sorted(known))
        provider, slash, name = model.partition("/")
        if not (slash and name) or provider not in known or len(model) > 200 or storable(model) != model:
            raise UnknownModelError(model, sorted(known))
        return model
