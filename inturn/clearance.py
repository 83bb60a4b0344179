"""What a cleanup does besides removing sessions: other rows that expired go, and a SQLite file gives their space back."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from inturn.cleaning import PACED_SECONDS, share_of_time
from inturn.models import space
from inturn.models.database import Database
from inturn.models.errors import InturnError
from inturn.models.pace import Pace
from inturn.models.store import expiry, receipts
from inturn.models.store.expiry import Expiry

logger = logging.getLogger(__name__)

ROWS, PAGES = 500, 50
"""In the first step. All steps are short ones, also where nobody is to be spared: SQLite has one writer."""


@dataclass(frozen=True, slots=True)
class Clearance:
    """What is to go, and how.

    Attributes:
        asked_by: who is named in the receipts.
        is_paced: whether it rests between chunks, so that others get the database.
    """

    database: Database
    expiries: Sequence[Expiry]
    asked_by: str
    is_paced: bool = False

    def run(self) -> None:
        """Remove what is due, and give back its space. What fails does not hold up the others: the first failure is raised
        in the end.
        """
        failures = list[InturnError]()
        works = {each.name: partial(self._carry_out, each) for each in self.expiries} | {"space": self._give_back}
        for name, work in works.items():
            try:
                work()
            except InturnError as error:
                logger.error("action=clearance_failed kind=%s reason=%s", name, error)
                failures.append(error)
        if failures:
            raise failures[0]

    def _carry_out(self, each: Expiry) -> None:
        if not expiry.is_due(self.database, each):
            return
        run = receipts.begin_run(self.database, each.name, self.asked_by)
        try:
            removed = expiry.remove(self.database, each, run, self._pace(ROWS))
        except BaseException as error:
            said = str(error) if isinstance(error, InturnError) else type(error).__name__
            receipts.end_run(self.database, run, error=said)
            raise
        receipts.end_run(self.database, run)
        logger.info("action=expired kind=%s rows=%d", each.name, removed)

    def _give_back(self) -> None:
        if given := space.give_back(self.database, self._pace(PAGES)):
            logger.info("action=space_given_back bytes=%d", given)

    def _pace(self, size: int) -> Pace:
        if not self.is_paced:
            return Pace(size, PACED_SECONDS)
        return Pace(size, PACED_SECONDS, lambda: share_of_time(self.database))
