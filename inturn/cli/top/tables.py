"""Tables of coloured cells, fitted into a terminal: columns are aligned, some give way, and none sticks out."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

GAP = 2
PLENTY, NARROWEST = 24, 8
"""Down to the first, a column that shrinks does so before others leave; then they leave; then it shrinks to the second."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        right: its cells stand on the right.
        shrinks: its cells may be cut off where there is no room.
        keeps_end: if so, in front: their ends tell them apart.
        leaves: it may be left out: of several, the lowest number first; 0: it stays.
    """

    heading: str
    right: bool = False
    shrinks: bool = False
    keeps_end: bool = False
    leaves: int = 0


def table(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """Its heading and its lines."""
    known = {number: column for number, column in enumerate(columns) if not _is_empty(column, number, rows)}
    natural = {
        number: max([len(column.heading), *(row[number].cell_len for row in rows)]) for number, column in known.items()
    }
    widths = fitted(known, natural, width)
    heading = Text()
    lines = [Text() for _ in rows]
    last = max(widths, default=0)
    for number, room in widths.items():
        end = "" if number == last else " " * GAP
        column = known[number]
        _put(heading, Text(column.heading, style="bold cyan"), room, column.right, end)
        for line, row in zip(lines, rows, strict=True):
            _put(line, _ending(row[number], room) if column.keeps_end else row[number], room, column.right, end)
    return [heading, *lines]


def fitted(columns: dict[int, Column], natural: dict[int, int], width: int) -> dict[int, int]:
    """The width of each column that stays."""
    widths = dict(natural)
    for number in sorted(columns, key=lambda each: columns[each].leaves):
        if columns[number].leaves and _least(columns, widths) > width:
            del widths[number]
    excess = _total(widths) - width
    for number in [each for each in widths if columns[each].shrinks][::-1]:
        cut = min(max(excess, 0), max(0, widths[number] - NARROWEST))
        widths[number] -= cut
        excess -= cut
    return widths


def side_by_side(left: list[Text], right: list[Text], at: int) -> list[Text]:
    """Two tables, the right one from a column on, or sooner, where there is no more of the left one."""
    if not left or not right:
        return left or right
    at = min(at, max(line.cell_len for line in left) + 3 * GAP)
    lines = []
    for number in range(max(len(left), len(right))):
        line = left[number].copy() if number < len(left) else Text()
        if number < len(right):
            line.truncate(at - GAP, pad=True)
            line.append(" " * GAP)
            line.append_text(right[number])
        lines.append(line)
    return lines


def _is_empty(column: Column, number: int, rows: Sequence[Sequence[Text]]) -> bool:
    return not column.heading and not any(row[number].plain.strip() for row in rows)


def _ending(cell: Text, room: int) -> Text:
    return cell if cell.cell_len <= room else Text(f"…{cell.plain[1 - room :]}", style=cell.style)


def _put(line: Text, cell: Text, room: int, right: bool, end: str) -> None:
    cell = cell.copy()
    cell.truncate(room, overflow="ellipsis")
    blank = " " * (room - cell.cell_len)
    line.append(blank if right else "", style="default")
    line.append_text(cell)
    line.append(("" if right else blank) + end, style="default")


def _least(columns: dict[int, Column], widths: dict[int, int]) -> int:
    """How wide they are before one of them leaves."""
    return _total({each: min(have, PLENTY) if columns[each].shrinks else have for each, have in widths.items()})


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + GAP * max(0, len(widths) - 1)
