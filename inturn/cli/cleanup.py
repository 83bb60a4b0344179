"""``inturn cleanup``: what beat does on its own, done now."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation

if TYPE_CHECKING:
    from inturn.client import Removal


@click.command()
@click.option("--dry-run", is_flag=True, help="Remove nothing; list what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per session.")
@pass_invocation
def cleanup(invocation: Invocation, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove sessions whose retention is over.

    Never one that is held, or that has turns queued or running. Beat does the same on its own, once an hour.
    """
    with invocation.client() as client:
        due = client.cleanup(dry_run=True) if dry_run or not yes else None
        if (
            due
            and not dry_run
            and not render.ask(f"Remove {render.counted(len(due), 'session')} for good? (--dry-run lists them)")
        ):
            raise click.Abort
        print_removals(due if dry_run and due is not None else client.cleanup(), dry_run, as_json)


def print_removals(removals: "list[Removal]", dry_run: bool, as_json: bool) -> None:
    if as_json:
        for removal in removals:
            render.json_line(asdict(removal))
        return
    rows = [(one.session_id, one.rule, one.turns, one.messages, one.last_activity_at) for one in removals]
    columns = ["session", "rule", "turns", "messages", "last activity"]
    render.table(columns, rows, empty="nothing is due for removal", gives_way=["messages", "turns"])
    if removals:
        done = "would be" if dry_run else "is" if len(removals) == 1 else "are"
        render.talk(f"{render.counted(len(removals), 'session')} {done} removed")
