"""The settings of one provider: ``[providers.<name>]`` in a settings file, and whose own variables are honoured."""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_serializer

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

TYPES = ("openai", "anthropic", "echo")
PLUG_INS = "inturn.providers"
"""The group of entry points by which another package brings a type: its name is the type, its value a ``Builder``."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MODEL = re.compile(r"[^\s/]+/\S+")
KEY_IN_QUERY = re.compile(r"key|token|secret|signature|^sig$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Vendor:
    """Somebody whose SDK reads variables that inturn reads as well, for the provider of that name and type."""

    url: str
    url_variable: str
    key_variable: str
    model: str
    """The default model of who has nothing but the key."""


VENDORS = {
    "openai": Vendor("https://api.openai.com/v1", "OPENAI_BASE_URL", "OPENAI_API_KEY", "openai/gpt-5"),
    "anthropic": Vendor(
        "https://api.anthropic.com", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "anthropic/claude-sonnet-4-5"
    ),
}
"""By name. Whose key is there first decides about the default model."""


def plug_ins() -> "EntryPoints":
    """The types of other packages. Looks through everything that is installed: only for a type that is none of ours."""
    from importlib.metadata import entry_points

    return entry_points(group=PLUG_INS)


def checked_variable(name: str, what: str) -> str:
    """The name of an environment variable. A secret that was put here by mistake would be shown wherever the name is.

    Raises:
        ValueError: it is none.
    """
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"it is the name of an environment variable (letters, digits and _, at most 64 of them), not a {what}: put the "
            f"{what} into a variable, and name that here"
        )
    return name


class ModelSettings(BaseModel):
    """A model of a provider: ``alias = "name"``, or a table.

    Attributes:
        name: the provider's own; empty, it is the alias.
        context_tokens: how many it can be shown, with its reply; None where nobody said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = ""
    context_tokens: Count | None = None

    @model_serializer
    def _as_written(self) -> str | dict[str, Any]:
        return self.name if self.context_tokens is None else {"name": self.name, "context_tokens": self.context_tokens}


def _as_model(written: Any) -> Any:
    if isinstance(written, str):
        if not written:
            raise ValueError("a model's name is not empty")
        return {"name": written}
    if isinstance(written, dict) and (unknown := sorted(map(str, written.keys() - ModelSettings.model_fields.keys()))):
        raise ValueError(f"a model has name and context_tokens, and no {', '.join(unknown)}")
    if not isinstance(written, dict | ModelSettings):
        raise ValueError('a model is written as its name, or as { name = "...", context_tokens = 128000 }')
    return written


class ProviderSettings(BaseModel):
    """A configured endpoint that answers prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: str = Field(
        default="openai", description="What the endpoint speaks: openai, anthropic, echo, or a plug-in. Default openai."
    )
    base_url: str = Field(default="", description="Where it is, with /v1. Default none.")
    api_key_env: str = Field(
        default="", description="Environment variable that holds its key. Default none (no key is sent)."
    )
    api_key_header: str = Field(
        default="", description="Header that the bare key is sent in (Azure: api-key). Default: what the type uses."
    )
    options: dict[str, Any] = Field(
        default={}, description="Sent with every call; a session's own options win. Default none."
    )
    headers: dict[str, str] = Field(default={}, repr=False, description="Sent with every call. Default none.")
    models: dict[str, Annotated[ModelSettings, BeforeValidator(_as_model)]] = Field(
        default={},
        description="Other names and context sizes of its models: alias = name, or a table of both. Default none.",
    )
    fallbacks: list[str] = Field(
        default=[],
        description="What turns of sessions that name no chain of their own go on with when a model of this provider "
        "fails: provider/model, in this order. Default none.",
    )
    deadline_seconds: Positive | None = Field(
        default=None, description="Total per call. Default attempt_deadline_seconds."
    )
    requests_per_minute: Count | None = Field(default=None, description="By all workers together. Default no limit.")
    tokens_per_minute: Count | None = Field(
        default=None, description="Of prompts and replies, by all workers together. Default no limit."
    )
    max_in_flight: Count | None = Field(
        default=None, description="Calls at once, by all workers together. Default no limit."
    )
    chat_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2,
        description="Part of the limits that is chat's first; batch has what it leaves, but for calls at once. Default 0.2.",
    )

    @field_validator("type")
    @classmethod
    def _check_type(cls, type_: str) -> str:
        if type_ in TYPES:
            return type_
        theirs = sorted({plug_in.name for plug_in in plug_ins()})
        if type_ not in theirs:
            known = ", ".join([*TYPES, *theirs])
            raise ValueError(
                f"the types here are {known}. A package that brings another must be installed wherever inturn runs"
            )
        return type_

    @field_validator("api_key_env")
    @classmethod
    def _check_api_key_env(cls, name: str) -> str:
        return checked_variable(name, "key") if name else name

    @field_validator("models")
    @classmethod
    def _name_models(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        return {alias: one if one.name else one.model_copy(update={"name": alias}) for alias, one in models.items()}

    @field_validator("fallbacks")
    @classmethod
    def _check_fallbacks(cls, fallbacks: list[str]) -> list[str]:
        for model in fallbacks:
            if not _MODEL.fullmatch(model):
                raise ValueError(f"{model!r:.100} is no model: write provider/model, for example openai/gpt-5")
        return fallbacks

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("a base URL starts with http:// or https:// and names a host")
        if "@" in parts.netloc:
            raise ValueError("a base URL carries no password: put the key into a variable (api_key_env)")
        if any(KEY_IN_QUERY.search(name) for name, _ in parse_qsl(parts.query)):
            raise ValueError("a base URL carries no key: put it into a variable (api_key_env)")
        return url.rstrip("/")

    def model_name(self, model: str) -> str:
        """The provider's own name of a model, which may be an alias."""
        alias = self.models.get(model)
        return alias.name if alias else model

    def context_tokens(self, model: str) -> int | None:
        """How many tokens a model can be shown, by its alias or its name; None where nobody said."""
        named, name = self.models.get(model), self.model_name(model)
        sizes = (one.context_tokens for one in self.models.values() if one.name == name and one.context_tokens)
        return (named and named.context_tokens) or next(sizes, None)

    def api_key(self) -> SecretStr | None:
        """The key, read from the environment now; None when there is none."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return SecretStr(key) if key else None
