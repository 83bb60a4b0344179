"""Sessions, turns, messages and batches as the records that ``--json`` prints. Their keys are a promise to scripts."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inturn.cli.values import shown_retention

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.client import EventData, Message, MessageData, SessionEvent, SessionMetadata, Turn
    from inturn.models.store.batches import Progress

SESSION_KEYS = (
    "session_id",
    "model",
    "fallbacks",
    "busy",
    "turns",
    "messages",
    "labels",
    "options",
    "system_message",
    "context_turns",
    "context_tokens",
    "overflow",
    "tools",
    "retention",
    "held",
    "hold_reason",
    "held_by",
    "held_at",
    "halts",
    "halted_by",
    "content_removed_at",
    "content_removed_to",
    "created_at",
    "imported_at",
    "last_activity_at",
)
TURN_KEYS = (
    "id",
    "session_id",
    "number",
    "state",
    "lane",
    "not_before",
    "model",
    "prompt",
    "attempts",
    "input_tokens",
    "output_tokens",
    "price",
    "error",
    "retry_of",
    "merged_into",
    "partial",
    "content_removed_at",
    "created_at",
    "started_at",
    "finished_at",
)
BATCH_KEYS = ("id", "name", "model", "discards", "created_at", "expires_at", "finished_at", "read_at")


def batch_record(batch: "Batch", progress: "Progress") -> dict[str, Any]:
    return {key: getattr(batch, key) for key in BATCH_KEYS} | asdict(progress)


def session_record(metadata: "SessionMetadata") -> dict[str, Any]:
    record = {key: getattr(metadata, key) for key in SESSION_KEYS}
    return record | {"retention": shown_retention(metadata.retention)}


def turn_record(turn: "Turn") -> dict[str, Any]:
    record = {key: getattr(turn, key) for key in TURN_KEYS}
    return record | {"error": asdict(turn.error) if turn.error else None}


def message_record(message: "Message") -> dict[str, Any]:
    return {
        "id": message.id,
        "type": message.type,
        "data": {"content": message.data.content} | told(message.data),
        "timestamp": message.timestamp,
        "turn": message.turn,
    }


def event_record(event: "SessionEvent") -> dict[str, Any]:
    return {
        "id": event.id,
        "type": event.type,
        "data": told(event.data),
        "timestamp": event.timestamp,
        "turn": event.turn,
    }


def told(data: "MessageData | EventData") -> dict[str, Any]:
    """What it has something of."""
    return {name: value for name, value in asdict(data).items() if value not in (None, "")}
