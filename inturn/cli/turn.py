"""``inturn turn``: list, show, cancel and retry."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.cli.records import turn_record
from inturn.cli.session import remark_if_halted
from inturn.cli.usage import price, tokens
from inturn.models.errors import ContentRemovedError
from inturn.models.money import dollars
from inturn.models.states import POISONED, AttemptOutcome, Lane, TurnState

if TYPE_CHECKING:
    from inturn.client import Client, Turn
    from inturn.models.store.reading import Attempt

PROMPT_WIDTH = 60


@click.group()
@global_flags()
def turn() -> None:
    """List, show, cancel and retry turns."""


@turn.command("list")
@click.argument("session_id", metavar="[SESSION]", required=False)
@click.option("--state", type=click.Choice([state.value for state in TurnState]), help="Only in this state.")
@click.option("--quarantined", is_flag=True, help="Only those that workers died over, or whose replies were unfit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per turn.")
@pass_invocation
def list_(invocation: Invocation, session_id: str | None, state: str | None, quarantined: bool, as_json: bool) -> None:
    """List the turns of a session; with --quarantined and no SESSION, of all sessions, newest first."""
    if quarantined and state:
        raise click.UsageError("--state and --quarantined exclude each other: quarantined turns have failed")
    if session_id is None and not quarantined:
        raise click.UsageError("say of which SESSION: only --quarantined lists the turns of all sessions")
    with invocation.client() as client:
        turns = listed(client, session_id, TurnState(state) if state else None, quarantined)
        if as_json:
            for one in turns:
                render.json_line(turn_record(one))
        else:
            (show_quarantined if quarantined else show_turns)(turns, session_id)


def listed(client: "Client", session_id: str | None, state: TurnState | None, quarantined: bool) -> Iterator["Turn"]:
    if session_id is None or quarantined:
        return client.list_quarantined(session_id)
    return client.get_session(session_id).get_turns(state=state)


def show_turns(turns: Iterable["Turn"], session_id: str | None) -> None:
    rows = [(t.id, standing(t), t.attempts, t.created_at, shortened(t.prompt)) for t in turns]
    columns = ["turn", "state", "attempts", "sent", "prompt"]
    render.table(columns, rows, empty=f"session {session_id} has no such turns", gives_way=["prompt"])


def show_quarantined(turns: Iterable["Turn"], session_id: str | None) -> None:
    rows = [
        (t.id, t.session_id, t.error and t.error.error_type, t.attempts, t.finished_at, shortened(t.prompt))
        for t in turns
    ]
    columns = ["turn", "session", "reason", "attempts", "ended", "prompt"]
    nothing = "no turn is in quarantine" + (f" in session {session_id}" if session_id else "")
    render.table(columns, rows, empty=nothing, gives_way=["prompt"])


def standing(turn: "Turn") -> str:
    """Its state; of a turn that was joined into another, which one; its lane, if it is not the usual one."""
    joined = f", joined into {turn.merged_into}" if turn.merged_into else ""
    lane = f", lane {turn.lane}" if turn.lane is not Lane.CHAT else ""
    return f"{turn.state}{joined}{lane}"


def shortened(prompt: str | None) -> str:
    line = "(removed)" if prompt is None else render.cell(prompt)
    return line if len(line) <= PROMPT_WIDTH else f"{line[: PROMPT_WIDTH - 1]}…"


@turn.command()
@click.argument("turn_id", metavar="TURN")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def show(invocation: Invocation, turn_id: str, as_json: bool) -> None:
    """Show a turn: where it stands, each attempt and what it cost, what went wrong, its prompt and its reply, or what was
    heard of one that was cut off.
    """
    with invocation.client() as client:
        found = client.get_turn(turn_id)
        attempts, answer = found.get_attempts(), found.get_reply()
        reply = None if answer is None else answer.data.content
        record = turn_record(found) | {"reply": reply}
    if as_json:
        render.json_line(record | {"attempt_records": [asdict(attempt) for attempt in attempts]})
        return
    render.records(told(record))
    if attempts:
        show_attempts(attempts)
    if found.content_removed_at is not None:
        render.talk(str(ContentRemovedError(found.id, found.content_removed_at)))
    if found.prompt is not None:
        render.utterance("you", found.prompt)
    if reply is not None:
        render.utterance("assistant", reply)
    elif found.partial is not None:
        render.utterance("assistant (cut off, no part of the history)", found.partial)


def told(record: "Mapping[str, Any]") -> Iterator[tuple[str, object]]:
    """The lines of a turn: what went wrong has some of its own, and what was said comes behind them."""
    for name, value in record.items():
        if name == "error" and value:
            yield "error_type", value["error_type"]
            yield "error_message", value["message"]
            yield "error_status", value["status_code"]
            yield "error_retryable", value["retryable"]
        elif name == "price" and value is not None:
            yield name, dollars(value)
        elif name not in ("prompt", "reply", "partial"):
            yield name, value


def show_attempts(attempts: "list[Attempt]") -> None:
    rows = [
        (
            one.number,
            one.model,
            one.error_type or one.outcome or "under way",
            one.started_at,
            tokens(one.input_tokens, one.estimated),
            tokens(one.output_tokens, one.estimated),
            price(one.price, one.estimated) if may_cost(one) else None,
        )
        for one in attempts
    ]
    columns = ["attempt", "model", "outcome", "began", "tokens in", "tokens out", "US dollars"]
    render.table(columns, rows, empty="", gives_way=["model"])


def may_cost(attempt: "Attempt") -> bool:
    """As ``inturn usage`` counts: not one that is under way, nor one for which the provider did nothing."""
    if attempt.input_tokens is not None or attempt.price is not None or attempt.error_type in POISONED:
        return True
    return attempt.outcome not in (None, AttemptOutcome.SAFE, AttemptOutcome.PERMANENT)


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
        again = client.get_turn(turn_id).retry()
        render.data(again.id)
        remark_if_halted(client.get_session_metadata(again.session_id))
