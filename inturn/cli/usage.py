"""``inturn usage``: what was used, what it cost, and how budgets stand."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.values import moment, pair
from inturn.models.money import dollars

if TYPE_CHECKING:
    from inturn.models.store.budgets import Standing
    from inturn.models.store.usage import UsageBy, UsageRecord

BY = ("session", "model", "provider", "day", "lane", "batch")
UNPRICED = "unpriced"
COLUMNS = ["attempts", "completed", "failed", "tokens in", "tokens out", "US dollars", "unpriced", "uncounted"]


@click.command()
@click.option("--by", type=click.Choice(BY), default="model", help="One line for each. Default model.")
@click.option("--since", type=moment, metavar="7d|DATE", help="Of attempts from then on.")
@click.option("--until", type=moment, metavar="7d|DATE", help="Of attempts before then.")
@click.option("--session", "session_id", metavar="SESSION", help="Of this session only.")
@click.option("--prefix", metavar="TEXT", help="Of sessions whose ID begins so.")
@click.option("--label", "labels", multiple=True, type=pair, metavar="KEY=VALUE", help="Of sessions with this label.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, then one per budget.")
@pass_invocation
def usage(
    invocation: Invocation,
    by: "UsageBy",
    since: datetime | None,
    until: datetime | None,
    session_id: str | None,
    prefix: str | None,
    labels: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Say what was used, what it cost, and how budgets stand.

    Every attempt counts, those that failed or were cancelled among them, and those of removed sessions. "unpriced" is what
    may have cost something, and nobody knows what; with "~" some of the tokens are estimated. Days are UTC's.
    """
    with invocation.client() as client:
        records = client.usage(
            by, since=since, until=until, session_id=session_id, prefix=prefix, labels=dict(labels) or None
        )
        standings = client.budgets()
    if as_json:
        for record in records:
            render.json_line({"by": by, **asdict(record)})
        for standing in standings:
            render.json_line(standing_record(standing))
        return
    show_usage(by, records)
    if standings:
        show_budgets(standings, is_filtered=bool(session_id or prefix or labels))


def show_usage(by: str, records: "list[UsageRecord]") -> None:
    from inturn.models.store.usage import total_of

    total = usage_row(total_of(records)) if len(records) > 1 else None
    gives_way = ["uncounted", "completed", "failed"]
    rows = [usage_row(record) for record in records]
    render.table([by, *COLUMNS], rows, empty="nothing was used", gives_way=gives_way, total=total)


def usage_row(record: "UsageRecord") -> tuple[object, ...]:
    is_guess = record.estimated > 0
    return (
        record.key,
        record.attempts,
        record.completed,
        record.failed,
        tokens(record.input_tokens, is_guess),
        tokens(record.output_tokens, is_guess),
        price(record.price, is_guess),
        record.unpriced or None,
        record.uncounted or None,
    )


def show_budgets(standings: "list[Standing]", *, is_filtered: bool = False) -> None:
    rows = [
        (
            one.budget.name,
            one.whose or one.budget.scope,
            "day" if one.budget.daily else "ever",
            dollars(one.usd),
            None if one.budget.usd is None else dollars(one.budget.usd),
            one.tokens,
            one.budget.tokens,
            one.budget.is_used_up(one.usd, one.tokens),
        )
        for one in standings
    ]
    columns = ["budget", "of", "period", "US dollars", "of dollars", "tokens", "of tokens", "used up"]
    render.heading("budgets (of everybody, whichever sessions were asked for)" if is_filtered else "budgets")
    render.table(columns, rows, empty="", gives_way=["budget", "period"])
    for name, unlisted in {one.budget.name: one.unlisted for one in standings if one.unlisted}.items():
        shown = sum(one.budget.name == name for one in standings)
        render.talk(f"budget {name!r}: the {shown} that spent most, and {unlisted} more have spent of it")


def standing_record(standing: "Standing") -> dict[str, object]:
    budget = standing.budget
    return {
        "budget": budget.name,
        "scope": budget.scope,
        "whose": standing.whose,
        "period": "day" if budget.daily else "ever",
        "usd": standing.usd,
        "usd_limit": budget.usd,
        "tokens": standing.tokens,
        "tokens_limit": budget.tokens,
        "used_up": budget.is_used_up(standing.usd, standing.tokens),
        "unlisted": standing.unlisted,
    }


def tokens(number: int | None, estimated: bool) -> str | None:
    return None if number is None else f"{'~' if estimated else ''}{number}"


def price(usd: float | None, estimated: bool) -> str:
    """What nobody knows is told as that, and never as nothing."""
    return UNPRICED if usd is None else f"{'~' if estimated else ''}{dollars(usd)}"
