"""``inturn flower``: Flower with pages of ours, behind a login or on loopback."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from inturn.cli import render
from inturn.cli.invocation import Invocation, pass_invocation
from inturn.flower_settings import check_door, logins

if TYPE_CHECKING:
    from inturn.workers.logs import JsonLines

Function = TypeVar("Function", bound=Callable[..., Any])
LOG_FORMAT = "[%(asctime)s: %(levelname)s] %(name)s: %(message)s"


def door_flags(function: Function) -> Function:
    """Where Flower listens, and to whom: settings, as the flags of a command."""
    for name, kind, metavar, told in reversed(
        (
            ("address", str, "ADDRESS", "Where to listen [flower_address: 127.0.0.1]."),
            ("port", click.IntRange(0, 65_535), "PORT", "On which port; 0: a free one [flower_port: 5555]."),
            (
                "basic-auth", str, "USER:PASSWORD,...",
                "Who may look. Better set as INTURN_FLOWER_BASIC_AUTH, which no list of processes shows.",
            ),
        )
    ):  # fmt: skip
        function = click.option(f"--{name}", type=kind, metavar=metavar, help=told)(function)
    return function


@click.command()
@door_flags
@click.option("--control", is_flag=True, help="Let who has a login stop workers, revoke tasks and the like.")
@click.option("--show-content", is_flag=True, help="Show what was said in sessions. Otherwise only how long it is.")
@click.option("--waits", is_flag=True, hidden=True, help="Wait for a broker that is away: for `inturn up`.")
@pass_invocation
def flower(
    invocation: Invocation,
    address: str | None,
    port: int | None,
    basic_auth: str | None,
    control: bool,
    show_content: bool,
    waits: bool,
) -> None:
    """Run Flower: a look at workers, sessions, batches and retention in a browser.

    It only shows, and no text of a conversation. Anywhere but on loopback it needs a login.
    """
    invocation.flags |= {"flower_address": address, "flower_port": port, "flower_basic_auth": basic_auth}
    settings = invocation.settings
    check_door(settings.flower_address, logins(settings.flower_basic_auth), control=control)
    from inturn.flower.application import serve  # takes its time, which a refusal need not

    lines = log_lines(settings.log_format)
    serve(
        settings,
        control=control,
        show_content=show_content,
        waits=waits,
        tell=lambda url: render.talk(lines.of(__name__, f"Flower: {url}") if lines else f"Flower: {url}"),
    )


def log_lines(log_format: str) -> "JsonLines | None":
    """Log as workers and beat do. Returns: what makes objects of sentences, if that is how."""
    import logging

    from inturn.workers.logs import JsonLines, is_json

    lines = JsonLines("flower") if is_json(log_format) else None
    handler = logging.StreamHandler()
    handler.setFormatter(lines or logging.Formatter(LOG_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return lines
