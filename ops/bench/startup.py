"""How long `inturn --help` takes, beside an interpreter that does nothing."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ops.bench.rows import Row, compared

TRIES = 7


def wall_seconds(command: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def help_row(directory: Path) -> Row:
    """Medians of interleaved runs, with bytecode cached in ``directory``, as it is where inturn is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(directory)
    ours, bare = [sys.executable, "-m", "inturn", "--help"], [sys.executable, "-c", "pass"]
    wall_seconds(ours, environment)
    pairs = [(wall_seconds(bare, environment), wall_seconds(ours, environment)) for _ in range(TRIES)]
    nothing, help_ = (median(column) for column in zip(*pairs, strict=True))
    return compared("inturn --help", "", None, help_, "s", nothing, "python -c pass")
