"""``inturn cleanup``: what beat does on its own, done now."""

from collections import Counter
from collections.abc import Sequence
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
    from inturn.client import Removal

BAR_FROM_SESSIONS = 100
CONTENT = "content"


@click.command()
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed, and by which rule.")
@click.option(
    "--older-than", type=span, metavar="30d", help="Instead of all rules: every session that was idle for so long."
)
@click.option("--yes", is_flag=True, help="Do not ask, however many they are.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per session.")
@pass_invocation
def cleanup(invocation: Invocation, dry_run: bool, older_than: timedelta | None, yes: bool, as_json: bool) -> None:
    """Remove sessions whose retention is over.

    Or only what was said in them, where their rule keeps metadata. All rules are carried out at once. What is held, or has
    turns queued or running, stays, and with --older-than what was made to be kept for ever. Beat does the same on its own:
    once an hour, and by rules that have a cron when that says so. `inturn retention show` lists the rules, and `inturn
    retention history` what was removed.
    """
    how: dict[str, Any] = {"older_than": older_than}
    with invocation.client() as client:
        if dry_run or not yes:
            due = client.cleanup(dry_run=True, **how)
            if dry_run:
                print_removals(due, "would be removed", as_json)
                return
            if due and not render.ask(f"Remove {in_all(due)} for good? (--dry-run lists them)"):
                raise click.Abort
        with bar("removing sessions", BAR_FROM_SESSIONS) as progress:
            removed = client.cleanup(any_share=True, on_progress=progress, **how)
    print_removals(removed, "is removed" if len(removed) == 1 else "are removed", as_json)


def in_all(removals: "Sequence[Removal]") -> str:
    """``3 sessions (2 by default, 1 by drafts; 1.2 MB of text)``, and of how many of them only the text."""
    rules = Counter(removal.rule for removal in removals)
    by = ", ".join(f"{count:,} by {rule}" for rule, count in rules.items())
    stay = sum(what(removal.kept) == CONTENT for removal in removals)
    only = f"; of {stay:,} only what was said" if stay else ""
    return (
        f"{render.counted(len(removals), 'session')} ({by}; {size(sum(one.bytes for one in removals))} of text{only})"
    )


def what(kept: str) -> str:
    """What is removed of a session, in a word."""
    return CONTENT if kept == Kept.METADATA else "all"


def print_removals(
    removals: "Sequence[Removal]", becomes: str, as_json: bool, empty: str = "nothing is due for removal"
) -> None:
    if as_json:
        for removal in removals:
            render.json_line(asdict(removal))
        return
    rows = [
        (one.session_id, one.rule, one.turns, one.messages, one.bytes, one.last_activity_at, what(one.kept))
        for one in removals
    ]
    columns = ["session", "rule", "turns", "messages", "bytes", "last activity", "removed"]
    render.table(columns, rows, empty=empty, gives_way=["messages", "turns", "bytes"])
    if removals:
        render.talk(f"{in_all(removals)} {becomes}")
