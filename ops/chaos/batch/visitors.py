"""Visitors: somebody who talks into the sessions of a batch while it runs."""

import itertools
import random
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from inturn import Client
from ops.chaos.correspondents import Correspondent
from ops.chaos.promises import Log, Population

EVERY_SECONDS = 0.1


class Visitors:
    """Send in the background, until the end of the ``with`` block.

    Args:
        log: gets what was accepted.
        run: what prompts begin with.
        keys: IDs of sessions; those that are not there yet are made, and the batch finds them.
    """

    def __init__(self, client: Client, log: Log, run: str, keys: Sequence[str], seed: str) -> None:
        self._client, self._log, self._run, self._keys = client, log, run, keys
        self._dice = random.Random(seed)
        self._known: dict[str, Correspondent] = {}
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._visit, name="visitors", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _visit(self) -> None:
        try:
            for number in itertools.count(1):
                if self._stopping.wait(self._dice.expovariate(1 / EVERY_SECONDS)):
                    return
                self._host().send(f"{self._run} visit {number}", self._dice)
        except BaseException as error:  # noqa: BLE001 - the end of the block raises it
            self._error = error

    def _host(self) -> Correspondent:
        key = self._dice.choice(self._keys)
        if key not in self._known:
            self._known[key] = Correspondent(self._client, self._log, key, Population.PLAIN)
        return self._known[key]
