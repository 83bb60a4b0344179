"""The providers that come with inturn, by the ``type`` that a configuration names them with."""

from inturn.workers.provider import Builder
from inturn.workers.providers.echo import Echo
from inturn.workers.providers.openai import OpenAI

__all__ = ["BUILDERS", "Echo", "OpenAI"]

BUILDERS: dict[str, Builder] = {"echo": Echo, "openai": OpenAI}
