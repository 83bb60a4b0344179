"""``inturn turn``: list, show, cancel and retry."""

from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.cli.records import turn_record
from inturn.models.states import TurnState

if TYPE_CHECKING:
    from inturn.client import Client, Turn

PROMPT_WIDTH = 60
PROMPT_POSITION = 1


@click.group()
@global_flags()
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
        turns = client.get_session(session_id).get_turns(state=wanted)
        if as_json:
            for one in turns:
                render.json_line(turn_record(one))
            return
        rows = [(t.id, t.state, t.attempts, t.created_at, shortened(t.prompt)) for t in turns]
    render.table(
        ["turn", "state", "attempts", "sent", "prompt"],
        rows,
        empty=f"session {session_id} has no such turns",
        gives_way=["prompt"],
    )


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
        reply = reply_to(client, found)
        record = turn_record(found) | {"reply": reply}
    if as_json:
        render.json_line(record)
        return
    render.records((name, value) for name, value in record.items() if name not in ("prompt", "reply"))
    render.utterance("you", found.prompt)
    if reply is not None:
        render.utterance("assistant", reply)


def reply_to(client: "Client", found: "Turn") -> str | None:
    """The reply, if it is there. Waiting for it would start a worker, and looking needs none."""
    opened = client.get_session(found.session_id)
    behind_the_prompt = opened.get_messages(after=f"{found.id}.{PROMPT_POSITION}", limit=1)
    return next((one.data.content for one in behind_the_prompt if one.turn == found.number), None)


@turn.command()
@click.argument("turn_id", metavar="TURN")
@pass_invocation
def cancel(invocation: Invocation, turn_id: str) -> None:
    """Cancel a turn that waits or runs. One that is over stays as it is."""
    with invocation.client() as client:
        found = client.get_turn(turn_id)
        in_time = found.cancel()
    if in_time and found.state is TurnState.RUNNING:
        render.talk(f"turn {turn_id} runs: its call is being broken off")
    else:
        render.talk(f"turn {turn_id} is {found.state}" + ("" if in_time else " already"))


@turn.command()
@click.argument("turn_id", metavar="TURN")
@pass_invocation
def retry(invocation: Invocation, turn_id: str) -> None:
    """Send a failed or cancelled turn's prompt again, as a new turn, and print that one's ID."""
    with invocation.client() as client:
        render.data(client.get_turn(turn_id).retry().id)
