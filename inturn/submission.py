"""Many prompts at once: batches, and prompts that a program sends together. The part of a client that takes them."""

import hashlib
import secrets
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from inturn.batch import Batch, checked_window
from inturn.connections import Connections
from inturn.intake import Intake, check_lines, take_in
from inturn.models.content import checked_flag, checked_lane, checked_system_message, checked_text, storable
from inturn.models.errors import BatchConflictError, InvalidInputError, UnknownModelError
from inturn.models.states import BatchState, Lane, Retention, slots_of
from inturn.models.store import batches, batching, reading
from inturn.models.store.admitting import Admission
from inturn.models.store.batching import Begun, NewBatch
from inturn.models.store.lines import BadLine, Line
from inturn.options import checked_options, refuse_options
from inturn.records import checked_limit, retention_rule
from inturn.settings import Settings
from inturn.turn import Turn, checked_choice
from inturn.waiting import alive_workers
from inturn.workers.queues import queued
from inturn.workers.tracer import Span

CHUNK = 1000
"""Lines that are stored in one transaction."""
CHUNK_BYTES = 4 * 1024 * 1024
"""Of their prompts, in the same."""
MOST_AT_ONCE = 10_000
PAGE = 100
BARE = "Set OPENAI_API_KEY, or say who answers lines that name no provider (`--model`, or model=...)"
"""What to do about a name such as ``gpt-4.1``, where there is no OpenAI."""
SAID = {
    "model": "model", "system": "system message", "options": "options", "window_seconds": "window (seconds)",
    "retention": "retention", "retention_seconds": "keep (seconds)", "discards": "discard", "plain_text": "text",
}  # fmt: skip
"""What a batch was submitted with, in the words of who submits it."""

Source = str | Path | BinaryIO | Iterable[Mapping[str, Any] | str]
Phase = Literal["checking", "storing"]
OnProgress = Callable[[Phase, int, int | None], object]
"""Told what is done, how much of it, and of how much: bytes while lines are checked; lines while they are
stored, at first those that were stored before."""


@dataclass(frozen=True, slots=True)
class Submission:
    """How a batch is to be run."""

    model: str
    system: str | None
    options: dict[str, Any]
    window: timedelta | None
    retention: Retention
    retention_seconds: float | None
    discards: bool
    plain_text: bool
    context_turns: int
    source: str | None = None
    """Its file's name, which tells it from others in lists, and decides nothing."""

    @property
    def how(self) -> dict[str, Any]:
        """As it is kept with the batch."""
        return {
            "model": self.model,
            "system": self.system,
            "options": self.options,
            "window_seconds": None if self.window is None else self.window.total_seconds(),
            "retention": str(self.retention),
            "retention_seconds": self.retention_seconds,
            "discards": self.discards,
            "plain_text": self.plain_text,
            "context_turns": self.context_turns,
            "source": self.source,
        }


class Submissions(ABC):
    """The part of a client that takes many prompts at once."""

    settings: Settings

    @property
    @abstractmethod
    def connections(self) -> Connections:
        """What the client is connected with. Raises: ClosedError."""

    @abstractmethod
    def _checked_model(self, model: object) -> str:
        """Raises: UnknownModelError."""

    def submit_batch(
        self,
        lines: Source,
        *,
        name: str | None = None,
        model: str | None = None,
        system_message: str | None = None,
        options: Mapping[str, Any] | None = None,
        window: timedelta | None = None,
        keep: timedelta | Literal["policy"] | None = "policy",
        discard: bool = False,
        skip_invalid: bool = False,
        plain_text: bool = False,
        again: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Batch:
        """Store a file of prompts, to be answered by workers. Returned means stored.

        All of it is checked before anything is stored. What was submitted before, by content and name, is that batch; a
        submission that was cut off goes on where it stopped. Memory does not grow with the file.

        Args:
            lines: a file's path, an open file, or what would be its lines: dicts, or texts (``docs/batches.md`` has the
                format).
            name: tells two batches of the same content apart.
            model: who is asked where a line does not say, or says no ``provider/model``; default:
                ``settings.effective_default_model``, and ``openai/...`` for the bare names of OpenAI's files.
            system_message: of sessions that are made, where a line does not say.
            options: for the provider, with every line; a line's own go ahead.
            window: lines that were not called by then expire; default: none do.
            keep: idle time after which sessions that are made are removed; ``"policy"``: as configured; None: never.
            discard: remove the sessions that are made once the results were read (``note_read``).
            skip_invalid: lines that are not valid become errors among the results.
            plain_text: a prompt a line.
            again: run it once more, though it was submitted before.
            on_progress: told from time to time how far it is.

        Raises:
            InvalidBatchError: lines are not valid; nothing was stored.
            BatchConflictError: it was submitted before, to be run otherwise.
            InvalidInputError, OSError: it cannot be read, or changed meanwhile; nothing was stored.
        """
        how = self._checked(model, system_message, options, window, keep, discard, plain_text)
        how = replace(how, source=_file_name(lines))
        told = on_progress or (lambda phase, done, total: None)
        name = checked_text("name", name) or None
        if name is not None and len(name) > 200:
            raise InvalidInputError(f"the name has {len(name)} characters, and 200 are the limit")
        _ = self.connections
        with take_in(
            lines,
            directory=self._spool_directory(),
            plain_text=how.plain_text,
            skip_invalid=checked_flag("skip_invalid", skip_invalid),
            check_model=self._resolver(model),
            check_options=self._fitter(how.model, how.options),
            on_progress=lambda done, total: told("checking", done, total),
        ) as intake:
            return self._submit(intake, how, name, told, again=checked_flag("again", again))

    def _spool_directory(self) -> Path:
        """Where the checked lines are kept until they are stored: on a disk, if we know one; ``/tmp`` may be memory."""
        home = self.settings.home
        return home if home.is_dir() else Path(tempfile.gettempdir())

    def _checked(
        self, model: Any, system: Any, options: Any, window: Any, keep: Any, discard: Any, plain_text: Any
    ) -> Submission:
        kind, seconds = retention_rule(keep)
        return Submission(
            model=self._checked_model(self.settings.effective_default_model if model is None else model),
            system=checked_system_message(system) or None,
            options=checked_options(options),
            window=checked_window(window),
            retention=kind,
            retention_seconds=seconds,
            discards=checked_flag("discard", discard),
            plain_text=checked_flag("plain_text", plain_text),
            context_turns=self.settings.context_turns,
        )

    def _resolver(self, given: str | None) -> Callable[[str], str]:
        """Which model a line means. A bare name, as in OpenAI's files, is the one that was given, or OpenAI's."""
        known: dict[str, str] = {}

        def resolve(name: str) -> str:
            if name not in known:
                known[name] = self._meant(name, given)
            return known[name]

        return resolve

    def _fitter(self, model: str, options: Mapping[str, Any]) -> Callable[[Line], None]:
        """Whether a line's model has its options, where it is known: of a session that is there, it may be another one."""
        known = self.settings.available_providers

        def check(line: Line) -> None:
            asked = line.model or (model if line.session is None else None)
            if asked is not None and (options or line.options):
                refuse_options(asked, {**options, **line.options}, known)

        return check

    def _meant(self, name: str, given: str | None) -> str:
        if name.partition("/")[0] in self.settings.available_providers:
            return self._checked_model(name)
        if given is not None:
            return self._checked_model(given)
        if "openai" not in self.settings.available_providers:
            raise UnknownModelError(name, sorted(self.settings.available_providers), BARE)
        return self._checked_model(f"openai/{name}")

    def _submit(self, intake: Intake, how: Submission, name: str | None, told: OnProgress, *, again: bool) -> Batch:
        fingerprint = hashlib.sha256(f"{intake.fingerprint}\0{name or ''}".encode()).hexdigest()
        new = NewBatch(
            key=f"batch-{secrets.token_hex(8)}",
            fingerprint=f"{fingerprint}-{secrets.token_hex(8)}" if again else fingerprint,
            total=intake.total,
            name=name,
            how=how.how,
            discards=how.discards,
        )
        begun = batching.begin(self.connections.database, new)
        if not begun.is_new and (differs := _differs(begun, new)):
            raise BatchConflictError(begun.key, differs)
        self._begin(begun, told)
        with self.connections.tracer.send_many(Lane.BATCH) as span:
            self._store(begun, intake, told, span)
            span.sent_together(begun.total, begun.key)
        return self.get_batch(begun.key)

    def _begin(self, begun: Begun, told: OnProgress) -> None:
        """Who is told may refuse: of a batch that is new, nothing is left then."""
        try:
            told("storing", begun.stored, begun.total)
        except BaseException:
            if begun.is_new:
                batching.forget(self.connections.database, begun.key)
            raise

    def _store(self, begun: Begun, intake: Intake, told: OnProgress, span: Span) -> None:
        state, stored = begun.state, begun.stored
        chunks = _chunks(intake.spool.lines(stored))
        while state is BatchState.VALIDATING and stored < begun.total:
            chunk = next(chunks)
            done = batching.store(self.connections.database, begun, stored, chunk, self._room(), span.trace)
            for ready in done.ready:
                self.connections.hints.publish(ready, ready.key)
            if done.stored != stored + len(chunk):  # somebody else submits it, too
                chunks = _chunks(intake.spool.lines(done.stored))
            state, stored = done.state, done.stored
            told("storing", stored, begun.total)

    def _room(self) -> int:
        """How many hints workers can take now. More would only fill the queue: each of them leads to many sessions."""
        waiting = queued(self.connections.broker, Lane.BATCH)
        if waiting is None:
            return 0
        slots = 0
        for worker in alive_workers(self.connections.database, self.settings):
            lanes = worker.lanes.split(",")
            if worker.alive and Lane.BATCH in lanes:
                slots += slots_of(Lane.BATCH, lanes, worker.concurrency, self.settings.batch_share)
        return max(0, slots - waiting)

    def get_batch(self, batch_id: str) -> Batch:
        """A handle on a batch, from any process. Raises: BatchNotFoundError."""
        return Batch(self, batches.get_batch(self.connections.database, str(batch_id)))

    def list_batches(self, *, state: str | None = None, limit: int | None = None) -> Iterator[Batch]:
        """Batches, newest first, page by page.

        Args:
            state: only those; see ``BatchState``.
            limit: how many at most; default: all.
        """
        wanted = None if state is None else BatchState(checked_choice("state", state, tuple(BatchState)))
        _ = self.connections
        return self._list_batches(wanted, checked_limit("limit", limit))

    def _list_batches(self, state: BatchState | None, limit: int | None) -> Iterator[Batch]:
        left, last = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = batches.list_batches(self.connections.database, before=last, state=state, limit=size)
            yield from (Batch(self, row) for row in page)
            if len(page) < size:
                return
            last, left = page[-1].id, None if left is None else left - size

    def send_many(
        self, prompts: Iterable[Mapping[str, Any] | str], *, lane: Literal["chat", "batch"] = "batch"
    ) -> list[Turn]:
        """Store prompts together, all of them or none. Returned means stored.

        Args:
            prompts: each as a line of a batch in its short form: ``{"session": ID, "prompt": ...}``, with optional
                ``model``, ``system``, ``options`` and ``labels``. A session that is not there is made; a prompt without one
                gets one of its own. Prompts of one session are its turns, in this order. At most 10,000.

        Returns:
            Their turns, in this order.

        Raises:
            InvalidBatchError: prompts are not valid; nothing was stored.
            InvalidInputError: they are too many.
        """
        how = Admission(
            model=self.settings.effective_default_model,
            lane=checked_lane(lane),
            context_turns=self.settings.context_turns,
            prefix=f"session-{secrets.token_hex(8)}",
        )
        lines = check_lines(
            islice(prompts, MOST_AT_ONCE + 1),
            check_model=self._resolver(None),
            check_options=self._fitter(how.model, {}),
        )
        if len(lines) > MOST_AT_ONCE:
            raise InvalidInputError(
                f"more than {MOST_AT_ONCE:,} prompts: send them in parts, or as a batch (submit_batch)"
            )
        if not lines:
            return []
        connections = self.connections
        with connections.tracer.send_many(how.lane) as span:
            how = replace(how, trace=span.trace)
            hints = len(lines) if how.lane is Lane.CHAT else self._room()
            admitted = batching.send_many(connections.database, how, lines, hints)
            span.sent_together(len(lines))
            for ready in admitted.ready:
                connections.hints.publish(ready, ready.key)
        return [Turn(self, row) for row in reading.get_turns(connections.database, admitted.places)]


def _file_name(lines: Source) -> str | None:
    return storable(Path(lines).name)[:200] or None if isinstance(lines, str | Path) else None


def _differs(begun: Begun, new: NewBatch) -> str:
    """How a batch that is there is run otherwise than asked for; empty: it is not."""
    others = [name for name in SAID if begun.how.get(name) != new.how[name]]
    told = {name: (_said(begun.how.get(name)), _said(new.how[name])) for name in others}
    return ", ".join(f"{SAID[name]} {before} rather than {now}" for name, (before, now) in told.items())


def _said(value: object) -> str:
    return "none" if value is None else f"{value!r:.60}"


def _chunks(lines: Iterator[Line | BadLine]) -> Iterator[Sequence[Line | BadLine]]:
    """Pieces of a thousand lines, or of fewer that are long."""
    chunk: list[Line | BadLine] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line.prompt) if isinstance(line, Line) else 0
        if len(chunk) == CHUNK or size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
