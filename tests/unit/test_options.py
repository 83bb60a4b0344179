"""Options that are refused before anybody is asked, and those that are not: others may come along with them."""

from typing import Any

import pytest

from inturn.models.errors import InvalidInputError
from inturn.options import checked_options
from inturn.provider_settings import ProviderSettings

LAB = "http://lab.example/v1"
KNOWN = {
    "echo": ProviderSettings(type="echo"),
    "parrot": ProviderSettings(type="echo"),
    "lab": ProviderSettings(base_url=LAB),
    "claude": ProviderSettings(type="anthropic", base_url=LAB),
}


@pytest.mark.parametrize(
    ("models", "options", "sentence"),
    [
        (
            ["echo/x"],
            {"latncy": 1},
            r"^echo/x: echo has no option 'latncy' \(did you mean latency\?\)\. It has latency, pace",
        ),
        (["parrot/x"], {"latncy": 1, "zzz": 1}, r"^parrot/x: echo has no option 'latncy', 'zzz' .* or leave it out$"),
        (["lab/x", "echo/x"], {"latncy": 1}, "^echo/x: "),
        (["echo/x"], {"latency": "1"}, "latency is '1', but must be seconds"),
        (["echo/x"], {"fail": "often"}, "fail is 'often', but must be one of rate_limited"),
        (["echo/x"], {"fail_times": -1}, "fail_times is -1"),
        (["echo/x"], {"call": []}, r"call is \[\], but must be"),
        (["echo/x"], {"call": [[]]}, r"call is \[\[\]\], but must be"),
        (["lab/x"], {"model": "y", "stream": True}, "^lab/x: model, stream cannot be set as an option"),
        (["claude/x"], {"system": "y"}, "^claude/x: system cannot be set as an option"),
    ],
)
def test_what_a_model_would_refuse_each_time_is_refused_at_once(
    models: list[str], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        checked_options(options, models, KNOWN)


@pytest.mark.parametrize(
    ("models", "options"),
    [
        (["echo/x"], {"fail_times": 2}),  # a turn says how it fails
        (["echo/x"], {"call": {"name": "add"}}),  # a turn has tools
        (["echo/x"], {"temperature": 0.2, "latency": [0.5, 2]}),
        (["lab/x"], {"system": "you", "latncy": 1}),
        (["ghost/x"], {"model": "y"}),
        ([], {"latncy": 1}),
    ],
)
def test_what_may_do_is_taken(models: list[str], options: dict[str, Any]) -> None:
    assert checked_options(options, models, KNOWN) == options
