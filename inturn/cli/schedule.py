"""``inturn schedule``: add, list, show, pause, resume and remove."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.cli.send import READ_LIMIT
from inturn.cli.values import models
from inturn.models.states import Misfire, ProcessKind

if TYPE_CHECKING:
    from inturn.client import Client, Schedule

RUNS_SHOWN = 5


@click.group()
@global_flags()
def schedule() -> None:
    """Add, list, show, pause, resume and remove schedules: prompts by the clock."""


@schedule.command()
@click.argument("session_id", metavar="SESSION")
@click.argument("prompt")
@click.option("--cron", required=True, help="Minute, hour, day, month, weekday: '0 9 * * 1' is Mondays at 9:00.")
@click.option("--tz", "timezone", default="UTC", metavar="ZONE", help="Where it is that time: Europe/Berlin [UTC].")
@click.option("--name", help="What the schedule is called [a new unique name].")
@click.option("--new-session", is_flag=True, help="A session for each run, whose ID is SESSION and the run's time.")
@click.option(
    "--misfire",
    type=click.Choice([each.value for each in Misfire]),
    default="once",
    help="Runs that no beat was there for: leave out, fire the latest, or fire each (100 at most) [once].",
)
@models("provider/model of new sessions; repeated: who is asked if those before fail.")
@click.option("--system", "system_message", help="What the model is told beforehand, in new sessions.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as `inturn schedule show` has it.")
@pass_invocation
def add(invocation: Invocation, /, prompt: str, as_json: bool, **choices: Any) -> None:
    """Have a prompt sent by the clock, and print the schedule's name. A PROMPT of - is read from stdin.

    It is sent to SESSION, or with --new-session to a new one each time. A beat has to run.
    """
    with invocation.client() as client:
        added = client.add_schedule(prompt=render.read_all(READ_LIMIT) if prompt == "-" else prompt, **choices)
        if as_json:
            render.json_line(shown_record(added))
        else:
            render.data(added.name)
        tell_next(added)
        tell_beat(client, invocation)


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per schedule.")
@pass_invocation
def list_(invocation: Invocation, as_json: bool) -> None:
    """List schedules, with what they did last and do next."""
    with invocation.client() as client:
        found = client.list_schedules()
    if as_json:
        for one in found:
            render.json_line(record(one))
        return
    columns = ["schedule", "session", "cron", "zone", "state", "next", "last", "turn", "because"]
    rows = [
        (
            one.name, target(one), one.cron, one.timezone, state(one), one.next_at, one.last_at, one.last_turn,
            one.paused_because,
        )
        for one in found
    ]  # fmt: skip
    render.table(columns, rows, empty="no schedules. `inturn schedule add` makes one", gives_way=["because", "zone"])


@schedule.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with its next runs.")
@pass_invocation
def show(invocation: Invocation, name: str, as_json: bool) -> None:
    """Show a schedule, and its next five runs in its time zone."""
    with invocation.client() as client:
        found = client.get_schedule(name)
    if as_json:
        render.json_line(shown_record(found))
        return
    shown = record(found) | {"session_id": target(found)}
    runs = [(f"run {number}", local(run, found)) for number, run in enumerate(found.next_runs(RUNS_SHOWN), 1)]
    render.records([*shown.items(), *runs])


@schedule.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def pause(invocation: Invocation, name: str, as_json: bool) -> None:
    """Send no more of a schedule, until it is resumed."""
    with invocation.client() as client:
        changed = client.pause_schedule(name)
    if as_json:
        render.json_line({"name": name, "paused": True, "changed": changed})
    already = "" if changed else " already"
    render.talk(f"schedule {name} is paused{already}, until `inturn schedule resume {name}`")


@schedule.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def resume(invocation: Invocation, name: str, as_json: bool) -> None:
    """Let a paused schedule go on with its next run; those of the meantime are left out."""
    with invocation.client() as client:
        changed, found = client.resume_schedule(name), client.get_schedule(name)
        if as_json:
            render.json_line({"name": name, "paused": False, "changed": changed, "next_at": found.next_at})
        if not changed:
            render.talk(f"schedule {name} was not paused")
        tell_next(found)
        tell_beat(client, invocation)


@schedule.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def remove(invocation: Invocation, name: str, as_json: bool) -> None:
    """Take a schedule away. What it has sent stays."""
    with invocation.client() as client:
        client.remove_schedule(name)
    if as_json:
        render.json_line({"name": name, "removed": True})
    render.talk(f"schedule {name} is gone; sessions and turns stay")


def state(found: "Schedule") -> str:
    return "paused" if found.is_paused else "active"


def target(found: "Schedule") -> str:
    """The session, or what the IDs of new ones look like."""
    return f"{found.session_id}-TIME" if found.new_session else found.session_id


def record(found: "Schedule") -> dict[str, Any]:
    """A schedule, for programs."""
    return {**asdict(found), "state": state(found)}


def shown_record(found: "Schedule") -> dict[str, Any]:
    return {**record(found), "next_runs": found.next_runs(RUNS_SHOWN)}


def local(run: datetime, found: "Schedule") -> str:
    """A run as its time zone's clocks show it."""
    return f"{run.astimezone(ZoneInfo(found.timezone)):%a %Y-%m-%d %H:%M %Z}"


def tell_next(found: "Schedule") -> None:
    for run in found.next_runs(1):
        render.talk(f"schedule {found.name} sends to {target(found)} next on {local(run, found)}")


def tell_beat(client: "Client", invocation: Invocation, so: str = "nothing is sent yet") -> None:
    """Nothing is done by the clock without one."""
    if not any(one.alive and one.kind is ProcessKind.BEAT for one in client.list_workers()):
        command = "up" if invocation.settings.has_embedded_broker else "beat"
        render.talk(f"no beat is alive, so {so}: `inturn {command}` starts one")
