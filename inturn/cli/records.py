"""Sessions, turns and messages as the records that ``--json`` prints. Their keys are a promise to scripts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inturn.client import Message, SessionMetadata, Turn

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
    "created_at",
    "last_activity_at",
)
TURN_KEYS = (
    "id",
    "session_id",
    "number",
    "state",
    "model",
    "prompt",
    "attempts",
    "error",
    "retry_of",
    "created_at",
    "started_at",
    "finished_at",
)


def session_record(metadata: "SessionMetadata") -> dict[str, Any]:
    return {key: getattr(metadata, key) for key in SESSION_KEYS}


def turn_record(turn: "Turn") -> dict[str, Any]:
    return {key: getattr(turn, key) for key in TURN_KEYS}


def message_record(message: "Message") -> dict[str, Any]:
    return {
        "id": message.id,
        "type": message.type,
        "data": {"content": message.data.content},
        "timestamp": message.timestamp,
        "turn": message.turn,
    }
