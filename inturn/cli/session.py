"""``inturn session``: create, list, show, tail, continue, fork, export, import, rename, delete, hold and release."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.cleanup import be_sure, in_all, print_due, print_sums, teller
from inturn.cli.db import bar
from inturn.cli.hearing import Tail, speaker_of, spoken
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.cli.records import event_record, message_record, session_record
from inturn.cli.screen import stdout
from inturn.cli.values import json_pair, models, moment, pair, retention_rule
from inturn.models.errors import InvalidInputError
from inturn.models.states import Overflow, TurnState

if TYPE_CHECKING:
    from inturn.archives.importing import ImportedSession
    from inturn.client import Client, Message, PastHold, SessionMetadata, Turn
    from inturn.session import Session

BAR_FROM_SESSIONS = 100
"""Fewer are done before anybody has read that they are being done."""


@click.group()
@global_flags()
def session() -> None:
    """Create, list, show, fork, rename, export, import, hold and delete sessions."""


@session.command()
@click.argument("session_id", metavar="[ID]", required=False)
@models("provider/model; repeated: who is asked if those before fail.")
@click.option("--system", "system_message", help="What the model is told beforehand.")
@click.option("--label", "labels", type=pair, multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--option", "options", type=json_pair, multiple=True, metavar="KEY=JSON", help="May be repeated.")
@click.option("--context-turns", type=click.IntRange(min=1), metavar="N", help="Earlier turns that the model is shown.")
@click.option("--context-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens that it is shown at most.")
@click.option(
    "--overflow",
    type=click.Choice([each.value for each in Overflow]),
    default="truncate",
    help="History that is more: leave out the oldest, fail, or write a summary [truncate].",
)
@click.option("--tool", "tools", multiple=True, metavar="NAME", help="That the model may call. May be repeated.")
@click.option("--retention", type=retention_rule, default="policy", metavar="7d|never|policy", help="When it goes.")
@click.option("--halts", is_flag=True, help="Stop behind a quarantined turn, until `inturn session continue`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as `inturn session list` has it.")
@pass_invocation
def create(invocation: Invocation, /, session_id: str | None, as_json: bool, **choices: Any) -> None:
    """Create a session, under an ID of your choice or a new one, and print the ID."""
    choices |= {name: dict(choices[name]) or None for name in ("labels", "options")}
    with invocation.client() as client:
        created = client.create_session(session_id, **choices)
        tell_made(created, as_json)


def tell_made(made: "Session", as_json: bool) -> None:
    if as_json:
        render.json_line(session_record(made.metadata()))
    else:
        render.data(made.session_id)


@session.command("list")
@click.option("--prefix", help="Only IDs that begin so.")
@click.option("--label", "labels", type=pair, multiple=True, metavar="KEY=VALUE", help="Only with all these labels.")
@click.option("--model", help="Only with this model.")
@click.option("--active-after", type=moment, metavar="WHEN", help="Only used since (2025-12-31, or 7d ago).")
@click.option("--active-before", type=moment, metavar="WHEN", help="Only unused since.")
@click.option("--busy/--idle", default=None, help="Only with, or without, unfinished turns.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@click.option("--after", metavar="CURSOR", help="Go on behind the last one of an earlier list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per session, with its cursor.")
@pass_invocation
def list_(invocation: Invocation, /, as_json: bool, limit: int | None, **filters: Any) -> None:
    """List sessions."""
    filters["labels"] = dict(filters["labels"]) or None
    with invocation.client() as client:
        found = client.list_sessions(limit=limit, **filters)
        if as_json:
            for one in found:
                render.json_line(session_record(one) | {"cursor": one.cursor})
            return
        listed = list(found)
    columns = ["session", "model", "turns", "busy", "held", "halted by", "last activity", "labels"]
    rows = [(s.session_id, s.model, s.turns, s.busy, s.held, s.halted_by, s.last_activity_at, s.labels) for s in listed]
    render.table(columns, rows, empty="no sessions. `inturn chat` begins one", gives_way=["labels", "model"])
    if limit and len(listed) == limit:
        render.talk(f"there may be more: --after {listed[-1].cursor}")


@session.command()
@click.argument("session_id", metavar="ID")
@click.option(
    "--messages", "count", type=click.IntRange(min=0), metavar="N", help="Only the first so many messages [all]."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the messages as its history.")
@pass_invocation
def show(invocation: Invocation, session_id: str, count: int | None, as_json: bool) -> None:
    """Show a session with its messages."""
    with invocation.client() as client:
        found = client.get_session(session_id)
        metadata = found.metadata()
        record, messages = session_record(metadata), found.get_messages(limit=count)
        past_holds = client.list_past_holds(session_id)
        if as_json:
            history = [message_record(message) for message in messages]
            render.json_line(record | {"past_holds": list(map(asdict, past_holds)), "history": history})
            return
        render.records([*record.items(), *(("past hold", told(hold)) for hold in past_holds)])
        for speaker, message in with_speakers(messages, found.get_turns(state=TurnState.CANCELLED)):
            render.utterance(speaker, spoken(message.data))


def told(hold: "PastHold") -> str:
    """``claim 4711 (held by ann@host since 2026-11-29 03:00:00, released by bob@host 2026-12-01 09:00:00)``."""
    since = f"since {render.cell(hold.held_at)}, " if hold.held_at else ""
    who = f"held by {hold.held_by or 'somebody'} {since}released by {hold.released_by} {render.cell(hold.released_at)}"
    return f"{hold.reason} ({who})" if hold.reason else who


def with_speakers(messages: Iterable["Message"], cancelled: Iterator["Turn"]) -> Iterator[tuple[str, "Message"]]:
    """Each message with its speaker; a prompt that was taken back with what became of it. Both come in by number."""
    turn = next(cancelled, None)
    for message in messages:
        while turn is not None and turn.number < message.turn:
            turn = next(cancelled, None)
        speaker = speaker_of(message.type, message.data)
        if message.type == "user.message" and turn is not None and turn.number == message.turn:
            speaker += f" (joined into {turn.merged_into})" if turn.merged_into else f" ({turn.state})"
        yield speaker, message


@session.command()
@click.argument("session_id", metavar="ID")
@click.option(
    "--follow", "-f", is_flag=True, help="Go on with what happens from now on, replies while they are written."
)
@click.option(
    "-n", "count", type=click.IntRange(min=0), default=10, metavar="N", help="The last so many messages [10]."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per event.")
@pass_invocation
def tail(invocation: Invocation, session_id: str, follow: bool, count: int, as_json: bool) -> None:
    """Show the last messages of a session, and with --follow what comes next, whoever sends it. Ctrl-C ends it."""
    with invocation.client() as client:
        events, shown = client.get_session(session_id).tail(count, follow=follow), Tail()
        try:
            for event in events:
                if as_json:
                    render.json_line(event_record(event))
                else:
                    shown.show(event)
        finally:
            shown.end()


@session.command("continue")
@click.argument("session_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the turn that had halted it.")
@pass_invocation
def continue_(invocation: Invocation, session_id: str, as_json: bool) -> None:
    """Let a session go on that is halted behind a quarantined turn."""
    with invocation.client() as client:
        halted_by = client.continue_session(session_id)
        if as_json:
            record = session_record(client.get_session(session_id).metadata())
            render.json_line(record | {"was_halted_by": halted_by})
    behind = "it was not halted" if halted_by is None else f"its turn {halted_by} stays as it is"
    render.talk(f"session {session_id} goes on: {behind}")


def remark_if_halted(metadata: "SessionMetadata | None") -> None:
    """Say of a halted session what lets it go on."""
    if metadata is not None and metadata.halted_by is not None:
        key = metadata.session_id
        render.talk(
            f"session {key} stands still behind turn {metadata.halted_by}: `inturn session continue {key}` lets it go on"
        )


@session.command()
@click.argument("session_id", metavar="ID")
@click.argument("new_id", metavar="[NEW]", required=False)
@click.option(
    "--to-turn", type=click.IntRange(min=0), metavar="N", help="The last turn that they share [all that are finished]."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as `inturn session list` has it.")
@pass_invocation
def fork(invocation: Invocation, session_id: str, new_id: str | None, to_turn: int | None, as_json: bool) -> None:
    """Make a session that begins with the history of another one, and print its ID.

    What is said later in either is not seen in the other.
    """
    with invocation.client() as client:
        made = client.get_session(session_id).fork(new_id, to_turn=to_turn)
        tell_made(made, as_json)


@session.command()
@click.argument("session_id", metavar="ID")
@click.option("-o", "--output", metavar="FILE", default="-", help="Where it goes; - is stdout. Default: -.")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "json", "md"]), default="jsonl", help="md is for people [jsonl]."
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@pass_invocation
def export(invocation: Invocation, session_id: str, output: str, form: Any, force: bool) -> None:
    """Write a session with its history to a file, which `inturn session import` takes.

    Turns from the first one on that is not finished are left out.
    """
    with invocation.client() as client:
        pieces = client.get_session(session_id).export(form)
        if output == "-":
            for piece in pieces:
                if form == "md":
                    render.data(piece.decode().removesuffix("\n"))
                else:
                    stdout().write(piece)
            return
        write_whole(Path(output), pieces, force)
    render.talk(f"session {session_id} is in {output}")


def write_whole(path: Path, pieces: Iterable[bytes], force: bool) -> None:
    """Make a file, or replace it: whole, or not at all. Raises: InvalidInputError: it cannot be written there."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not force:
            raise InvalidInputError(f"{path} is there: name another file, or overwrite it with --force")
        with half.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        half.unlink(missing_ok=True)


@session.command("import")
@click.argument("file", metavar="ARCHIVE|-")
@click.argument("session_id", metavar="[ID]", required=False)
@click.option(
    "--only", multiple=True, metavar="ID|PATTERN", help="Only these, such as 'user-123-*' [all]. May be repeated."
)
@click.option("--skip-existing", is_flag=True, help="Leave out what is there already, rather than import nothing.")
@models("Who is asked from now on [as before]; repeated: if those before fail.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per session, as `inturn session list` has it.")
@pass_invocation
def import_(
    invocation: Invocation, /, file: str, session_id: str | None, as_json: bool, model: Any, **choices: Any
) -> None:
    """Make sessions of an archive that cleanup wrote, or of a file that `inturn session export` wrote, and print their
    IDs. All of it is checked before anything is imported.

    ID is another one for the session, where there is only one in the file, or --only names one. An archive may also be a
    URL (s3://bucket/NAME). One whose name ends with .partial is imported as far as it is whole.
    """
    source = sys.stdin.buffer if file == "-" else file
    if session_id is not None and choices.pop("skip_existing"):
        raise click.UsageError("an ID is for one session: name it without --skip-existing")
    with invocation.client() as client:
        if session_id is not None:
            tell_made(client.import_session(source, session_id, model=model, **choices), as_json)
            return
        with bar("sessions imported", BAR_FROM_SESSIONS) as progress:
            found = client.import_archive(source, model=model, on_progress=progress, **choices)
        tell_imported(client, found, as_json)


def tell_imported(client: "Client", found: Sequence["ImportedSession"], as_json: bool) -> None:
    """The sessions that were imported, and how many were not."""
    made = [one.session_id for one in found if not one.existed]
    for key in made:
        if as_json:
            render.json_line(session_record(client.get_session(key).metadata()))
        else:
            render.data(key)
    left = f", {len(found) - len(made):,} left out: they exist already" if len(made) < len(found) else ""
    render.talk(f"{render.counted(len(made), 'session')} imported{left}")


@session.command()
@click.argument("session_id", metavar="ID")
@click.argument("new_id", metavar="NEW")
@pass_invocation
def rename(invocation: Invocation, session_id: str, new_id: str) -> None:
    """Put a session without unfinished turns under another ID."""
    with invocation.client() as client:
        client.get_session(session_id).rename(new_id)
    render.talk(f"session {session_id} is session {new_id} now")


@session.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--pattern", metavar="GLOB", help="All sessions of these IDs: * is any characters, ? any one.")
@click.option("--label", "labels", type=pair, multiple=True, metavar="KEY=VALUE", help="All with these labels.")
@click.option("--held", is_flag=True, help="With --pattern or --label: also those that are held.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; list what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per session.")
@pass_invocation
def delete(
    invocation: Invocation, /, session_id: str | None, dry_run: bool, yes: bool, as_json: bool, **which: Any
) -> None:
    """Delete a session with everything in it, for good, also one that is held.

    Or all sessions of a pattern or labels, with what schedules would send to them. `inturn retention history` keeps a
    receipt of each, with its ID and counts, and no text.
    """
    if session_id is not None and any(which.values()):
        raise click.UsageError("--pattern, --label and --held are for many sessions: leave the ID out, or them")
    if session_id is None and not (which["pattern"] or which["labels"]):
        raise click.UsageError("name one session, or say which ones by --pattern or --label")
    if session_id is None:
        delete_many(invocation, which, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    with invocation.client() as client:
        metadata = client.get_session(session_id).metadata()
        messages = render.counted(metadata.messages, "message")
        if dry_run:
            render.talk(f"session {session_id} would be deleted, with its {messages}")
            return
        if not yes:
            be_sure(f"Delete session {session_id} with its {messages} for good?")
        client.delete_session(session_id)
    render.talk(f"session {session_id} is deleted")


def delete_many(invocation: Invocation, which: Mapping[str, Any], *, dry_run: bool, yes: bool, as_json: bool) -> None:
    how = {"pattern": which["pattern"], "labels": dict(which["labels"]), "held_too": which["held"]}
    with invocation.client() as client:
        found = client.delete_sessions(dry_run=True, **how)
        held = client.delete_sessions(dry_run=True, **how | {"held_too": True}).sessions - found.sessions
        if held:
            render.talk(f"{render.counted(held, 'session')} held: left alone without --held")
        if dry_run or not found.sessions:
            print_due(client.list_matching(**how), "would be deleted", as_json, empty="there are no such sessions")
            return
        if not yes:
            be_sure(f"Delete {in_all([found])} for good? (--dry-run lists them)")
        with bar("deleting sessions", BAR_FROM_SESSIONS) as progress:
            deleted = client.delete_sessions(on_progress=progress, on_removal=teller(as_json), **how)
    print_sums([deleted], "deleted", as_json)


@session.command()
@click.argument("session_id", metavar="ID")
@click.option("--reason", metavar="TEXT", help="Why, for whoever finds it held.")
@click.option("--replace", is_flag=True, help="Also if somebody holds it already: that hold is over then.")
@pass_invocation
def hold(invocation: Invocation, session_id: str, reason: str | None, replace: bool) -> None:
    """Keep a session from cleanup, until it is released.

    Cleanup never removes it; `inturn session delete` still does. `inturn session show` says why it is held, by whom, and
    which holds are over.
    """
    with invocation.client() as client:
        client.hold_session(session_id, reason, replace=replace)
    render.talk(f"session {session_id} is held: cleanup leaves it alone until `inturn session release {session_id}`")


@session.command()
@click.argument("session_id", metavar="ID")
@pass_invocation
def release(invocation: Invocation, session_id: str) -> None:
    """Give a held session back to cleanup."""
    with invocation.client() as client:
        client.release_session(session_id)
    render.talk(f"session {session_id} is released: its retention counts again")
