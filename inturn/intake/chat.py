"""OpenAI's form of a line: a call of /v1/chat/completions, whose messages become history, prompt, and what follows it."""

from collections.abc import Callable, Sequence
from typing import Any

from inturn.intake.refusal import Refusal, invalid_field, json_kind, missing_field
from inturn.intake.speech import checked_model, content_of
from inturn.models.content import PARTS_LIMIT, storable, storable_json
from inturn.models.states import Role
from inturn.models.store.lines import Line, Utterance

URL = "/v1/chat/completions"
OF_THE_SHORT_FORM = frozenset({"prompt", "session", "model", "system", "options", "labels"})
NO_OPTIONS = frozenset({"model", "messages", "stream", "stream_options"})
"""What of a body is none of a turn's options; a batch is not streamed."""
USER, SYSTEM = Role.USER, Role.SYSTEM  # looking them up costs more than comparing them
ROLES = {**{str(role): role for role in Role}, "developer": SYSTEM}
INSTEAD_OF_CONTENT = ("tool_calls", "refusal", "audio")


def chat_form(number: int, custom_id: str, written: dict[str, Any], check_model: Callable[[str], str]) -> Line:
    """Raises: Refusal, InvalidInputError."""
    _refuse_other_calls(written)
    body = _body_of(written)
    messages = _messages_of(body)
    roles = [_role_of(at, message) for at, message in enumerate(messages)]
    if USER not in roles:
        raise missing_field("body.messages has no message of the role user: the last of them is the prompt")
    prompt_at = len(roles) - 1 - roles[::-1].index(USER)
    said = [_utterance(at, message, roles[at], at == prompt_at) for at, message in enumerate(messages)]
    opening = 0
    while roles[opening] is SYSTEM:
        opening += 1
    return Line(
        number,
        custom_id,
        said[prompt_at].content,
        said[prompt_at].data,
        model=checked_model("body.model", body.get("model"), check_model),
        system=_system_of(said[:opening]),
        options=storable_json({name: value for name, value in body.items() if name not in NO_OPTIONS}),
        history=tuple(said[opening:prompt_at]),
        follows=tuple(said[prompt_at + 1 :]),
    )


def _refuse_other_calls(written: dict[str, Any]) -> None:
    url, method = written.get("url", URL), written.get("method", "POST")
    if url != URL:
        raise Refusal(
            "url_mismatch",
            f"url is {url!r:.60}, and batches call {URL} only: not embeddings, completions or responses, and no host "
            "stands before it (the model says who is called)",
        )
    if method != "POST":
        raise invalid_field(f'method is {method!r:.60}: it is "POST"')
    if not OF_THE_SHORT_FORM.isdisjoint(written):
        name = next(name for name in written if name in OF_THE_SHORT_FORM)
        raise invalid_field(
            f"there is {name!r} beside url, method or body: write either a body, with model and messages in it, or "
            "the short form without these three"
        )


def _body_of(written: dict[str, Any]) -> dict[str, Any]:
    body = written.get("body")
    if body is None:
        raise missing_field('there is no body: it is an object with "model" and "messages"')
    if not isinstance(body, dict):
        raise invalid_field(f'body is {json_kind(body)}: it is an object with "model" and "messages"')
    return body


def _messages_of(body: dict[str, Any]) -> Sequence[dict[str, Any]]:
    messages = body.get("messages")
    if messages is None or messages == []:
        raise missing_field(
            'body.messages is missing or empty: it is a list such as [{"role": "user", "content": "..."}]'
        )
    if not isinstance(messages, list):
        raise invalid_field(f"body.messages is {json_kind(messages)}: it is a list of objects with role and content")
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid_field(f"body.messages[{at}] is {json_kind(message)}: it is an object with role and content")
    return messages


def _role_of(at: int, message: dict[str, Any]) -> Role:
    written = message.get("role")
    if written is None:
        raise missing_field(f"body.messages[{at}] has no role: it is one of {', '.join(ROLES)}")
    role = ROLES.get(written) if isinstance(written, str) else None
    if role is None:
        raise invalid_field(
            f"body.messages[{at}].role is {written!r:.60}: it is one of {', '.join(ROLES)} (calls of functions are "
            "tool_calls now)"
        )
    return role


def _utterance(at: int, message: dict[str, Any], role: Role, is_prompt: bool) -> Utterance:
    """A message; of a prompt more is asked: that it says something, and is no larger than a prompt."""
    content = message.get("content")
    if not content and content != "" and any(message.get(field) for field in INSTEAD_OF_CONTENT):
        content = ""
    if content is None:
        raise missing_field(
            f"body.messages[{at}].content is missing: only beside {', '.join(INSTEAD_OF_CONTENT)} there may be none"
        )
    if is_prompt or not isinstance(content, str):
        text, data = content_of(f"body.messages[{at}].content", content)
    else:
        text, data = _any_text(at, content), None
    if len(message) == 2:  # role and content, as most have
        return Utterance(role, text, data)
    if "parts" in message:
        raise invalid_field(f"body.messages[{at}].parts is no field of OpenAI's: parts are written as the content")
    others = {field: value for field, value in message.items() if field not in _SPOKEN and value is not None}
    return Utterance(role, text, {**storable_json(others), **(data or {})} or None)


_SPOKEN = frozenset({"role", "content"})


def _any_text(at: int, text: str) -> str:
    """As large as replies may be."""
    if len(text) > PARTS_LIMIT or (not text.isascii() and len(storable(text).encode()) > PARTS_LIMIT):
        raise Refusal(
            "prompt_too_large",
            f"body.messages[{at}].content has {len(text):,} characters, and {PARTS_LIMIT:,} bytes (4 MiB) are the limit: "
            "shorten it",
        )
    return storable(text)


def _system_of(opening: Sequence[Utterance]) -> str | None:
    """The instructions before anybody speaks, as one text."""
    for at, said in enumerate(opening):
        if said.data and any(part["type"] != "text" for part in said.data.get("parts", ())):
            raise invalid_field(f"body.messages[{at}].content holds a part that is no text: instructions are text")
    return "\n\n".join(said.content for said in opening) or None
