"""Whether Flower may run as it is set up, and where it does."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from inturn.cli.checkup.finding import Finding
from inturn.flower_settings import about_open_door, logins, url_of

if TYPE_CHECKING:
    from inturn.settings import Settings


def check_flower(settings: "Settings") -> Iterator[Finding]:
    """What it would refuse, and the one of this home's stack."""
    from inturn.workers.stack import running_stack

    known = logins(settings.flower_basic_auth)
    if refusal := about_open_door(settings.flower_address, known):
        yield Finding("warn", "flower", refusal)
    stack = running_stack(settings.home)
    child = stack.children.get("flower") if stack else None
    if child is not None:
        state = "with a login" if known else "without a login, for this machine only"
        yield Finding(
            "ok", "flower", f"PID {child.pid}, {state}: {url_of(settings.flower_address, settings.flower_port)}"
        )
