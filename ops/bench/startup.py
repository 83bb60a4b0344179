"""How long `inturn --help` takes, beside an interpreter that does nothing, and `inturn up` until the first reply."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from inturn import Client
from inturn.models import migrations
from inturn.models.database import Database
from inturn.settings import Settings
from ops.bench.databases import Databases
from ops.bench.processes import RAMP_SECONDS, module, running, wait_until
from ops.bench.rows import Row, compared
from ops.servers import RedisServer

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


def first_reply_row(databases: Databases, broker: RedisServer, directory: Path, repeat: int) -> Row:
    """From `inturn up` to the stored reply to a prompt that waits for it; on SQLite with the embedded broker."""
    found = [first_reply_seconds(databases, broker, directory / f"up-{number}") for number in range(repeat)]
    return Row("inturn up to the first stored reply", databases.kind, None, median(found), "s")


def first_reply_seconds(databases: Databases, broker: RedisServer, home: Path) -> float:
    home.mkdir(mode=0o700)
    is_embedded = databases.kind == "sqlite"
    url = f"sqlite:///{home / 'inturn.db'}" if is_embedded else databases.create()
    places = {"INTURN_HOME": str(home)}
    if not is_embedded:
        broker.flush()
        places |= {"INTURN_DATABASE_URL": url, "INTURN_BROKER_URL": broker.url}
        migrations.upgrade(Database(url))
    settings = Settings.load(**{name.removeprefix("INTURN_").lower(): value for name, value in places.items()})
    with Client(settings) as client:
        turn = client.create_session("first", model="echo/echo").send("hello")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("INTURN_", "CELERY_"))}
        began = datetime.now(UTC)
        with running(module("inturn", "up"), environment=kept | places, output=home / "up.log") as stack:
            wait_until(lambda: turn.refresh().state == "completed", stack, RAMP_SECONDS)
        assert turn.finished_at is not None
        return (turn.finished_at - began).total_seconds()
