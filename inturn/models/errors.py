"""Everything that inturn raises on purpose.

InturnError
├── InvalidInputError (ValueError)      the call itself was wrong; nothing was written
│   ├── InvalidSessionIdError           .session_id
│   ├── InvalidPromptError
│   ├── InvalidBatchError               .errors .count .total
│   └── UnknownModelError               .model
├── SessionNotFoundError (LookupError)  .session_id
├── SessionExistsError                  .session_id
├── SessionBusyError                    .session_id
├── SessionHeldError                    .session_id .held_by .held_at .reason
├── UnfinishedTurnsError                .session_id .number
├── IdempotencyConflictError            .session_id .idempotency_key
├── TurnNotFoundError (LookupError)     .turn_id
├── BatchNotFoundError (LookupError)    .batch_id
├── BatchConflictError                  .batch_id
├── DeliveryNotFoundError (LookupError) .delivery_id
├── ScheduleNotFoundError (LookupError) .name
├── ScheduleExistsError                 .name
├── TurnFailedError                     .turn_id .error_type .status_code .retryable
├── TurnCancelledError                  .turn_id
├── ContentRemovedError                 .turn_id .removed_at
├── SendTimeoutError (TimeoutError)     .turn
├── BatchTimeoutError (TimeoutError)    .batch_id
├── ClosedError                         a client or session handle used after it was let go
├── NoWorkerError                       nobody is alive to answer
├── AlreadyRunningError                 a second `inturn up` in one home
├── SettingsError (ValueError)          the configuration contradicts itself
├── StorageError                        the database refused: read-only, full, unreachable
│   ├── DatabaseUnreachableError
│   └── SchemaError                     the schema is older or newer than this program
├── BrokerUnreachableError
├── ResultsError                        a batch's result files cannot be written, or are not complete
└── ArchiveError                        .target; an archive of sessions cannot be written there

A message says what happened, with the value, why, and the next thing to try.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from inturn.models.store.lines import BadLine


class HasId(Protocol):
    @property
    def id(self) -> str: ...


class InturnError(Exception):
    """Base of everything that inturn raises on purpose."""


class InvalidInputError(InturnError, ValueError):
    """An argument was refused before anything was written."""


class InvalidSessionIdError(InvalidInputError):
    def __init__(self, session_id: object) -> None:
        super().__init__(
            f"{session_id!r:.220} is no session ID: use 1 to 200 characters out of letters, digits and . _ : @ - "
            "(for example user-123-conversation)"
        )
        self.session_id = session_id


class InvalidPromptError(InvalidInputError):
    """The prompt is empty, too large, or no string."""


class InvalidBatchError(InvalidInputError):
    """Lines of a batch are no prompts. All were checked, and none was stored.

    Attributes:
        errors: the first 20 bad lines; of a batch without any line, one with the number 0 and the code ``empty_file``.
        count: how many bad lines there are.
        total: how many lines there are.
    """

    def __init__(self, name: str, errors: "Sequence[BadLine]", count: int, total: int) -> None:
        found = _told_once(errors)
        more = [f"and {count - len(errors):,} more"] if count > len(errors) else []
        advice = "correct them, or skip them (--skip-invalid, skip_invalid=True)" if count < total else "correct them"
        head = f"{count:,} of {total:,} lines of {name} cannot be used, and nothing was stored: {advice}"
        super().__init__("\n  ".join([head, *found, *more]) if total else f"{name}: {found[0]}")
        self.errors = list(errors)
        self.count = count
        self.total = total


def _told_once(errors: "Sequence[BadLine]") -> list[str]:
    """A sentence per reason, with the lines that have it."""
    lines: dict[str, list[int]] = {}
    for bad in errors:
        lines.setdefault(f"{bad.message} ({bad.code})", []).append(bad.line)
    return [f"{_named(numbers)}{reason}" for reason, numbers in lines.items()]


def _named(numbers: list[int]) -> str:
    if numbers == [0]:
        return ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: "


class UnknownModelError(InvalidInputError):
    """The model is not written ``provider/model``, or its provider is not configured."""

    def __init__(
        self, model: str, known: list[str], advice: str = "Set the provider's key, or add it to inturn.toml"
    ) -> None:
        super().__init__(
            f"model {model!r} cannot be used: write provider/model, with a configured provider "
            f"({', '.join(known)}). {advice}"
        )
        self.model = model


class SessionNotFoundError(InturnError, LookupError):
    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"no session {session_id!r}: it was never created here, or it was deleted. "
            "`inturn session list` shows what there is"
        )
        self.session_id = session_id


class SessionExistsError(InturnError):
    def __init__(self, session_id: str, advice: str = "resume it, or use get_or_create_session") -> None:
        super().__init__(f"session {session_id!r} exists already: {advice}")
        self.session_id = session_id


class SessionBusyError(InturnError):
    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id!r} has unfinished turns, and when_busy='reject' was asked for; nothing was stored"
        )
        self.session_id = session_id


class SessionHeldError(InturnError):
    """Somebody holds the session already. Nothing was changed."""

    def __init__(self, session_id: str, held_by: str | None, held_at: datetime | None, reason: str | None) -> None:
        since = f" since {held_at:%Y-%m-%d %H:%M} UTC" if held_at else ""
        because = f" ({reason:.200})" if reason else ""
        super().__init__(
            f"session {session_id!r} is held by {held_by or 'somebody'}{since}{because}. To put another hold in its place, "
            f"`inturn session hold {session_id} --replace` (replace=True)"
        )
        self.session_id = session_id
        self.held_by, self.held_at, self.reason = held_by, held_at, reason


class UnfinishedTurnsError(InturnError):
    """What was asked for has to wait until turns are finished; nothing was changed."""

    def __init__(self, session_id: str, number: int, advice: str) -> None:
        super().__init__(f"turn {number} of session {session_id!r} is not finished: {advice}")
        self.session_id = session_id
        self.number = number


class IdempotencyConflictError(InturnError):
    def __init__(self, session_id: str, idempotency_key: str) -> None:
        super().__init__(
            f"idempotency key {idempotency_key!r} was used in session {session_id!r} for another prompt: "
            "a new prompt needs a new key"
        )
        self.session_id = session_id
        self.idempotency_key = idempotency_key


class TurnNotFoundError(InturnError, LookupError):
    def __init__(self, turn_id: object, because: str = "") -> None:
        unknown = "its session was deleted, or the ID is not one (`inturn turn list SESSION` shows them)"
        super().__init__(f"no turn {turn_id!r:.100}: {because or unknown}")
        self.turn_id = turn_id


class BatchNotFoundError(InturnError, LookupError):
    def __init__(self, batch_id: object) -> None:
        super().__init__(
            f"no batch {batch_id!r:.100}: it was never submitted here, or it was removed. `inturn batch list` shows what "
            "there is"
        )
        self.batch_id = batch_id


class BatchConflictError(InturnError):
    """The same content and name were submitted before, to be run otherwise."""

    def __init__(self, batch_id: str, differs: str) -> None:
        super().__init__(
            f"this was submitted before, as batch {batch_id}, with {differs}: give it another name to run it otherwise, "
            "or run it once more (`--again`, or again=True)"
        )
        self.batch_id = batch_id


class DeliveryNotFoundError(InturnError, LookupError):
    def __init__(self, delivery_id: object) -> None:
        super().__init__(
            f"no webhook delivery {delivery_id!r:.100}: its ID is another one, or it was removed, as old ones are "
            "(`inturn webhook list` shows what there is)"
        )
        self.delivery_id = delivery_id


class ScheduleNotFoundError(InturnError, LookupError):
    def __init__(self, name: object) -> None:
        super().__init__(
            f"no schedule {name!r:.100}: it was never added here, or it was removed. `inturn schedule list` shows what "
            "there is"
        )
        self.name = name


class ScheduleExistsError(InturnError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"schedule {name!r} exists already: choose another name, or remove it first (`inturn schedule remove {name}`)"
        )
        self.name = name


class TurnFailedError(InturnError):
    """A turn ended without a reply. Prompt and error stay readable; ``turn.retry()`` sends the prompt again."""

    def __init__(self, turn_id: str, error_type: str, message: str, status_code: int | None, retryable: bool) -> None:
        super().__init__(f"turn {turn_id} failed ({error_type}): {message}")
        self.turn_id = turn_id
        self.error_type = error_type
        self.status_code = status_code
        self.retryable = retryable


class TurnCancelledError(InturnError):
    def __init__(self, turn_id: str) -> None:
        super().__init__(f"turn {turn_id} was cancelled")
        self.turn_id = turn_id


class ContentRemovedError(InturnError):
    """What was said in a turn is asked for, and retention has removed it and kept the rest.

    Attributes:
        removed_at: when that was, at the latest.
    """

    def __init__(self, turn_id: str, removed_at: datetime) -> None:
        super().__init__(
            f"what was said in turn {turn_id} is gone: retention removed it on {removed_at:%Y-%m-%d %H:%M} UTC, and kept "
            "the turn with what it used (`inturn retention history` says by which rule). Send the prompt anew, if you have "
            "it"
        )
        self.turn_id = turn_id
        self.removed_at = removed_at


class SendTimeoutError(InturnError, TimeoutError):
    """Waiting took too long. The turn goes on; its reply can be had later from ``turn.wait()``."""

    def __init__(self, turn: HasId, seconds: float) -> None:
        super().__init__(
            f"no reply to turn {turn.id} within {seconds:g} s. The turn goes on: wait for it again with turn.wait(), "
            f"or look at it with `inturn turn show {turn.id}`"
        )
        self.turn = turn


class BatchTimeoutError(InturnError, TimeoutError):
    """Waiting took too long. The batch goes on."""

    def __init__(self, batch_id: str, seconds: float) -> None:
        super().__init__(
            f"batch {batch_id} did not end within {seconds:g} s. It goes on: wait for it again, or look at it with "
            f"`inturn batch status {batch_id}`"
        )
        self.batch_id = batch_id


class ClosedError(InturnError):
    """A client or a session handle was used after it had been let go."""


class NoWorkerError(InturnError):
    """Somebody waits for a reply and no worker is alive to write it."""


class RemovalShareError(InturnError):
    """A cleanup would remove more of all sessions at once than it may. Nothing was removed.

    Attributes:
        due, sessions: how many it would remove, and of how many.
    """

    def __init__(self, due: int, sessions: int, share: float, rule: str, what: str = "sessions") -> None:
        super().__init__(
            f"{due:,} of {sessions:,} {what} are due for removal, most of them by the rule {rule!r}, and more than "
            f"{share:.0%} at once (max_removal_share) take somebody's word: nothing was removed. Is a rule new, or the "
            "database's clock wrong? `inturn cleanup --dry-run` lists them, and `inturn cleanup --yes` removes them"
        )
        self.due, self.sessions = due, sessions


class AlreadyRunningError(InturnError):
    """A stack runs in this home already."""


class SettingsError(InturnError, ValueError):
    """The configuration is wrong, or two settings contradict each other."""


class StorageError(InturnError):
    """The database refused to work: read-only, full, locked for too long."""


class DatabaseLockedError(StorageError):
    """Another process kept the SQLite file to itself for too long."""


class DatabaseUnreachableError(StorageError):
    """No connection to the database."""


class SchemaError(StorageError):
    """The database's schema is not the one this program works with."""


class BrokerUnreachableError(InturnError):
    """No connection to the broker."""


class ResultsError(InturnError):
    """The results of a batch could not be written to their files. None is lost: they are in the database."""


class ArchiveError(InturnError):
    """An archive of sessions cannot be written. What was to be in it must not be removed.

    Args:
        target: the directory or URL, without a password.
    """

    def __init__(self, target: str, reason: object, advice: str) -> None:
        super().__init__(
            f"cannot archive sessions in {target} ({reason}): {advice}. What is not archived is not removed"
        )
        self.target = target
