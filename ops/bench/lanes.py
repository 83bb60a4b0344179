"""What a chat turn waits beside a batch that fills the same worker: lanes have to keep the one out of the other's way."""

import itertools
import threading
import time
from collections.abc import Iterator
from statistics import median

from inturn import Client
from inturn.models.states import Lane
from inturn.settings import Settings
from ops.bench.databases import Databases
from ops.bench.filling import fill
from ops.bench.inturn_subject import HELD, Inturn
from ops.bench.meter import part
from ops.bench.model_server import ModelServer, model_server
from ops.bench.rows import Row, compared
from ops.bench.runs import say
from ops.bench.workload import PROMPT, TURNS_PER_SESSION
from ops.servers import RedisServer

BATCH_TURNS = 100_000
SLOTS = 1000
BATCH_SLOTS = 800  # the default share
CHATS = 10
TURNS_A_CHAT = 20
PAUSE_SECONDS = 0.5
CHAT_MODEL_SECONDS = 0.5
CHAT = "chat"


def lane_rows(ours: Inturn, databases: Databases, broker: RedisServer, seed: int, repeat: int) -> Iterator[Row]:
    """The wait over the model's own latency, beside the batch and on an idle worker: medians of interleaved runs."""
    idle, busy = [], []
    with model_server(seed, CHAT_MODEL_SECONDS, CHAT_MODEL_SECONDS) as model:
        for _ in range(repeat):
            idle.append(waits(ours, databases, broker, model, batch_turns=0))
            busy.append(waits(ours, databases, broker, model, batch_turns=BATCH_TURNS))
            say(f"{databases.kind}: p95 {part(idle[-1], 95):.3f} s alone, {part(busy[-1], 95):.3f} s beside the batch")
    for hundredths in 50, 95:
        name = f"chat beside {BATCH_TURNS:,} batch prompts, p{hundredths} over the model"
        value, baseline = (median(part(run, hundredths) for run in runs) for runs in (busy, idle))
        yield compared(name, databases.kind, SLOTS, value, "s", baseline, "no batch")


def waits(ours: Inturn, databases: Databases, broker: RedisServer, model: ModelServer, batch_turns: int) -> list[float]:
    """Seconds that each chat turn took longer than its model did."""
    url = databases.create()
    fill(url, max(1, batch_turns // TURNS_PER_SESSION), Lane.BATCH)
    databases.flush()
    environment = ours.environment(url, SLOTS, chat=model)
    ours.hint(BATCH_SLOTS if batch_turns else 1, Lane.BATCH)
    try:
        with ours.worker(environment) as worker:
            ours.wait_ready(worker, url)
            if batch_turns:
                ours.wait(worker, lambda: databases.times(url, HELD)[0] >= BATCH_SLOTS * 0.95)
            providers = {CHAT: {"type": "openai", "base_url": model.base_url}}
            settings = Settings.load(database_url=url, broker_url=broker.url, providers=providers)
            with Client(settings) as client:
                return chat(client)
    finally:
        databases.drop(url)


def chat(client: Client) -> list[float]:
    """Several conversations at once, at a person's pace."""
    client.create_session("warm-up", model=f"{CHAT}/model").send_and_wait(PROMPT)
    found: list[float] = []
    threads = [threading.Thread(target=converse, args=(client, number, found)) for number in range(CHATS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def converse(client: Client, number: int, found: list[float]) -> None:
    session = client.create_session(f"person-{number}", model=f"{CHAT}/model")
    for _ in itertools.repeat(None, TURNS_A_CHAT):
        began = time.monotonic()
        session.send_and_wait(PROMPT, timeout=120)
        found.append(time.monotonic() - began - CHAT_MODEL_SECONDS)
        time.sleep(PAUSE_SECONDS)
