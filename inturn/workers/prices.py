"""What calls cost, by the table that comes with genai-prices: as it was installed, since nothing is ever fetched.

A price is found by where a provider is, and by its own name for the model. The same name costs something else elsewhere,
and nothing on a machine of one's own; so what is not in the table has no price, which is not the same as costing nothing.
"""

import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from decimal import Decimal

    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

LOOKED_UP_AGAIN_SECONDS = 60
"""A price may change at midnight in UTC, or for some hours of the day."""
REMEMBERED = 10_000
"""Models, at most: their names are whatever users put into sessions."""
MILLION, THOUSAND = 1e6, 1e3
FREE = ":free"
"""How the name ends of a model that costs nothing. The table has no price for those, nor for some of which it knows none."""


class Priced(Protocol):
    """What a price depends on, of a provider's settings."""

    @property
    def type(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    def model_name(self, model: str) -> str: ...


class Price(NamedTuple):
    """What one call cost, in US dollars, and who says so."""

    usd: float
    table: str


ECHO = Price(0.0, "echo")


class Rates(NamedTuple):
    """US dollars: of one token each, and of the call itself."""

    input: float
    output: float
    cache_read: float
    cache_write: float
    call: float


@dataclass(slots=True)
class Entry:
    """A model of the table. ``tariff``: its rates, each for prompts with more tokens than the number before it, the longest
    first; None: there is no price for it.
    """

    info: "ModelInfo"
    name: str
    good_until: float
    tariff: list[tuple[int, Rates]] | None


class Prices:
    """Shared by the threads of a process.

    Args:
        providers: by name, as configured.
    """

    def __init__(self, providers: Mapping[str, Priced]) -> None:
        self._providers = providers
        self._table = ""
        self._everybody: list[Provider] = []
        self._known: dict[str, Provider] | None = None
        self._entries: dict[str, Entry | None] = {}

    def load(self) -> None:
        """Read the table now rather than at the first call: it takes a third of a second. Not at all where all providers
        are on this machine.
        """
        if self._known is not None:
            return
        urls = {name: provider.base_url for name, provider in self._providers.items() if is_elsewhere(provider)}
        if urls:
            import genai_prices  # slow, so it is left to those who need it
            from genai_prices.data_snapshot import get_snapshot

            table = get_snapshot()
            self._table, self._everybody = f"genai-prices {genai_prices.__version__}", table.providers
            known = {}
            for name, url in urls.items():
                try:
                    known[name] = table.find_provider(None, None, url)
                except LookupError:
                    continue
            self._known = known
        else:
            self._known = {}

    def price(
        self,
        model: str,
        input_tokens: int,
        output_tokens: int,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
    ) -> Price | None:
        """What a call costs today; None: nobody knows.

        Args:
            model: ``provider/model``, as sessions name it.
            input_tokens: of the whole prompt, those out of a cache or into it among them.
            cache_read_tokens, cache_write_tokens: the part of them that has a price of its own.
        """
        provider = self._providers.get(model.partition("/")[0])
        if provider is not None and provider.type == "echo":
            return ECHO
        entry = self._entry(model)
        tariff = self._tariff(entry) if entry is not None else None
        if tariff is None:
            return None
        rates = next(rates for above, rates in tariff if input_tokens > above)
        read = min(cache_read_tokens, input_tokens)
        written = min(cache_write_tokens, input_tokens - read)
        usd = (
            (input_tokens - read - written) * rates.input
            + read * rates.cache_read
            + written * rates.cache_write
            + output_tokens * rates.output
            + rates.call
        )
        return Price(usd, self._table)

    def context_tokens(self, model: str) -> int | None:
        """How many tokens the table says that a model can be shown; None: it does not say."""
        entry = self._entry(model)
        return entry.info.context_window if entry is not None else None

    def _entry(self, model: str) -> Entry | None:
        try:
            return self._entries[model]
        except KeyError:
            pass
        if len(self._entries) >= REMEMBERED:
            self._entries.clear()
        entry = self._entries[model] = self._find(model)
        return entry

    def _find(self, model: str) -> Entry | None:
        self.load()
        name, _, bare = model.partition("/")
        provider = (self._known or {}).get(name)
        if provider is None:
            return None
        theirs = self._providers[name].model_name(bare)
        info = provider.find_model(theirs, all_providers=self._everybody)
        return None if info is None else Entry(info, theirs.lower(), 0.0, None)

    def _tariff(self, entry: Entry) -> list[tuple[int, Rates]] | None:
        if time.monotonic() >= entry.good_until:
            entry.tariff = tariff_of(entry.info, entry.name)
            entry.good_until = time.monotonic() + LOOKED_UP_AGAIN_SECONDS
        return entry.tariff


def is_elsewhere(provider: Priced) -> bool:
    """Whether a provider is not on this machine, as far as its URL says; echo is nowhere."""
    host = urlsplit(provider.base_url).hostname or ""
    if provider.type == "echo" or not host or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def tariff_of(info: "ModelInfo", name: str) -> list[tuple[int, Rates]] | None:
    """What a model costs at this moment."""
    from datetime import UTC, datetime

    prices = info.get_prices(datetime.now(UTC))
    if all(value is None for value in vars(prices).values()):
        return [(-1, Rates(0.0, 0.0, 0.0, 0.0, 0.0))] if name.endswith(FREE) else None
    if prices.input_mtok is None or prices.output_mtok is None:  # it makes no text, or something else is charged for it
        return None
    tiers = {tier.start for price in vars(prices).values() for tier in getattr(price, "tiers", ())}
    return [(above, rates_of(prices, above)) for above in sorted({-1, *tiers}, reverse=True)]


def rates_of(prices: "ModelPrice", above: int) -> Rates:
    """The rates of prompts with just more tokens than that. What has no price of its own costs what any input does."""
    shown = usd(prices.input_mtok, above) or 0.0
    read, written = usd(prices.cache_read_mtok, above), usd(prices.cache_write_mtok, above)
    return Rates(
        input=shown / MILLION,
        output=(usd(prices.output_mtok, above) or 0.0) / MILLION,
        cache_read=(shown if read is None else read) / MILLION,
        cache_write=(shown if written is None else written) / MILLION,
        call=(usd(prices.requests_kcount, above) or 0.0) / THOUSAND,
    )


def usd(price: "Decimal | TieredPrices | None", above: int) -> float | None:
    """One of the table's prices, which may grow with the prompt: then all of its tokens cost more."""
    if price is None:
        return None
    for tier in reversed(getattr(price, "tiers", ())):
        if tier.start <= above:
            return float(tier.price)
    base: Any = getattr(price, "base", price)
    return float(base)
