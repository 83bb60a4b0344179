"""``inturn send``: one prompt, with or without its reply."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.hearing import hear
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.patience import waiting_for
from inturn.cli.records import event_record, message_record, turn_record
from inturn.cli.values import due, models
from inturn.cli.words import way_back
from inturn.images import image
from inturn.models.content import checked_parts, checked_prompt
from inturn.models.errors import InturnError, SendTimeoutError
from inturn.models.states import ProcessKind

if TYPE_CHECKING:
    from inturn.client import Client, Session, Turn
    from inturn.turn import Content

READ_LIMIT = 2**20  # far more than a prompt may have: who pipes in a film is refused, and not read to its end


@click.command()
@click.argument("session_id", metavar="ID")
@click.argument("prompt")
@click.option("--wait", is_flag=True, help="Wait for the reply and print it.")
@click.option("--stream", is_flag=True, help="Print the reply while it is written.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Seconds to wait (implies --wait) [60; with --stream no limit].",
)
@click.option("--idempotency-key", help="The same key sends once, however often it is sent.")
@click.option(
    "--when-busy",
    type=click.Choice(["enqueue", "reject", "interrupt", "coalesce"]),
    default="enqueue",
    help="If turns are unfinished: wait, refuse, cancel them, or join those that wait into this one [enqueue].",
)
@click.option(
    "--not-before",
    type=due,
    metavar="TIME",
    help="Not before then: 90m (from now; s, m, h, d or w), or 2026-12-01T08:00 (local, if it names no zone). Past: now.",
)
@click.option(
    "--lane", type=click.Choice(["chat", "batch"]), default="chat", help="batch: behind interactive work [chat]."
)
@click.option("--create", is_flag=True, help="Create the session if there is none.")
@models("provider/model of a session that --create makes; may be repeated, as in `inturn session create`.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE|URL",
    help='Shown with the prompt, or alone with "" as PROMPT. May be repeated.',
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the turn, with --wait the reply, with --stream each event, as JSON."
)
@pass_invocation
def send(invocation: Invocation, /, session_id: str, prompt: str, **choices: Any) -> None:
    """Send one prompt to a session.

    Prints the turn's ID as soon as the prompt is stored, or with --wait or --stream the reply. PROMPT - reads stdin.
    """
    if choices["model"] and not choices["create"]:
        raise click.UsageError("--model is for a session that --create makes; `inturn chat ID --model` changes one")
    # Before anything is touched: a prompt that is refused must leave no session behind that --create made for it.
    said = content(render.read_all(READ_LIMIT) if prompt == "-" else prompt, choices["images"])
    with invocation.client() as client:
        session = target(client, session_id, choices["create"], choices["model"])
        how = {name: choices[name] for name in ("idempotency_key", "when_busy", "not_before", "lane", "stream")}
        turn = session.send(said, **how)
        if choices["stream"]:
            stream_reply(client, turn, choices["timeout"], choices["as_json"])
        elif choices["wait"] or choices["timeout"]:
            print_reply(client, turn, choices["timeout"] or 60.0, choices["as_json"])
        else:
            print_turn(client, turn, choices["as_json"])


def content(prompt: str, images: Sequence[str]) -> "Content":
    """What is to be sent, checked."""
    if not images:
        return checked_prompt(prompt)
    said = [{"type": "text", "text": prompt}] if prompt.strip() else []
    parts = [*said, *map(image, images)]
    checked_parts(parts)
    return parts


def target(client: "Client", session_id: str, create: bool, model: str | list[str] | None) -> "Session":
    """The session to send to; one that does not exist is only made on demand, so that a slip of the pen makes none."""
    return client.get_or_create_session(session_id, model=model) if create else client.get_session(session_id)


def stream_reply(client: "Client", turn: "Turn", timeout: float | None, as_json: bool) -> None:
    with way_back(turn, embedded=client.settings.is_embedded), reasoned(client, turn):
        events = turn.stream(timeout)
        if as_json:
            for event in events:
                render.json_line(event_record(event))
            return
        with waiting_for(client, turn, f"waiting for turn {turn.id} ..."):
            first = list(itertools.islice(events, 1))
        with closing(render.PlainSpeech()) as speech:
            hear(itertools.chain(first, events), speech)


def print_reply(client: "Client", turn: "Turn", timeout: float, as_json: bool) -> None:
    embedded = client.settings.is_embedded
    remark = f"waiting for turn {turn.id} ..."
    with way_back(turn, embedded=embedded), reasoned(client, turn), waiting_for(client, turn, remark):
        message = turn.wait(timeout)
    if as_json:
        render.json_line(message_record(message))
    else:
        render.data(message.data.content)


@contextmanager
def reasoned(client: "Client", turn: "Turn") -> Iterator[None]:
    """Give a wait that took too long a note on what the turn waits for."""
    try:
        yield
    except SendTimeoutError as late:
        with suppress(InturnError):
            reason = client.why(turn.id)
            besides = "".join(f"; besides: {other.sentence}" for other in reason.besides)
            late.add_note(f"{closed(f'{reason.sentence}{besides}')} `inturn why {turn.id}` looks again")
        raise


def closed(said: str) -> str:
    """With an end, where it has none of its own: an advice may be a question."""
    return said if said.endswith((".", "?", "!")) else f"{said}."


def print_turn(client: "Client", turn: "Turn", as_json: bool) -> None:
    if as_json:
        render.json_line(turn_record(turn))
    else:
        render.data(turn.id)
    if not any(one.alive and one.kind is ProcessKind.WORKER for one in client.list_workers()):
        start = "inturn up" if client.settings.has_embedded_broker else "inturn worker"
        render.talk(f"the prompt is stored; no worker is alive: `{start}` will answer it")
