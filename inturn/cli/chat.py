"""``inturn chat``: a conversation, line by line."""

import itertools
import sys
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.hearing import hear
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.patience import waiting_for
from inturn.cli.session import remark_if_halted
from inturn.cli.values import models
from inturn.models.errors import InvalidPromptError, TurnCancelledError, TurnFailedError

if TYPE_CHECKING:
    from inturn.client import Client, Session


@click.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--last", is_flag=True, help="Go on with the session that was used last.")
@models("provider/model; on a session that exists, from now on; repeated: who is asked if those before fail.")
@click.option("--system", "system_message", help="What the model is told beforehand.")
@pass_invocation
def chat(
    invocation: Invocation,
    session_id: str | None,
    last: bool,
    model: str | list[str] | None,
    system_message: str | None,
) -> None:
    """Hold a conversation in the terminal.

    Takes up the session with that ID, or begins it; without an ID, begins a new one. Ctrl-C cancels the reply that is
    being waited for, Ctrl-D ends the chat. Everything is kept: the same ID goes on, any day.
    """
    with invocation.client() as client:
        wanted = session_id or (client.get_last_session_id() if last else None)
        converse(client, opened(client, wanted, model, system_message))


def opened(
    client: "Client", session_id: str | None, model: str | list[str] | None, system_message: str | None
) -> "Session":
    """The session to talk in: the one that exists, or a new one; says which."""
    metadata = client.get_session_metadata(session_id) if session_id else None
    if metadata is None:
        session = client.create_session(session_id, model=model, system_message=system_message)
        render.talk(f"new session {session.session_id}, model {session.metadata().model}. Ctrl-D ends the chat")
    else:
        session = client.resume_session(metadata.session_id, model=model, system_message=system_message)
        turns = render.counted(metadata.turns, "turn")
        render.talk(
            f"session {session.session_id}, model {session.metadata().model}, {turns} so far. Ctrl-D ends the chat"
        )
        remark_if_halted(metadata)
    return session


def converse(client: "Client", session: "Session") -> None:
    """Prompt and reply, until nobody types any more."""
    try:
        while (prompt := render.read_prompt("you: ")) is not None:
            if prompt.strip():
                answer(client, session, prompt)
    finally:
        render.talk(f"everything is kept: `inturn chat {session.session_id}` goes on")


def answer(client: "Client", session: "Session", prompt: str) -> None:
    """One turn. A failure of this turn alone does not end a chat, where somebody sits who can go on."""
    try:
        hear_reply(client, session, prompt)
    except (InvalidPromptError, TurnFailedError, TurnCancelledError) as error:
        if not sys.stdin.isatty():
            raise
        render.complain(str(error))


def hear_reply(client: "Client", session: "Session", prompt: str) -> None:
    turn = session.send(prompt, stream=True)
    events = turn.stream()
    try:
        with waiting_for(client, turn, "... (Ctrl-C cancels)", besides=" (Ctrl-C cancels)"):
            first = list(itertools.islice(events, 1))
        with render.speech("assistant") as speech:
            hear(itertools.chain(first, events), speech)
    except KeyboardInterrupt:
        turn.cancel()
        if sys.stdin.isatty():
            raise TurnCancelledError(turn.id) from None
        raise
