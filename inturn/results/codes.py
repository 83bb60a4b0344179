"""By which code a line failed.

=====================  ===========================================================================================
code                   when
=====================  ===========================================================================================
``batch_cancelled``    the batch, or this line's turn, was cancelled before it had a reply
``batch_expired``      its completion window was over before the line was tried
``request_timeout``    the model did not answer in time (error type ``timeout``), and no further attempt is made
``attempts_exhausted`` the attempts are used up and the provider never answered with a status: its worker was lost, it
                       could not be reached, it hung up, or what it sent could not be read. The message begins with
                       the error type
``session_deleted``    the session of the line was deleted, and the reply with it
``content_removed``    retention removed what was said in the line's session, the reply with it, and kept what was used
the line's own         it was no prompt, and the batch was submitted with ``--skip-invalid``: ``invalid_json_line``,
                       ``missing_field``, ...
the error type         everything else keeps the name that ``docs/providers.md`` explains: ``content_filter``, ...
=====================  ===========================================================================================

They stand where no answer is: ``response`` is null. A provider that answered, but refused, is quoted instead, with its
status: as OpenAI does it, ``response`` has ``status_code`` and, as its ``body``, ``{"error": {"message", "type", "param",
"code"}}``, and ``error`` is null.
"""

from inturn.models.states import TurnState
from inturn.models.store.lines import EXPIRED, LineResult

REQUEST_TIMEOUT = "timeout"
UNANSWERED = frozenset({
    "worker_lost", "refused", "unreachable", "dns", "tls", "connect_timeout", "cell_not_started", "disconnected",
    "truncated", "bad_reply", "error_in_reply", "provider_bug",
})  # fmt: skip
"""Error types that a further attempt might have got over, where there is no status."""

CANCELLED = "batch_cancelled"
UNTOLD = {
    CANCELLED: "the line was cancelled before it had a reply",
    EXPIRED: "the completion window of the batch was over before the line was tried",
}
"""What is said where nothing is stored to be said."""


def refusal_status(result: LineResult) -> int | None:
    """The status by which a provider refused the line, if one did: some failures have a status of success.

    What a cancelled or expired line has is that of an earlier attempt, which did not decide it.
    """
    if result.state == TurnState.CANCELLED or result.error_type == EXPIRED:
        return None
    status = result.error_status
    return status if status is not None and not 200 <= status < 300 else None


def error_of(result: LineResult) -> tuple[str, str]:
    """The code and the message of a line that has no reply."""
    if result.state == TurnState.CANCELLED:
        return CANCELLED, _cancelled(result)
    kind = result.error_type or CANCELLED  # only what is cancelled has no type
    message = result.error_message or UNTOLD.get(kind, "the reason is not known")
    if refusal_status(result) is None:
        if kind == REQUEST_TIMEOUT:
            return "request_timeout", message
        if kind in UNANSWERED:
            return "attempts_exhausted", f"{kind}: {message}"
    return kind, message


def _cancelled(result: LineResult) -> str:
    failure = ": ".join(filter(None, (result.error_type, result.error_message)))
    before = f"; its last attempt failed: {failure}" if failure and result.error_type != CANCELLED else ""
    return UNTOLD[CANCELLED] + before
