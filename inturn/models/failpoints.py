"""Named places where a process can be made to fail, so that tests know what is left behind there.

``INTURN_FAILPOINT=claim.after_commit:exit`` ends a process right after its first claim was committed. Several are
separated by commas, also of one name: ``heartbeat.skip:raise@2,heartbeat.skip:raise@3``. ``@3`` means the third time
only that the process comes there; without it, the first.

===========  =========================================================================================================
``exit``     ends the process with ``EXIT_CODE``; nothing is put in order
``stop``     SIGSTOP to itself: until somebody sends SIGCONT
``sleep``    holds up the thread that came there, for ``sleep=SECONDS``; by default for longer than a default lease
``raise``    ``FailpointError``, which nothing in inturn expects
===========  =========================================================================================================

Without the variable ``reached`` does nothing. It is read when this module is imported, and never again.
"""

import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inturn.models.errors import SettingsError

logger = logging.getLogger(__name__)

VARIABLE = "INTURN_FAILPOINT"
EXIT_CODE = 86
SLEEP_SECONDS = 30.0

NAMES = (
    "send.after_commit",
    "claim.after_commit",
    "start.after_commit",
    "call.after_send",
    "call.after_response",
    "settle.before_commit",
    "settle.after_commit",
    "release.before_recheck",
    "heartbeat.skip",
    "cleanup.between_chunks",
    "sweep.after_mark",
    "cancel.after_flag",
    "schedule.after_commit",
)


class FailpointError(Exception):
    """Somebody asked for it; as unexpected as a bug, so none of inturn's own errors."""


def leave(name: str, seconds: float) -> None:
    os._exit(EXIT_CODE)


def halt(name: str, seconds: float) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(name: str, seconds: float) -> None:
    time.sleep(seconds)


def fail(name: str, seconds: float) -> None:
    raise FailpointError(f"the fail-point {name} was reached")


ACTIONS: dict[str, Callable[[str, float], None]] = {"exit": leave, "stop": halt, "sleep": sleep, "raise": fail}


@dataclass(frozen=True, slots=True)
class Failpoint:
    """What happens at the ``time``-th time that a process comes to a place."""

    name: str
    action: str
    seconds: float = SLEEP_SECONDS
    time: int = 1

    @classmethod
    def parse(cls, words: str) -> "Failpoint":
        """Read ``name:action[=seconds][@time]``. Raises: SettingsError."""
        name, _, rest = words.strip().partition(":")
        rest, _, time_ = rest.partition("@")
        action, _, seconds = rest.partition("=")
        if name not in NAMES:
            raise SettingsError(f"{VARIABLE} names no fail-point {name!r}: there are {', '.join(NAMES)}")
        if action not in ACTIONS:
            raise SettingsError(f"{VARIABLE} has no action {action!r} at {name}: there are {', '.join(ACTIONS)}")
        try:
            point = cls(name, action, float(seconds or SLEEP_SECONDS), int(time_ or 1))
        except ValueError:
            point = cls(name, action, -1)
        if not (0 <= point.seconds < math.inf and point.time >= 1) or (seconds and action != "sleep"):
            raise SettingsError(
                f"{VARIABLE} says {words.strip()!r}: write NAME:ACTION, NAME:sleep=SECONDS, or either@N"
            )
        return point


class Failpoints:
    """Those that are set in this process, and how often it came to each name."""

    def __init__(self, points: Sequence[Failpoint]) -> None:
        self.points = {(point.name, point.time): point for point in points}
        self._times: Counter[str] = Counter()
        self._counting = threading.Lock()

    def reached(self, name: str) -> None:
        """Fail here, if it is the time to. Raises: FailpointError."""
        with self._counting:
            self._times[name] += 1
            point = self.points.get((name, self._times[name]))
        if point is not None:
            logger.warning("action=failpoint_reached name=%s time=%d does=%s", name, point.time, point.action)
            ACTIONS[point.action](name, point.seconds)


def nothing(name: str) -> None:
    """What ``reached`` is where nothing was asked for."""


def armed(value: str) -> Failpoints | None:
    """What the variable asks for. Raises: SettingsError."""
    points = [Failpoint.parse(words) for words in value.split(",") if words.strip()]
    return Failpoints(points) if points else None


ARMED = armed(os.environ.get(VARIABLE, ""))
reached: Callable[[str], None] = ARMED.reached if ARMED else nothing


def is_set(name: str) -> bool:
    """Whether anything happens at that name in this process."""
    return ARMED is not None and any(name == point for point, _ in ARMED.points)
