"""What inturn adds to a turn, from ``send`` to the reply in the waiter's hands, beyond the model's own time."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from inturn import Client
from inturn.session import Session
from inturn.settings import Settings
from ops.bench.filling import converse, fill
from ops.bench.inturn_subject import Inturn
from ops.bench.meter import part
from ops.bench.model_server import ModelServer, model_server
from ops.bench.rows import Row, in_ms
from ops.bench.runs import say
from ops.bench.workload import PROMPT

MODEL_SECONDS = 0.02
"""The probes' model takes just so long, so that it can be taken off."""
IDLE_TURNS = 200
PAUSE_SECONDS = 0.02
PROBES = 150
PROBE_PAUSE_SECONDS = 0.1
LOAD_SHARE = 0.7
SETTLE_SECONDS = 4.0
LOADED_TURNS = 40
"""For each of the loading sessions: more than it can have answered before the probes are through."""
PROBED = "probed"
HISTORIES = (10, 1_000, 100_000)


@contextmanager
def worked_on(ours: Inturn, url: str, slots: int, probed: ModelServer) -> Iterator[Client]:
    """A worker on this database, and a client whose model is the probed one."""
    with ours.worker(ours.environment(url, slots, **{PROBED: probed})) as worker:
        ours.wait_ready(worker, url)
        providers = {PROBED: {"type": "openai", "base_url": probed.base_url}}
        with Client(Settings.load(database_url=url, broker_url=ours.broker_url, providers=providers)) as client:
            yield client


def probe(session: Session, count: int, pause: float) -> list[float]:
    """Seconds that each of so many turns took longer than its model did."""
    found = []
    for _ in itertools.repeat(None, count):
        began = time.perf_counter()
        session.send_and_wait(PROMPT, timeout=120)
        found.append(time.perf_counter() - began - MODEL_SECONDS)
        time.sleep(pause)
    return found


def idle_rows(ours: Inturn, repeat: int, seed: int) -> Iterator[Row]:
    """Nothing else to do: the first turn after the start, and those after it."""
    firsts, runs = [], []
    with model_server(seed, MODEL_SECONDS, MODEL_SECONDS) as model:
        for _ in range(repeat):
            with ours.empty_database() as url, worked_on(ours, url, 100, model) as client:
                session = client.create_session("idle", model=f"{PROBED}/model")
                found = probe(session, IDLE_TURNS, PAUSE_SECONDS)
            firsts.append(found[0])
            runs.append(found)
            say(
                f"{ours.database}: idle, first {found[0]:.4f} s, p50 {part(found, 50):.4f} s, p99 {part(found, 99):.4f} s"
            )
    for hundredths in 50, 99:
        value = median(part(run, hundredths) for run in runs)
        yield in_ms(f"latency added to an idle system, p{hundredths}", ours.database, value)
    yield in_ms("latency added to the first turn after the start", ours.database, median(firsts))


def loaded_rows(ours: Inturn, repeat: int, seed: int, saturation: float) -> Iterator[Row]:
    """At 70 % of what it can do: so many sessions have a call under way all the time, and a few more turns are sent."""
    loading = round(LOAD_SHARE * saturation)
    runs = []
    with model_server(seed, MODEL_SECONDS, MODEL_SECONDS) as model:
        for _ in range(repeat):
            with ours.empty_database() as url:
                fill(url, loading, turns=LOADED_TURNS)
                ours.hint(loading)
                with worked_on(ours, url, 2 * loading, model) as client:
                    session = client.create_session("probe", model=f"{PROBED}/model")
                    time.sleep(SETTLE_SECONDS)
                    found = probe(session, PROBES, PROBE_PAUSE_SECONDS)
            runs.append(found)
            say(f"{ours.database}: {loading} in flight, p50 {part(found, 50):.4f} s, p99 {part(found, 99):.4f} s")
    for hundredths in 50, 99:
        value = median(part(run, hundredths) for run in runs)
        yield in_ms(f"latency added at 70 % load, p{hundredths}", ours.database, value, loading)


def history_rows(ours: Inturn, seed: int) -> Iterator[Row]:
    """Behind conversations of so many turns, of which a model is shown the last ones."""
    baseline = None
    with model_server(seed, MODEL_SECONDS, MODEL_SECONDS) as model, ours.empty_database() as url:
        for turns in HISTORIES:
            converse(url, f"turns-{turns}", f"{PROBED}/model", turns)
        with worked_on(ours, url, 100, model) as client:
            probe(client.create_session("warm-up", model=f"{PROBED}/model"), IDLE_TURNS // 4, 0)
            for turns in HISTORIES:
                found = median(probe(client.resume_session(f"turns-{turns}"), IDLE_TURNS // 2, PAUSE_SECONDS))
                say(f"{ours.database}: behind {turns} turns, p50 {found:.4f} s")
                name = f"latency added behind {turns:,} turns, p50"
                yield in_ms(name, ours.database, found, baseline=baseline, against=f"behind {HISTORIES[0]} turns")
                baseline = baseline or found
