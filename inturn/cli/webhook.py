"""``inturn webhook``: list, redeliver and test."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.exits import Exit
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.models.errors import SettingsError
from inturn.models.states import DeliveryState

if TYPE_CHECKING:
    from inturn.settings import Settings
    from inturn.webhook_settings import WebhookSettings

NONE_CONFIGURED = "no webhook is configured: add one to inturn.toml ([[webhooks]], see docs/webhooks.md)"
COLUMNS = ["id", "event", "of", "webhook", "state", "attempts", "stored", "next", "answer"]


@click.group()
@global_flags()
def webhook() -> None:
    """List, test and redeliver webhooks."""


@webhook.command("list")
@click.option("--state", type=click.Choice([state.value for state in DeliveryState]), help="Only in this state.")
@click.option("--event", metavar="EVENT", help="Of this event only, such as batch.completed.")
@click.option("--limit", type=click.IntRange(min=0), default=100, help="How many at most. Default 100.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per delivery.")
@pass_invocation
def list_(invocation: Invocation, state: str | None, event: str | None, limit: int, as_json: bool) -> None:
    """List deliveries, newest first: what was sent, to whom, and what came of it."""
    with invocation.client() as client:
        deliveries = list(client.list_webhook_deliveries(state=state, event=event, limit=limit))
    if as_json:
        for one in deliveries:
            render.json_line(asdict(one))
        return
    rows = [
        (
            one.id, one.event, one.subject, one.webhook, one.state, one.attempts, one.created_at,
            one.ready_at if one.state is DeliveryState.PENDING else None, one.error_message or one.status_code,
        )
        for one in deliveries
    ]  # fmt: skip
    nothing = "there are no such deliveries" if invocation.settings.webhooks else NONE_CONFIGURED
    render.table(COLUMNS, rows, empty=nothing, gives_way=["answer", "next", "stored"])


@webhook.command()
@click.argument("delivery_ids", metavar="[ID]...", type=click.IntRange(min=1), nargs=-1)
@click.option("--failed", is_flag=True, help="All that failed.")
@pass_invocation
def redeliver(invocation: Invocation, delivery_ids: tuple[int, ...], failed: bool) -> None:
    """Send deliveries anew, whatever came of them. Receivers know them by the header webhook-id, which stays the same."""
    if failed is bool(delivery_ids):
        raise click.UsageError("say what to send anew: IDs (`inturn webhook list` has them), or --failed")
    with invocation.client() as client:
        for delivery_id in delivery_ids:
            client.redeliver_webhook(delivery_id)
        number = client.redeliver_failed_webhooks() if failed else len(delivery_ids)
    how = "" if invocation.settings.webhooks else f"; here {NONE_CONFIGURED}"
    what = "1 delivery" if number == 1 else f"{number} deliveries"
    render.talk(f"{what} will be sent anew by the next worker or beat that has the webhook in its settings{how}")


@webhook.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def test(invocation: Invocation, name: str, as_json: bool) -> int:
    """Send a signed event of the type webhook.test to a webhook, from here and at once, and say what came back.

    The secret is read from this command's environment. Nothing is stored, and nothing is tried again.
    """
    from inturn.workers.webhooks.poster import post_test

    chosen = named(invocation.settings, name)
    chosen.secret()  # in a sentence of its own, before anything is sent
    answer = asyncio.run(post_test(chosen))
    if as_json:
        render.json_line({"webhook": name, "status_code": answer.status_code, "error_message": answer.error_message})
    if answer.error_message is None:
        render.talk(f"webhook {name!r} took it: it answered {answer.status_code}")
        return Exit.OK
    render.complain(f"webhook {name!r} at {chosen.url} was not delivered: {answer.error_message}")
    return Exit.UNREACHABLE if answer.status_code is None else Exit.FAILURE


def named(settings: "Settings", name: str) -> "WebhookSettings":
    """Raises: SettingsError, click.BadParameter: there is none of that name."""
    if not settings.webhooks:
        raise SettingsError(NONE_CONFIGURED)
    found = next((one for one in settings.webhooks if one.name == name), None)
    if found is None:
        known = ", ".join(one.name for one in settings.webhooks)
        raise click.BadParameter(f"no webhook {name!r} is configured: there are {known}")
    return found
