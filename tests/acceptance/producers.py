"""Producers for fault tests: threads that send prompts at a steady pace and keep a log of what was accepted."""

import random
import threading
import time
from types import TracebackType
from typing import Any, Self

from inturn import Client, Session, StorageError
from tests.acceptance.ledger_check import Accepted

THREADS = 4
RETRY_SECONDS = 0.1


class Producers:
    """Send in the background; ``join`` waits for the end.

    Args:
        run: what session IDs and prompts begin with.
        turns, sessions: how many, in all.
        seconds: how long the sending takes, if the database is quick enough.
        after: is added to every prompt: what the model server is to do.
    """

    def __init__(
        self, client: Client, run: str, seed: int, turns: int, sessions: int, seconds: float, after: str = ""
    ) -> None:
        self.accepted: list[Accepted] = []
        self.refused = 0
        self._run, self._turns, self._seconds, self._after = run, turns, seconds, after
        self._sessions = [client.create_session(f"{run}-{number}") for number in range(sessions)]
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(number, random.Random(f"{seed}/{number}")), daemon=True)
            for number in range(THREADS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.join()
        if self._errors and error is None:
            raise self._errors[0]

    @property
    def are_sending(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _work(self, name: int, dice: random.Random) -> None:
        started, share = time.monotonic(), self._turns // THREADS
        try:
            for count in range(share):
                self._send(dice.choice(self._sessions), f"{self._run} {name}.{count}{self._after}")
                time.sleep(max(0.0, started + (count + 1) / share * self._seconds - time.monotonic()))
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            self._errors.append(error)

    def _send(self, session: Session, prompt: str) -> None:
        """Send until it is accepted. The key makes that safe: a commit may have happened whose answer was lost."""
        while True:
            before = time.monotonic()
            try:
                turn = session.send(prompt, idempotency_key=prompt)
            except StorageError:
                self.refused += 1
                time.sleep(RETRY_SECONDS)
                continue
            surrogate, number = map(int, turn.id.split("."))
            self.accepted.append(Accepted(surrogate, number, prompt, time.monotonic() - before))
            return


def spread(values: list[float]) -> dict[str, Any]:
    """Median and 99th percentile, in milliseconds."""
    ordered = sorted(values) or [0.0]
    return {
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 1),
        "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1000, 1),
    }
