"""``inturn why``: what something waits for."""

from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation

if TYPE_CHECKING:
    from inturn.client import Reason


@click.command()
@click.argument("waiting", metavar="SESSION|TURN")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: code, sentence, and the rows behind them.")
@pass_invocation
def why(invocation: Invocation, waiting: str, as_json: bool) -> None:
    """Say what a session or a turn waits for.

    Of a session its lowest unfinished turn is looked at: all later ones wait for that one.
    """
    with invocation.client() as client:
        reason = client.why(waiting)
    if as_json:
        render.json_line(reason_record(reason))
        return
    render.statement(reason.sentence)
    for other in reason.besides:
        render.statement(f"besides: {other.sentence}")


def reason_record(reason: "Reason") -> dict[str, Any]:
    besides = [{"code": one.code, "sentence": one.sentence, "command": one.command} for one in reason.besides]
    return {
        "code": reason.code,
        "sentence": reason.sentence,
        "command": reason.command,
        "besides": besides,
        "rows": reason.rows,
    }
