"""``inturn config``: the settings, as they are and where they come from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation

if TYPE_CHECKING:
    from inturn.settings import Settings


def effective(settings: "Settings") -> dict[str, Any]:
    """Every value, masked, with what is used in the place of those that are empty."""
    from inturn.urls import masked_url
    from inturn.workers.app import broker_url

    return settings.masked() | {
        "database_url": masked_url(settings.effective_database_url),
        "broker_url": masked_url(broker_url(settings)),
        "default_model": settings.effective_default_model,
    }


@click.group()
@global_flags()
def config() -> None:
    """Show every setting and where it comes from."""


@config.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per setting.")
@pass_invocation
def show(invocation: Invocation, as_json: bool) -> None:
    """Show every setting, its value (secrets masked) and its origin.

    A value comes from the first of: flag, environment (INTURN_...), ./inturn.toml, the user's file, default.
    """
    values, origins = effective(invocation.settings), invocation.settings.origins()
    if as_json:
        fields = type(invocation.settings).model_fields
        for name, value in values.items():
            about = {"origin": origins[name], "description": fields[name].description}
            render.json_line({"name": name, "value": value, **about})
    else:
        rows = [(name, value, origins[name.partition(".")[0]]) for name, value in one_by_one(values)]
        render.table(["setting", "value", "origin"], rows, empty="")


def one_by_one(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting by its name, every provider as ``providers.NAME``, with what is set of it, every budget and webhook."""
    from inturn.settings import ProviderSettings

    usual = ProviderSettings.model_fields
    for name, value in values.items():
        if name == "providers" and value:
            for provider, fields in value.items():
                chosen = {field: one for field, one in fields.items() if one != usual[field].default}
                yield f"providers.{provider}", chosen
        elif name in ("budgets", "webhooks") and value:
            for number, fields in enumerate(value):
                yield f"{name}.{number}", {field: one for field, one in fields.items() if one not in (None, "")}
        else:
            yield name, value if value not in ({}, []) else None
