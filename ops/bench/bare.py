"""The bare loop: history read, call, one insert. No queue, no order, no fence, no attempt counted.

Run as a process of its own (``python -m ops.bench.bare``). It prints ``ready`` once it is warm, begins at a line on its
standard input, and goes on until it is terminated or its standard input ends.
"""

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Iterator
from typing import cast

import httpx
import uvloop

from ops.bench.calls import ask, open_client
from ops.bench.store import Store
from ops.bench.workload import TURNS_PER_SESSION


class BareLoop:
    """Works off sessions, so many at once.

    Args:
        client: makes the calls.
        store: keeps the messages.
        model_url: base URL of the model server.
        sessions: how many there are.
    """

    def __init__(self, client: httpx.AsyncClient, store: Store, model_url: str, sessions: int) -> None:
        self._client = client
        self._store = store
        self._model_url = model_url
        self._sessions: Iterator[int] = iter(range(1, sessions + 1))

    async def warm_up(self) -> None:
        """Answer one turn, so that imports, connections and caches are there."""
        await self._answer(next(self._sessions), 1)

    async def run(self, in_flight: int) -> None:
        async with asyncio.TaskGroup() as slots:
            for _ in range(in_flight):
                slots.create_task(self._work())

    async def _work(self) -> None:
        for session in self._sessions:
            for turn in range(1, TURNS_PER_SESSION + 1):
                await self._answer(session, turn)

    async def _answer(self, session: int, turn: int) -> None:
        prompt = await self._store.history(session, turn)
        reply = await ask(self._client, self._model_url, prompt)
        await self._store.keep(session, turn, reply)


def load_store(name: str) -> Store:
    """The store named ``module:Class`` in `ops.bench.loops`."""
    module, _, body = name.partition(":")
    return cast(Store, getattr(importlib.import_module(f"ops.bench.loops.{module}"), body)())


def leave_with_parent() -> None:
    """End this process as soon as its standard input does."""
    sys.stdin.read()
    os._exit(0)


async def run(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    store = load_store(arguments.store)
    await store.open(arguments.database_url)
    bare_loop = BareLoop(open_client(), store, arguments.model_url, arguments.sessions)
    await bare_loop.warm_up()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    loop.run_in_executor(None, leave_with_parent)
    await bare_loop.run(arguments.in_flight)
    print("the bare loop worked off every session before the time was up", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="module:Class in ops.bench.loops")
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--model-url", required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--sessions", type=int, required=True)
    # uvloop, as inturn's pool: the faster loop makes the stronger baseline.
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
