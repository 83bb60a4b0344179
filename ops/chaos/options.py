"""What ``python -m ops.chaos`` can be asked for."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ops.chaos import catalogue
from ops.chaos.batch.run import FAULTS

DATABASES = ("sqlite", "postgresql")
DESCRIPTION = "Break everything around inturn while it works, and compare the books afterwards."


def faults_option(text: str) -> list[str]:
    """Names, groups and kinds out of a comma separated list.

    Raises:
        argparse.ArgumentTypeError: one of them is unknown.
    """
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    for word in wanted:
        if word not in catalogue.words():
            raise argparse.ArgumentTypeError(f"{word!r} is neither a fault nor a group nor a kind: see --list-faults")
    return wanted


def command_option(text: str) -> tuple[str, str]:
    """The name and the words of a command.

    Raises:
        argparse.ArgumentTypeError: one of them is missing.
    """
    name, _, command = text.partition("=")
    if not (name and command):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
    return name, command


def positive(text: str) -> float:
    """Raises: argparse.ArgumentTypeError, ValueError: it is none."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def share(text: str) -> float:
    """Raises: argparse.ArgumentTypeError, ValueError: it is none."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def count(text: str) -> int:
    """Raises: argparse.ArgumentTypeError, ValueError: it is none."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ops.chaos", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="faults at random, and the books compared afterwards")
    soak = commands.add_parser("soak", help="half load for long: memory, descriptors and connections must not drift")
    batch = commands.add_parser("batch", help="a batch whose submitter, workers and Redis are killed until it is done")
    for each in run, soak, batch:
        each.add_argument("--database", choices=(*DATABASES, "both"), default="both", help="default both, in turn")
        each.add_argument("--seed", type=int, help="replays the dice; default random, and printed")
        each.add_argument("--workers", type=count, default=2, help="processes; default 2")
        each.add_argument("--concurrency", type=count, help="turns at once in each of them; default inturn's own")
        each.add_argument("--defaults", action="store_true", help="inturn's own settings, rather than quick repairs")
        each.add_argument("--apart", action="store_true", help="each process on a host of its own, as it seems (Linux)")
        each.add_argument(
            "--json", type=lambda text: Path(text).absolute(), metavar="FILE", help="write the figures there too"
        )
    for each in run, soak:
        each.add_argument("--sessions", type=count, default=100, help="default 100, and fewer that are meddled with")
        each.add_argument("--misbehave", type=share, default=0.03, help="share of prompts that upset the model")
        each.add_argument("--no-meddle", action="store_true", help="nothing is cancelled, deleted or expired")
    run.add_argument("--faults", type=faults_option, default=[], help="names, groups or kinds; default all")
    add_run_options(run)
    batch.add_argument("--lines", type=count, default=10_000, help="default 10,000")
    batch.add_argument("--sessions", type=count, default=1000, help="default 1,000")
    kills = "names, groups or kinds; default: what kills workers, and what kills, empties or stops Redis"
    batch.add_argument("--faults", type=faults_option, default=list(FAULTS), help=kills)
    soak.add_argument("--minutes", type=positive, default=20, help="of sending; default 20")
    soak.add_argument("--rate", type=positive, help="prompts per second; default half of what is measured first")
    return parser.parse_args(words)


def add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--seconds", type=positive, default=60, help="of sending; default 60")
    run.add_argument("--rate", type=positive, default=50, help="prompts per second; default 50")
    run.add_argument("--list-faults", action="store_true", help="name all faults, and run nothing")
    run.add_argument("--record", action="store_true", help="add a row to RESULTS.md")
    own = run.add_argument_group("your own deployment")
    own.add_argument("--own", action="store_true", help="take database and Redis from the INTURN_* settings")
    own.add_argument("--model", default="", metavar="PROVIDER/NAME", help="its provider must be the model server here")
    own.add_argument("--model-port", type=int, default=0, help="where that one listens; default a free port")
    own.add_argument("--allow-flush", action="store_true", help="all that is in that Redis may go")
    words = "one more: a shell command that begins and undoes it, such as 'kill=docker restart worker-1'"
    own.add_argument("--fault", type=command_option, action="append", default=[], metavar="NAME=COMMAND", help=words)
