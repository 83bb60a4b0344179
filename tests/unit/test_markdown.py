"""What of a text that is being written is drawn for good."""

import io

import pytest
from rich.console import Console

from inturn.cli.markdown import Prose, split

TEXT = """# Title

Some words
on two lines.

- one
- two

- three, behind a blank line

  and what belongs to it

Then this.

```python
a = 1

b = 2
```

| a | b |
|---|---|
| 1 | 2 |

1. first

2. second

The end."""


def test_whole_blocks_are_done():
    done, rest = split(TEXT)
    assert done + rest == TEXT
    assert rest == "The end."


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_however_it_comes_no_block_is_torn(size: int):
    blocks, rest = list[str](), ""
    for start in range(0, len(TEXT), size):
        done, rest = split(rest + TEXT[start : start + size])
        blocks += [done] if done else []
    assert "".join(blocks) + rest == TEXT
    assert 1 < len(blocks) <= 4, "there are no more places to part it"
    assert all(block.endswith("\n\n") for block in blocks)
    assert not any(block.startswith(("b = 2", "- three", "2.")) for block in blocks)


@pytest.mark.parametrize("text", ["", "one line", "two\nlines\n", "a\n\n", "a\n\n- b", "a\n\n    b", "```\na\n\nb"])
def test_what_may_still_change_is_not_done(text: str):
    assert split(text) == ("", text)


REPLY = """You said: "hello"
I remember **your
first** message.

- one, which
  goes on
- two

> quoted
> in two lines

```
a
b
```

The end,
as written."""
DRAWN = """You said: "hello"
I remember your
first message.

 • one, which goes on
 • two

▌ quoted
▌ in two lines


 a
 b


The end,
as written.
"""


def test_single_line_breaks_are_drawn_where_they_are_written():
    drawn = io.StringIO()
    Console(file=drawn, width=60, force_terminal=False).print(Prose(REPLY))
    assert "\n".join(line.rstrip() for line in drawn.getvalue().split("\n")) == DRAWN
