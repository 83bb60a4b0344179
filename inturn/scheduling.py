"""Schedules: the part of a client that has prompts sent by the clock."""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from inturn.connections import Connections
from inturn.models.content import checked_flag, checked_prompt, checked_session_id, checked_system_message
from inturn.models.cron import checked_cron
from inturn.models.errors import InvalidInputError, ScheduleNotFoundError
from inturn.models.states import Misfire
from inturn.models.store import schedules
from inturn.models.store.opening import Chain
from inturn.models.store.schedules import RUN_WIDTH, NewSchedule, Schedule
from inturn.settings import Settings
from inturn.turn import checked_choice

NAME = re.compile(r"[A-Za-z0-9._:@-]{1,100}")
LONGEST_PREFIX = 200 - RUN_WIDTH


class Schedules(ABC):
    """The part of a client that has prompts sent by the clock."""

    settings: Settings

    @property
    @abstractmethod
    def connections(self) -> Connections:
        """What the client is connected with. Raises: ClosedError."""

    @abstractmethod
    def _checked_chain(self, model: str | Sequence[str]) -> Chain:
        """Raises: UnknownModelError, InvalidInputError."""

    def add_schedule(
        self,
        session_id: str,
        prompt: str,
        *,
        cron: str,
        timezone: str = "UTC",
        name: str | None = None,
        new_session: bool = False,
        misfire: Literal["skip", "once", "all"] = "once",
        model: str | Sequence[str] | None = None,
        system_message: str | None = None,
    ) -> Schedule:
        """Have a prompt sent again and again, by the clock. A beat has to run.

        Args:
            session_id: of the session that it is sent to; with ``new_session``, what the IDs of new ones begin with: a run's
                time in UTC stands behind it.
            cron: five fields (minute, hour, day, month, weekday), read in the time zone: ``"0 9 * * 1"``.
            timezone: its IANA name, such as ``"Europe/Berlin"``.
            name: of the schedule; default: a new unique one.
            new_session: send each run to a session of its own, which has the label ``schedule`` with the name.
            misfire: what becomes of runs that no beat was there to fire: ``"skip"`` leaves them out, ``"once"`` fires the
                latest of them, ``"all"`` fires each, the latest hundred at most.
            model, system_message: of new sessions, as in ``create_session``.

        Raises:
            ScheduleExistsError: the name is taken; nothing was changed.
            SessionNotFoundError: there is no session of that ID.
            InvalidInputError: the cron cannot be read or never fires, the time zone is not known, or the prompt is none.
        """
        is_new = checked_flag("new_session", new_session)
        if not is_new and (model is not None or system_message is not None):
            raise InvalidInputError(
                "model and system_message are for sessions that a schedule makes: add new_session=True (--new-session), or "
                "leave them out"
            )
        chain: Chain | tuple[None, None] = (None, None)
        if is_new:
            chain = self._checked_chain(self.settings.effective_default_model if model is None else model)
        new = NewSchedule(
            name=new_name(name),
            key=checked_prefix(session_id) if is_new else checked_session_id(session_id),
            prompt=checked_prompt(prompt),
            cron=checked_cron(cron, timezone, datetime.now(UTC)),
            new_session=is_new,
            misfire=Misfire(checked_choice("misfire", misfire, ("skip", "once", "all"))),
            model=chain[0],
            fallbacks=chain[1],
            system_message=checked_system_message(system_message) or None,
        )
        return schedules.add(self.connections.database, new)

    def list_schedules(self) -> list[Schedule]:
        """All schedules, by name."""
        return schedules.list_schedules(self.connections.database)

    def get_schedule(self, name: str) -> Schedule:
        """A schedule as it stands. Raises: ScheduleNotFoundError."""
        return schedules.get(self.connections.database, known_name(name))

    def pause_schedule(self, name: str) -> bool:
        """Send no more of it. Returns: False, if it was paused already. Raises: ScheduleNotFoundError."""
        return schedules.pause(self.connections.database, known_name(name))

    def resume_schedule(self, name: str) -> bool:
        """Send it again, from its next run on: those of the meantime are not made up for.

        Returns: False, if it was not paused. Raises: ScheduleNotFoundError.
        """
        return schedules.resume(self.connections.database, known_name(name))

    def remove_schedule(self, name: str) -> None:
        """Take a schedule away. What it has sent stays. Raises: ScheduleNotFoundError."""
        schedules.remove(self.connections.database, known_name(name))


def new_name(wanted: object) -> str:
    """The name that somebody chose for a new schedule, or a unique one. Raises: InvalidInputError."""
    if wanted is None:
        return f"schedule-{secrets.token_hex(4)}"
    if not isinstance(wanted, str) or not NAME.fullmatch(wanted):
        raise InvalidInputError(
            f"{wanted!r:.120} is no name of a schedule: use 1 to 100 characters out of letters, digits and . _ : @ - (for "
            "example weekly-report)"
        )
    return wanted


def known_name(name: object) -> str:
    """One that a schedule may have. Raises: ScheduleNotFoundError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ScheduleNotFoundError(name)
    return name


def checked_prefix(prefix: object) -> str:
    """What IDs of sessions may begin with, before a run's time. Raises: InvalidInputError."""
    checked = checked_session_id(prefix)
    if len(checked) > LONGEST_PREFIX:
        raise InvalidInputError(
            f"{checked!r:.60}... has {len(checked)} characters, and a run's time stands behind them: use "
            f"{LONGEST_PREFIX} at most"
        )
    return checked
