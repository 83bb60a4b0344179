"""When the runs of a schedule are: cron in a time zone, and which runs are made up for that nobody was there to fire."""

import difflib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from inturn.models.errors import InvalidInputError
from inturn.models.states import Misfire

MOST_MISSED = 100
"""How many runs ``Misfire.ALL`` makes up for at most: the latest ones."""
LATE = timedelta(minutes=1)
"""A run that nobody has fired for longer was missed."""
EXAMPLE = "write five fields, such as '0 9 * * 1' (Mondays at 9:00) or '*/15 * * * *' (every quarter of an hour)"
FIELDS = {"minute": 59, "hour": 23, "day-of-month": 31, "month": 12, "day-of-week": 7}
"""The fields in their order, and the last value of each."""
WORDS = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "day-of-week": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""Words that other crons know. Here they are refused, and what they stand for is said: there is one way to write a thing."""
LONGEST = 200
LOOKS_BACK = (timedelta(hours=2), timedelta(days=2), timedelta(days=60))
"""How far one looks back for the latest runs, until that is far enough."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression, read in an IANA time zone. ``checked_cron`` makes it of what somebody wrote.

    When clocks are put forward, a run in the hour that is left out is fired at its end; when they are put back, a run in the
    hour that comes twice is fired the first time. Where the minute or the hour begins with ``*``, runs follow real time
    instead: none in the hour that is left out, and all of them in both hours. So does Debian's cron.
    """

    expression: str
    timezone: str

    def __str__(self) -> str:
        return f"{self.expression} {self.timezone}"

    def runs(self, after: datetime) -> Iterator[datetime]:
        """The runs later than a moment, in UTC, each later than the one before; ends if there is none for 50 years.

        Raises:
            InvalidInputError: this machine does not know the time zone.
        """
        zone = ZoneInfo(checked_timezone(self.timezone))
        for run in CronSim(self.expression, after.astimezone(zone)):
            moment = run.astimezone(UTC)
            if moment > after:  # within an hour that comes twice, a run is found that was the first time
                after = moment
                yield moment

    def next(self, after: datetime) -> datetime:
        """The first run later than a moment. Raises: InvalidInputError."""
        found = next(self.runs(after), None)
        if found is None:
            raise InvalidInputError(
                f"cron {self.expression!r} has no run in the 50 years after {after:%Y-%m-%d}: {EXAMPLE}"
            )
        return found

    def latest(self, most: int, first: datetime, until: datetime) -> list[datetime]:
        """The latest runs, in order, from a run on and until a moment; what lies long before them is not looked at."""
        starts = [max(first, until - back) for back in LOOKS_BACK] + [first]
        found: deque[datetime] = deque(maxlen=most)
        for start in starts:
            found = deque([first] if start == first else [], most)
            found.extend(takewhile(lambda run: run <= until, self.runs(start)))
            if start == first or len(found) == most:
                break
        return list(found)


def checked_cron(expression: object, timezone: object, present: datetime) -> Cron:
    """What somebody wrote, if it has a run after the present. Raises: InvalidInputError."""
    zone = checked_timezone(timezone)
    if not isinstance(expression, str) or len(expression) > LONGEST or len(expression.split()) != len(FIELDS):
        alias = ALIASES.get(expression.strip().lower()) if isinstance(expression, str) else None
        instead = f", which is written {alias!r} here" if alias else ""
        raise InvalidInputError(f"cron is {expression!r:.100}{instead}: {EXAMPLE}")
    if odd := next(_oddities(expression), None):
        raise InvalidInputError(f"cron {expression!r} cannot be read ({odd}): {EXAMPLE}")
    try:
        CronSim(expression, present)
    except CronSimError as error:
        never = "would never fire (there is no such day)"
        reason = never if _is_no_date(expression, present) else f"cannot be read ({error})".lower()
        raise InvalidInputError(f"cron {expression!r} {reason}: {EXAMPLE}") from error
    cron = Cron(" ".join(expression.split()), zone)
    cron.next(present)
    return cron


def _oddities(expression: str) -> Iterator[str]:
    """What people write of which CronSim says too little, or nothing: ``*/70`` is to it what ``0`` is."""
    for (field, last), text in zip(FIELDS.items(), expression.split(), strict=True):
        for word in re.findall("[A-Za-z]{4,}", text):
            if (short := word[:3].upper()) in WORDS.get(field, ()):
                yield f"for {word!r} write {short}"
        for step in re.findall("/([0-9]+)(?=,|$)", text):
            if not 1 <= int(step) <= last:
                yield f"a step of the {field} is 1 to {last}, not {step}"


def _is_no_date(expression: str, present: datetime) -> bool:
    """Whether it is only its month that has no such day, such as February 30."""
    minute, hour, day, month, weekday = expression.split()
    try:
        CronSim(f"{minute} {hour} 1 {month} {weekday}", present)
        CronSim(f"{minute} {hour} {day} * {weekday}", present)
    except CronSimError:
        return False
    return True


def checked_timezone(timezone: object) -> str:
    """The name of a time zone. Raises: InvalidInputError."""
    if isinstance(timezone, str) and timezone and len(timezone) <= LONGEST:
        try:
            return ZoneInfo(timezone).key
        except (KeyError, ValueError, OSError):
            pass
    near = difflib.get_close_matches(str(timezone), sorted(available_timezones()), n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidInputError(
        f"time zone {timezone!r:.100} is not known here: {guess}write an IANA name, such as 'Europe/Berlin' or 'UTC'"
    )


def plan(cron: Cron, misfire: Misfire, due_at: datetime, present: datetime) -> tuple[datetime | None, datetime]:
    """What a schedule whose run is due does now.

    Returns:
        The run that is fired, if any, and when the next one is due, which is past if more were missed.
    """
    run = cron.latest(MOST_MISSED if misfire is Misfire.ALL else 1, due_at, present)[0]
    is_left_out = misfire is Misfire.SKIP and present - run > LATE
    return None if is_left_out else run, cron.next(run)
