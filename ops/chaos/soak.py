"""The soak: half of what the deployment can do, for long. Memory, file descriptors and connections must not drift."""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
import redis

from inturn.models.errors import InturnError
from inturn.workers.queues import connect
from ops.chaos.fleet import Fleet
from ops.chaos.producers import Producers
from ops.chaos.run import Outcome, Plan, drain, new_name, play, say
from ops.chaos.stage import Stage

SAMPLE_SECONDS = 5.0
SETTLED = 0.25
"""The part of the time after which pools have filled and caches are warm."""
FEWEST_SAMPLES = 8
LEAST_GROWTH = 0.10
FLOOD, FLOOD_SECONDS = 500, 10

Series = Mapping[str, Sequence[tuple[float, float]]]
"""By name: pairs of seconds and value."""


@dataclass(frozen=True)
class Drift:
    """How a series has moved after it had settled.

    Attributes:
        start, end: of the straight line through it.
        growth: from start to end, as a part of the start.
        is_drift: whether that is more than noise.
    """

    name: str
    unit: str
    start: float
    end: float
    highest: float
    growth: float
    is_drift: bool

    def __str__(self) -> str:
        mark = "  DRIFTS" if self.is_drift else ""
        return (
            f"{self.name:<28} {self.start:10.1f} {self.end:10.1f} {self.highest:10.1f} {self.unit:<5} "
            f"{self.growth:+7.1%}{mark}"
        )


HEAD = f"{'series':<28} {'start':>10} {'end':>10} {'highest':>10} {'unit':<5} {'growth':>7}"

UNITS = {"memory": ("MiB", 16.0), "descriptors": ("", 8.0), "connections": ("", 4.0)}
"""By the last word of a series' name: its unit, and the growth that is noise whatever it is a part of."""


def drift_of(name: str, samples: Sequence[tuple[float, float]]) -> Drift:
    """Lay a straight line through what is left when the beginning is taken off."""
    settled = samples[round(len(samples) * SETTLED) :]
    times, values = [when for when, _ in settled], [value for _, value in settled]
    slope, intercept = statistics.linear_regression(times, values)
    start, end = intercept + slope * times[0], intercept + slope * times[-1]
    unit, noise = UNITS[name.split()[-1]]
    growth = (end - start) / max(start, 1e-9)
    return Drift(name, unit, start, end, max(values), growth, growth > LEAST_GROWTH and end - start > noise)


def drifts(series: Series) -> list[Drift]:
    """Those series that are long enough to say something."""
    return [drift_of(name, samples) for name, samples in sorted(series.items()) if len(samples) >= FEWEST_SAMPLES]


def sample(stage: Stage, fleet: Fleet) -> Iterator[tuple[str, float]]:
    """What the deployment uses now."""
    crew = [(f"worker {fleet.seat(worker) + 1}", worker.pid) for worker in list(fleet.workers)]
    for name, pid in (*crew, *(("beat", beat.pid) for beat in list(fleet.beats))):
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            yield f"{name} memory", process.memory_info().rss / 2**20
            yield f"{name} descriptors", process.num_fds()
    with suppress(redis.RedisError), connect(stage.redis_url) as client:
        told: Any = client.info()
        yield "redis connections", told["connected_clients"]
        yield "redis memory", told["used_memory"] / 2**20
    if stage.kind == "postgresql":
        with suppress(InturnError):
            own = "SELECT count(*) AS number FROM pg_stat_activity WHERE application_name = 'inturn'"
            yield "postgresql connections", fleet.query(own)[0].number


@contextmanager
def sampled(take: Callable[[], Iterator[tuple[str, float]]]) -> Iterator[Series]:
    """Take samples as long as the block lasts."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    began, over = time.monotonic(), threading.Event()

    def work() -> None:
        while not over.wait(SAMPLE_SECONDS):
            for name, value in take():
                series[name].append((time.monotonic() - began, value))

    thread = threading.Thread(target=work, name="samples", daemon=True)
    thread.start()
    try:
        yield series
    finally:
        over.set()
        thread.join()


def saturation(stage: Stage, plan: Plan) -> float:
    """Turns per second that it finishes while more than that are sent."""
    run = new_name()
    with stage.client() as client:
        began = time.monotonic()
        with Producers(client, run, plan.seed, sessions=plan.sessions, rate=FLOOD, seconds=FLOOD_SECONDS) as producers:
            pass
        finished, took = len(producers.log.accepted) - stage.unfinished(run), time.monotonic() - began
        drain(stage, run)
    return finished / took


def soak(stage: Stage, plan: Plan) -> Outcome:
    """Run without faults, and look at what the deployment uses. Drifts are violations."""
    assert stage.fleet is not None
    fleet = stage.fleet
    if not plan.rate:
        full = saturation(stage, plan)
        say(f"chaos: it does {full:.0f} turns/s; half of that from now on")
        plan = replace(plan, rate=full / 2)
    with sampled(lambda: sample(stage, fleet)) as series:
        outcome = play(stage, plan)
    found = drifts(series)
    print("\n".join([HEAD, *map(str, found)]))
    outcome.figures["rate"] = round(plan.rate, 1)
    outcome.violations += [f"drift: {drift}" for drift in found if drift.is_drift]
    return outcome
