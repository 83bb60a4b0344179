"""Faults of a SQLite file: a stranger writes and does not stop."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ops.chaos.nemesis import Attack

# A process of its own, as locks of one process know one another. It lets go at the end of its input, or of its life.
WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE leases SET token = token")
print("writing", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""
LEAVE_SECONDS = 10


def attacks(path: Path, longest: float) -> list[Attack]:
    length = (0.5, longest)
    return [
        Attack("sqlite.writer", "sqlite", partial(writer, path), length, silences=True),
        Attack("sqlite.writer_killed", "sqlite", partial(writer_killed, path), (0.1, 1), silences=True),
    ]


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-Ic", WRITER, path], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        yield child
    finally:
        child.stdin.close()
        child.wait(LEAVE_SECONDS)
        child.stdout.close()


@contextmanager
def writer(path: Path, dice: random.Random) -> Iterator[dict[str, Any]]:
    """It holds the lock, and leaves in order."""
    with holding(path) as child:
        yield {"pid": child.pid}


@contextmanager
def writer_killed(path: Path, dice: random.Random) -> Iterator[dict[str, Any]]:
    """It is killed in the middle of a transaction."""
    with holding(path) as child:
        yield {"pid": child.pid}
        child.kill()
