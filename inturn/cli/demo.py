"""``inturn demo``: what inturn is for, in about a minute, in a home of its own."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from inturn.cli import render
from inturn.cli.exits import Exit
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.models.errors import InturnError

MODEL_VARIABLES = ("INTURN_DEFAULT_MODEL", "INTURN_PROVIDERS")
"""The only settings of the user's that count in the demo: who answers the conversation."""
STOPS = (signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option("--keep", is_flag=True, help="Keep the demo's home afterwards, to look around in it.")
@pass_invocation
def demo(invocation: Invocation, keep: bool) -> int:
    """See what inturn is for, in about a minute.

    Runs real commands and shows them, in a temporary home that is removed at the end (with `inturn demo --home DIR`: in
    a new directory, which is kept). Nothing of yours is touched. It is a real check as well: it ends with 1 when
    something is not as it says.
    """
    with interruptible():
        home = own_home(invocation.flags)
        return perform(home, keep or invocation.flags.get("home") is not None)


def own_home(flags: Mapping[str, str | None]) -> Path:
    """A directory that nobody has used.

    Raises:
        click.UsageError: The one that was asked for is in use, or the flags name a database or a broker.
        StorageError: It cannot be written.
    """
    from inturn.workers.home import private_directory

    if flags.get("database_url") or flags.get("broker_url"):
        raise click.UsageError(
            "the demo runs on the embedded database and broker: leave --database-url and --broker-url"
        )
    wanted = flags.get("home")
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="inturn-demo-")).resolve()
    home = Path(wanted).expanduser().absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise click.UsageError(f"{home} is not empty, and the demo must touch nothing of yours: name a new directory")
    return private_directory(home)


def perform(home: Path, keep: bool) -> Exit:
    """The whole demo. A home that shows what went wrong is kept."""
    isolate(home)
    from inturn.cli.scenes import play
    from inturn.cli.stage import CheckFailedError, Stage

    try:
        with Stage(home) as stage:
            play(stage)
        render.data(f"Its home is kept: `INTURN_HOME={home} inturn session list`" if keep else f"{home} is removed.")
    except (CheckFailedError, InturnError) as error:
        keep = True
        render.complain(f"the demo failed: {error}. What it did is in {home}, with the logs in {home / 'log'}")
        return Exit.FAILURE
    finally:
        if not keep:
            os.chdir(home.parent)
            shutil.rmtree(home, ignore_errors=True)
    return Exit.OK


def isolate(home: Path) -> None:
    """From here on this process, and all that it starts, know no home, setting or broker but the demo's."""
    for name in [*os.environ]:
        if name.startswith(("INTURN_", "CELERY_")) and name not in MODEL_VARIABLES:
            del os.environ[name]
    if path := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in path.split(os.pathsep))
    os.environ |= {"INTURN_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
    os.chdir(home)  # away from an inturn.toml


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes, end the demo as Ctrl-C does: with everything cleaned up."""
    heeded = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]  # nohup is respected
    before = {number: signal.signal(number, _interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
