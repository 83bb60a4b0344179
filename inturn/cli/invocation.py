"""What one call of ``inturn`` was told, and the settings and the client that follow from it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

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

        return Client(self.settings)


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)
