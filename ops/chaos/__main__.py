"""``python -m ops.chaos``: breaks everything around inturn while it works, and counts what is lost."""

import argparse
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from inturn.models.errors import DatabaseUnreachableError, SchemaError, SettingsError
from ops.chaos import catalogue, results
from ops.chaos.batch import run as batch
from ops.chaos.fleet import QUICK, FleetError, clean_environment
from ops.chaos.options import DATABASES, parse
from ops.chaos.run import Outcome, Plan, play, say
from ops.chaos.soak import soak
from ops.chaos.stage import Stage, our_stage, own_stage
from ops.server_process import ServerUnavailableError

VIOLATIONS_SHOWN = 20


@contextmanager
def stage_of(arguments: argparse.Namespace, kind: str) -> Iterator[Stage]:
    """The deployment that the options ask for."""
    is_run = arguments.command == "run"
    if kind == "own":
        with own_stage(
            model_port=arguments.model_port, default_model=arguments.model, seconds=arguments.seconds,
            seed=arguments.seed, may_flush=arguments.allow_flush, commands=dict(arguments.fault),
        ) as stage:  # fmt: skip
            say(f"chaos: the model server listens at {stage.model.base_url}: a provider of yours must go there")
            yield stage
        return
    pace = {} if arguments.defaults else dict(QUICK)
    if arguments.command == "batch" and not arguments.defaults:
        pace |= batch.PACE
    if arguments.concurrency:
        pace["concurrency"] = arguments.concurrency
    with (
        a_place_of_its_own() as directory,
        our_stage(
            kind, directory, workers=arguments.workers, seconds=arguments.seconds if is_run else 0,
            seed=arguments.seed, pace=pace, is_calm=not is_run, are_apart=arguments.apart,
        ) as stage,
    ):  # fmt: skip
        yield stage


@contextmanager
def a_place_of_its_own() -> Iterator[Path]:
    """A directory and an environment without the settings of whoever started us: they have an inturn of their own."""
    directory, environment, place = Path(tempfile.mkdtemp(prefix="inturn-chaos-")), dict(os.environ), Path.cwd()
    clean = clean_environment(directory)
    os.chdir(directory)
    for name in os.environ.keys() - clean.keys():
        del os.environ[name]
    os.environ.update(clean)
    try:
        yield directory
    except BaseException:
        say(f"chaos: what the processes said is in {directory / 'logs'}")
        raise
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.environ.update(environment)
        os.chdir(place)


class ViolationsError(Exception):
    """The run has shown what must not be."""


def perform(arguments: argparse.Namespace, kind: str, rows: list[dict[str, Any]]) -> None:
    """One run on one deployment; adds what it is known by, its figures and its faults to the rows.

    Raises:
        ViolationsError: it was not good.
    """
    known_by = results.stamp() | {"database": kind, "seed": arguments.seed}
    say(f"chaos: {arguments.command} on {kind}, seed {arguments.seed}, commit {known_by['commit']}")
    with stage_of(arguments, kind) as stage:
        outcome = act(arguments, stage)
        row = known_by | {"database": stage.kind} | outcome.figures
        show(row)
        if arguments.command == "run" and arguments.record:
            results.record(row)
        rows.append(row | {"timeline": [asdict(fault) for fault in outcome.faults]})
        for crash in outcome.crashes:
            say(f"chaos: a process ended by itself: {crash.splitlines()[-1]}")
        for violation in outcome.violations[:VIOLATIONS_SHOWN]:
            say(f"VIOLATION {violation}")
        if outcome.violations:
            raise ViolationsError(f"{len(outcome.violations)} violations on {kind} with seed {arguments.seed}")


def act(arguments: argparse.Namespace, stage: Stage) -> Outcome:
    """Run, soak or submit, as asked for."""
    if arguments.command == "batch":
        attacks = catalogue.chosen(stage.attacks, arguments.faults)
        return batch.play(stage, batch.Plan(arguments.seed, arguments.lines, arguments.sessions, attacks))
    how: dict[str, Any] = {
        "seed": arguments.seed, "sessions": arguments.sessions, "misbehave": arguments.misbehave,
        "meddle": not arguments.no_meddle,
    }  # fmt: skip
    if arguments.command == "soak":
        return soak(stage, Plan(seconds=arguments.minutes * 60, rate=arguments.rate or 0, **how))
    attacks = catalogue.chosen(stage.attacks, arguments.faults)
    for name, why in stage.left_out.items():
        say(f"chaos: left out: {name}: {why}")
    if not attacks:
        say("chaos: no fault of those can happen here: nothing but sending")
    return play(stage, Plan(seconds=arguments.seconds, rate=arguments.rate, attacks=attacks, **how))


def show(figures: dict[str, Any], indent: str = "") -> None:
    """Figures as lines; what has parts, as lines below."""
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            print(f"{indent}{name:<{24 - len(indent)}} {as_text(value)}")


def as_text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {part}" for name, part in value.items()) or "-"
    return str(value)


def leave(_signal: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an exception, so that everything is ended on the way out."""
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = parse()
    if getattr(arguments, "list_faults", False):
        print("\n".join(catalogue.listing()))
        return 0
    arguments.seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    kinds = DATABASES if arguments.database == "both" else (arguments.database,)
    rows: list[dict[str, Any]] = []
    bad = 0
    try:
        for kind in ("own",) if getattr(arguments, "own", False) else kinds:
            try:
                perform(arguments, kind, rows)
            except ViolationsError as error:
                say(f"chaos: {error}")
                bad += 1
    except (DatabaseUnreachableError, FleetError, SchemaError, ServerUnavailableError, SettingsError) as error:
        say(f"chaos: {error}")
        return 1
    except KeyboardInterrupt:
        say("chaos: interrupted")
        return 130
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
