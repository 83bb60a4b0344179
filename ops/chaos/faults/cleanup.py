"""Faults of a cleanup that somebody called for beside beat's: it does not come to its end, or takes for ever."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from inturn.models.failpoints import VARIABLE
from ops.chaos.fleet import Fleet, Process, end_group
from ops.chaos.nemesis import Attack

AT_WORK_SECONDS = (0.5, 3.0)
"""From its start on, most of which it takes to begin."""
CHUNKS = (1, 8)
LONGEST_SECONDS = 10
"""What takes longer is killed: the next fault waits."""


def attacks(fleet: Fleet, longest: float) -> list[Attack]:
    return [
        Attack("cleanup.killed", "cleanup", partial(killed, fleet)),
        Attack("cleanup.killed_between_chunks", "cleanup", partial(killed_between_chunks, fleet)),
        Attack("cleanup.paused", "cleanup", partial(paused, fleet), (0.5, longest), silences=True),
    ]


@contextmanager
def killed(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL, wherever it is."""
    with begun(fleet) as process:
        time.sleep(dice.uniform(*AT_WORK_SECONDS))
        end_group(process)
    yield {"code": process.returncode}


@contextmanager
def killed_between_chunks(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """It ends by itself as by SIGKILL, with some of what is due removed, and some not."""
    with begun(fleet, f"cleanup.between_chunks:exit@{dice.randint(*CHUNKS)}") as process:
        pass
    yield {"code": process.returncode}


@contextmanager
def paused(fleet: Fleet, dice: random.Random) -> Iterator[dict[str, Any]]:
    """SIGSTOP, wherever it is, with what it has locked."""
    with begun(fleet) as process:
        time.sleep(dice.uniform(*AT_WORK_SECONDS))
        process.send_signal(signal.SIGSTOP)
        try:
            yield {"pid": process.pid}
        finally:
            process.send_signal(signal.SIGCONT)


@contextmanager
def begun(fleet: Fleet, failpoint: str = "") -> Iterator[Process]:
    """A cleanup; it has ended when the block has."""
    process = fleet.command("cleanup", "--yes", **({VARIABLE: failpoint} if failpoint else {}))
    try:
        yield process
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.wait(LONGEST_SECONDS)
        end_group(process)
        process.wait()
