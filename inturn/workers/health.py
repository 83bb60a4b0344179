"""Whether this process is well, for who asks from outside: a container's health check, or Kubernetes.

Two questions, as Kubernetes asks them. ``/livez``: does it hang? Then only an end and a new start help. ``/readyz``: is it
at work? Not while the database is away, which no new start would mend.
"""

import threading
from collections.abc import Callable, Mapping

from inturn.workers.meter import Sources

TURN_SECONDS = 3.0
"""A loop that has not come round by then hangs, as far as who asks can tell, who does not wait for long."""

Page = Callable[[], str | None]
"""What is wrong; None: nothing."""


def health_pages(sources: Sources, silent_seconds: float) -> Mapping[str, Page]:
    """The pages by path."""

    def hangs() -> str | None:
        if comes_round(sources.call_soon):
            return None
        return f"the loop that its turns run on has not come round for {TURN_SECONDS:g} s: something holds it up"

    def is_off_duty() -> str | None:
        age = sources.heartbeat_age()
        if age > silent_seconds:
            return f"its last heartbeat was stored {age:.0f} s ago: the database does not answer, or is too slow"
        return hangs()

    return {"/livez": hangs, "/readyz": is_off_duty}


def comes_round(call_soon: Callable[[Callable[[], object]], object], seconds: float = TURN_SECONDS) -> bool:
    """Whether a loop makes a call that it is handed, within that time."""
    turned = threading.Event()
    call_soon(turned.set)
    return turned.wait(seconds)
