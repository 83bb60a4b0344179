"""``RESULTS.md``: a row for every recorded run, in two tables, and what it takes to repeat one."""

import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")

PREAMBLE = """\
# What chaos runs have shown

Each row is one run: real worker processes, beat, Redis and a database, of which something was killed, stopped, wiped,
locked or cut off all the time, while prompts were sent, cancelled and deleted, and the model misbehaved. Afterwards
everything that was accepted, called and stored was compared. Nothing may be lost, answered twice, or out of order.

To repeat a run: check out its commit, and give its seed (the first time, this also installs what it needs):

    make chaos SECONDS=600 SEED=402 DATABASE=postgresql

It prints these figures and ends with code 1 if there is any violation. `RECORD=1` adds its row here. The seed decides
what is sent, how the model misbehaves, and which faults happen in which order; what they hit in mid-work differs.

"accepted" to "other": prompts accepted, lost, answered twice, out of order, other violations. "extra calls" and
"overlaps" (two calls of one session at a time) are by kind of fault; a paused or cut off worker may cause both, and no
lease can prevent that. `python -m ops.chaos run --list-faults` says what the kinds are. Times are those of the sessions
that a fault kept waiting, so that there may be none of them after a fault. A star marks a commit with changes on top.
"""

Row = Mapping[str, Any]
"""What a run is known by, and its figures."""

Column = tuple[str, Callable[[Row], Any]]


def counted(name: str) -> Callable[[Row], str]:
    """Counts by kind of fault."""
    return lambda row: ", ".join(f"{kind} {count}" for kind, count in sorted(row[name].items())) or "0"


def spread(name: str, kind: str, unit: str) -> Callable[[Row], str]:
    """Median and 99th percentile."""

    def shown(row: Row) -> str:
        found = row[name][kind] if kind else row[name]
        return f"{found[f'p50_{unit}']:g} / {found[f'p99_{unit}']:g}" if found["count"] else "-"

    return shown


def plain(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name]


def other(row: Row) -> int:
    return int(sum(row["violations"].values()) - row["lost"] - row["duplicate_replies"] - row["order_violations"])


KNOWN_BY: tuple[Column, ...] = (
    ("date", plain("date")),
    ("commit", plain("commit")),
    ("database", plain("database")),
    ("seconds", plain("seconds")),
    ("seed", plain("seed")),
)
COUNTS: tuple[Column, ...] = (
    *KNOWN_BY,
    ("accepted", plain("accepted")),
    ("lost", plain("lost")),
    ("duplicates", plain("duplicate_replies")),
    ("disorder", plain("order_violations")),
    ("other", other),
    ("faults", lambda row: sum(row["faults"].values())),
    ("extra calls", counted("extra_calls")),
    ("overlaps", counted("overlaps")),
)
TIMES: tuple[Column, ...] = (
    *KNOWN_BY,
    ("kill", spread("recovery", "kill", "s")),
    ("Redis wiped", spread("recovery", "redis_wiped", "s")),
    ("Redis restarted", spread("recovery", "redis_restarted", "s")),
    ("PostgreSQL restarted", spread("recovery", "postgresql_restarted", "s")),
    ("send", spread("send", "healthy", "ms")),
    ("Redis frozen", spread("send", "redis_frozen", "ms")),
    ("Redis down", spread("send", "redis_down", "ms")),
    ("rolling restart", spread("drain", "", "s")),
)
TABLES = {
    "## Counts": COUNTS,
    "## Times: until work goes on (s), of a send (ms), until a stopping worker has gone (s), each p50 / p99": TIMES,
}


def commit() -> str:
    """The tree's commit, with a star when files were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # The row of the run before is no change.
        changed = git("status", "--porcelain", "--", ":/", f":!{RESULTS.name}")
        return git("rev-parse", "--short", "HEAD") + ("*" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def stamp() -> dict[str, str]:
    """When and of what a run was."""
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), "commit": commit()}


def record(row: Row, path: Path = RESULTS) -> None:
    """Add a run's row to each table."""
    text = path.read_text() if path.exists() else empty()
    for title, columns in TABLES.items():
        before, found, after = text.partition(f"{title}\n")
        if not found:
            raise ValueError(f"{path} has no part {title!r}")
        table, gap, rest = after.strip("\n").partition("\n\n")
        text = f"{before}{title}\n\n{table}\n{line(show(row) for _, show in columns)}\n{gap and chr(10)}{rest}"
    path.write_text(text.rstrip("\n") + "\n")


def empty() -> str:
    parts = [PREAMBLE]
    for title, columns in TABLES.items():
        head = line(name for name, _ in columns)
        parts.append(f"{title}\n\n{head}\n{line('---' for _ in columns)}\n")
    return "\n".join(parts)


def line(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"
