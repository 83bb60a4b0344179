"""``inturn cleanup``: what beat does on its own, done now."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.db import bar
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.cli.values import span
from inturn.cli.words import size
from inturn.models.states import Kept

if TYPE_CHECKING:
    from inturn.client import Removal, RemovalSum
    from inturn.operations import ExpiryInfo

BAR_FROM_SESSIONS = 100
CONTENT = "content"


@click.command()
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed, and by which rule.")
@click.option(
    "--older-than", type=span, metavar="30d", help="Instead of all rules: every session that was idle for so long."
)
@click.option("--yes", is_flag=True, help="Do not ask, however many they are.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per session; then one per kind of rows that expired."
)
@pass_invocation
def cleanup(invocation: Invocation, dry_run: bool, older_than: timedelta | None, yes: bool, as_json: bool) -> None:
    """Remove sessions whose retention is over, and what else expired.

    Or only what was said in them, where their rule keeps metadata. All rules are carried out at once. What is held, or has
    turns queued or running, stays, and with --older-than what was made to be kept for ever. Beat does the same on its own:
    once an hour, and by rules that have a cron when that says so. A SQLite file gives the space back. `inturn retention
    show` lists the rules and what else expires, and `inturn retention history` what was removed.
    """
    how: dict[str, Any] = {"older_than": older_than}
    with invocation.client() as client:
        expired = client.list_expiries() if older_than is None else []
        if dry_run or not yes:
            if dry_run:
                print_due(client.list_due(**how), "would be removed", as_json)
                print_expired(expired, "would go", as_json)
                return
            due = client.cleanup(dry_run=True, **how)
            if due:
                be_sure(f"Remove {in_all(due)} for good? (--dry-run lists them)")
        with bar("removing sessions", BAR_FROM_SESSIONS) as progress:
            removed = client.cleanup(any_share=True, on_progress=progress, on_removal=teller(as_json), **how)
    print_sums(removed, "removed", as_json)
    print_expired(expired, "are gone", as_json)


def be_sure(question: str) -> None:
    """Ask before something is removed.

    Raises:
        click.Abort: the answer is no; who is told so is told that nothing was removed.
        click.UsageError: nobody is there to answer.
    """
    if not render.ask(question):
        no = click.Abort()
        no.add_note("nothing was removed")
        raise no


def print_expired(expiries: "Sequence[ExpiryInfo]", becomes: str, as_json: bool) -> None:
    """Of what is no session, how many rows went, or would go."""
    found = [one for one in expiries if one.due]
    if as_json:
        for one in found:
            render.json_line({"rule": one.expiry.name, "rows": one.due})
    elif found:
        said = ", ".join(f"{render.counted(one.due, 'row')} of {one.expiry.name}" for one in found)
        render.talk(f"besides, {said} {becomes}: `inturn retention show` says after how long")


def in_all(sums: "Sequence[RemovalSum]") -> str:
    """``3 sessions (2 by default, 1 by drafts; 1.2 MB of text)``, and of how many of them only the text."""
    by = ", ".join(f"{one.sessions:,} by {one.rule}" for one in sums)
    text = size(sum(one.bytes for one in sums))
    stay = sum(one.sessions for one in sums if what(one.kept) == CONTENT)
    only = f"; of {stay:,} only what was said" if stay else ""
    return f"{render.counted(sum(one.sessions for one in sums), 'session')} ({by}; {text} of text{only})"


def what(kept: str) -> str:
    """What is removed of a session, in a word."""
    return CONTENT if kept == Kept.METADATA else "all"


def print_due(
    removals: "Iterable[Removal]", becomes: str, as_json: bool, empty: str = "nothing is due for removal"
) -> None:
    """List what would be removed, as it comes."""
    if as_json:
        for removal in removals:
            tell(removal)
        return
    from inturn.models.store.receipts import add_up

    sums: dict[str, RemovalSum] = {}

    def rows() -> Iterator[tuple[object, ...]]:
        for one in removals:
            add_up(sums, one)
            yield one.session_id, one.rule, one.turns, one.messages, one.bytes, one.last_activity_at, what(one.kept)

    columns = ["session", "rule", "turns", "messages", "bytes", "last activity", "removed"]
    render.table(columns, rows(), empty=empty, gives_way=["messages", "turns", "bytes"])
    if sums:
        render.talk(f"{in_all(list(sums.values()))} {becomes}")


def tell(removal: "Removal") -> None:
    render.json_line(asdict(removal))


def teller(as_json: bool) -> "Callable[[Removal], object]":
    """What tells each session that is removed: programs are told at once, people the sums in the end."""
    return tell if as_json else lambda removal: None


def print_sums(
    sums: "Sequence[RemovalSum]", becomes: str, as_json: bool, empty: str = "nothing is due for removal"
) -> None:
    """Say what was removed, by rule."""
    if as_json:
        return
    rows = [(one.rule, one.sessions, one.turns, one.messages, one.bytes, what(one.kept)) for one in sums]
    render.table(["rule", "sessions", "turns", "messages", "bytes", "removed"], rows, empty=empty)
    if sums:
        verb = "is" if [one.sessions for one in sums] == [1] else "are"
        render.talk(f"{in_all(sums)} {verb} {becomes}: `inturn retention history` has the receipts")
