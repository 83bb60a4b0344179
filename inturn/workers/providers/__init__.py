"""The providers that come with inturn, by the ``type`` that a configuration names them with."""

from collections.abc import Mapping

from inturn.workers.provider import Builder, ProviderConfig, Providers
from inturn.workers.providers.echo import Echo
from inturn.workers.providers.openai import OpenAI

__all__ = ["BUILDERS", "Echo", "OpenAI", "open_providers"]

BUILDERS: dict[str, Builder] = {"echo": Echo, "openai": OpenAI}


def open_providers(configured: Mapping[str, ProviderConfig], *, deadline_seconds: float) -> Providers:
    """``settings.available_providers`` made ready to be asked; nothing is connected yet."""
    return Providers(configured, BUILDERS, deadline_seconds=deadline_seconds)
