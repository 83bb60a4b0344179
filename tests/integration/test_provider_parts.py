"""Contents in parts, with every type of provider, whole and streamed: by whomever, and what cannot be shown."""

from typing import Any

import pytest

from inturn.workers.provider import Prompt
from ops.chaos.model import ModelServer
from tests.integration.asking import MODEL, Config, ask, calls_of, failure

TEXT = {"type": "text", "text": "What is this?"}
URL = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
INLINE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
WRITTEN = {
    "anthropic": [
        TEXT,
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
    ],
    "openai": [TEXT, URL, INLINE],
}


def of(*messages: tuple[str, Any], key: str = "1.1") -> Prompt:
    return Prompt("", [{"role": role, "content": content} for role, content in messages], {}, key)


def test_texts_and_images_are_shown_in_the_prompt_and_in_the_history(
    server: ModelServer, config: Config, key: str
) -> None:
    parts = [TEXT, URL, INLINE]
    reply = ask(config, of(("user", parts), ("assistant", [TEXT]), ("user", parts), key=key))
    assert reply.content == "reply to: What is this? (seen 3 messages)"
    [call] = calls_of(server, key)
    assert [message["content"] for message in call.messages] == [WRITTEN[config.type], [TEXT], WRITTEN[config.type]]


def test_a_system_message_may_be_in_parts(server: ModelServer, config: Config, key: str) -> None:
    ask(config, of(("system", [TEXT, TEXT]), ("user", "Hello"), key=key))
    [call] = calls_of(server, key)
    if config.type == "anthropic":
        assert call.options["system"] == "What is this?\n\nWhat is this?"
    else:
        assert call.messages[0] == {"role": "system", "content": [TEXT, TEXT]}


@pytest.mark.parametrize(
    ("part", "fact"),
    [
        ("text", "a part of a content that has no type"),
        ({"text": "a secret"}, "a part of a content that has no type"),
        ({"type": 7}, "a part of a content that has no type"),
        ({"type": "text", "content": "a secret"}, "a part of type text that has no text"),
        ({"type": "image_url"}, "an image without its url"),
        ({"type": "image_url", "image_url": "https://a-secret"}, "an image without its url"),
    ],
)
@pytest.mark.parametrize("role", ["system", "user"])
def test_a_part_that_is_none_is_refused_before_anything_is_sent(
    server: ModelServer, config: Config, key: str, part: Any, fact: str, role: str
) -> None:
    error = failure(config, of((role, [part]), ("user", "Hello"), key=key))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert error.message.startswith(f"{MODEL} cannot be shown {fact}")
    assert "secret" not in error.message
    assert not calls_of(server, key)


@pytest.mark.parametrize(
    ("type_", "part", "fact"),
    [
        ("openai", {"type": "image", "source": {}}, "part of type image: an image is a part of type image_url"),
        ("openai", {"type": "document", "source": {}}, "part of type document: a document is a part of type file"),
        ("anthropic", {"type": "input_audio", "input_audio": {}}, "part of type input_audio: no sound can be shown"),
        ("anthropic", {"type": "file", "file": {}}, "part of type file: a document is a part of type document"),
    ],
)
def test_a_part_that_only_the_other_one_knows_is_refused(
    server: ModelServer, type_: str, part: dict[str, Any], fact: str
) -> None:
    for streams in (False, True):
        error = failure(Config(server.base_url, type_, streams), of(("user", [part])))
        assert (error.kind, error.error_type) == ("permanent", "invalid_request")
        assert fact in error.message


def test_what_nobody_here_has_heard_of_is_the_providers_to_judge(server: ModelServer, config: Config, key: str) -> None:
    ask(config, of(("user", [TEXT, {"type": "hologram"}]), key=key))
    assert calls_of(server, key)[0].messages[0]["content"][1] == {"type": "hologram"}


def test_anthropics_system_message_is_all_text(server: ModelServer) -> None:
    error = failure(Config(server.base_url, "anthropic"), of(("system", [URL]), ("user", "Hello")))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert "anything but text in a system message: put it into the user's" in error.message
