"""What an attempt has used, by the provider's figures or by our estimate, and what that costs."""

from dataclasses import replace
from typing import Protocol

from inturn.models.states import AttemptOutcome
from inturn.models.store.working import Settlement, Started
from inturn.workers.context import Context, Plan
from inturn.workers.prices import Prices
from inturn.workers.provider import Reply

WORKED = (AttemptOutcome.COMPLETED, AttemptOutcome.AMBIGUOUS, AttemptOutcome.CANCELLED, AttemptOutcome.LOST)
"""How attempts end whose provider was at work, or may have been: what they have used is estimated if it does not say."""


class Figures(Protocol):
    """What a provider counted; None: it did not say."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...


def tokens_of(figures: Figures) -> int | None:
    """Of prompt and reply, by the provider; None where it did not say."""
    if figures.input_tokens is None or figures.output_tokens is None:
        return None
    return figures.input_tokens + figures.output_tokens


class Costs:
    """One per worker process. Used in the pool's loop."""

    def __init__(self, prices: Prices, context: Context) -> None:
        self._prices, self._context = prices, context

    def with_figures(self, started: Started, settlement: Settlement, figures: Figures) -> Settlement:
        """With what the provider counted, and what that costs, if it counted all of it."""
        shown, written = figures.input_tokens, figures.output_tokens
        if shown is None or written is None:
            return replace(settlement, input_tokens=shown, output_tokens=written)
        cached = (figures.cache_read_tokens, figures.cache_write_tokens) if isinstance(figures, Reply) else (0, 0)
        return self._priced(started, settlement, shown, written, *cached)

    def counted(self, started: Started, plan: Plan, settlement: Settlement) -> Settlement:
        """With an estimate of what the provider did not count, and with what all of it costs. Of a withdrawn attempt, and
        of one for which no work was done, nothing.
        """
        shown, written = settlement.input_tokens, settlement.output_tokens
        if shown is not None and settlement.outcome is AttemptOutcome.COMPLETED:
            self._context.learn(started.model, plan.weight, shown)
        if shown is not None and written is not None:
            return settlement
        if shown is None and written is None and settlement.outcome not in WORKED:
            return settlement
        shown = plan.tokens if shown is None else shown
        written = self._written(started, settlement) if written is None else written
        return self._priced(started, settlement, shown, written, estimated=True)

    def _priced(
        self,
        started: Started,
        settlement: Settlement,
        shown: int,
        written: int,
        cache_read: int = 0,
        cache_written: int = 0,
        *,
        estimated: bool = False,
    ) -> Settlement:
        """With tokens and, if there is one, a price; of those shown so many came out of a cache, or went into one."""
        price = self._prices.price(started.model, shown, written, cache_read, cache_written)
        return replace(
            settlement,
            input_tokens=shown,
            output_tokens=written,
            estimated=estimated,
            price=None if price is None else price.usd,
            price_table=None if price is None else price.table,
        )

    def _written(self, started: Started, settlement: Settlement) -> int:
        texts = [settlement.reply, settlement.partial, settlement.summary and settlement.summary.text]
        texts += [step.content for step in settlement.steps[:1]]
        weight = sum(len(text.encode()) for text in texts if text)
        return self._context.tokens(started.model, weight) if weight else 0
