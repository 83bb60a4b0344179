"""One prompt put to one endpoint: what a failure of the call is told with, and what must not be told."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import inturn.workers.providers.payload as read
from inturn.workers.provider import FailureKind, Prompt, ProviderError
from inturn.workers.providers.scrubbing import scrub


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        provider: its configured name.
        key: empty where none is asked for.
        secrets: key and headers, to be taken out of whatever the provider says.
        key_place: where the key is configured, for people.
    """

    provider: str
    prompt: Prompt = field(repr=False)
    key: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    key_place: str

    @property
    def model(self) -> str:
        """As ``provider/model``."""
        return f"{self.provider}/{self.prompt.model}"

    def failed(self, kind: FailureKind, error_type: str, fact: str, *, status_code: int | None = None) -> ProviderError:
        """The failure, told in a sentence that begins with the model."""
        return ProviderError(kind, error_type, f"{self.model} {fact}", status_code=status_code)

    def scrubbed(self, said: str) -> str:
        """What the provider said, fit to be shown."""
        return scrub(said, secrets=self.secrets, prompt_texts=self._prompt_texts())

    def _prompt_texts(self) -> Iterator[str]:
        for message in self.prompt.messages:
            content = message.get("content")
            yield from read.texts(content)
            for part in content if isinstance(content, list) else []:
                url = read.field(read.field(part, "image_url"), "url")
                if isinstance(url, str):
                    yield url
            for call in message.get("tool_calls") or ():
                yield call["function"]["arguments"]
