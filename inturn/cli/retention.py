"""``inturn retention``: which rules say when sessions are removed, what they come to, and what was removed."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from inturn.cli import render
from inturn.cli.checkup.work import named, restart, started
from inturn.cli.cleanup import what
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.cli.schedule import tell_beat
from inturn.cli.values import shown_span
from inturn.fingerprints import started_otherwise
from inturn.models.errors import SessionNotFoundError
from inturn.models.states import Kept
from inturn.urls import masked_url

if TYPE_CHECKING:
    from inturn.client import Client, SessionMetadata
    from inturn.models.store.outlook import Outlook
    from inturn.models.store.receipts import Run
    from inturn.models.store.rules import Rule
    from inturn.operations import ExpiryInfo, RuleInfo


@click.group()
@global_flags()
def retention() -> None:
    """Show the rules of retention, test a session, and read receipts of removals.

    Rules are [[retention]] in inturn.toml. The first that covers a session counts; sessions with a time of their own go
    by that, and what no rule covers goes by retention_days. What is no session expires by settings of its own.
    """


@retention.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per rule; then one per kind that expires.")
@pass_invocation
def show(invocation: Invocation, as_json: bool) -> None:
    """List the rules in their order: how many sessions each covers, how many are due, and when it is carried out next.

    Then what else expires, with how many rows are due.
    """
    with invocation.client() as client:
        rules, expiries = client.list_rules(), client.list_expiries()
        if as_json:
            for told in (*map(record, rules), *map(of_expiry, expiries)):
                render.json_line(told)
            return
        rows: list[tuple[object, ...]] = [
            (
                it.rule.name,
                covers(it.rule),
                limits(it.rule),
                it.sessions,
                it.due,
                it.next_at,
                it.cron,
                masked_url(it.rule.archive),
                what(it.rule.keep),
            )
            for it in rules
        ]
        for it in expiries:
            after = f"after {shown_span(timedelta(seconds=it.expiry.seconds))}"
            rows.append((it.expiry.name, it.expiry.covers, after, None, it.due, None, None, "", ""))
        columns = ["rule", "covers", "removed", "sessions", "due", "next", "cron", "archive", "what"]
        render.table(columns, rows, empty="there are no rules", gives_way=["archive", "covers", "cron"])
        due = sum(one.due for one in rules)
        lists = "`inturn cleanup --dry-run` lists them"
        render.talk(f"{render.counted(due, 'session')} due now: {lists}" if due else "none is due now")
        tell_beat(client, invocation, "no rule is carried out by itself")
        tell_started_otherwise(client)


def tell_started_otherwise(client: "Client") -> None:
    """Rules are read at the start: who cleans up may have others."""
    found = started_otherwise(client.settings, client.list_workers())
    if who := [named(process) for process, about in found if "retention" in about]:
        render.talk(f"{started(who)} with other rules than these. {restart(client.settings)}")


def record(one: "RuleInfo") -> dict[str, Any]:
    """A rule, for programs."""
    cron, timezone = (one.cron.expression, one.cron.timezone) if one.cron else (None, None)
    now = {"sessions": one.sessions, "due": one.due, "cron": cron, "timezone": timezone, "next_at": one.next_at}
    return asdict(one.rule) | {"archive": masked_url(one.rule.archive)} | now


def of_expiry(one: "ExpiryInfo") -> dict[str, Any]:
    """The same of what is no session."""
    return asdict(one.expiry) | {"covers": one.expiry.covers, "due": one.due}


def covers(rule: "Rule") -> str:
    """Which sessions, in words."""
    if rule.own:
        return "sessions with an idle time of their own"
    found = [rule.match] if rule.match != "*" else []
    found += [f"{name}={value}" for name, value in rule.labels.items()]
    found += [rule.model] if rule.model != "*" else []
    if rule.from_batch is not None:
        found.append("of batches" if rule.from_batch else "of no batch")
    return ", ".join(found) or "all others"


def limits(rule: "Rule") -> str:
    """When, in words."""
    found = [
        f"{what} {shown_span(timedelta(seconds=seconds))}"
        for what, seconds in (("idle for", rule.idle_seconds), ("made", rule.age_seconds))
        if seconds is not None
    ]
    found = [f"{said} ago" if said.startswith("made") else said for said in found]
    if rule.more_than is not None:
        found.append(f"beyond the {rule.more_than:,} active last")
    return " or ".join(found) or ("after that time" if rule.own else "never")


@retention.command()
@click.argument("session_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def test(invocation: Invocation, session_id: str, as_json: bool) -> None:
    """Say which rule covers a session, when it is due, and whether the next cleanup removes it."""
    with invocation.client() as client:
        found = client.outlook(session_id)
        session = client.get_session_metadata(session_id)
        if session is None:  # it was removed since
            raise SessionNotFoundError(session_id)
    told: Mapping[str, Any] = {
        "session": session_id,
        "rule": found.rule and found.rule.name,
        "due": found.due,
        "due_at": found.due_at,
        "counts_from": found.counts_from,
        "held": found.held,
        "busy": found.busy,
        "schedules": found.schedules,
        "paused_schedules": found.paused_schedules,
        "keep": found.rule and found.rule.keep,
        "content_removed_at": session.content_removed_at,
        "reason": reason(session, found),
    }
    if as_json:
        render.json_line(told)
        return
    render.records(told.items())


MOMENTS = {"last_activity_at": "its last activity", "created_at": "when it was made", "imported_at": "its import"}


def reason(session: "SessionMetadata", found: "Outlook") -> str:
    """Why it is removed, or why not."""
    rule = found.rule
    if found.held:
        because = f": {session.hold_reason}" if session.hold_reason else ""
        return f"it is held by {session.held_by or 'somebody'}{because}"
    if rule is None:
        return "it was made to be kept for ever"
    when = limits(rule)
    if rule.own and isinstance(session.retention, timedelta):
        when = f"idle for {shown_span(session.retention)}, which is its own time"
    counted = f", counted from {MOMENTS[found.counts_from]}" if found.counts_from else ""
    if when == "never":
        return f"kept for ever by {rule.name}"
    if found.due:
        removed = "what was said is removed" if rule.keep is Kept.METADATA else "removed"
        return f"{removed} by {rule.name}: {when}{without(found.paused_schedules)}"
    if found.busy:
        return f"it has turns queued or running; then by {rule.name}: {when}{counted}"
    if found.schedules:
        return f"{senders(found.schedules)} to it; otherwise by {rule.name}: {when}{counted}"
    if rule.keep is Kept.METADATA and session.content_removed_to == session.turns and session.content_removed_at:
        return f"what was said is removed already, and the rest stays; once more is said, by {rule.name}: {when}"
    return f"not yet; by {rule.name}: {when}{counted}{without(found.paused_schedules)}"


def senders(schedules: "list[str]") -> str:
    """``the schedules daily, weekly send``."""
    names = ", ".join(schedules)
    return f"the schedule {names} sends" if len(schedules) == 1 else f"the schedules {names} send"


def without(paused: "list[str]") -> str:
    """What does not keep it."""
    return f"; {senders(paused)} to it, but paused ones keep nothing" if paused else ""


@retention.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, help="How many runs at most. Default 20.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per run; or per receipt, and per hold.")
@pass_invocation
def history(invocation: Invocation, session_id: str | None, limit: int, as_json: bool) -> None:
    """List what cleanups removed, newest first; with ID, the receipts of the sessions that had it, and their past holds."""
    with invocation.client() as client:
        if session_id is None:
            print_runs(list(client.list_removal_runs(limit=limit)), as_json)
            return
        receipts, holds = client.list_receipts(session_id), client.list_past_holds(session_id)
    if as_json:
        for record in (*map(asdict, receipts), *map(asdict, holds)):
            render.json_line(record)
        return
    columns = ["removed", "rule", "asked by", "turns", "messages", "bytes", "archive", "what"]
    rows = [
        (
            it.removed_at, it.rule, it.run and it.run.asked_by, it.turns, it.messages, it.bytes, it.run and it.run.archive,
            what(it.kept),
        )
        for it in receipts
    ]  # fmt: skip
    render.table(
        columns, rows, empty=f"no session {session_id} was removed by a rule or an erasure", gives_way=["archive"]
    )
    if holds:
        past = [(it.held_at, it.held_by, it.released_at, it.released_by, it.reason) for it in holds]
        render.table(["held", "by", "released", "by", "reason"], past, empty="", gives_way=["reason"])


RUN_COLUMNS = ("began_at", "rule", "asked_by", "sessions", "messages", "bytes", "rows")


def print_runs(runs: "list[Run]", as_json: bool) -> None:
    if as_json:
        for run in runs:
            render.json_line(asdict(run))
        return
    columns = ["began", "rule", "asked by", "sessions", "messages", "bytes", "other rows", "archive", "ended", "what"]
    rows = [
        (
            it.began_at,
            it.rule,
            it.asked_by,
            it.sessions,
            it.messages,
            it.bytes,
            it.rows,
            it.archive,
            ended(it),
            what(it.kept),
        )
        for it in runs
    ]
    render.table(
        columns, rows, empty="no cleanup has removed anything", gives_way=["archive", "messages", "other rows", "bytes"]
    )
    for sentence in failures(runs):
        render.talk(sentence)


def ended(run: "Run") -> str:
    if run.error is not None:
        return "failed"
    return "not yet" if run.ended_at is None else "well"


def failures(runs: "list[Run]") -> Iterator[str]:
    yield from (f"{run.rule} failed: {run.error}" for run in runs if run.error is not None)
