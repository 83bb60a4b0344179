"""What is peculiar to Messages: how a prompt is written there, and what a reply is made of."""

from typing import Any
from uuid import uuid4

import pytest

from inturn.workers.provider import Prompt
from inturn.workers.providers.anthropic import MOST_TOKENS
from ops.chaos.model import Call, ModelServer
from tests.integration.asking import Config, ask, calls_of, failure, prompt, told


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def config(server: ModelServer, request: pytest.FixtureRequest) -> Config:
    return Config(server.base_url, "anthropic", streams=request.param)


def sent(server: ModelServer, config: Config, *messages: tuple[str, Any], **options: Any) -> Call:
    """The call that these messages become."""
    key = uuid4().hex
    ask(config, Prompt("", [{"role": role, "content": content} for role, content in messages], options, key))
    [call] = calls_of(server, key)
    return call


def test_the_system_message_goes_beside_the_messages(server: ModelServer, config: Config) -> None:
    call = sent(server, config, ("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", "Bye"))
    assert [message["role"] for message in call.messages] == ["user", "assistant", "user"]
    streamed = {"stream": True} if config.streams else {}
    assert call.options == {"system": "Be brief.", "max_tokens": MOST_TOKENS} | streamed
    assert call.headers["anthropic-version"] == "2023-06-01"


def test_without_a_system_message_there_is_none(server: ModelServer, config: Config) -> None:
    call = sent(server, config, ("user", "Hello"), max_tokens=5)
    assert "system" not in call.options
    assert call.options["max_tokens"] == 5


def test_messages_of_one_role_are_joined(server: ModelServer, config: Config) -> None:
    image = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    call = sent(
        server, config, ("user", "One"), ("user", "Two"), ("assistant", "So?"), ("user", "This:"), ("user", image)
    )
    assert call.messages == [
        {"role": "user", "content": "One\n\nTwo"},
        {"role": "assistant", "content": "So?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "This:"},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ],
        },
    ]


def test_an_image_is_written_as_it_is_here(server: ModelServer, config: Config) -> None:
    text, native = {"type": "text", "text": "What is this?"}, {"type": "document", "source": {"type": "text"}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    call = sent(server, config, ("user", [text, image, native]))
    inline = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    assert call.messages[0]["content"] == [text, {"type": "image", "source": inline}, native]


@pytest.mark.parametrize(
    "image", [{"url": "file:///etc/passwd"}, {"url": "data:image/png,x"}, {"url": 7}, {}, "https://example.org/a.png"]
)
def test_an_image_that_is_nowhere_is_refused(server: ModelServer, config: Config, key: str, image: Any) -> None:
    parts = [{"type": "image_url", "image_url": image}]
    error = failure(config, Prompt("", [{"role": "user", "content": parts}], {}, key))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert "passwd" not in error.message
    assert not calls_of(server, key)


def test_the_system_message_is_no_option(config: Config) -> None:
    error = failure(config, prompt("Hello", system="Be rude."))
    assert (error.kind, error.error_type) == ("permanent", "invalid_request")
    assert "system cannot be set as an option" in error.message


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/messages"),
        ("/", "/v1/messages"),
        ("/v1", "/v1/messages"),
        ("/v1/", "/v1/messages"),
        ("/anthropic", "/anthropic/v1/messages"),
        ("/anthropic/v1?beta=true", "/anthropic/v1/messages?beta=true"),
    ],
)
def test_the_base_url_may_end_with_the_version_or_not(
    server: ModelServer, config: Config, key: str, base: str, path: str
) -> None:
    base_url = server.base_url.removesuffix("/v1") + base
    ask(Config(base_url, "anthropic", streams=config.streams), prompt("Hello", key=key))
    assert [call.path for call in calls_of(server, key)] == [path]


def test_another_version_of_the_api_can_be_asked_for(server: ModelServer, config: Config) -> None:
    other = Config(server.base_url, "anthropic", streams=config.streams, headers={"Anthropic-Version": "2030-01-01"})
    assert sent(server, other, ("user", "Hello")).headers["anthropic-version"] == "2030-01-01"


def test_what_came_out_of_a_cache_was_shown_to_the_model(config: Config) -> None:
    reply = ask(config, prompt(told(act="cached")))
    assert (reply.input_tokens, reply.output_tokens) == (42, 2)
    assert (reply.cache_read_tokens, reply.cache_write_tokens) == (30, 7)
