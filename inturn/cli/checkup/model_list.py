"""A list of models as a stranger sent it: OpenAI's, Anthropic's page by page, and what others make of it."""

import json
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """What came over HTTP. The body is empty where nobody needs it."""

    status: int
    kind: str
    location: str
    body: bytes

    @property
    def is_page(self) -> bool:
        return "html" in self.kind.lower() or self.body.lstrip()[:1] == b"<"

    @property
    def lacks_scope(self) -> bool:
        """OpenAI says 401 to a key that is good, and may not list."""
        return b"missing scopes" in self.body.lower()

    @property
    def origin(self) -> str:
        """Of the place that a redirect leads to; the rest of it may hold anything."""
        try:
            parts = urlsplit(self.location)
            return (
                f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}" if parts.hostname else ""
            )
        except ValueError:
            return ""


@dataclass(frozen=True, slots=True)
class Page:
    """Models, and where the next ones begin.

    Attributes:
        remark: why a name that is not there may be known all the same.
    """

    names: tuple[str, ...]
    after: str = ""
    remark: str = ""

    def __add__(self, later: "Page") -> "Page":
        return replace(later, names=self.names + later.names)

    def cut_off(self) -> "Page":
        return replace(self, remark="there are more of them, so no name was looked up")

    def has(self, name: str) -> bool:
        """Ollama's names have a tag, which need not be said; OpenRouter's may get one, which is not listed; LiteLLM's
        may be patterns.
        """
        same = {name, f"{name}:latest", name.rpartition(":")[0]}
        return any(one in same or ("*" in one and fnmatchcase(name, one)) for one in self.names)


def read_page(body: bytes) -> Page | None:
    """None for what is no list of models."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    listed = payload.get("data") if isinstance(payload, dict) else payload  # Together sends the bare list
    if listed is None and isinstance(payload, dict) and payload.get("object") == "list":
        listed = []  # Ollama without a model
    if not isinstance(listed, list):
        return None
    models = [one for one in listed if isinstance(one, dict) and one.get("id") and isinstance(one["id"], str)]
    if listed and not models:
        return None
    names = tuple(one["id"] for one in models)
    return Page(names, _after(payload), _remark(models))


def _after(payload: Any) -> str:
    last = payload.get("last_id") if isinstance(payload, dict) and payload.get("has_more") is True else None
    return last if isinstance(last, str) else ""


def _remark(models: list[dict[str, Any]]) -> str:
    if models and all(one.get("owned_by") == "llamacpp" for one in models):
        return "llama.cpp answers to any name"
    return ""
