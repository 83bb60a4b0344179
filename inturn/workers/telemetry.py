"""The metrics of one process, as Prometheus reads them: what there is, and how it is counted.

Labels have few values, and none comes from a conversation: models are those of configured providers, the first so many of
them; all others are "other".
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from inturn.models.states import FINAL, Lane, TurnState
from inturn.models.store.receipts import Removal
from inturn.models.store.sweeping import Rescued
from inturn.models.store.working import Settlement, Started
from inturn.settings import Settings
from inturn.workers.exposition import Exposition
from inturn.workers.health import health_pages
from inturn.workers.lookout import Lookout
from inturn.workers.meter import Meter, Sources

logger = logging.getLogger(__name__)

M = TypeVar("M", Counter, Histogram)

NAMED = 100
"""Values of a label per process: what comes after them is ``OTHER``."""
OTHER = "other"

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From what inturn adds to a turn to what the slowest models take."""
COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
VISITS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: as it is scraped; a histogram's has ``_bucket``, ``_sum`` and ``_count`` behind it.
        kind: ``counter``, ``gauge`` or ``histogram``.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def counter(name: str, text: str, *labels: str) -> Definition:
    return Definition(name, "counter", text, labels)


def gauge(name: str, text: str, *labels: str) -> Definition:
    return Definition(name, "gauge", text, labels)


def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Definition:
    return Definition(name, "histogram", text, labels, buckets)


TURNS = counter(
    "inturn_turns_total",
    "Turns that this process brought to an end. One that is cancelled while it waits, or that ends with its batch, is "
    "ended by who asks for it, and counted by nobody.",
    "outcome", "model", "lane",
)  # fmt: skip
WAIT = histogram(
    "inturn_turn_wait_seconds",
    "From when a turn was due until a worker took it, once for each time that it was taken. None for a turn whose session "
    "the worker had in hand.",
    "lane",
)
TOTAL = histogram("inturn_turn_seconds", "From when a turn was sent until its end was stored.", "outcome", "lane")
CALL = histogram("inturn_call_seconds", "Calls to models, however they ended.", "model")
TOKENS = counter(
    "inturn_tokens_total",
    "Tokens of stored attempts, as their providers counted them or as we estimate them; of which direction: input or "
    "output.",
    "model", "direction",
)  # fmt: skip
COST = counter("inturn_cost_dollars_total", "What they cost, in US dollars, where there is a price.", "model")
ERRORS = counter("inturn_provider_errors_total", "Calls that failed, by error type.", "provider", "error")
BATCHED = histogram(
    "inturn_ledger_visits",
    "Claims and settlements that were stored together in one transaction.",
    buckets=VISITS,
)
COMMITS = histogram(
    "inturn_ledger_commit_seconds", "How long such a transaction took, commit included.", buckets=COMMIT_SECONDS
)
HELD = gauge("inturn_leases_held", "Sessions that this process holds now.")
LOST = counter(
    "inturn_leases_lost_total",
    "Sessions that turned out to be held by somebody else, or to be deleted, when their attempt was to be stored: nothing "
    "was.",
)
REAPED = counter("inturn_leases_reaped_total", "Sessions that this process took back from workers that died or hung.")
HINTS = counter("inturn_hints_failed_total", "Hints that Redis did not take: the sweep finds their sessions later.")
REMOVED_SESSIONS = counter("inturn_removed_sessions_total", "Sessions that scheduled cleanups removed.", "rule")
REMOVED_TURNS = counter("inturn_removed_turns_total", "Turns that were removed with them.", "rule")
REMOVED_BYTES = counter("inturn_removed_bytes_total", "Bytes of their messages.", "rule")
CLEANUPS = counter(
    "inturn_cleanups_total",
    "Scheduled cleanups that this process carried out: completed, or failed in at least one rule.",
    "outcome",
)
UP = gauge("inturn_database_up", "Whether the database answered when it was last asked. If not, the next are absent.")
READY = gauge(
    "inturn_ready_sessions",
    "Of the whole deployment, as are the next: sessions with a turn that is due and that nobody has taken, counted up to "
    "10,000. Each of them waits with one turn at a time.",
    "lane",
)
OLDEST = gauge("inturn_oldest_ready_age_seconds", "Since when the first of them has been due; 0: none waits.", "lane")
PROCESSES = gauge("inturn_processes", "Workers and beats that were heard of within three heartbeats.", "kind")
TICK = gauge(
    "inturn_beat_last_tick_timestamp_seconds",
    "When a beat last had a cleanup begun, in seconds since 1970; absent: none ever did.",
)
SCHEDULES = gauge(
    "inturn_schedules_due", "Schedules with a run that is due: for more than a moment only without a beat."
)
POOLED = gauge("inturn_database_connections_in_use", "Connections to the database that this process uses now.")
BUILD = gauge("inturn_build_info", "Always 1: the version of inturn, and what the process is.", "version", "kind")

DEFINITIONS = (
    TURNS, WAIT, TOTAL, CALL, TOKENS, COST, ERRORS, BATCHED, COMMITS, HELD, LOST, REAPED, HINTS, REMOVED_SESSIONS,
    REMOVED_TURNS, REMOVED_BYTES, CLEANUPS, POOLED, BUILD, UP, READY, OLDEST, PROCESSES, TICK, SCHEDULES,
)  # fmt: skip
"""All there are, but for those that the client library adds of any Python process."""


class Names(dict[str, str]):
    """What stands in a label for a name: itself, or ``OTHER`` once there are too many."""

    def __missing__(self, name: str) -> str:
        if len(self) >= NAMED:
            return OTHER
        self[name] = name
        return name


class Models(Names):
    """The same for models, which whoever makes sessions chooses: of providers that are configured only."""

    def __init__(self, providers: Iterable[str]) -> None:
        super().__init__()
        self._providers = frozenset(providers)

    def __missing__(self, name: str) -> str:
        return super().__missing__(name) if name.partition("/")[0] in self._providers else OTHER


class Series(dict[tuple[str, ...], M]):
    """The series of a metric by the values of its labels, each looked for in the library once."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, values: tuple[str, ...]) -> M:
        made: M = self._metric.labels(*values)
        self[values] = made
        return made


class Telemetry(Meter):
    """Counts what happens in this process."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._settings = settings
        self._models, self._errors, self._rules = Models(settings.available_providers), Names(), Names()
        self._turns, self._tokens = self._counted(TURNS), self._counted(TOKENS)
        self._cost, self._provider_errors = self._counted(COST), self._counted(ERRORS)
        self._wait, self._total, self._call = self._measured(WAIT), self._measured(TOTAL), self._measured(CALL)
        self._visits, self._commits = self._plain(Histogram, BATCHED), self._plain(Histogram, COMMITS)
        self._lost, self._reaped = self._plain(Counter, LOST), self._plain(Counter, REAPED)
        self._removed = [self._counted(each) for each in (REMOVED_SESSIONS, REMOVED_TURNS, REMOVED_BYTES)]
        self._cleanups = self._counted(CLEANUPS)
        for outcome in "completed", "failed":  # there from the start: Prometheus sees no increase of what is new
            self._cleanups[(outcome,)].inc(0)
        self._exposition: Exposition | None = None
        self._lookout: Lookout | None = None

    def _plain(self, kind: type[M], what: Definition) -> M:
        more: dict[str, Any] = {"buckets": what.buckets} if what.buckets else {}
        return kind(what.name, what.help, what.labels, registry=self.registry, **more)

    def _counted(self, what: Definition) -> Series[Counter]:
        return Series(self._plain(Counter, what))

    def _measured(self, what: Definition) -> Series[Histogram]:
        return Series(self._plain(Histogram, what))

    def serve(self, sources: Sources) -> None:
        self._lookout = Lookout(sources.databases[0], self._settings)
        self.registry.register(Gauges(sources, self._lookout))
        self._lookout.start()
        pages = health_pages(sources, self._settings.silent_seconds)
        host, port = self._settings.metrics_host, self._settings.metrics_port
        self._exposition = Exposition(self.registry, host, port, pages)
        self._exposition.start()

    def stop(self) -> None:
        if self._exposition is not None:
            self._exposition.stop()
        if self._lookout is not None:
            self._lookout.end()

    def claimed(self, started: Started, *, goes_on: bool) -> None:
        self._wait[(started.lane,)].observe(0.0 if goes_on else max(0.0, started.waited_seconds))

    def called(self, model: str, seconds: float) -> None:
        self._call[(self._models[model],)].observe(seconds)

    def refused(self, model: str, error_type: str) -> None:
        provider = self._models[model].partition("/")[0]
        self._provider_errors[(provider, self._errors[error_type])].inc()

    def settled(self, started: Started, settlement: Settlement | None, becomes: TurnState | None) -> None:
        super().settled(started, settlement, becomes)
        if settlement is None or becomes is None:
            self._lost.inc()
            return
        model = self._models[started.model]
        if settlement.input_tokens:
            self._tokens[(model, "input")].inc(settlement.input_tokens)
        if settlement.output_tokens:
            self._tokens[(model, "output")].inc(settlement.output_tokens)
        if settlement.price is not None:
            self._cost[(model,)].inc(settlement.price)
        if becomes in FINAL:
            self._turns[(becomes, model, started.lane)].inc()
            self._total[(becomes, started.lane)].observe(time.monotonic() - started.sent_at)

    def committed(self, visits: int, seconds: float) -> None:
        self._visits.observe(visits)
        self._commits.observe(seconds)

    def rescued(self, rescued: Rescued) -> None:
        super().rescued(rescued)
        self._reaped.inc(rescued.leases)
        for state, model, lane in rescued.ended:
            self._turns[(state, self._models[model], lane)].inc()

    def removed(self, removal: Removal) -> None:
        rule = (self._rules[removal.rule],)
        for series, many in zip(self._removed, (1, removal.turns, removal.bytes), strict=True):
            series[rule].inc(many)

    def cleaned_up(self, *, went_well: bool) -> None:
        self._cleanups[("completed" if went_well else "failed",)].inc()


class Gauges:
    """What is looked at when somebody asks: the process's state, and what its lookout saw last of the deployment."""

    def __init__(self, sources: Sources, lookout: Lookout) -> None:
        self._sources, self._lookout = sources, lookout

    def collect(self) -> Iterator[Metric]:
        process = self._sources.process
        yield CounterMetricFamily(HINTS.name, HINTS.help, value=self._sources.hints.failed)
        yield measured(HELD, {(): self._sources.leases_held()})
        yield measured(POOLED, {(): sum(each.connections_in_use() for each in self._sources.databases)})
        yield measured(BUILD, {(process.version, process.kind): 1})
        yield from self._of_deployment()

    def _of_deployment(self) -> Iterator[Metric]:
        seen = self._lookout.seen()
        yield measured(UP, {(): seen is not None})
        if seen is None:
            return
        yield measured(READY, {(lane,): seen.ready[lane] for lane in Lane})
        yield measured(OLDEST, {(lane,): seen.oldest[lane].total_seconds() for lane in Lane})
        yield measured(PROCESSES, {(kind,): many for kind, many in seen.alive.items()})
        yield measured(TICK, {(): seen.last_tick.timestamp()} if seen.last_tick else {})
        yield measured(SCHEDULES, {(): seen.schedules_due})


def measured(what: Definition, values: dict[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(what.name, what.help, labels=what.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
