"""Everything that inturn raises on purpose.

InturnError
├── InvalidInputError (ValueError)      the call itself was wrong; nothing was written
│   ├── InvalidSessionIdError           .session_id
│   ├── InvalidPromptError
│   └── UnknownModelError               .model
├── SessionNotFoundError (LookupError)  .session_id
├── SessionExistsError                  .session_id
├── SessionBusyError                    .session_id
├── IdempotencyConflictError            .session_id .idempotency_key
├── TurnNotFoundError (LookupError)     .turn_id
├── TurnFailedError                     .turn_id .error_type .status_code .retryable
├── TurnCancelledError                  .turn_id
├── SendTimeoutError (TimeoutError)     .turn
├── ClosedError                         a client or session handle used after it was let go
├── NoWorkerError                       nobody is alive to answer
├── AlreadyRunningError                 a second `inturn up` in one home
├── SettingsError (ValueError)          the configuration contradicts itself
├── StorageError                        the database refused: read-only, full, unreachable
│   ├── DatabaseUnreachableError
│   └── SchemaError                     the schema is older or newer than this program
└── BrokerUnreachableError

A message says what happened, with the value, why, and the next thing to try.
"""

from typing import Protocol


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


class UnknownModelError(InvalidInputError):
    """The model is not written ``provider/model``, or its provider is not configured."""

    def __init__(self, model: str, known: list[str]) -> None:
        super().__init__(
            f"model {model!r} cannot be used: write provider/model, with a configured provider "
            f"({', '.join(known)}). Set the provider's key, or add it to inturn.toml"
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
    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} exists already: resume it, or use get_or_create_session")
        self.session_id = session_id


class SessionBusyError(InturnError):
    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id!r} has unfinished turns, and when_busy='reject' was asked for; nothing was stored"
        )
        self.session_id = session_id


class IdempotencyConflictError(InturnError):
    def __init__(self, session_id: str, idempotency_key: str) -> None:
        super().__init__(
            f"idempotency key {idempotency_key!r} was used in session {session_id!r} for another prompt: "
            "a new prompt needs a new key"
        )
        self.session_id = session_id
        self.idempotency_key = idempotency_key


class TurnNotFoundError(InturnError, LookupError):
    def __init__(self, turn_id: str, because: str = "") -> None:
        unknown = "its session was deleted, or the ID is not one (`inturn turn list SESSION` shows them)"
        super().__init__(f"no turn {turn_id!r}: {because or unknown}")
        self.turn_id = turn_id


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


class SendTimeoutError(InturnError, TimeoutError):
    """Waiting took too long. The turn goes on; its reply can be had later from ``turn.wait()``."""

    def __init__(self, turn: HasId, seconds: float) -> None:
        super().__init__(
            f"no reply to turn {turn.id} within {seconds:g} s. The turn goes on: wait for it again with turn.wait(), "
            f"or look at it with `inturn turn show {turn.id}`"
        )
        self.turn = turn


class ClosedError(InturnError):
    """A client or a session handle was used after it had been let go."""


class NoWorkerError(InturnError):
    """Somebody waits for a reply and no worker is alive to write it."""


class AlreadyRunningError(InturnError):
    """A stack runs in this home already."""


class SettingsError(InturnError, ValueError):
    """The configuration is wrong, or two settings contradict each other."""


class StorageError(InturnError):
    """The database refused to work: read-only, full, locked for too long."""


class DatabaseUnreachableError(StorageError):
    """No connection to the database."""


class SchemaError(StorageError):
    """The database's schema is not the one this program works with."""


class BrokerUnreachableError(InturnError):
    """No connection to the broker."""
