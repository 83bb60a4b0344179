"""How far something is that takes long, for who watches: drawn in a terminal, else a line from time to time."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inturn.cli import render
from inturn.models.money import dollars

if TYPE_CHECKING:
    from inturn.batch import Batch
    from inturn.models.store.batches import Progress

DRAWN_SECONDS = 0.1
SAID_SECONDS = 5.0
PACE_SECONDS = 30.0
"""A pace is that of so long a while."""
SHORTEST_SECONDS = 1.0
"""Too short a while to tell a pace by."""
UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


@dataclass(frozen=True, slots=True)
class Reading:
    """What a gauge shows.

    Attributes:
        done: as ``amount`` says it: of ``total``, which is None where nobody knows.
        lines: what else is to be told, line by line.
    """

    title: str
    amount: str
    done: int
    total: int | None
    lines: Sequence[Sequence[str]] = ()

    def sentence(self) -> str:
        return ", ".join([f"{self.title}: {self.amount}", *(part for line in self.lines for part in line)])


Gauge = Callable[[Reading], None]


@contextmanager
def gauge(*, stays: bool) -> Iterator[Gauge]:
    """A gauge; ``stays``: its last reading is left in the terminal."""
    with render.live(stays=stays) as draw:
        if draw is None:
            yield _Seldom(SAID_SECONDS, lambda reading: render.talk(reading.sentence()), at_once=False).show
            return
        seldom = _Seldom(DRAWN_SECONDS, lambda reading: draw(drawn(reading)), at_once=True)
        try:
            yield seldom.show
        finally:
            seldom.catch_up()


class _Seldom:
    def __init__(self, seconds: float, show: Callable[[Reading], None], *, at_once: bool) -> None:
        self._seconds, self._show = seconds, show
        self._due = time.monotonic() + (0.0 if at_once else seconds)
        self._passed_over: Reading | None = None

    def show(self, reading: Reading) -> None:
        if time.monotonic() < self._due:
            self._passed_over = reading
            return
        self._passed_over = None
        self._show(reading)
        self._due = time.monotonic() + self._seconds

    def catch_up(self) -> None:
        if self._passed_over is not None:
            self._show(self._passed_over)


def drawn(reading: Reading) -> Any:
    """For a terminal: a title, a bar, and the lines."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=reading.total or None, completed=reading.done), Text(reading.amount))
    lines = (Text("   ".join(line), overflow="ellipsis", no_wrap=True) for line in reading.lines)
    return Group(Text(render.clean(reading.title), overflow="ellipsis", no_wrap=True, style="bold"), bar, *lines)


class Pace:
    """How many lines end in a second, of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = deque[tuple[float, int]]()

    def note(self, done: int) -> None:
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:  # lines were sent again
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - PACE_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None: nobody knows yet."""
        if not self._seen:
            return None
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        return (done - before) / (now - began) if now - began >= SHORTEST_SECONDS else None

    def seconds_left(self, lines: int) -> float | None:
        """Until so many more have ended, if all goes on like this."""
        return lines / self.per_second if self.per_second else None


def reading_of(batch: "Batch", progress: "Progress", pace: Pace) -> Reading:
    name = f"  {batch.name}" if batch.name else ""
    return Reading(
        title=f"{batch.id}{name}  {progress.state}",
        amount=f"{progress.done:,} of {progress.total:,}  {progress.done * 100 // max(progress.total, 1)} %",
        done=progress.done,
        total=progress.total,
        lines=[counts(progress), figures(progress, pace)],
    )


def counts(progress: "Progress") -> list[str]:
    always = [("done", progress.completed), ("failed", progress.failed)]
    never_called = [("cancelled", progress.cancelled), ("expired", progress.expired)]
    to_come = [
        ("retrying", progress.retrying),
        ("in flight", progress.running),
        ("waiting", progress.queued - progress.retrying),
        ("not stored yet", progress.total - progress.stored),
    ]
    shown = [*always, *(one for one in never_called if one[1]), *(to_come[:3] if not progress.is_final else [])]
    return [f"{number:,} {name}" for name, number in [*shown, *(one for one in to_come[3:] if one[1])]]


def figures(progress: "Progress", pace: Pace) -> list[str]:
    said = [used(progress)]
    if not progress.is_final and pace.per_second is not None:
        left = pace.seconds_left(progress.total - progress.done)
        said = [speed(pace.per_second), *said, *([] if left is None else [f"{roughly(left)} left"])]
    return said


def speed(per_second: float) -> str:
    return f"{per_second:,.0f} turns/s" if per_second >= 10 else f"{per_second:.2g} turns/s"


def used(progress: "Progress") -> str:
    cost = "" if progress.price is None else f", {cost_of(progress)} US dollars"
    return f"{short(progress.input_tokens)} tokens in, {short(progress.output_tokens)} out{cost}"


def cost_of(progress: "Progress") -> str | None:
    return None if progress.price is None else dollars(progress.price)


def short(number: int) -> str:
    """``8,400``, ``12.3k``, ``4.6M``."""
    if number >= 1_000_000:
        return f"{number / 1_000_000:,.1f}M"
    return f"{number / 1_000:.1f}k" if number >= 10_000 else f"{number:,}"


def roughly(seconds: float) -> str:
    """A while in its two largest units: ``42s``, ``12m 5s``, ``3h 20m``, ``5d 3h``."""
    left, said = max(0, round(seconds)), list[str]()
    for unit, size in UNITS:
        if left >= size or said or unit == "s":
            said.append(f"{left // size}{unit}")
            left %= size
        if len(said) == 2:
            break
    return " ".join(part for at, part in enumerate(said) if not at or not part.startswith("0"))
