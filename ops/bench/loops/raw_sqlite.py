"""The fastest a bare loop gets on SQLite: sqlite3 alone, in one thread, as SQLite has one writer."""

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import make_url

from ops.bench.store import Store
from ops.bench.workload import CONTEXT_MESSAGES

HISTORY = f"""
SELECT role, content FROM messages WHERE session_id = ? AND turn_number <= ?
ORDER BY turn_number DESC, position DESC LIMIT {CONTEXT_MESSAGES}
"""
KEEP = "INSERT INTO messages (session_id, turn_number, position, role, content) VALUES (?, ?, 1, 'assistant', ?)"


class RawSQLite(Store):
    async def open(self, database_url: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._thread, self._connect, make_url(database_url).database or "")

    async def history(self, session: int, turn: int) -> list[dict[str, str]]:
        return await self._loop.run_in_executor(self._thread, self._history, session, turn)

    async def keep(self, session: int, turn: int, content: str) -> None:
        await self._loop.run_in_executor(self._thread, self._connection.execute, KEEP, (session, turn, content))

    def _connect(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)  # each statement is a transaction
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")

    def _history(self, session: int, turn: int) -> list[dict[str, str]]:
        rows = self._connection.execute(HISTORY, (session, turn)).fetchall()
        return [{"role": role, "content": content} for role, content in reversed(rows)]
