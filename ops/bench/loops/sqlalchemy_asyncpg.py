"""What most people write on PostgreSQL: SQLAlchemy's asyncio ORM on asyncpg, a transaction for each step."""

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from ops.bench.loops.rows import as_prompt, last_messages, reply_row
from ops.bench.store import POOL_SIZE, Store


class SQLAlchemyAsyncpg(Store):
    async def open(self, database_url: str) -> None:
        url = make_url(database_url).set(drivername="postgresql+asyncpg")
        # No timeout: at a thousand in flight waiting for a connection is part of what is measured.
        engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0, pool_timeout=600)
        self._session = async_sessionmaker(engine, expire_on_commit=False)

    async def history(self, session: int, turn: int) -> list[dict[str, str]]:
        async with self._session() as db:
            rows = await db.scalars(last_messages(session, turn))
            return as_prompt(list(rows))

    async def keep(self, session: int, turn: int, content: str) -> None:
        async with self._session() as db:
            db.add(reply_row(session, turn, content))
            await db.commit()
