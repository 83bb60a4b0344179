"""``python -m ops.bench``: the table of what a turn costs, beside bare loops that promise nothing."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from ops.bench.bare_subject import BareLoop
from ops.bench.batches import batch_rows
from ops.bench.circumstances import describe
from ops.bench.databases import Databases, PostgreSQLDatabases, SQLiteFiles
from ops.bench.inturn_subject import Inturn
from ops.bench.lanes import lane_rows
from ops.bench.latency import history_rows, idle_rows, loaded_rows
from ops.bench.limits import limit_rows
from ops.bench.model_server import ModelServer, model_server
from ops.bench.plain_celery import PLAIN_CELERY
from ops.bench.processes import ChildFailedError
from ops.bench.queue_subject import QueueWorker, TaskQueue
from ops.bench.retention import SESSIONS, retention_rows
from ops.bench.rows import FIGURES, GROUPS, LOAD_GROUPS, Row, as_json
from ops.bench.runs import SATURATED, Contest, contend, saturation_of, say, scale
from ops.bench.sending import send_rows
from ops.bench.startup import first_reply_row, help_row
from ops.bench.streams import stream_rows
from ops.bench.table import render
from ops.bench.workload import Load
from ops.server_process import ServerUnavailableError
from ops.servers import PostgresServer, RedisServer

Bench = tuple[ModelServer, RedisServer, Path]
"""What all subjects share: who answers, the broker, and a directory."""
DATABASES = ("postgresql", "sqlite")
BASELINES = {
    "postgresql": {
        "bare loop, raw asyncpg": "raw_asyncpg:RawAsyncpg",
        "bare loop, SQLAlchemy + asyncpg": "sqlalchemy_asyncpg:SQLAlchemyAsyncpg",
    },
    "sqlite": {
        "bare loop, raw sqlite3 in a thread": "raw_sqlite:RawSQLite",
        "bare loop, SQLAlchemy + sqlite3 in a thread": "sqlalchemy_sqlite:SQLAlchemySQLite",
    },
}
"""The strongest first: it is the one to be measured against."""


def listed(text: str, known: Sequence[str]) -> list[str]:
    """Names out of a comma separated list; all that are known when it is empty.

    Raises:
        argparse.ArgumentTypeError: one of them is unknown.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names or list(known)


def rows_option(text: str) -> list[str]:
    return listed(text, GROUPS)


def databases_option(text: str) -> list[str]:
    return listed(text, DATABASES)


def counts(text: str) -> list[int]:
    """Positive numbers out of a comma separated list.

    Raises:
        argparse.ArgumentTypeError: something else is in it.
    """
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: at least one turn is in flight")
    return numbers


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.bench", description=__doc__)
    parser.add_argument(
        "--rows", type=rows_option, default=list(GROUPS), help=f"out of {','.join(GROUPS)}; default all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--seconds", type=float, default=5, help="measured in each run; default 5")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each subject and load; default 3")
    loads = [100, 200, 600, 1000, SATURATED, 5000]
    parser.add_argument("--in-flight", type=counts, default=loads, help=f"default {','.join(map(str, loads))}")
    parser.add_argument("--databases", type=databases_option, default=list(DATABASES), help="default both")
    parser.add_argument("--sessions", type=int, default=SESSIONS, help=f"that are cleaned up; default {SESSIONS:,}")
    parser.add_argument("--seed", type=int, default=1, help="of the model's latency; default 1")
    return parser.parse_args(words)


@contextmanager
def databases_of(kind: str, directory: Path) -> Iterator[Databases]:
    if kind == "sqlite":
        yield SQLiteFiles(directory)
        return
    server = PostgresServer()
    try:
        yield PostgreSQLDatabases(server)
    finally:
        server.stop()


@contextmanager
def broker_running() -> Iterator[RedisServer]:
    broker = RedisServer()
    try:
        yield broker
    finally:
        broker.stop()


def task_queues() -> list[TaskQueue]:
    """Plain Celery, and what else is installed here."""
    if not (find_spec("taskiq") and find_spec("taskiq_redis")):
        return [PLAIN_CELERY]
    from ops.bench.with_taskiq import TASKIQ

    return [PLAIN_CELERY, TASKIQ]


def rows_on(kind: str, arguments: argparse.Namespace, bench: Bench, failures: list[str]) -> Iterator[Row]:
    """All rows of one database."""
    wanted, repeat, seed = set(arguments.rows), arguments.repeat, arguments.seed
    model, broker, directory = bench
    with databases_of(kind, directory) as databases:
        ours = Inturn(databases, broker, model, directory)
        loops = [BareLoop(name, store, databases, model) for name, store in BASELINES[kind].items()]
        queues = [QueueWorker(queue, databases, broker, model, directory) for queue in task_queues()]
        contest = Contest(ours, [*loops, *queues])
        saturation = 0.0
        for in_flight in arguments.in_flight if wanted & set(LOAD_GROUPS) else ():
            for row in contend(contest, Load(in_flight, arguments.seconds), repeat, arguments.rows, failures):
                saturation = max(saturation, row.value if row.name == FIGURES[0].name else 0)
                yield row
        if "workers" in wanted:
            yield scale(ours, Load(SATURATED, arguments.seconds), repeat)
        if "latency" in wanted:
            yield from idle_rows(ours, repeat, seed)
            yield from loaded_rows(ours, repeat, seed, saturation or saturation_of(ours, arguments.seconds, repeat))
        if "history" in wanted:
            yield from history_rows(ours, seed)
        if "send" in wanted:
            yield from send_rows(databases, broker, repeat)
        if "lanes" in wanted:
            yield from lane_rows(ours, databases, broker, seed, repeat)
        if "limits" in wanted:
            yield from limit_rows(ours, databases, broker, seed)
        if "streams" in wanted:
            yield from stream_rows(ours, databases, broker, seed, repeat)
        if "batches" in wanted:
            yield from batch_rows(ours, databases, broker, directory, repeat)
        if "retention" in wanted:
            yield from retention_rows(ours, databases, broker, seed, repeat, arguments.sessions)
        if "start" in wanted:
            yield first_reply_row(databases, broker, directory, repeat)


def measure(arguments: argparse.Namespace, failures: list[str]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="inturn-bench-") as name:
        directory = Path(name)
        rows = [help_row(directory / "bytecode")] if "help" in arguments.rows else []
        if set(arguments.rows) - {"help"}:
            with model_server(arguments.seed) as model, broker_running() as broker:
                for kind in arguments.databases:
                    (directory / kind).mkdir()
                    rows += rows_on(kind, arguments, (model, broker, directory / kind), failures)
    return rows


def leave(_signal: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that the children are ended on the way out."""
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, leave)
    arguments = parse()
    circumstances = describe(arguments.seed, arguments.seconds, arguments.repeat)
    failures: list[str] = []
    try:
        rows = measure(arguments, failures)
    except (ChildFailedError, ServerUnavailableError) as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        say("bench: interrupted")
        return 130
    print(render(rows, circumstances))
    if arguments.json:
        arguments.json.write_text(as_json(rows, circumstances))
    for failure in failures:
        say(f"bench: left out: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
