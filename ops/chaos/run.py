"""One run: producers send, the nemesis deals out faults, everything drains, and the books are compared."""

import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from inturn import Settings
from inturn.models.errors import InturnError
from ops.chaos.books import Books
from ops.chaos.figures import figures
from ops.chaos.nemesis import Attack, Fault, Nemesis, stalls
from ops.chaos.producers import Producers
from ops.chaos.promises import Log
from ops.chaos.stage import Stage

PROGRESS_SECONDS = 5.0
LOOK_SECONDS = 0.5
LEFT_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """What is sent, for how long, and what happens meanwhile.

    Attributes:
        rate: prompts per second.
        misbehave: the share of prompts that make the model misbehave.
        meddle: whether prompts are cancelled, and sessions deleted and expired.
        rounds: the share of prompts to plain sessions for which the model calls tools.
    """

    seconds: float
    seed: int
    rate: float = 50
    sessions: int = 100
    misbehave: float = 0.03
    meddle: bool = True
    rounds: float = 0.1
    attacks: Sequence[Attack] = ()


@dataclass
class Outcome:
    """What has come of a run."""

    log: Log
    faults: list[Fault]
    violations: list[str]
    figures: dict[str, Any]
    crashes: list[str] = field(default_factory=list)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def new_name() -> str:
    """What the IDs of a run's sessions begin with; the deployment may hold those of others."""
    return f"chaos-{secrets.token_hex(4)}"


def play(stage: Stage, plan: Plan) -> Outcome:
    """Send, break things, wait, compare."""
    run = new_name()
    settle = stage.fleet.settle if stage.fleet else lambda: None
    nemesis = Nemesis(plan.attacks, plan.seed, patience_of(stage.settings), settle=settle)
    faults: list[Fault] = []
    with stage.client() as client:
        producers = Producers(
            client, run, plan.seed,
            sessions=plan.sessions, rate=plan.rate, seconds=plan.seconds, misbehave=plan.misbehave, meddle=plan.meddle,
            rounds=plan.rounds, tools=stage.tools,
        )  # fmt: skip
        with progress(lambda: state_of(stage, run, producers, nemesis)):
            try:
                with producers:
                    over = time.monotonic() + plan.seconds
                    faults.extend(nemesis.run(lambda: producers.are_sending and time.monotonic() < over))
                    producers.stop()
            finally:
                stage.heal()
            left, took = drain(stage, run)
            stage.rest()
            producers.bury()
    return compare(stage, producers.log, faults, left, plan.seconds, took)


def compare(stage: Stage, log: Log, faults: list[Fault], left: list[str], seconds: float, took: float) -> Outcome:
    starved = stalls(stage.logs, faults, patience_of(stage.settings)) if stage.logs else []
    books = Books(log, stage.model.calls(), stage.settings, [*faults, *starved]).read(stage.database)
    books.search(stage.database, list(stage.logs.iterdir()) if stage.logs else (), stage.redis_url)
    crashes = list(stage.fleet.crashes) if stage.fleet else []
    violations = [*left, *books.violations(), *map(sentence_of, filter(is_violation, crashes))]
    found = figures(books, faults, log)
    found["violations"] = dict(Counter(violation.partition(":")[0] for violation in violations))
    found |= {
        "seconds": seconds,
        "stalls": len(starved),
        "drained_s": round(took, 1),
        "ended_by_themselves": len(crashes),
    }
    return Outcome(log, faults, violations, found, crashes)


def is_violation(obituary: str) -> bool:
    """A process may end because its database has gone when it starts. It may not break down."""
    return "Traceback" in obituary or "ended by itself with code -" in obituary


def sentence_of(obituary: str) -> str:
    return f"crashed: {obituary}"


def patience_of(settings: Settings) -> float:
    """How long a worker may be silent: its last heartbeat may have been one period ago."""
    return settings.lease_seconds - settings.heartbeat_seconds


def drain_seconds(settings: Settings) -> float:
    """How long the rest may take: leases run out, and the longest call is made as often as it may be."""
    return 60 + settings.lease_seconds + settings.attempt_deadline_seconds * (settings.max_ambiguous_attempts + 2)


def drain(stage: Stage, run: str) -> tuple[list[str], float]:
    """Wait until every turn is final and nobody holds a session. Returns what is left, and how long it took."""
    began = time.monotonic()
    limit = began + drain_seconds(stage.settings)
    while time.monotonic() < limit:
        if not stage.unfinished(run) and not stage.held(run):
            return [], time.monotonic() - began
        time.sleep(LOOK_SECONDS)
    took = time.monotonic() - began
    return [f"undrained: after {took:.0f} s: {what}" for what in stage.left(run)][:LEFT_SHOWN], took


def state_of(stage: Stage, run: str, producers: Producers, nemesis: Nemesis) -> str:
    try:
        unfinished = str(stage.unfinished(run))
    except InturnError:
        unfinished = "?"
    log = producers.log
    doing = nemesis.current or ("sending" if producers.are_sending else "draining")
    return f"{len(log.accepted):>7} accepted {unfinished:>6} unfinished {len(log.refused):>5} refused  {doing}"


@contextmanager
def progress(state: Callable[[], str]) -> Iterator[None]:
    """A line every few seconds."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(PROGRESS_SECONDS):
            say(f"{time.monotonic() - began:6.0f} s {state()}")

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
