"""Transcripts and archives as tests of archives need them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from inturn.models.store.transcripts import Transcript
from inturn.transcripts import as_jsonl

WHEN = datetime(2026, 11, 29, 3, 0, tzinfo=UTC)
SESSION: dict[str, Any] = {
    "model": "echo/echo", "fallbacks": None, "options": {}, "labels": {}, "context_turns": None, "context_tokens": None,
    "overflow": "truncate", "tools": None, "retention": "policy", "retention_seconds": None, "halts": False,
    "created_at": WHEN, "content_removed_at": None, "content_removed_to": 0,
}  # fmt: skip
TURN: dict[str, Any] = {
    "state": "completed", "lane": "chat", "model": "echo/echo", "fallbacks": None, "system_turn": None, "options": {},
    "attempts": 1, "rounds": 0, "steps": 0, "cuts": False, "retry_of": None, "merged_into": None, "partial": None,
    "error_type": None, "error_message": None, "error_status": None, "error_retryable": None, "input_tokens": 1,
    "output_tokens": 1, "price": None, "finish_reason": None, "created_at": WHEN, "started_at": WHEN, "finished_at": WHEN,
}  # fmt: skip


def lines(key: str, *prompts: str) -> Iterator[bytes]:
    """A session's transcript, with a turn for each prompt."""
    turns = [_turn(number, prompt) for number, prompt in enumerate(prompts, 1)]
    return as_jsonl(key, Transcript(SESSION, len(turns), None, None, lambda: turns))


def _turn(number: int, prompt: str) -> Mapping[str, Any]:
    said = [("user", prompt), ("assistant", f"reply to: {prompt}")]
    messages = [
        {"position": position, "role": role, "content": content, "data": None, "created_at": WHEN}
        for position, (role, content) in enumerate(said, 1)
    ]
    return {"number": number, **TURN, "messages": messages}
