"""The settings of one webhook: ``[[webhooks]]`` in a settings file."""

import base64
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from inturn.models.errors import SettingsError
from inturn.provider_settings import KEY_IN_QUERY, checked_variable

if TYPE_CHECKING:
    from inturn.models.store.webhooks import Hook

SECRET_PREFIX = "whsec_"
SECRET_BYTES = range(24, 65)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")

Event = Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled", "turn.completed", "turn.failed"]
OF_BATCHES: tuple[Event, ...] = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")


class WebhookSettings(BaseModel):
    """Who is told that something is over."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(description="What commands and the delivery log call it.")
    url: str = Field(description="Where events are sent: https://...")
    secret_env: str = Field(description="Environment variable of the workers that holds its secret (whsec_...).")
    events: tuple[Event, ...] = Field(
        default=OF_BATCHES, min_length=1, description="What it is told of. Default the ends of batches."
    )
    allow_http: bool = Field(default=False, description="Whether the URL may be http://. Default no.")
    allow_private: bool = Field(
        default=False, description="Whether it may be at an address that is not public. Default no."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("a webhook's name is 1 to 60 letters, digits and . _ -")
        return name

    @field_validator("secret_env")
    @classmethod
    def _check_secret_env(cls, name: str) -> str:
        looks_like_one = name.lower().startswith(SECRET_PREFIX)  # without + and / it might be a variable's name
        return checked_variable("" if looks_like_one else name, "secret")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or any(letter.isspace() for letter in url):
            raise ValueError("a webhook's URL starts with https:// and names a host")
        if "@" in parts.netloc or any(KEY_IN_QUERY.search(name) for name, _ in parse_qsl(parts.query)):
            raise ValueError("a webhook's URL carries neither password nor key: its receiver verifies the signature")
        _ = parts.port  # ValueError, if it is none
        return url

    @model_validator(mode="after")
    def _check_scheme(self) -> Self:
        if not self.allow_http and urlsplit(self.url).scheme != "https":
            raise ValueError(
                f"webhook {self.name!r} would be sent over plain http, where others can read and change it: give it an "
                "https:// URL, or set allow_http = true"
            )
        return self

    def secret(self) -> SecretStr:
        """The secret, read from the environment now.

        Raises:
            SettingsError: there is none; the sentence does not show what is there.
        """
        secret = os.environ.get(self.secret_env, "").strip()
        if not secret:
            raise SettingsError(
                f"the variable {self.secret_env} is not set here: put the secret of webhook {self.name!r} into it"
            )
        if not is_secret(secret):
            raise SettingsError(
                f"the variable {self.secret_env} holds no secret: it is {SECRET_PREFIX} and {SECRET_BYTES[0]} to "
                f"{SECRET_BYTES[-1]} random bytes in base64 (docs/webhooks.md makes one)"
            )
        return SecretStr(secret)

    def hook(self) -> "Hook":
        """As the store knows it."""
        from inturn.models.store.webhooks import (
            Hook,
        )  # brings SQLAlchemy, which who only looks at settings does not need

        return Hook(self.name, frozenset(self.events))


def is_secret(text: str) -> bool:
    """Whether it has the form that Standard Webhooks gives to secrets."""
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and len(key) in SECRET_BYTES


def checked_names(webhooks: Sequence[WebhookSettings]) -> None:
    """Raises: ValueError: two webhooks have one name, by which the delivery log knows them."""
    names = [webhook.name for webhook in webhooks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two webhooks are named {twice!r}: give each a name of its own")
