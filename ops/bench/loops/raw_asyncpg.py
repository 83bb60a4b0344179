"""The fastest a bare loop gets on PostgreSQL: asyncpg alone, prepared statements, no ORM."""

import asyncpg
from sqlalchemy import make_url

from ops.bench.store import POOL_SIZE, Store
from ops.bench.workload import CONTEXT_MESSAGES

HISTORY = f"""
SELECT role, content FROM messages WHERE session_id = $1 AND turn_number <= $2
ORDER BY turn_number DESC, position DESC LIMIT {CONTEXT_MESSAGES}
"""
KEEP = "INSERT INTO messages (session_id, turn_number, position, role, content) VALUES ($1, $2, 1, 'assistant', $3)"


class RawAsyncpg(Store):
    async def open(self, database_url: str) -> None:
        url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._pool = await asyncpg.create_pool(url, min_size=POOL_SIZE, max_size=POOL_SIZE)

    async def history(self, session: int, turn: int) -> list[dict[str, str]]:
        rows = await self._pool.fetch(HISTORY, session, turn)
        return [{"role": row["role"], "content": row["content"]} for row in reversed(rows)]

    async def keep(self, session: int, turn: int, content: str) -> None:
        await self._pool.execute(KEEP, session, turn, content)
