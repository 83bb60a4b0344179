"""How a table is fitted into a terminal: IDs are never cut, what says nothing is left out, and words give way."""

from collections.abc import Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.text import Text

GAP = 2
NARROWEST = 12
"""Characters below which a text that gives way says nothing any more, and is left out."""
SAYS_NOTHING = {"-", "no"}


def short_date(when: datetime) -> str:
    """A moment, as exactly as a glance needs it: the minute within this year, the day before that."""
    local = when.astimezone()
    return f"{local:%m-%d %H:%M}" if local.year == datetime.now().astimezone().year else f"{local:%Y-%m-%d}"


def fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], room: int, gives_way: Sequence[str]) -> list[str]:
    """The lines of a table, its heading first.

    Args:
        rows: at least one.
        room: how many characters a line should have.
        gives_way: columns that may be shortened, and left out where that does not help; the first gives way first.
            All others are shown whole: a value that is too long sticks out of its own row, and of no other.
    """
    table = {column: [column, *values] for column, values in zip(columns, zip(*rows, strict=True), strict=True)}
    table = {column: cells for column, cells in table.items() if not SAYS_NOTHING.issuperset(cells[1:])}
    widths = narrowed({column: max(map(cell_len, cells)) for column, cells in table.items()}, room, gives_way)
    padded = [
        [_sized(cell, widths[column], column in gives_way) for cell in cells]
        for column, cells in table.items()
        if column in widths
    ]
    return [(" " * GAP).join(line).rstrip() for line in zip(*padded, strict=True)]


def narrowed(widths: dict[str, int], room: int, gives_way: Sequence[str]) -> dict[str, int]:
    """The width of each column that stays."""
    widths = dict(widths)
    for column in gives_way:
        excess = _excess(widths, room)
        if excess <= 0 or column not in widths:
            continue
        if widths[column] - excess >= NARROWEST:
            widths[column] -= excess
        else:
            del widths[column]
    if (excess := _excess(widths, room)) > 0:
        widest = max(widths, key=lambda column: widths[column])
        widths[widest] = max(widths[widest] - excess, len(widest))
    return widths


def _excess(widths: dict[str, int], room: int) -> int:
    return sum(widths.values()) + GAP * (len(widths) - 1) - room


def _sized(cell: str, width: int, may_be_cut: bool) -> str:
    text = Text(cell)
    if may_be_cut or cell_len(cell) <= width:
        text.truncate(width, overflow="ellipsis", pad=True)
    return text.plain
