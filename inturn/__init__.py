"""inturn answers conversations in turn: durable sessions, Celery workers, one reply per prompt, in order.

This module only says where its names live. They are loaded when they are first asked for (PEP 562), so that
``inturn --help`` does not pay for SQLModel and Celery.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inturn.client import Client, Message, Session, SessionEvent, SessionMetadata, Turn
    from inturn.models.errors import (
        AlreadyRunningError,
        BrokerUnreachableError,
        ClosedError,
        DatabaseUnreachableError,
        IdempotencyConflictError,
        InturnError,
        InvalidInputError,
        InvalidPromptError,
        InvalidSessionIdError,
        NoWorkerError,
        SchemaError,
        SendTimeoutError,
        SessionBusyError,
        SessionExistsError,
        SessionNotFoundError,
        SettingsError,
        StorageError,
        TurnCancelledError,
        TurnFailedError,
        TurnNotFoundError,
        UnknownModelError,
    )
    from inturn.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "AlreadyRunningError",
    "BrokerUnreachableError",
    "Client",
    "ClosedError",
    "DatabaseUnreachableError",
    "IdempotencyConflictError",
    "InturnError",
    "InvalidInputError",
    "InvalidPromptError",
    "InvalidSessionIdError",
    "Message",
    "NoWorkerError",
    "SchemaError",
    "SendTimeoutError",
    "Session",
    "SessionBusyError",
    "SessionEvent",
    "SessionExistsError",
    "SessionMetadata",
    "SessionNotFoundError",
    "Settings",
    "SettingsError",
    "StorageError",
    "Turn",
    "TurnCancelledError",
    "TurnFailedError",
    "TurnNotFoundError",
    "UnknownModelError",
    "__version__",
]

_CLIENT = ("Client", "Message", "Session", "SessionEvent", "SessionMetadata", "Turn")


if not TYPE_CHECKING:  # to mypy, a module with __getattr__ has every attribute, misspelt ones too

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "client" if name in _CLIENT else "settings" if name == "Settings" else "models.errors"
        value: object = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
