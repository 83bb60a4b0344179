"""What people write on SQLite under asyncio: SQLAlchemy's ORM on sqlite3, in a thread.

One thread, since SQLite has one writer: with several they wait for each other's locks by sleeping. The durability is
that of inturn: WAL, and a sync for each commit.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.orm import sessionmaker

from ops.bench.loops.rows import as_prompt, last_messages, reply_row
from ops.bench.store import Store


def set_pragmas(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=10000")


class SQLAlchemySQLite(Store):
    async def open(self, database_url: str) -> None:
        engine = create_engine(database_url)
        event.listen(engine, "connect", set_pragmas)
        self._session = sessionmaker(engine, expire_on_commit=False)
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.get_running_loop()

    async def history(self, session: int, turn: int) -> list[dict[str, str]]:
        return await self._loop.run_in_executor(self._thread, self._history, session, turn)

    async def keep(self, session: int, turn: int, content: str) -> None:
        await self._loop.run_in_executor(self._thread, self._keep, session, turn, content)

    def _history(self, session: int, turn: int) -> list[dict[str, str]]:
        with self._session() as db:
            return as_prompt(list(db.scalars(last_messages(session, turn))))

    def _keep(self, session: int, turn: int, content: str) -> None:
        with self._session() as db:
            db.add(reply_row(session, turn, content))
            db.commit()
