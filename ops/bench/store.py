"""Where a bare loop keeps its messages."""

from typing import Protocol

POOL_SIZE = 10  # 20 and 50 were measured to cost both sides more


class Store(Protocol):
    """Each call is a transaction of its own."""

    async def open(self, database_url: str) -> None: ...

    async def history(self, session: int, turn: int) -> list[dict[str, str]]:
        """The last messages up to the prompt of this turn, oldest first."""
        ...

    async def keep(self, session: int, turn: int, content: str) -> None:
        """Store the reply."""
        ...
