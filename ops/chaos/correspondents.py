"""A correspondent: one session as its producers use it. It does not let go before the database has agreed, and logs it."""

import random
import time
from datetime import timedelta
from typing import Any

from inturn import (
    Client,
    IdempotencyConflictError,
    Session,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    StorageError,
    Turn,
)
from ops.chaos.promises import Accepted, Deleted, Log, Population, Refused

RETRY_SECONDS = 0.1
MARKED = (Population.DOOMED, Population.ERASED, Population.EXPIRING, Population.STRIPPED)
"""Whose prompts have a word in them that must be nowhere afterwards."""
RESENDS = 0.05
"""The share of prompts that are sent a second time under the same idempotency key."""


class Correspondent:
    """A session of a population; doomed and expiring ones live several times, under one ID.

    Args:
        how: for ``create_session``.
    """

    def __init__(self, client: Client, log: Log, key: str, population: Population, **how: Any) -> None:
        self.client, self.log, self.key, self.population = client, log, key, population
        self._how, self._lives = how, 0
        self.create()

    def create(self) -> None:
        """Make the session. After a StorageError it may be there already, or have come and gone."""
        since = time.time()
        while True:
            try:
                session = self._created()
                surrogate = int(session.metadata().cursor)
            except (SessionNotFoundError, StorageError):
                time.sleep(RETRY_SECONDS)
                continue
            break
        self._lives += 1
        self.life = Life(session, surrogate, f"canary-{self.key}-{self._lives}-", since)

    def _created(self) -> Session:
        try:
            return self.client.create_session(self.key, **self._how)
        except SessionExistsError:
            return self.client.get_session(self.key)

    def delete(self) -> None:
        """Delete the session, whatever it is doing."""
        while True:
            try:
                self.client.delete_session(self.key, missing_ok=True)
            except StorageError:
                time.sleep(RETRY_SECONDS)
                continue
            return self.bury()

    def is_gone(self) -> bool:
        while True:
            try:
                return self.client.get_session_metadata(self.key) is None
            except StorageError:
                time.sleep(RETRY_SECONDS)

    def bury(self, *, expired: bool = False) -> None:
        """Note that the session is gone."""
        life = self.life
        gone = Deleted(life.surrogate, self.key, life.canary, time.time(), expired, life.since)
        self.log.deleted.append(gone)

    def send(self, prompt: str, dice: random.Random, **how: Any) -> Turn | None:
        """Send until it is accepted. The key makes that safe: a commit may have happened whose answer was lost.

        Returns: the turn, or None where nothing was promised: the session is busy, or gone.
        """
        life = self.life  # another thread may bury it and make a new one meanwhile
        plain = prompt
        if self.population in MARKED:
            prompt = f"{prompt} {life.canary}"
        key = plain if self.population is Population.STRIPPED else prompt  # where what was said goes, keys stay
        while True:
            before, moment = time.monotonic(), time.time()
            try:
                turn = life.session.send(prompt, idempotency_key=key, **how)
            except StorageError as error:
                self.log.refused.append(Refused(prompt, time.monotonic() - before, time.time(), str(error)))
                time.sleep(RETRY_SECONDS)
                continue
            except (SessionBusyError, SessionNotFoundError):
                return None
            self._note(turn, prompt, moment, time.monotonic() - before, how)
            if dice.random() < RESENDS:
                self._resend(life.session, turn, prompt, how | {"idempotency_key": key})
            return turn

    def _note(self, turn: Turn, prompt: str, moment: float, seconds: float, how: dict[str, Any]) -> None:
        surrogate, number = map(int, turn.id.split("."))
        delay: timedelta | None = how.get("not_before")
        accepted = Accepted(
            surrogate,
            number,
            prompt,
            seconds,
            moment + seconds,
            self.population,
            when_busy=how.get("when_busy", "enqueue"),
            not_before=moment + delay.total_seconds() if delay else 0.0,
        )
        self.log.accepted.append(accepted)

    def _resend(self, session: Session, turn: Turn, prompt: str, how: dict[str, Any]) -> None:
        """The same again is the same turn, whatever became of it."""
        try:
            again = session.send(prompt, **how)
        except (StorageError, SessionNotFoundError):
            return
        except (SessionBusyError, IdempotencyConflictError) as error:
            self.log.contradictions.append(f"turn {turn.id} was sent again, and refused: {error}")
            return
        if again.id != turn.id:
            self.log.contradictions.append(f"turn {turn.id} was sent again, and became turn {again.id}")


class Life:
    """One incarnation of a session.

    Attributes:
        surrogate: its number in the database, which nobody else ever gets.
        canary: a text that only its prompts hold.
        since: Unix time from which on somebody tried to make it.
    """

    def __init__(self, session: Session, surrogate: int, canary: str, since: float) -> None:
        self.session, self.surrogate, self.canary, self.since = session, surrogate, canary, since
