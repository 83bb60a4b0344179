"""Markdown as a chat shows it, and as it is still being written: how much of it will not change any more."""

import re

from rich.markdown import Markdown

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


class Prose(Markdown):
    """Markdown whose single line breaks are kept, as in a letter: who writes them in a reply means them. In a list, whose
    items have lines of their own, they stay blanks.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text, hyperlinks=False)  # an address that is not shown is one that nobody can judge
        lists = 0
        for token in self.parsed:
            lists += token.nesting * token.type.endswith(("list_open", "list_close"))
            for inline in token.children or () if not lists else ():
                if inline.type == "softbreak":
                    inline.type, inline.tag = "hardbreak", "br"
