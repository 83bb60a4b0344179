"""inturn answers conversations in turn: durable sessions, Celery workers, one reply per prompt, in order.

This module only says where its names live. They are loaded when they are first asked for (PEP 562), so that
``inturn --help`` does not pay for SQLModel and Celery.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.client import Client, Message, Session, SessionEvent, SessionMetadata, Turn
    from inturn.images import image
    from inturn.models.errors import (
        AlreadyRunningError,
        ArchiveError,
        BatchConflictError,
        BatchNotFoundError,
        BatchTimeoutError,
        BrokerUnreachableError,
        ClosedError,
        ContentRemovedError,
        DatabaseLockedError,
        DatabaseUnreachableError,
        DeliveryNotFoundError,
        IdempotencyConflictError,
        InturnError,
        InvalidBatchError,
        InvalidInputError,
        InvalidPromptError,
        InvalidSessionIdError,
        NoWorkerError,
        RemovalShareError,
        ResultsError,
        ScheduleExistsError,
        ScheduleNotFoundError,
        SchemaError,
        SendTimeoutError,
        SessionBusyError,
        SessionExistsError,
        SessionHeldError,
        SessionNotFoundError,
        SettingsError,
        StorageError,
        TurnCancelledError,
        TurnFailedError,
        TurnNotFoundError,
        UnfinishedTurnsError,
        UnknownModelError,
    )
    from inturn.models.states import BatchState
    from inturn.models.store.batches import Progress
    from inturn.models.store.lines import LineResult
    from inturn.settings import Settings
    from inturn.tools import ToolContext, ToolError, tool

__version__ = "0.1.0"

__all__ = [
    "AlreadyRunningError",
    "ArchiveError",
    "Batch",
    "BatchConflictError",
    "BatchNotFoundError",
    "BatchState",
    "BatchTimeoutError",
    "BrokerUnreachableError",
    "Client",
    "ClosedError",
    "ContentRemovedError",
    "DatabaseLockedError",
    "DatabaseUnreachableError",
    "DeliveryNotFoundError",
    "IdempotencyConflictError",
    "InturnError",
    "InvalidBatchError",
    "InvalidInputError",
    "InvalidPromptError",
    "InvalidSessionIdError",
    "LineResult",
    "Message",
    "NoWorkerError",
    "Progress",
    "RemovalShareError",
    "ResultsError",
    "ScheduleExistsError",
    "ScheduleNotFoundError",
    "SchemaError",
    "SendTimeoutError",
    "Session",
    "SessionBusyError",
    "SessionEvent",
    "SessionExistsError",
    "SessionHeldError",
    "SessionMetadata",
    "SessionNotFoundError",
    "Settings",
    "SettingsError",
    "StorageError",
    "ToolContext",
    "ToolError",
    "Turn",
    "TurnCancelledError",
    "TurnFailedError",
    "TurnNotFoundError",
    "UnfinishedTurnsError",
    "UnknownModelError",
    "__version__",
    "image",
    "tool",
]

_PLACES = {
    **dict.fromkeys(("Client", "Message", "Session", "SessionEvent", "SessionMetadata", "Turn"), "client"),
    **dict.fromkeys(("ToolContext", "ToolError", "tool"), "tools"),
    "Batch": "batch",
    "BatchState": "models.states",
    "LineResult": "models.store.lines",
    "Progress": "models.store.batches",
    "Settings": "settings",
    "image": "images",
}
"""All others are errors."""


if not TYPE_CHECKING:  # to mypy, a module with __getattr__ has every attribute, misspelt ones too

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{_PLACES.get(name, 'models.errors')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
