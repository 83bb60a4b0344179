"""What a line says: JSON in one of two forms, or plain text. Lines of the short form are read here, OpenAI's in ``chat``."""

import difflib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import orjson

from inturn.intake import chat
from inturn.intake.reading import Raw
from inturn.intake.refusal import Refusal, invalid_field, json_kind, missing_field
from inturn.intake.speech import checked_model, content_of
from inturn.models.content import checked_labels, checked_session_id, checked_text, storable, storable_json
from inturn.models.errors import InvalidInputError, InvalidSessionIdError, UnknownModelError
from inturn.models.store.lines import BadLine, Line

CUSTOM_ID_LIMIT = 512
"""Characters."""
MOST_LEVELS = 100
"""Of objects and lists within each other. What encodes them later gives up somewhere above 200."""
SHORT_FORM = ("prompt", "custom_id", "session", "model", "system", "options", "labels")
CHAT_FORM = frozenset({"body", "url", "method"})
"""A line that has one of these is in OpenAI's form."""

CheckModel = Callable[[str], str]
"""Gives the model that a written one means. Raises: UnknownModelError."""
CheckOptions = Callable[[Line], object]
"""Looks whether the line's model has the line's options. Raises: InvalidInputError."""


def checked_line(number: int, raw: Raw, check_model: CheckModel) -> Line | BadLine:
    """A line of JSON."""
    custom_id = str(number)
    try:
        written = parsed(raw)
        if written.get("custom_id") is not None:
            custom_id = checked_custom_id(written["custom_id"])
        if CHAT_FORM.isdisjoint(written):
            return short_form(number, custom_id, written, check_model)
        return chat.chat_form(number, custom_id, written, check_model)
    except (Refusal, InvalidInputError, RecursionError) as refused:
        return bad_line(number, custom_id, refused)


def fitting(line: Line | BadLine, check_options: CheckOptions) -> Line | BadLine:
    """The line, or why its options do not fit."""
    if isinstance(line, Line):
        try:
            check_options(line)
        except InvalidInputError as refused:
            return bad_line(line.line, line.custom_id, refused)
    return line


def checked_text_line(number: int, raw: Raw) -> Line | BadLine:
    """A line of plain text: a prompt, without the line's end."""
    try:
        return Line(number, str(number), *content_of("the line", decoded(raw).rstrip("\r\n")))
    except (Refusal, InvalidInputError) as refused:
        return bad_line(number, str(number), refused)


def bad_line(number: int, custom_id: str, refused: Exception) -> BadLine:
    match refused:
        case Refusal():
            code = refused.code
        case InvalidSessionIdError():
            code = "invalid_session_id"
        case UnknownModelError():
            code = "unknown_model"
        case _:
            code = "invalid_field"
    return BadLine(number, custom_id, code, storable(str(refused)))


def decoded(raw: Raw) -> str:
    """Raises: Refusal."""
    if isinstance(raw, Refusal):
        raise raw
    try:
        return raw.decode()
    except UnicodeDecodeError as refused:
        raise Refusal(
            "invalid_json_line",
            f"byte {refused.start + 1} of the line, 0x{raw[refused.start]:02x}, is no UTF-8: save the file as UTF-8",
        ) from None


def parsed(raw: Raw) -> dict[str, Any]:
    """The line's JSON object. Raises: Refusal."""
    if isinstance(raw, Refusal):
        raise raw
    try:
        written = orjson.loads(raw)
    except orjson.JSONDecodeError as refused:
        written = _parsed_with_surrogates(decoded(raw), refused)
    if not isinstance(written, dict):
        raise Refusal(
            "invalid_json_line",
            f"the line is {json_kind(written)} in JSON, not an object such as {_EXAMPLE}. If lines are plain prompts, "
            "say so: --text, or plain_text=True",
        )
    if len(raw) > 2 * MOST_LEVELS and raw.count(b"{") + raw.count(b"[") > MOST_LEVELS:
        _refuse_deep(written)
    return written


_EXAMPLE = '{"prompt": "..."}'


def _parsed_with_surrogates(text: str, refused: orjson.JSONDecodeError) -> Any:
    """Halves of surrogate pairs, which Python's own ``json`` writes and orjson does not read. Raises: Refusal."""
    if "\\ud" in text.lower():
        with suppress(ValueError, RecursionError):
            return _TOLERANT.decode(text)
    if text[max(refused.pos - 1, 0) :].lstrip("-:[, ").startswith(("NaN", "Infinity")):
        raise Refusal(
            "invalid_json_line",
            f"column {refused.colno} holds NaN or Infinity, which JSON does not have: write a number or null",
        )
    why, column, excerpt = refused.msg, refused.colno, text[max(refused.pos - 10, 0) :]
    written = text.rstrip()
    if why.startswith("unexpected end") or refused.pos >= len(written):  # perhaps told of where it began
        why, column, excerpt = "unexpected end of data", len(written), written[-20:]
    is_plain = not text.lstrip().startswith("{") and "\0" not in text
    advice = "; if lines are plain prompts, say so: --text, or plain_text=True" if is_plain else ""
    raise Refusal(
        "invalid_json_line",
        f"the line is no JSON: {why}, at column {column} ({excerpt!r:.40}). A line is one JSON object, such as "
        f"{_EXAMPLE}{advice}",
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


# Numbers as orjson has them: what it read it can write again.
_TOLERANT = json.JSONDecoder(parse_int=orjson.loads, parse_float=orjson.loads, parse_constant=_refuse_constant)


def _refuse_deep(written: Any) -> None:
    level, depth = [written], 0
    while level:
        depth += 1
        if depth > MOST_LEVELS:
            raise invalid_field(
                f"objects and lists are nested in each other more than {MOST_LEVELS} levels deep: flatten them"
            )
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]


def checked_custom_id(custom_id: object) -> str:
    """Raises: Refusal."""
    if not isinstance(custom_id, str) or not custom_id:
        raise invalid_field(
            f"custom_id is {custom_id!r:.60}: it is a string that is not empty; without one a line goes by its number"
        )
    if len(custom_id) > CUSTOM_ID_LIMIT:
        raise invalid_field(
            f"custom_id {custom_id!r:.40}... has {len(custom_id):,} characters, and {CUSTOM_ID_LIMIT} are the limit: "
            "shorten it"
        )
    if storable(custom_id) != custom_id:
        raise invalid_field(
            f"custom_id {custom_id!r:.60} holds NUL or half a surrogate pair, which no database keeps: write it without"
        )
    return custom_id


def short_form(number: int, custom_id: str, written: dict[str, Any], check_model: CheckModel) -> Line:
    """Raises: Refusal, InvalidInputError."""
    if not written.keys() <= _SHORT_FORM:
        _refuse_unknown(written)
    if written.get("prompt") is None:
        raise missing_field('there is no prompt: a line is {"prompt": "..."}, or in OpenAI\'s form with a body')
    prompt, data = content_of("prompt", written["prompt"])
    if len(written) == 1 or (len(written) == 2 and "custom_id" in written):  # as most are
        return Line(number, custom_id, prompt, data)
    session, options, labels = written.get("session"), written.get("options"), written.get("labels")
    if options is not None and not isinstance(options, dict):
        raise invalid_field(f'options are {options!r:.60}: they are an object, such as {{"temperature": 0}}')
    return Line(
        number,
        custom_id,
        prompt,
        data,
        session=None if session is None else checked_session_id(session),
        model=checked_model("model", written.get("model"), check_model),
        system=checked_text("system", written.get("system")),
        options=storable_json(options or {}),
        labels=checked_labels(labels),
    )


_SHORT_FORM = frozenset(SHORT_FORM)


def _refuse_unknown(written: dict[str, Any]) -> None:
    name = next(name for name in written if name not in _SHORT_FORM)
    near = difflib.get_close_matches(name, (*SHORT_FORM, "body"), 1, cutoff=0)[0]
    raise invalid_field(
        f"there is no field {name!r:.60}: the nearest is {near!r}, and all are {', '.join(SHORT_FORM)}. What the model "
        "is to be sent besides goes into options"
    )
