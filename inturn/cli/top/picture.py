"""What ``inturn top`` looks like: a snapshot, put into the lines of a terminal of some size."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from rich.text import Text

from inturn.cli.render import cell, counted
from inturn.cli.top.tables import Column, side_by_side, table
from inturn.cli.top.units import amount, lasting, rate
from inturn.models.money import dollars
from inturn.models.states import Lane, ProcessKind

if TYPE_CHECKING:
    from inturn.cli.top.snapshot import Snapshot
    from inturn.models.store.activity import Activity, LaneActivity, Waiting, WorkerActivity
    from inturn.models.store.budgets import Standing

ORDERS = ("busiest", "name", "uptime", "longest silent")
CURVE = "▁▂▃▄▅▆▇█"
BAR = 10
WIDE = 118
"""From here on two tables stand side by side."""
PLAIN = 200, 10_000
LATE, VERY_LATE = timedelta(seconds=5), timedelta(seconds=60)
NEARLY = 0.8
"""Of a budget, from which on it is told in yellow."""
LEAST = 1
"""Rows that sessions have, however many workers there are."""


@dataclass(slots=True)
class View:
    """What whoever watches has chosen, and what was seen before."""

    interval: float = 1.0
    order: int = 0
    is_paused: bool = False
    rates: deque[tuple[datetime, float]] = field(default_factory=deque)


def plain(snapshot: "Snapshot") -> list[str]:
    """All of it as text."""
    lines = drawn(snapshot, None, *PLAIN)
    return [line.plain.rstrip() for line in lines]


def drawn(snapshot: "Snapshot", view: View | None, width: int, height: int) -> list[Text]:
    """As many lines as there is room for.

    Args:
        view: None: nobody can press a key.
    """
    head = [title(snapshot, view, width), *deployment(snapshot, width)]
    foot = [] if view is None else [keys(view, width)]
    activity = snapshot.activity
    if activity is None:
        middle = [Text(), Text("nothing was seen yet", style="dim")]
    else:
        middle = body(snapshot, activity, view or View(), width, max(0, height - len(head) - len(foot)))
    gap = height - len(head) - len(middle) - len(foot) if foot else 0
    return [fit(line, width) for line in [*head, *middle, *[Text()] * max(0, gap), *foot]][: max(height, 1)]


def fit(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def title(snapshot: "Snapshot", view: View | None, width: int) -> Text:
    activity = snapshot.activity
    left = Text().append("inturn top", style="bold")
    if activity is not None:
        left.append(f"  {activity.at.astimezone():%H:%M:%S}")
        total = sum(lane.turns_per_second for lane in activity.lanes)
        left.append(f"  {rate(total)} turns/s", style="bold green" if total else "dim")
        left.append(f"  {amount(sum(one.in_flight for one in activity.lanes))} in flight")
    if view is None:
        return left
    if view.is_paused:
        left.append("  paused: p goes on", style="bold magenta")
    room = width - left.cell_len - 3
    if room >= BAR and (curve := curved([one for _, one in view.rates], min(room, 60))).strip():
        left.append(" " * (width - left.cell_len - len(curve)))
        left.append(curve, style="green")
    return left


def curved(rates: Sequence[float], width: int) -> str:
    """The last of them, the newest on the right."""
    last, most = rates[-width:], max(rates[-width:], default=0.0)
    if most <= 0:
        return ""
    return "".join(CURVE[min(len(CURVE) - 1, int(one / most * len(CURVE)))] if one > 0 else " " for one in last)


def deployment(snapshot: "Snapshot", width: int) -> list[Text]:
    places = Text()
    for name, url, error in (
        ("database", snapshot.database, snapshot.database_error),
        ("broker", snapshot.broker, snapshot.broker_error),
    ):
        places.append("● ", style="red" if error else "green")
        places.append(
            f"{name} {shortened(cell(url), max(20, width // 2 - 14))}   ", style="red" if error else "default"
        )
    lines = [places]
    if snapshot.database_error:
        age = f"; what follows is {lasting(snapshot.age_seconds)} old" if snapshot.activity else ""
        lines.append(Text(f"{cell(snapshot.database_error)}; trying again{age}", style="bold red"))
    if snapshot.broker_error:
        lines.append(Text(f"{cell(snapshot.broker_error)}; trying again", style="yellow"))
    if snapshot.activity is not None:
        lines.append(beat(snapshot.activity))
    return lines


def shortened(text: str, width: int) -> str:
    """Its end tells one place from another."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def beat(activity: "Activity") -> Text:
    beats = [one for one in activity.workers if one.process.kind is ProcessKind.BEAT and one.process.alive]
    line = Text()
    line.append("● ", style="green" if beats else "yellow")
    if beats:
        line.append("beat alive")
    else:
        line.append("no beat is alive", style="yellow")
    if activity.last_tick is not None:
        line.append(f", last cleanup {lasting(activity.at - activity.last_tick)} ago")
    if activity.next_cleanup is not None:
        line.append(f", next in {lasting(activity.next_cleanup - activity.at)}")
    if activity.schedules_due:
        line.append(f", {counted(activity.schedules_due, 'schedule')} due", style="default" if beats else "yellow")
    return line


def body(snapshot: "Snapshot", activity: "Activity", view: View, width: int, height: int) -> list[Text]:
    sums = [failures(activity), *spending(snapshot, activity, width)]
    lanes = [Text(), *table(LANES, [lane_row(lane) for lane in activity.lanes], width)]
    waits, runs = waiting(activity.waiting, "WAITS LONGEST"), waiting(activity.running, "RUNS LONGEST")
    left = height - len(lanes) - len(sums) - 4  # blank lines, and the heading of workers
    is_wide = width >= WIDE
    tables = len([rows for rows in (activity.waiting, activity.running) if rows])
    least = tables * (1 + LEAST) if not is_wide else (1 + LEAST) * bool(tables)
    processes = ordered(activity.workers, ORDERS[view.order])
    shown = min(len(processes), max(1, left - least))
    more = len(processes) - shown
    rows = [worker_row(one) for one in islice(processes, shown - bool(more))]
    workers = table(WORKERS, rows, width) if rows else [Text("no worker has shown itself", style="yellow")]
    if more:
        workers.append(Text(f"and {more + 1} more", style="dim"))
    room = left - (len(workers) - 1)
    if is_wide:
        sessions = side_by_side(cut(waits, room, width // 2 - 2), cut(runs, room, width // 2 - 2), width // 2)
    else:
        part = room // 2 if len(activity.waiting) and len(activity.running) else room
        sessions = [*cut(waits, part, width), *cut(runs, room - min(part, len(activity.waiting) + 1), width)]
    parts = [*lanes, Text(), *workers, Text(), *sums]
    return [*parts, Text(), *sessions] if sessions else parts


LANES = (
    Column("LANE"),
    Column("READY", right=True),
    Column("OLDEST", right=True),
    Column("IN FLIGHT", right=True),
    Column("TURNS/S", right=True),
    Column("FAILED/S", right=True),
    Column("WORKERS", right=True),
    Column(""),
)


def lane_row(lane: "LaneActivity") -> list[Text]:
    is_late = lane.ready > 0 and lane.oldest >= LATE
    late = "" if not is_late else "bold red" if lane.oldest >= VERY_LATE else "yellow"
    is_missed = lane.ready > 0 and not lane.workers
    paused = "" if lane.paused_at is None else f"paused since {lane.paused_at.astimezone():%H:%M}"
    return [
        Text(lane.lane, style="bold"),
        Text(amount(lane.ready), style=late),
        Text(lasting(lane.oldest) if lane.ready else "-", style=late),
        Text(amount(lane.in_flight)),
        Text(rate(lane.turns_per_second), style="green" if lane.turns_per_second else ""),
        Text(rate(lane.failed_per_second), style="red" if lane.failed_per_second else ""),
        Text(str(lane.workers), style="bold red" if is_missed else ""),
        Text(paused, style="magenta"),
    ]


WORKERS = (
    Column("WORKER", shrinks=True, keeps_end=True),
    Column("LANES"),
    Column("IN FLIGHT", right=True),
    Column("", leaves=4),
    Column("TURNS/S", right=True),
    Column("UP", right=True, leaves=3),
    Column("HEARD", right=True),
    Column("VERSION", leaves=1),
)


def worker_row(worker: "WorkerActivity") -> list[Text]:
    process = worker.process
    is_beat = process.kind is ProcessKind.BEAT
    lanes = "beat" if is_beat else "all lanes" if set(process.lanes.split(",")) == set(Lane) else cell(process.lanes)
    style = "" if process.alive else "red"
    share = worker.in_flight / process.concurrency if process.concurrency else 0.0
    told = "" if not is_beat else "-"
    return [
        Text(f"{cell(process.host)}/{process.pid}", style=style),
        Text(lanes, style=style or "dim"),
        Text(told or f"{amount(worker.in_flight)}/{amount(process.concurrency)}", style=style),
        Text() if is_beat else bar(share),
        Text(told or rate(worker.turns_per_second), style=style or ("green" if worker.turns_per_second else "")),
        Text(lasting(worker.uptime), style=style),
        Text(f"{lasting(worker.silent)}", style=style or "dim"),
        Text(cell(process.version) if process.alive else "silent", style=style or "dim"),
    ]


def bar(share: float) -> Text:
    """Thin, so that those of neighbours do not run into one another."""
    halves = round(min(max(share, 0.0), 1.0) * BAR * 2)
    full, half = divmod(halves, 2)
    done = Text("━" * full + "╸" * half, style="yellow" if share >= NEARLY else "cyan")
    return done.append("─" * (BAR - full - half), style="bright_black") if full + half < BAR else done


def ordered(workers: Iterable["WorkerActivity"], order: str) -> list["WorkerActivity"]:
    """Workers before beats, and those that are silent first of all: they are what somebody should look at."""

    def rank(one: "WorkerActivity") -> tuple[object, ...]:
        name = (one.process.host, one.process.pid)
        by = {
            "busiest": (-one.in_flight, -one.turns_per_second),
            "name": (),
            "uptime": (-one.uptime,),
            "longest silent": (-one.silent,),
        }[order]
        return (one.process.alive, one.process.kind is ProcessKind.BEAT, *by, *name)

    return sorted(workers, key=rank)


def failures(activity: "Activity") -> Text:
    line = Text()
    minutes = f"{activity.failed_seconds / 60:g} min"
    if not activity.failures:
        return line.append(f"FAILED in {minutes}  none", style="dim")
    line.append(f"FAILED in {minutes}  ", style="bold")
    total = sum(activity.failures.values())
    line.append(f"{amount(total)}: ", style="red")
    line.append(", ".join(f"{cell(error)} {amount(many)}" for error, many in activity.failures.items()))
    return line


def spending(snapshot: "Snapshot", activity: "Activity", width: int) -> list[Text]:
    line = Text().append("SPENT today  ", style="bold")
    spent = snapshot.spent
    if spent is None:
        line.append("being added up", style="dim")
    elif not spent:
        line = Text("SPENT today  nothing", style="dim")
    else:
        line.append(f"{dollars(sum(one.usd for one in spent))} US dollars")
        hourly = activity.usd_per_second * 3600
        if hourly:
            line.append(f" (now {dollars(hourly)} an hour)")
        line.append(f", {amount(sum(one.tokens for one in spent))} tokens")
        priced = [f"{cell(one.model)} {dollars(one.usd)}" for one in spent if one.usd]
        unpriced = sum(one.unpriced for one in spent)
        line.append(f", {amount(unpriced)} unpriced" if unpriced else "", style="yellow")
        line.append(f": {', '.join(priced)}" if priced else "")
    return [line, *([budgets(snapshot.budgets)] if snapshot.budgets else [])]


def budgets(standings: "Sequence[Standing]") -> Text:
    """The nearest to their end first."""
    line = Text().append("BUDGETS  ", style="bold")
    shares = sorted(((share_of(one), one) for one in standings), key=lambda each: -each[0])
    for number, (share, one) in enumerate(shares):
        whose = f" ({cell(one.whose)})" if one.whose not in ("", "all") else ""
        style = "bold red" if share >= 1 else "yellow" if share >= NEARLY else "default"
        line.append(", " if number else "")
        line.append(f"{cell(one.budget.name)}{whose} {share:.0%}", style=style)
    return line


def share_of(standing: "Standing") -> float:
    budget = standing.budget
    of_usd = standing.usd / budget.usd if budget.usd else 0.0
    return max(of_usd, standing.tokens / budget.tokens if budget.tokens else 0.0)


def waiting(sessions: "Sequence[Waiting]", heading: str) -> tuple[tuple[Column, ...], list[list[Text]]]:
    model = "MODEL" if any(one.model for one in sessions) else ""
    columns = (
        Column(heading, shrinks=True),
        Column("LANE"),
        Column("SINCE", right=True),
        Column(model, shrinks=True),
    )
    rows = [
        [
            Text(cell(one.session_id)),
            Text(one.lane, style="dim"),
            Text(lasting(one.since)),
            Text("" if one.model is None else cell(one.model), style="dim"),
        ]
        for one in sessions
    ]
    return columns, rows


def cut(told: tuple[tuple[Column, ...], list[list[Text]]], room: int, width: int) -> list[Text]:
    """A table of as many rows as fit, or nothing."""
    columns, rows = told
    return table(columns, rows[: room - 1], width) if rows and room > 1 else []


def keys(view: View, width: int) -> Text:
    line = Text(style="dim")
    for key, does in (
        ("q", "quits"),
        ("p", "goes on" if view.is_paused else "pauses"),
        ("s", f"sorts workers: {ORDERS[view.order]}"),
    ):
        line.append(key, style="bold not dim")
        line.append(f" {does}   ")
    line.append(f"every {view.interval:g} s")
    return line
