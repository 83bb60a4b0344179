"""A prompt that is more than the model can be shown, in the words of everybody who says so."""

import pytest

from inturn.workers.providers.overlong import is_told
from ops.chaos import overlong
from ops.chaos.model import ModelServer
from tests.integration.asking import MODEL, Config, failure, prompt, told


@pytest.mark.parametrize("who", overlong.WHO)
def test_whoever_says_that_it_is_too_long_is_understood(config: Config, who: str) -> None:
    error = failure(config, prompt(told(act="too_long", who=who)))
    status = overlong.WHO[who][0]
    assert (error.kind, error.error_type, error.status_code) == ("permanent", "context_length_exceeded", status)
    assert error.message.startswith(f"{MODEL} answered {status}: ")
    assert error.message.endswith('lower the session\'s context_turns or context_tokens, or set overflow="summarise"')


@pytest.mark.parametrize("who", [who for who, (status, _) in overlong.WHO.items() if status == 400])
def test_so_is_who_says_it_behind_a_success(config: Config, who: str) -> None:
    error = failure(config, prompt(told(act="too_long_inside", who=who)))
    assert (error.kind, error.error_type) == ("permanent", "context_length_exceeded")
    assert error.message.startswith(f"{MODEL} answered 200 and broke off with an error: ")


def test_where_the_prompt_left_no_room_for_a_reply_it_was_too_long(server: ModelServer) -> None:
    for streams in (False, True):
        config = Config(server.base_url, "anthropic", streams)
        error = failure(config, prompt(told(act="no_room")))
        assert (error.kind, error.error_type, error.status_code) == ("permanent", "context_length_exceeded", 200)
        assert error.input_tokens == 1


@pytest.mark.parametrize("status", [400, 413])
def test_another_refusal_is_not_taken_for_one(config: Config, status: int) -> None:
    assert failure(config, prompt(told(status=status))).error_type != "context_length_exceeded"


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens: 21333 > 4096, which is the maximum allowed number of output tokens for claude-3-opus",
        "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.",
        "Invalid 'messages[0].content': string too long.",
    ],
)
def test_a_sentence_about_something_else_means_something_else(said: str) -> None:
    assert not is_told(400, {"message": said})
    assert not is_told(429, {"message": overlong.OPENAI})
