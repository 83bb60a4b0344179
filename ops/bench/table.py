"""The rows as plain text."""

from collections.abc import Iterable, Mapping, Sequence

from ops.bench.rows import Row

HEAD = ("row", "database", "in flight", "inturn", "baseline", "unit", "ratio", "against")
NUMBERS = {"in flight", "inturn", "baseline", "ratio"}


def number(value: float | None) -> str:
    """Three digits are what a median of a few runs is good for."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    in_flight = "-" if row.in_flight is None else str(row.in_flight)
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    figures = (number(row.value), number(row.baseline), row.unit, ratio)
    name = row.name.removesuffix(f" ({row.against})")  # it has a column of its own here
    return (name, row.database or "-", in_flight, *figures, row.against or "-")


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if title in NUMBERS else cell.ljust(width)
            for cell, width, title in zip(line, widths, HEAD, strict=True)
        ).rstrip()
        for line in lines
    ]


def render(rows: Iterable[Row], circumstances: Mapping[str, str]) -> str:
    """The table under the circumstances that it was measured in."""
    head, *body = aligned([HEAD, *map(cells, rows)])
    facts = [f"{name + ':':<10} {fact}" for name, fact in circumstances.items()]
    return "\n".join([*facts, "", head, "-" * len(head), *body])
