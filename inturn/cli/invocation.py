"""What one call of ``inturn`` was told, and the settings and the client that follow from it."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

import click

from inturn.cli import render

if TYPE_CHECKING:
    from inturn.client import Client
    from inturn.settings import Settings

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])

FLAGS = {
    "home": ("DIR", "Where the embedded database and broker live. [INTURN_HOME]"),
    "database_url": ("URL", "postgresql://... or sqlite:///... [INTURN_DATABASE_URL]"),
    "broker_url": ("URL", "redis://..., rediss://... or unix://... [INTURN_BROKER_URL]"),
}


@dataclass
class Invocation:
    """The global flags that were given. Settings and client are imported by who needs them."""

    flags: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> "Settings":
        """All settings, with the flags ahead of them.

        Raises:
            SettingsError: A value is wrong, unknown, or contradicts another one.
        """
        from inturn.settings import Settings

        return Settings.load(**self.flags)

    def client(self) -> "Client":
        """A client that is not started yet: use it in a ``with``."""
        from inturn.client import Client

        logging.getLogger("inturn").handlers = [Remarks(embedded=self.settings.is_embedded)]
        return Client(self.settings)


class Remarks(logging.Handler):
    """Says to a person what the SDK warns a program of."""

    SENTENCES: ClassVar[dict[str, str]] = {
        "hint_failed": "the broker does not answer; what is sent is stored, and workers will find it by themselves",
        "no_worker_alive": "no worker is alive, so nobody replies yet: `inturn doctor` says what to start",
    }

    def __init__(self, *, embedded: bool) -> None:
        super().__init__(logging.WARNING)
        self._silent = {"hint_failed"} if embedded else set()  # there the broker comes with the worker that is started

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"action=(\w+)", record.msg)
        action = found[1] if found else ""
        if action not in self._silent:
            render.talk(self.SENTENCES.get(action) or record.getMessage().removeprefix(f"action={action}: "))


def global_flags(*, hidden: bool = True) -> Callable[[Function], Function]:
    """Let a command or group take the global flags; ``inturn --help`` alone shows them."""

    def declare(function: Function) -> Function:
        for name, (metavar, text) in reversed(FLAGS.items()):
            flag = f"--{name.replace('_', '-')}"
            function = click.option(
                flag, metavar=metavar, help=text, hidden=hidden, expose_value=False, callback=_note_flag
            )(function)
        return function

    return declare


def metrics_flag(function: Function) -> Function:
    """Let a command that runs processes take the port of their metrics."""
    help_ = "Serve metrics from the first free port from this one on [metrics_port of the settings]."
    port = click.IntRange(0, 65_535)
    return click.option(
        "--metrics-port", type=port, metavar="PORT", help=help_, expose_value=False, callback=_note_flag
    )(function)


def _note_flag(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None and option.name:
        context.ensure_object(Invocation).flags[option.name] = value  # the one that stands last is read last


def pass_invocation(command: Callable[Concatenate[Invocation, Arguments], Result]) -> Callable[Arguments, Result]:
    """Hand the invocation to a command, behind whose name the global flags may stand, too; the last one counts."""
    return global_flags()(click.make_pass_decorator(Invocation, ensure=True)(command))
