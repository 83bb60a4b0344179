"""The providers in a check-up: the default model, the keys, and what each of them says for itself when it is asked."""

import difflib
import os
import time
from collections.abc import Iterator, Mapping
from threading import Thread
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from inturn.cli import render
from inturn.cli.checkup.finding import Finding
from inturn.provider_settings import VENDORS

if TYPE_CHECKING:
    from inturn.cli.checkup.inquiry import Inquiry, Listing
    from inturn.provider_settings import ProviderSettings
    from inturn.settings import Settings

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
SHOWN_NAMES = 5
SHOWN_UNKNOWN = 5
DEFAULT = "the default model"


def check_providers(settings: "Settings", *, offline: bool) -> Iterator[Finding]:
    """Whether the default model can be asked, every provider has the key that it names, and they all answer."""
    yield check_default_model(settings)
    yield from check_fallbacks(settings)
    yield from check_keys(settings)
    remote = {name: one for name, one in settings.available_providers.items() if one.base_url and is_http(one)}
    if offline and remote:
        yield Finding("note", "provider", f"{', '.join(remote)}: not asked (--offline)")
    elif remote:
        yield from check_proxies(remote)
        yield from check_answers(remote, settings.effective_default_model)


def check_default_model(settings: "Settings") -> Finding:
    model, providers = settings.effective_default_model, settings.available_providers
    used = model.partition("/")[0]
    if used not in providers:
        return Finding(
            "fail", "model", f"{model} has no provider: add [providers.{used}] to inturn.toml, or set its key"
        )
    if providers[used].type == "echo":
        advice = "set OPENAI_API_KEY or ANTHROPIC_API_KEY, or add a provider"
        return Finding("note", "model", f"{model} only echoes: {advice}")
    return Finding("ok", "model", f"{model}, at {providers[used].base_url}")


def check_fallbacks(settings: "Settings") -> Iterator[Finding]:
    """Whether each provider that is to step in for another is there, in this environment."""
    available = settings.available_providers
    for name, provider in available.items():
        for model in provider.fallbacks:
            used = model.partition("/")[0]
            if used not in available:
                key = f", or set {VENDORS[used].key_variable}" if used in VENDORS else ""
                there = f"in this environment there is no provider {used}: add [providers.{used}] to inturn.toml{key}"
                yield Finding("warn", "model", f"{model}, in the fallbacks of {name}, cannot be asked: {there}")


def check_keys(settings: "Settings") -> Iterator[Finding]:
    """Those of this environment; workers have one of their own."""
    used = settings.effective_default_model.partition("/")[0]
    for name, provider in settings.available_providers.items():
        which = f"{provider.api_key_env}, the key of provider {name},"
        if provider.api_key_env and provider.api_key() is None:
            state: Literal["warn", "fail"] = "fail" if name == used else "warn"
            there = "export it where workers start (in this environment it is missing)"
            yield Finding(state, "key", f"{which} is not set: {there}")
        elif provider.api_key_env:
            yield Finding("ok", "key", f"{which} is set in this environment")


def check_proxies(providers: Mapping[str, "ProviderSettings"]) -> Iterator[Finding]:
    """Variables that others follow, and that explain why a provider is reached by them only."""
    found = next((name for name in PROXIES if os.environ.get(name)), None)
    afar = [name for name, one in providers.items() if urlsplit(one.base_url).hostname not in LOOPBACK]
    if found and afar:
        yield Finding(
            "note", "provider", f"{found} is set; inturn does not use it, and calls {', '.join(afar)} directly"
        )


def check_answers(providers: Mapping[str, "ProviderSettings"], default_model: str) -> Iterator[Finding]:
    """All asked side by side, none waited for longer than its deadline."""
    from inturn.cli.checkup.inquiry import SECONDS, Inquiry
    from inturn.cli.checkup.no_list import NoListError

    used = {name: used_models(name, providers, default_model) for name in providers}
    begun: dict[str, Inquiry | NoListError] = {}
    for name, provider in providers.items():
        try:
            begun[name] = Inquiry(provider, tuple(used[name]))
        except NoListError as error:
            begun[name] = error
    with render.waiting("asking the providers"):
        put_side_by_side([one for one in begun.values() if isinstance(one, Inquiry)], SECONDS)
    for name, one in begun.items():
        outcome = one if isinstance(one, NoListError) else one.outcome or one.late()
        if isinstance(outcome, NoListError):
            is_default = name == default_model.partition("/")[0]
            state = "warn" if outcome.state == "fail" and not is_default else outcome.state
            yield Finding(state, "provider", f"{name} {outcome.sentence}")
        else:
            yield from about_listing(name, providers[name], outcome, used[name])


def put_side_by_side(inquiries: list["Inquiry"], seconds: float) -> None:
    """Wait until all have an outcome, or the time is up.

    A thread can hang in a name lookup, or drip along below every timeout: it is left behind, and ends with the process.
    """
    until = time.monotonic() + seconds
    threads = [Thread(target=inquiry.run, daemon=True) for inquiry in inquiries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def used_models(name: str, providers: Mapping[str, "ProviderSettings"], default_model: str) -> dict[str, str]:
    """The provider's own names of the models that are used, each with the place that names it."""
    provider, (of, _, default) = providers[name], default_model.partition("/")
    found = {provider.model_name(default): DEFAULT} if of == name else {}
    for alias, model in provider.models.items():
        found.setdefault(model.name, f"{alias} in its models")
    for owner, other in providers.items():
        for fallback in other.fallbacks:
            of, _, model_of_it = fallback.partition("/")
            if of == name:
                found.setdefault(provider.model_name(model_of_it), f"in the fallbacks of {owner}")
    return found


def about_listing(
    name: str, provider: "ProviderSettings", listing: "Listing", used: Mapping[str, str]
) -> Iterator[Finding]:
    """Whether it has the models that are used."""
    how_many = render.counted(len(listing.names), "model")
    with_key = f" with the key in {provider.api_key_env}" if provider.api_key() else ""
    told = f"{name} answers, and lists {how_many}{with_key}"
    if listing.remark:
        yield Finding("ok", "provider", f"{told}. {listing.remark}")
        return
    known = [own for own in used if own not in listing.unknown]
    among = f", {', '.join(known)} among them" if known else ""
    yield Finding("ok", "provider", f"{told}{among}")
    for own in listing.unknown[:SHOWN_UNKNOWN]:
        state: Literal["warn", "fail"] = "fail" if used[own] == DEFAULT else "warn"
        yield Finding(state, "provider", f"{name} does not list {own} ({used[own]}). {advice(own, listing.names)}")
    if (more := len(listing.unknown) - SHOWN_UNKNOWN) > 0:
        yield Finding("warn", "provider", f"{name} does not list {render.counted(more, 'other model')} in its models")


def advice(own: str, names: tuple[str, ...]) -> str:
    """Against a name that is not there."""
    if near := difflib.get_close_matches(own, names, n=2):
        return f"Did you mean {' or '.join(near)}?"
    if not names:
        return "Load it there first"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"It has {', '.join(names[:SHOWN_NAMES])}{more}: use one of them, or load this one there"


def is_http(provider: "ProviderSettings") -> bool:
    """Of the types that come with inturn; how a plug-in is asked is its own affair."""
    return provider.type in ("openai", "anthropic")
