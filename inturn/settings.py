"""Settings: read once, validated between fields, every value with its origin, secrets masked.

A value comes from the first of: a flag (or keyword argument), the environment (``INTURN_<NAME>``), ``./inturn.toml``,
the user's file, the default. Tables of providers are merged over all of them. Keys of providers are never read into
settings: a provider names the environment variable of its key, and asks for it at use.
"""

import difflib
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import platformdirs
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from inturn.budget_settings import BudgetSettings
from inturn.flower_settings import Logins
from inturn.models.cron import Cron
from inturn.models.errors import SettingsError
from inturn.origins import ENVIRONMENT_PREFIX, PROJECT_FILE, layers_of, origin_of, read_toml, user_file
from inturn.provider_settings import VENDORS, Positive, Vendor
from inturn.provider_settings import ProviderSettings as ProviderSettings  # who reads settings finds them all here
from inturn.retention_settings import DAY_SECONDS, EXPIRING, TICK_DAYS, RetentionSettings, checked_rules
from inturn.urls import MASK, broker_or_none, masked_url, normalised_broker, normalised_database
from inturn.webhook_settings import WebhookSettings, checked_names

if TYPE_CHECKING:
    from inturn.models.store.expiry import Expiry
    from inturn.models.store.rules import Rule
    from inturn.models.store.webhooks import Hook

Count = Annotated[int, Field(ge=1)]
KeptDays = Annotated[float, Field(gt=0, le=365_000)]

PAID = "a stopping worker would throw away a reply that is paid for"
RULES: dict[str, Callable[[float, float], bool]] = {
    "must be less than half of": lambda value, other: value * 2 < other,
    "must be below": operator.lt,
    "must not be above": operator.le,
}
PAIRS = (
    ("heartbeat_seconds", "must be less than half of", "lease_seconds", "one late heartbeat would double a call"),
    (
        "sweep_seconds",
        "must not be above",
        "lease_seconds",
        "turns of a dead worker would wait for longer than its lease",
    ),
    ("cancel_poll_seconds", "must not be above", "heartbeat_seconds", "a cancelled call would go on for too long"),
    ("max_ambiguous_attempts", "must not be above", "max_attempts", "the calls it counts are among them"),
    ("retry_base_seconds", "must not be above", "retry_cap_seconds", "waits grow from the one to the other"),
    ("batch_days", "must not be above", "unread_batch_days", "what nobody has read would be the first to go"),
    ("attempt_deadline_seconds", "must be below", "shutdown_grace_seconds", PAID),
)


class Settings(BaseSettings):
    """Everything that can be set. Times are seconds, or in the unit that the name ends with."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, hide_input_in_errors=True
    )

    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("inturn"),
        description="Where the embedded database and broker live. Default: the user's data directory, on Linux "
        "~/.local/share/inturn.",
    )
    database_url: str = Field("", description="sqlite:///... or postgresql://... Default: inturn.db in the home.")
    broker_url: str = Field("", description="redis://, rediss:// or unix://. Default: the embedded broker.")
    default_model: str = Field(
        "",
        description="Model of sessions that name none. Default openai/gpt-5 with OPENAI_API_KEY, "
        "anthropic/claude-sonnet-4-5 with ANTHROPIC_API_KEY, else echo/echo.",
    )
    providers: dict[str, ProviderSettings] = Field({}, description="Configured providers by name. Default none.")
    budgets: list[BudgetSettings] = Field([], description="What may be spent, and by whom. Default no limit.")
    webhooks: list[WebhookSettings] = Field([], description="Who is told of ends of batches and turns. Default nobody.")

    lease_seconds: Positive = Field(20, description="How long a session is held without heartbeat. Default 20.")
    heartbeat_seconds: Positive = Field(5, description="How often a worker renews its leases. Default 5.")
    sweep_seconds: Positive = Field(5, description="How often lost hints and dead leases are looked for. Default 5.")
    cancel_poll_seconds: Positive = Field(1, description="How often workers look for cancelled turns. Default 1.")
    attempt_deadline_seconds: Positive = Field(120, description="Total time of one call to a model. Default 120.")
    max_attempts: Count = Field(5, description="Calls per turn. Default 5.")
    max_ambiguous_attempts: Count = Field(2, description="Calls per turn that may have been paid for. Default 2.")
    max_rescues: Count = Field(3, description="How often a turn is taken over from a dead worker. Default 3.")
    context_turns: Count = Field(20, description="Earlier turns that a model is shown. Default 20.")
    retention_days: KeptDays = Field(30, description="Idle days after which a session is removed. Default 30.")
    retention: list[RetentionSettings] = Field([], description="Rules ahead of that, for some sessions. Default none.")
    max_removal_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="Share of all sessions that a cleanup removes at once without asking. Default 0.5."
    )
    receipt_days: KeptDays = Field(3650, description="Days for which receipts of removals are kept. Default 3650.")
    batch_days: KeptDays = Field(90, description="Days for which a batch is kept once it was read. Default 90.")
    unread_batch_days: KeptDays = Field(
        365, description="Days for which a batch that is over is kept if nobody reads it. Default 365."
    )
    delivery_days: KeptDays = Field(30, description="Days for which deliveries of webhooks are logged. Default 30.")
    spending_days: KeptDays = Field(30, description="Days for which spending per day is kept. Default 30.")
    cleanup_interval_seconds: Positive = Field(3600, description="How often beat cleans up. Default 3600.")
    cleanup_chunk: Count = Field(1000, description="Sessions removed per transaction, at most. Default 1000.")
    concurrency: Count = Field(1000, description="Sessions that one worker process serves at once. Default 1000.")
    batch_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="Share of a worker's slots that batch may take where it also serves chat. Default 0.8."
    )
    slice_turns: Count = Field(64, description="Turns a task works off before it goes back into the queue. Default 64.")
    slice_seconds: Positive = Field(60, description="Time a task works before it goes back into the queue. Default 60.")
    shutdown_grace_seconds: Positive = Field(
        130, description="How long `inturn up` lets a stopping worker take. Default 130."
    )
    retry_base_seconds: Positive = Field(1, description="Wait before the first retry; doubles. Default 1.")
    retry_cap_seconds: Positive = Field(60, description="Longest wait before a retry. Default 60.")
    tool_modules: list[str] = Field([], description="Modules whose tools the workers have. Default none.")
    tool_deadline_seconds: Positive = Field(30, description="Total time of one call of a tool. Default 30.")
    max_tool_rounds: Count = Field(10, description="How often a turn's model may have tools called. Default 10.")
    ledger_gap_seconds: Positive = Field(
        0.05, description="Shortest time between two commits; less where calls are quick. Default 0.05."
    )

    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        0, description="Where worker and beat serve metrics: the first free port from here on. Default 0, off."
    )
    metrics_host: str = Field("127.0.0.1", description="The address that they serve them on. Default 127.0.0.1.")
    traces: bool = Field(False, description="Whether turns are traced, as OTEL_* say. Default false.")
    trace_content: bool = Field(False, description="Whether traces say what was said. Default false.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="What workers, beat and Flower log. Default auto: JSON where stderr is no terminal."
    )

    flower_basic_auth: Logins = Field("", description="Flower's logins: USER:PASSWORD, .... Default none.")
    flower_address: str = Field("127.0.0.1", description="Where Flower listens. Default 127.0.0.1.")
    flower_port: Annotated[int, Field(ge=0, le=65_535)] = Field(5555, description="And its port. Default 5555.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **flags: Any) -> None:
        """Read all sources, with ``flags`` (by field name) ahead of them.

        Raises:
            SettingsError: A value is wrong, unknown, or contradicts another one.
        """
        layers = list(layers_of(flags))
        try:
            super().__init__(**flags)
        except ValidationError as error:
            raise SettingsError("\n".join(_sentence(detail, layers) for detail in error.errors())) from None
        except SourceError as error:
            raise SettingsError(_not_json(str(error))) from None
        self._origins = {name: origin_of((name,), layers) for name in type(self).model_fields}
        for refusal in self._contradictions():
            raise SettingsError(refusal)
        _ = self.available_providers  # OPENAI_BASE_URL and the like are looked at now, and not first by a worker

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """Read all sources; flags that are None count as not given.

        Raises:
            SettingsError: A value is wrong, unknown, or contradicts another one.
        """
        return cls(**{name: value for name, value in flags.items() if value is not None})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = (InitSettingsSource(settings_cls, read_toml(path)) for path in (Path(PROJECT_FILE), user_file()))
        return (init_settings, env_settings, *files)

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, home: Path) -> Path:
        if "?" in str(home):
            raise ValueError("a home with a question mark in its path cannot be part of a database URL")
        return home.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _normalise_database_url(cls, url: str) -> str:
        return normalised_database(url)

    @field_validator("broker_url")
    @classmethod
    def _normalise_broker_url(cls, url: str) -> str:
        return normalised_broker(url)

    @field_validator("default_model")
    @classmethod
    def _check_model(cls, model: str) -> str:
        if model and not re.fullmatch(r"[^/\s]+/\S+", model):
            raise ValueError("a model is written provider/model, for example openai/gpt-5")
        return model

    @field_validator("providers", mode="before")
    @classmethod
    def _speak_as_they_are_called(cls, providers: Any) -> Any:
        """``[providers.anthropic]`` needs to name no type."""
        theirs = providers.get("anthropic") if isinstance(providers, Mapping) else None
        return {**providers, "anthropic": {"type": "anthropic", **theirs}} if isinstance(theirs, Mapping) else providers

    @field_validator("providers")
    @classmethod
    def _check_providers(cls, providers: dict[str, ProviderSettings]) -> dict[str, ProviderSettings]:
        for name, provider in providers.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"{name!r} is no name for a provider: use letters, digits and . _ -")
            if provider.type in VENDORS and not provider.base_url and name != provider.type:
                raise ValueError(f'provider {name!r} has no base_url: say where it is (or set its type to "echo")')
        return providers

    @field_validator("webhooks")
    @classmethod
    def _check_webhooks(cls, webhooks: list[WebhookSettings]) -> list[WebhookSettings]:
        checked_names(webhooks)
        return webhooks

    @field_validator("retention")
    @classmethod
    def _check_retention(cls, rules: list[RetentionSettings]) -> list[RetentionSettings]:
        checked_rules(rules)
        return rules

    def rules(self) -> "list[Rule]":
        """The rules of retention in their order, as the store knows them: sessions' own times first, the default last."""
        from inturn.models.store.rules import OWN, default_rule  # brings SQLAlchemy

        return [OWN, *(each.rule() for each in self.retention), default_rule(self.retention_days * DAY_SECONDS)]

    def crons(self) -> dict[str, Cron]:
        """The rules that are carried out at moments of their own, by name."""
        return {each.name: cron for each in self.retention if (cron := each.moments()) is not None}

    def expiries(self) -> "list[Expiry]":
        """What expires besides sessions, as the store knows it."""
        from inturn.models.store.expiry import Expiry  # brings SQLAlchemy

        days = {name: getattr(self, setting) for name, setting in EXPIRING.items()} | {"old ticks": TICK_DAYS}
        return [Expiry(name, each * DAY_SECONDS) for name, each in days.items()]

    def hooks(self) -> "list[Hook]":
        """The webhooks, as the store knows them."""
        return [webhook.hook() for webhook in self.webhooks]

    @property
    def effective_database_url(self) -> str:
        """The database that is used, as SQLAlchemy writes it."""
        return self.database_url or f"sqlite:///{self.home / 'inturn.db'}"

    @property
    def silent_seconds(self) -> float:
        """A process that was not heard of for as long is not alive, as far as anybody can tell: three heartbeats."""
        return self.heartbeat_seconds * 3

    @property
    def effective_max_rescues(self) -> int:
        """How often a turn is taken over before it is tried in a process of its own: an attempt is left for that."""
        return max(1, min(self.max_rescues, self.max_attempts - 1))

    @property
    def has_embedded_broker(self) -> bool:
        """Whether hints go through the Valkey in the home."""
        return not self.broker_url

    @property
    def is_embedded(self) -> bool:
        """Whether database and broker are both the embedded ones: inturn may then start workers by itself."""
        return not self.broker_url and not self.database_url

    @property
    def effective_default_model(self) -> str:
        """The model of a session that names none."""
        available = self.available_providers
        of_vendors = (
            vendor.model for name, vendor in VENDORS.items() if name in available and available[name].api_key()
        )
        return self.default_model or next(of_vendors, "echo/echo")

    @property
    def available_providers(self) -> dict[str, ProviderSettings]:
        """The configured providers, echo, and openai and anthropic where their keys are in the environment."""
        available = {"echo": ProviderSettings(type="echo"), **self.providers}
        for name, vendor in VENDORS.items():
            if name in self.providers or os.environ.get(vendor.key_variable):
                available[name] = _completed(self.providers.get(name) or ProviderSettings(type=name), name, vendor)
        return available

    def origins(self) -> dict[str, str]:
        """Where each value came from, by field name: flag, environment INTURN_X, a file's path, or default."""
        return dict(self._origins)

    def masked(self) -> dict[str, Any]:
        """Every value, fit to be shown to anybody: passwords and header values are replaced by ``***``."""
        values = self.model_dump(mode="json")
        for name in ("database_url", "broker_url"):
            values[name] = masked_url(values[name])
        values["flower_basic_auth"] = MASK if self.flower_basic_auth else ""
        for provider in values["providers"].values():
            provider["headers"] = dict.fromkeys(provider["headers"], MASK)
        for rule in values["retention"]:
            rule["archive"] = masked_url(rule["archive"])
        return values

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        yield from self.masked().items()

    def _contradictions(self) -> Iterator[str]:
        """Sentences about settings that would lose or double work together."""
        for name, rule, other, reason in PAIRS:
            if not RULES[rule](getattr(self, name), getattr(self, other)):
                first, second = self._shown(name), self._shown(other)
                yield f"{name} is {first} and {rule} {other}, which is {second}: {reason}. Change one of them"
        for name, provider in self.providers.items():
            if (provider.deadline_seconds or 0) >= self.shutdown_grace_seconds:
                grace = self._shown("shutdown_grace_seconds")
                yield (
                    f"providers.{name}.deadline_seconds is {provider.deadline_seconds:g} and must be below "
                    f"shutdown_grace_seconds, which is {grace}: {PAID}. Change one of them"
                )
        for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
            theirs = os.environ.get(variable)
            if theirs and self.broker_url not in (theirs, broker_or_none(theirs)):
                yield (
                    f"{variable} is {masked_url(theirs)} and broker_url is {self._shown('broker_url')}: Celery follows "
                    "the former, so hints and workers would miss each other. Unset it, or set INTURN_BROKER_URL to it"
                )

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        text = f"{value:g}" if isinstance(value, float) else masked_url(str(value)) or "the embedded one"
        return f"{text} ({self._origins[name]})"


def _completed(provider: ProviderSettings, name: str, vendor: Vendor) -> ProviderSettings:
    """A vendor's provider, with what it leaves out taken from the variables that the vendor's own SDK reads.

    Raises:
        SettingsError: The variable of its base URL holds none.
    """
    if provider.type != name or provider.base_url:
        return provider
    url, key = os.environ.get(vendor.url_variable) or vendor.url, provider.api_key_env or vendor.key_variable
    try:
        return ProviderSettings.model_validate(provider.model_dump() | {"base_url": url, "api_key_env": key})
    except ValidationError:
        shown = masked_url(url).partition("?")[0]
        raise SettingsError(
            f"{vendor.url_variable} is {shown!r}, which is no base URL: it starts with http:// or https://, "
            "names a host, and carries neither password nor key. Correct it, or unset it"
        ) from None


def _sentence(detail: ErrorDetails, layers: list[tuple[str, Mapping[str, Any]]]) -> str:
    """What pydantic found, as the sentence that its reader needs."""
    path = detail["loc"]
    name, origin = ".".join(map(str, path)), origin_of(path, layers)
    if detail["type"] == "extra_forbidden":
        tables: dict[str, type[BaseModel]] = {
            "budgets": BudgetSettings,
            "retention": RetentionSettings,
            "webhooks": WebhookSettings,
        }
        within = tables.get(str(path[0]), ProviderSettings)
        fields = (Settings if len(path) == 1 else within).model_fields
        near = difflib.get_close_matches(str(path[-1]), list(fields), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
        return f"unknown setting {name} ({origin}): {hint}"
    if detail["type"] == "missing":
        return f"{name} is missing ({origin_of(path[:-1], layers)}), and has no default: add it"
    reason = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = "{...}" if isinstance(detail["input"], Mapping) else masked_url(str(detail["input"]))
    if (
        "headers" in path
        or path[-1] in ("api_key_env", "flower_basic_auth", "secret_env")
        or (path[-1] in ("base_url", "url") and ("@" in value or "?" in value))
    ):
        value = MASK
    return (
        f"{name} is {value!r:.200} ({origin}), which is refused: {reason}. Correct it, or take it out for the default"
    )


def _not_json(complaint: str) -> str:
    lists = {"budgets": "a list of budgets", "retention": "a list of rules", "webhooks": "a list of webhooks"}
    name = next((name for name in lists if f'"{name}"' in complaint), "providers")
    what = lists.get(name, "an object of providers by name")
    return f"{ENVIRONMENT_PREFIX}{name.upper()} is not valid JSON: write {what}, or use {PROJECT_FILE}"
