"""Lodgers: sessions that retention comes for, each group by a rule of its own, and what their users do meanwhile: they go on
sending, have some held, erase others, and bring back what was archived.
"""

import io
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from inturn import Client, SessionExistsError, SessionNotFoundError, StorageError
from inturn.models.errors import ArchiveError
from ops.chaos.archives import Copy, copies_in
from ops.chaos.correspondents import RETRY_SECONDS, Correspondent
from ops.chaos.promises import Guest, Hold, Log, Population
from ops.chaos.rules import groups_of

T = TypeVar("T")

LODGE_SECONDS, CLEANUP_SECONDS, ERASE_SECONDS = (0.1, 0.5), (0.5, 3.0), (0.5, 2.0)
HOLD_SECONDS, HELD_SECONDS, RETURN_SECONDS = (0.1, 1.0), (1.0, 4.0), (1.0, 3.0)
AT_ONCE = 5
"""Sessions that are sent to one after the other."""


class Lodgers:
    """Their works are loops for threads, until ``stopping`` is set.

    Args:
        erased: sessions that are erased together and made again; others send to them meanwhile.
        after: is added to every prompt: what the model server is to do.
    """

    def __init__(
        self,
        client: Client,
        log: Log,
        run: str,
        stopping: threading.Event,
        erased: Sequence[Correspondent] = (),
        after: str = "",
    ) -> None:
        self._client, self._log, self._run, self._stopping = client, log, run, stopping
        self._erased, self._after = list(erased), after
        rules = client.settings.retention
        self._archives = [Path(rule.archive) for rule in rules if rule.archive]
        self._lodgers, self._tenants = list[Correspondent](), list[Correspondent]()
        for group in groups_of({rule.name for rule in rules}):
            names = [f"{group.name}-{number}" for number in range(group.size)]
            mine = [self._guest(name, group.population, group.how) for name in names]
            (self._tenants if group.is_kept else self._lodgers).extend(mine)
            if mine:
                self._tenants.append(self._held(group.name, group.how))
        if self._erased:
            self._tenants.append(self._held("erased", {"labels": {"owner": run}}))

    def _guest(self, name: str, population: Population, how: dict[str, Any]) -> Correspondent:
        return Correspondent(self._client, self._log, f"{self._run}-{name}", population, **how)

    def _held(self, name: str, how: dict[str, Any]) -> Correspondent:
        """It is held before anybody comes for it."""
        one = self._guest(f"{name}-held", Population.HELD, how)
        self._client.hold_session(one.key)
        return one

    @property
    def works(self) -> tuple[Callable[[random.Random], None], ...]:
        return self.lodge, self.hold, self.erase, self.bring_back, self.clean_up

    def lodge(self, dice: random.Random) -> None:
        """Send to sessions that may be removed at any moment, and make them anew when they are."""
        everybody, count = [*self._lodgers, *self._tenants], 0
        while not self._stopping.wait(dice.uniform(*LODGE_SECONDS)):
            for one in dice.sample(everybody, AT_ONCE):
                count += 1
                if one.send(f"{self._run} lodging.{count}{self._after}", dice) is None:
                    one.bury(expired=True)
                    one.create()

    def hold(self, dice: random.Random) -> None:
        """Keep one for a while."""
        while not self._stopping.wait(dice.uniform(*HOLD_SECONDS)):
            key = dice.choice(self._lodgers).key
            with suppress(SessionNotFoundError):
                self._insistently(lambda key=key: self._client.hold_session(key, "chaos"))  # type: ignore[misc]
                began = time.time()
                self._stopping.wait(dice.uniform(*HELD_SECONDS))
                self._log.holds.append(Hold(key, began, time.time()))
                self._insistently(lambda key=key: self._client.release_session(key))  # type: ignore[misc]

    def erase(self, dice: random.Random) -> None:
        """All of a person at once, whatever they are doing; by label, or by what their IDs begin with."""
        while self._erased and not self._stopping.wait(dice.uniform(*ERASE_SECONDS)):
            which: dict[str, Any] = (
                {"labels": {"owner": self._run}} if dice.random() < 0.5 else {"pattern": f"{self._run}-erased-*"}
            )
            self._insistently(lambda which=which: self._client.delete_sessions(**which))  # type: ignore[misc]
            for one in self._erased:
                one.bury()
                one.create()

    def clean_up(self, dice: random.Random) -> None:
        while not self._stopping.wait(dice.uniform(*CLEANUP_SECONDS)):
            with suppress(ArchiveError, StorageError):
                self._client.cleanup()

    def bring_back(self, dice: random.Random) -> None:
        """Import, under another ID, a session that is in an archive."""
        count = 0
        while self._archives and not self._stopping.wait(dice.uniform(*RETURN_SECONDS)):
            files = [file for directory in self._archives for file in directory.iterdir()]
            copies = copies_in(dice.choice(files)) if files else []
            if copies:
                count += 1
                self._import(dice.choice(copies), f"back-{self._run}-{count}")

    def _import(self, copy: Copy, key: str) -> None:
        with suppress(SessionExistsError):  # the first answer was lost
            self._insistently(lambda: self._client.import_session(io.BytesIO(copy.transcript), key))
        self._log.guests.append(Guest(key, len(copy.turns)))
        with suppress(SessionNotFoundError, StorageError):  # it may be removed as soon as it is there
            said = [message.data.content for message in self._client.get_session(key).get_messages()]
            if said and said != copy.said:
                self._log.contradictions.append(f"session {copy.key} was imported as {key}, and says something else")

    def _insistently(self, deed: Callable[[], T]) -> T:
        """Until the database has answered."""
        while True:
            try:
                return deed()
            except StorageError:
                time.sleep(RETRY_SECONDS)

    def bury(self) -> None:
        """Note which sessions have gone since anybody sent to them."""
        for one in (*self._lodgers, *self._tenants):
            if one.is_gone():
                one.bury(expired=True)
