"""Faults of a deployment that is not ours: commands of its owner, who knows how to hit it."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ops.chaos.nemesis import KINDS, Attack

RUN_SECONDS = 600


def attack(name: str, command: str) -> Attack:
    """A shell command that does harm and undoes it before it ends. A name such as ``kill`` says what it comes down to."""
    kind = name.partition(".")[0]
    known = kind if kind in KINDS else "command"
    return Attack(name, known, partial(run, command), silences=known in ("pause", "partition", "postgresql_other"))


@contextmanager
def run(command: str, dice: random.Random) -> Iterator[dict[str, Any]]:
    done = subprocess.run(command, shell=True, check=False, capture_output=True, text=True, timeout=RUN_SECONDS)
    yield {"code": done.returncode, "said": (done.stderr or done.stdout).strip()[-500:]}
