"""How a result is written as a line of a file, and known again when the file is read.

The long form is the one of OpenAI's batch files, so that programs that were written for them read ours. Where it wants
something that was not stored:

- ``id`` is ``batch_req_<batch>_<line>_<turn>``, by which every entry says which line of which batch it is about;
  ``request_id`` is the ID of the turn (``inturn turn show`` takes it), and the completion's is made of that.
- ``finish_reason`` is one of OpenAI's words: other providers' are put into them, and what nobody knows is ``stop``.
- ``usage`` is always in integers, since readers add them up: what was not counted is 0.
- ``model`` is ``provider/model``, as the turn has it; ``created`` is when it finished.

The short form is ``{"custom_id", "session", "reply"}``, or ``{"custom_id", "session", "error": {"code", "message", "line",
"turn"}}``.
"""

import re
from typing import Any, NamedTuple, Protocol

import orjson

from inturn.models.errors import InvalidInputError
from inturn.models.states import TurnState
from inturn.models.store.lines import LineResult
from inturn.results.codes import error_of, refusal_status

BATCH = re.compile(r"batch-([0-9a-f]{16})")
LONG_FIELDS = {"id", "custom_id", "response", "error"}
SHORT_FIELDS = (
    {"custom_id", "session", "reply"},
    {"custom_id", "session", "reply", "tool_calls"},
    {"custom_id", "session", "error"},
)
ERROR_FIELDS = {"code", "message", "line", "turn"}
HALF_SHORT = re.compile(rb'\{"custom_id":"(?:[^"\\]|\\.)*(?:\\|"(.*))?', re.DOTALL)
"""The beginning of an entry in the short form, and what comes after its custom ID."""
HIGHEST_LINE = 10**9

COMPLETION = (
    b'{"id":"%b%d_%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b","body":{'
    b'"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":%b,"choices":[{"index":0,'
    b'"message":{"role":"assistant","content":%b,%b"refusal":null},"logprobs":null,"finish_reason":"%b"}],'
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}},"error":null}\n'
)
"""Filled in, since building dicts takes two thirds of the time that a completed line costs."""

FINISH_REASONS = {
    "stop": b"stop", "end_turn": b"stop", "stop_sequence": b"stop",
    "length": b"length", "max_tokens": b"length", "model_context_window_exceeded": b"length",
    "tool_calls": b"tool_calls", "tool_use": b"tool_calls", "function_call": b"function_call",
    "content_filter": b"content_filter", "refusal": b"content_filter",
}  # fmt: skip
"""OpenAI's word for each of theirs and Anthropic's."""

BREAKS = {"\u2028".encode(): rb"\u2028", "\u2029".encode(): rb"\u2029", "\x85".encode(): rb"\u0085"}
"""What JSON may have in a string and ``str.splitlines`` takes for the end of a line, with how it is written instead."""


class Entry(NamedTuple):
    """What a line of a result file says about itself.

    Attributes:
        line: of the batch; None: the form does not say.
        turn_id: None: the line had no turn, or the form does not say.
    """

    line: int | None
    custom_id: str
    turn_id: str | None
    completed: bool


class Form(Protocol):
    def write(self, result: LineResult) -> bytes:
        """With its line feed."""

    def read(self, text: bytes) -> Entry | None:
        """None: it is no entry of this form and batch."""

    def began(self, text: bytes) -> bool:
        """Whether an entry may begin like this, of which the rest was never written."""


class LongForm:
    """OpenAI's.

    Raises:
        InvalidInputError: that is no ID of a batch.
    """

    def __init__(self, batch_id: str) -> None:
        found = BATCH.fullmatch(batch_id)
        if found is None:
            raise InvalidInputError(f"{batch_id!r:.100} is no ID of a batch: `inturn batch list` shows them")
        self._prefix = f"batch_req_{found[1]}_"
        self._name = self._prefix.encode()
        self._begins = b'{"id":"' + self._name
        self._id = re.compile(rf"{self._prefix}([1-9][0-9]{{0,8}})(?:_([0-9]{{1,18}})-([0-9]{{1,9}}))?")

    def write(self, result: LineResult) -> bytes:
        if result.state is TurnState.COMPLETED and result.turn_id:
            return self._completion(result, result.turn_id.encode())
        turn = f"_{result.turn_id.replace('.', '-')}" if result.turn_id else ""
        response, error = _failure(result)
        name = f"{self._prefix}{result.line}{turn}"
        return _line({"id": name, "custom_id": result.custom_id, "response": response, "error": error})

    def _completion(self, result: LineResult, turn: bytes) -> bytes:
        content, calls, reason = _message(result)
        asked, answered = result.input_tokens or 0, result.output_tokens or 0
        line = COMPLETION % (
            self._name, result.line, turn.replace(b".", b"-"), orjson.dumps(result.custom_id), turn, turn,
            int(result.finished_at.timestamp()), orjson.dumps(result.model), content, calls, reason,
            asked, answered, asked + answered,
        )  # fmt: skip
        return line if line.isascii() else _unbroken(line)

    def read(self, text: bytes) -> Entry | None:
        entry = _object(text)
        if entry.keys() != LONG_FIELDS:
            return None
        name, custom_id, response = entry["id"], entry["custom_id"], entry["response"]
        found = self._id.fullmatch(name) if isinstance(name, str) else None
        if found is None or not isinstance(custom_id, str):
            return None
        line, session, number = found.groups()
        completed = entry["error"] is None and isinstance(response, dict) and response.get("status_code") == 200
        return Entry(int(line), custom_id, f"{session}.{number}" if session else None, completed)

    def began(self, text: bytes) -> bool:
        return _agree(text, self._begins)


class ShortForm:
    """What most programs want, and no more. Of completed lines it does not say which they are."""

    def write(self, result: LineResult) -> bytes:
        if result.state == TurnState.COMPLETED:
            entry = {"custom_id": result.custom_id, "session": result.session_id, "reply": result.reply}
            return _line(entry | {"tool_calls": result.tool_calls} if result.tool_calls else entry)
        code, message = error_of(result)
        error = {"code": code, "message": message, "line": result.line, "turn": result.turn_id}
        return _line({"custom_id": result.custom_id, "session": result.session_id, "error": error})

    def read(self, text: bytes) -> Entry | None:
        entry = _object(text)
        if entry.keys() not in SHORT_FIELDS:
            return None
        match entry:
            case {"custom_id": str(custom_id), "reply": str() | None}:
                return Entry(None, custom_id, None, True)
            case {"custom_id": str(custom_id), "error": {"line": int(line), "turn": str() | None as turn} as error}:
                known = error.keys() == ERROR_FIELDS and 0 < line < HIGHEST_LINE
                return Entry(line, custom_id, turn, False) if known else None
        return None

    def began(self, text: bytes) -> bool:
        found = HALF_SHORT.fullmatch(text)
        return _agree(text, b'{"custom_id":"') if found is None else _agree(found[1] or b"", b',"session":')


def form(batch_id: str, short: bool) -> Form:
    """Raises: InvalidInputError: that is no ID of a batch."""
    long = LongForm(batch_id)
    return ShortForm() if short else long


def _message(result: LineResult) -> tuple[bytes, bytes, bytes]:
    """Content, calls, and why it ends there."""
    reason = FINISH_REASONS.get(result.finish_reason or "")
    if result.tool_calls is None:
        return orjson.dumps(result.reply), b"", reason or b"stop"
    calls = b'"tool_calls":%b,' % orjson.dumps(result.tool_calls)
    return orjson.dumps(result.reply or None), calls, reason or b"tool_calls"


def _failure(result: LineResult) -> tuple[dict[str, Any] | None, dict[str, str] | None]:
    """The response, and the error where there was none."""
    code, message = error_of(result)
    status = refusal_status(result)
    if status is None:
        return None, {"code": code, "message": message}
    body = {"error": {"message": message, "type": code, "param": None, "code": code}}
    return {"status_code": status, "request_id": result.turn_id, "body": body}, None


def _line(entry: dict[str, Any]) -> bytes:
    line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
    return line if line.isascii() else _unbroken(line)


def _unbroken(line: bytes) -> bytes:
    for character, escape in BREAKS.items():
        line = line.replace(character, escape)
    return line


def _object(text: bytes) -> dict[str, Any]:
    """Empty, where the text is no object."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _agree(text: bytes, beginning: bytes) -> bool:
    """Whether one of them begins with the other."""
    return text.startswith(beginning) or beginning.startswith(text)
