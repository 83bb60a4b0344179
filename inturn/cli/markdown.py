"""Markdown that is still being written: how much of it will not change any more."""

import re

FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
BLANK_LINES = re.compile(r"\n[ \t]*\n(?=[^\s])")
GOES_ON = re.compile(r"[-*+>|]|\d{1,9}(?:[.)]|$)")
"""A list, a quotation or a table may go on behind a blank line; what is indented belongs to what stands before."""

SPACED = re.compile(r" {0,3}(?:```|~~~|[-*+] |\d{1,9}[.)])")
"""Blocks that rich draws with a line of room before them."""


def split(text: str) -> tuple[str, str]:
    """Whole blocks, and the one that may still change."""
    done = 0
    for found in BLANK_LINES.finditer(text):
        is_in_code = len(FENCE.findall(text, 0, found.start() + 1)) % 2
        if not is_in_code and not GOES_ON.match(text, found.end()):
            done = found.end()
    return text[:done], text[done:]
