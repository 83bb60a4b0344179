"""Sessions, turns and messages as the records that ``--json`` prints. Their keys are a promise to scripts."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inturn.cli.values import shown_retention

if TYPE_CHECKING:
    from inturn.client import Message, SessionEvent, SessionMetadata, Turn

SESSION_KEYS = (
    "session_id",
    "model",
    "busy",
    "turns",
    "messages",
    "labels",
    "options",
    "system_message",
    "context_turns",
    "retention",
    "held",
    "halts",
    "halted_by",
    "created_at",
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
    "error",
    "retry_of",
    "merged_into",
    "partial",
    "created_at",
    "started_at",
    "finished_at",
)


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
        "data": {"content": message.data.content},
        "timestamp": message.timestamp,
        "turn": message.turn,
    }


def event_record(event: "SessionEvent") -> dict[str, Any]:
    told = {name: value for name, value in asdict(event.data).items() if value not in (None, "")}
    return {"id": event.id, "type": event.type, "data": told, "timestamp": event.timestamp, "turn": event.turn}
