"""What a provider says is fit to be shown, and says nothing that was told to it in confidence."""

import pytest

from inturn.workers.provider import Prompt
from inturn.workers.providers.question import Question
from inturn.workers.providers.scrubbing import LIMIT, one_line, scrub

KEY = "sk-of-the-tests-0123456789"


def scrubbed(text: str, *, secrets: tuple[str, ...] = (), prompts: tuple[str, ...] = ()) -> str:
    return scrub(text, secrets=secrets, prompt_texts=prompts)


def test_harmless_text_stays_as_it_is() -> None:
    said = "The model `gpt-9` does not exist, or you do not have access to it."
    assert scrubbed(said, secrets=(KEY, ""), prompts=("Tell me a story", "")) == said


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mC1", "C1"),
        ("one\r\ntwo\tthree", "one two three"),
        ("nul\x00 and \ud800 and \u202eturned", "nul and and turned"),
        ("a lone \x1b", "a lone"),
        ("Füße 東京", "Füße 東京"),
    ],
)
def test_one_line_has_nothing_that_a_terminal_obeys(said: str, shown: str) -> None:
    assert one_line(said) == shown


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        f"Authorization: Bearer {KEY}",
        f"sk-of-the-\x1b[0mtests-0123456789 is wrong, {KEY.upper()}",
        "Incorrect API key provided: sk-proj-********************cdef.",
        "key AIzaSyD-1234567890abcdef",
    ],
)
def test_keys_are_taken_out(said: str) -> None:
    shown = scrubbed(said, secrets=(KEY,)).lower()
    assert "[key]" in shown
    for piece in ("0123456789", "of-the-tests", "cdef", "1234567890"):
        assert piece not in shown


def test_a_secret_that_looks_like_no_key_is_taken_out_as_well() -> None:
    assert scrubbed("no such tenant: blue-monday-77", secrets=("blue-monday-77",)) == "no such tenant: [key]"


def test_a_dummy_key_does_not_eat_every_letter() -> None:
    assert scrubbed("axe x fixed", secrets=("x",)) == "axe [key] fixed"


def test_a_quoted_prompt_is_taken_out() -> None:
    prompt = "My diagnosis\n is   not your business"
    assert scrubbed(f"bad input: {prompt!s}!", prompts=("other", prompt)) == "bad input: [prompt]!"


def test_a_shortened_prompt_is_taken_out() -> None:
    prompt = "My diagnosis is not your business, and neither is my name"
    assert (
        scrubbed("bad input: 'agnosis is not your business, and nei...'", prompts=(prompt,))
        == "bad input: '[prompt]...'"
    )


def test_a_short_prompt_is_taken_out_as_a_word() -> None:
    assert scrubbed("invalid value 'a' in array", prompts=("a",)) == "invalid value '[prompt]' in array"


def test_common_phrases_are_left_alone() -> None:
    said = "can find the model on no page"
    assert scrubbed(said, prompts=("Say where one can find the meaning of life",)) == said


def test_long_text_is_cut() -> None:
    shown = scrubbed("word " * 5000)
    assert len(shown) <= LIMIT
    assert shown.endswith("...")


def test_the_parts_of_a_message_are_prompt_texts_with_their_images() -> None:
    parts = [
        {"type": "text", "text": "My diagnosis is not your business"},
        {"type": "image_url", "image_url": {"url": "https://example.org/my-private-picture.png"}},
        {"type": "image_url", "image_url": None},
    ]
    prompt = Prompt("m", [{"role": "user", "content": parts}, {"role": "user", "content": "another text"}], {}, "1.1")
    said = (
        "no picture at https://example.org/my-private-picture.png for My diagnosis is not your business, another text"
    )
    assert Question("lab", prompt, "", (), "").scrubbed(said) == "no picture at [prompt] for [prompt], [prompt]"


def test_a_prompt_of_megabytes_costs_little() -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 100_000
    assert scrubbed("x" * 2000, prompts=(prompt,)).startswith("xxx")
