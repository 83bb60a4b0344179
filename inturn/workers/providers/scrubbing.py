"""What a provider says about a failure, made fit to be stored, logged and shown: one short line without secrets.

Providers echo keys ("Incorrect API key provided: sk-...") and prompts (validation errors quote their input), and an
error message is kept longer, and seen by more people, than either may be.
"""

import re
from collections.abc import Iterable

LIMIT = 300
"""Characters of what the provider said; the sentence around it takes the rest of an error message's 500."""

_READ = 2000
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links
    r"|\x1b.?",
    re.DOTALL,
)
_KEYS = re.compile(r"\bBearer\s+\S+|\b(?:(?:sk|pk|rk|gsk|xai)[-_]|AIza)[\w*.\-]{4,}", re.IGNORECASE)
_WHOLE = 8
_RUN = 12


def one_line(text: str) -> str:
    """Without terminal escapes, control characters, lone surrogates and direction marks; white space is one blank."""
    visible = "".join(character if character.isprintable() else " " for character in _ESCAPES.sub("", text))
    return " ".join(visible.split())


def scrub(text: str, *, secrets: Iterable[str], prompt_texts: Iterable[str]) -> str:
    """At most ``LIMIT`` characters of ``text``, in one line, without the secrets and without what was in the prompt.

    Args:
        secrets: keys and header values; whatever looks like a key is taken out besides.
        prompt_texts: of every message. A text that is found whole goes, and so does any stretch of two dozen
            characters that the two have in common, since providers shorten what they quote.
    """
    line = one_line(text[:_READ])
    for secret in sorted(secrets, key=len, reverse=True):
        line = _without(line, secret, "[key]")
    line = _KEYS.sub("[key]", line)
    for prompt_text in prompt_texts:
        # Only blanks are made one: a prompt can be megabytes long, and this runs on the loop.
        shown = " ".join(prompt_text.split())
        line = _without_stretches(_without(line, shown, "[prompt]"), shown)
    return line if len(line) <= LIMIT else line[: LIMIT - 3].rstrip() + "..."


def _without(line: str, text: str, mark: str) -> str:
    if len(text) >= _WHOLE:
        return line.replace(text, mark)
    # A word or two is taken out as words only: the prompt "a" must not eat every a.
    return re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", mark, line) if text else line


def _without_stretches(line: str, prompt_text: str) -> str:
    """Take out what is as long as two runs: it holds one whole run that starts at a multiple of a run's length."""
    start = 0
    while start + _RUN <= len(line):
        first, last = _grow(line, start, start + _RUN, prompt_text)
        if last - first < 2 * _RUN:
            start += _RUN
            continue
        line = f"{line[:first]}[prompt]{line[last:]}"
        start = first + len("[prompt]")
    return line


def _grow(line: str, first: int, last: int, prompt_text: str) -> tuple[int, int]:
    """The stretch around ``line[first:last]`` that is in the prompt as well; empty when not even that is."""
    if line[first:last] not in prompt_text:
        return first, first
    while first > 0 and line[first - 1 : last] in prompt_text:
        first -= 1
    while last < len(line) and line[first : last + 1] in prompt_text:
        last += 1
    return first, last
