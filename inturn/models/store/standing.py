"""Where the lines of a batch stand: what is asked when a result file that was begun before is gone on with."""

from collections.abc import Sequence

from sqlalchemy import select

from inturn.models.database import Database
from inturn.models.store.batches import START, Cursor, ended_after
from inturn.models.store.lines import SESSION_DELETED
from inturn.models.tables import BATCH_LINES, TURNS


def of_lines(database: Database, batch_id: int, lines: Sequence[int]) -> dict[int, tuple[str, str | None]]:
    """The custom ID of each line, and the ID of the turn that stands for it, in whatever state; None: it has none."""
    turns = select(TURNS.c.line, TURNS.c.custom_id, TURNS.c.session_id, TURNS.c.number).where(
        TURNS.c.batch_id == batch_id, TURNS.c.line.in_(lines)
    )
    others = select(BATCH_LINES.c.line, BATCH_LINES.c.custom_id).where(
        BATCH_LINES.c.batch_id == batch_id, BATCH_LINES.c.line.in_(lines)
    )
    with database.reading() as db:
        without: dict[int, tuple[str, str | None]] = {line: (key, None) for line, key in db.execute(others)}
        return without | {line: (key, f"{session}.{number}") for line, key, session, number in db.execute(turns)}


class Numbers:
    """The lines of custom IDs, for one who asks roughly in the order in which the lines ended, as a result file has them:
    each page of the batch is read once, and forgotten when it was asked for. There is no index by custom ID.
    """

    def __init__(self, database: Database, batch_id: int, page: int = 1000) -> None:
        self._database, self._batch, self._page = database, batch_id, page
        self._after: Cursor | None = START
        self._read: dict[str, int] = {}

    def of(self, custom_ids: Sequence[str]) -> dict[str, int]:
        """One that the batch has not is left out, and so is one that was asked for before."""
        while self._after is not None and not self._read.keys() >= set(custom_ids):
            self._after = self._read_on(self._after)
        found = {key: self._read.pop(key) for key in custom_ids if key in self._read}
        missing = [key for key in custom_ids if key not in found]
        return found | self._without_turns(missing) if missing else found

    def _read_on(self, after: Cursor) -> Cursor | None:
        page = (
            select(TURNS.c.finished_at, TURNS.c.line, TURNS.c.custom_id)
            .where(*ended_after(self._batch, after))
            .order_by(TURNS.c.finished_at, TURNS.c.line)
            .limit(self._page)
        )
        with self._database.reading() as db:
            rows = db.execute(page).all()
        self._read |= {row.custom_id: row.line for row in rows}
        return (rows[-1].finished_at, rows[-1].line) if len(rows) == self._page else None

    def _without_turns(self, custom_ids: Sequence[str]) -> dict[str, int]:
        """Invalid lines may repeat a custom ID: before them goes the one that had a turn."""
        mine = select(BATCH_LINES.c.custom_id, BATCH_LINES.c.line).where(
            BATCH_LINES.c.batch_id == self._batch, BATCH_LINES.c.custom_id.in_(custom_ids)
        )
        with self._database.reading() as db:
            return {
                row.custom_id: row.line
                for row in db.execute(mine.order_by(BATCH_LINES.c.error_type == SESSION_DELETED))
            }
