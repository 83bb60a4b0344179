"""What a figure is worth nothing without: machine, versions, commit, date."""

import os
import platform
import sqlite3
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

LIBRARIES = ("celery", "sqlalchemy", "httpx", "httpx-aiohttp", "aiohttp", "asyncpg", "psycopg", "uvloop")
OPTIONAL = ("taskiq",)


def cpu_model() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The tree's commit, with a note when files were changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(seed: int, seconds: float, repeat: int) -> dict[str, str]:
    """All of it, to be asked before the first run."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} x {cpu_model()}, {memory:.0f} GiB, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in (*LIBRARIES, *filter(find_spec, OPTIONAL))),
        "busy": f"load average {os.getloadavg()[0]:.2f} before the first run",
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "model": f"latency uniform in 0.5 to 1.5 s, seed {seed}",
        "runs": f"medians of {repeat} interleaved runs, each {seconds:g} s with every slot at work",
    }
