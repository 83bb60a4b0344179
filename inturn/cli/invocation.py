"""What one call of ``inturn`` was told, and the settings and the client that follow from it."""

import logging
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import click

from inturn.cli import render

if TYPE_CHECKING:
    from inturn.client import Client
    from inturn.settings import Settings


@dataclass
class Invocation:
    """The global flags; a flag that was not given is None. Settings and client are imported by who needs them."""

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
        "no_worker_alive": "no worker is alive, so nobody replies yet: start one with `inturn worker`",
    }

    def __init__(self, *, embedded: bool) -> None:
        super().__init__(logging.WARNING)
        self._silent = {"hint_failed"} if embedded else set()  # there the broker comes with the worker that is started

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"action=(\w+)", record.msg)
        action = found[1] if found else ""
        if action not in self._silent:
            render.talk(self.SENTENCES.get(action) or record.getMessage())


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
