"""``inturn turn``: list, show, cancel and retry."""

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.records import turn_record
from inturn.cli.session import looked_up
from inturn.models.states import TurnState

PROMPT_WIDTH = 60


@click.group()
def turn() -> None:
    """List, show, cancel and retry turns."""


@turn.command("list")
@click.argument("session_id", metavar="SESSION")
@click.option("--state", type=click.Choice([state.value for state in TurnState]), help="Only in this state.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per turn.")
@pass_invocation
def list_(invocation: Invocation, session_id: str, state: str | None, as_json: bool) -> None:
    """List the turns of a session."""
    wanted = TurnState(state) if state else None
    with invocation.client() as client:
        turns = looked_up(client, session_id)[0].get_turns(state=wanted)
        if as_json:
            for one in turns:
                render.json_line(turn_record(one))
            return
        rows = [(t.id, t.state, t.attempts, t.created_at, shortened(t.prompt)) for t in turns]
    render.table(["turn", "state", "attempts", "sent", "prompt"], rows, empty=f"session {session_id} has no such turns")


def shortened(prompt: str) -> str:
    line = render.cell(prompt)
    return line if len(line) <= PROMPT_WIDTH else f"{line[: PROMPT_WIDTH - 1]}…"


@turn.command()
@click.argument("turn_id", metavar="TURN")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def show(invocation: Invocation, turn_id: str, as_json: bool) -> None:
    """Show a turn: where it stands, how often it was tried, what went wrong, its prompt and its reply."""
    with invocation.client() as client:
        found = client.get_turn(turn_id)
        reply = found.wait(timeout=1.0).data.content if found.state == TurnState.COMPLETED else None
        record = turn_record(found) | {"reply": reply}
    if as_json:
        render.json_line(record)
        return
    render.records((name, value) for name, value in record.items() if name not in ("prompt", "reply"))
    render.utterance("you", found.prompt)
    if reply is not None:
        render.utterance("assistant", reply)


@turn.command()
@click.argument("turn_id", metavar="TURN")
@pass_invocation
def cancel(invocation: Invocation, turn_id: str) -> None:
    """Cancel a turn that waits or runs. One that is over stays as it is."""
    with invocation.client() as client:
        found = client.get_turn(turn_id)
        cancelled = found.cancel()
        found.refresh()
    render.talk(f"turn {turn_id} is being cancelled" if cancelled else f"turn {turn_id} was {found.state} already")


@turn.command()
@click.argument("turn_id", metavar="TURN")
@pass_invocation
def retry(invocation: Invocation, turn_id: str) -> None:
    """Send a failed or cancelled turn's prompt again, as a new turn, and print that one's ID."""
    with invocation.client() as client:
        render.data(client.get_turn(turn_id).retry().id)
