"""A provider of one's own: it says what it heard, softly or loudly, and calls every tool whose name it hears.

What is worth copying: it is built from its name and its settings, it tells a reply while it makes it, it calls only the
tools that it was offered, and whatever goes wrong leaves it as a ``ProviderError`` of one of three kinds. The deadline,
the cap on a reply's size, text that no database takes, running tools, and trying again are inturn's affair.
"""

import re
from collections.abc import Callable

from inturn.workers.provider import OnDelta, Prompt, ProviderConfig, ProviderError, Reply, ToolCall

VOICES: dict[str, Callable[[str], str]] = {"soft": str.lower, "loud": str.upper}


class Parrot:
    """One object per configured name, used by thousands of turns at once: keep nothing of a turn in it."""

    def __init__(self, name: str, config: ProviderConfig) -> None:
        self._name = name
        self._options = config.options  # there are config.base_url and config.api_key(), too

    async def reply(self, prompt: Prompt, on_delta: OnDelta | None = None) -> Reply:
        """Answer, once.

        Raises:
            ProviderError: it has no such voice, or heard nothing.
        """
        voice = {"voice": "soft", **self._options, **prompt.options}["voice"]
        if voice not in VOICES:
            # "permanent": the same again would fail again. "safe": nothing was done. "ambiguous": something may have been.
            message = f"{self._name}/{prompt.model} has no voice {voice!r:.50}: take one of {', '.join(VOICES)}"
            raise ProviderError("permanent", "invalid_request", message)
        latest = prompt.messages[-1]
        heard = latest["content"]
        if not isinstance(heard, str):  # parts, as OpenAI writes them: what is no text is not for parrots
            heard = "".join(part.get("text", "") for part in heard)
        called = [tool.name for tool in prompt.tools if latest["role"] == "user" and tool.name in heard.split()]
        if called:  # what they say comes in the next prompt, in messages of role "tool"
            calls = [ToolCall(f"{prompt.key}-{number}", name, "{}") for number, name in enumerate(called)]
            return Reply("", tool_calls=tuple(calls))
        content = VOICES[voice](heard)
        if on_delta is not None:  # somebody reads along
            for word in re.findall(r"\S+\s*|\s+", content):
                on_delta(word)
        return Reply(content)

    async def aclose(self) -> None:
        """Nothing is open."""
