"""``inturn lane``: list, pause and resume."""

from dataclasses import asdict
from typing import Any

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, global_flags, pass_invocation
from inturn.models.content import TURN_LANES
from inturn.models.states import Lane


class TurnLane(click.Choice[str]):
    """A lane that turns go through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == Lane.MAINTENANCE:
            self.fail("the lane maintenance repairs what dead workers leave, so it is never paused, nor resumed", param)
        return super().convert(value, param, ctx)


LANES = TurnLane([lane.value for lane in TURN_LANES])


@click.group()
@global_flags()
def lane() -> None:
    """List, pause and resume lanes."""


@lane.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per lane.")
@pass_invocation
def list_(invocation: Invocation, as_json: bool) -> None:
    """List the lanes, with how much waits in each.

    Waiting are sessions that are ready, running those that a worker is at, workers those that are alive.
    """
    with invocation.client() as client:
        lanes = client.list_lanes()
    if as_json:
        for one in lanes:
            render.json_line(asdict(one))
        return
    rows = [(one.lane, one.waiting, one.running, one.workers, one.paused_at) for one in lanes]
    render.table(["lane", "waiting", "running", "workers", "paused since"], rows, empty="no lanes")


@lane.command()
@click.argument("name", metavar="LANE", type=LANES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def pause(invocation: Invocation, name: str, as_json: bool) -> None:
    """Begin no more turns of a lane. Prompts are still taken, and calls under way end as ever."""
    with invocation.client() as client:
        changed = client.pause_lane(name)
    if as_json:
        render.json_line({"lane": name, "paused": True, "changed": changed})
    already = "" if changed else " already"
    render.talk(f"lane {name} is paused{already}: what waits there waits until `inturn lane resume {name}`")


@lane.command()
@click.argument("name", metavar="LANE", type=LANES)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_invocation
def resume(invocation: Invocation, name: str, as_json: bool) -> None:
    """Let a paused lane go on."""
    with invocation.client() as client:
        changed = client.resume_lane(name)
    if as_json:
        render.json_line({"lane": name, "paused": False, "changed": changed})
    render.talk(f"lane {name} goes on" if changed else f"lane {name} was not paused")
