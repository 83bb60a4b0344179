"""The providers, by the ``type`` that a configuration names them with: those that come with inturn, and plug-ins."""

from inturn.workers.providers.anthropic import Anthropic
from inturn.workers.providers.echo import Echo
from inturn.workers.providers.openai import OpenAI
from inturn.workers.providers.plugged import Builders

__all__ = ["BUILDERS", "Anthropic", "Echo", "OpenAI"]

BUILDERS = Builders({"openai": OpenAI, "anthropic": Anthropic, "echo": Echo})
