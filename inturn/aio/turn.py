"""The handle on a turn, for asyncio."""

from collections.abc import AsyncGenerator
from typing import Self

from inturn import turn as sync
from inturn.aio.staff import Staff
from inturn.aio.wrapping import like, wrapped
from inturn.models.content import checked_turn_id
from inturn.models.errors import SendTimeoutError
from inturn.models.store.reading import TurnRecord
from inturn.records import Message, SessionEvent
from inturn.turn import Timeout, TurnView
from inturn.waiting import in_seconds


class Turn(TurnView):
    """A handle on a turn, with what was known of it when it was last looked at (``await turn.refresh()``)."""

    def __init__(self, staff: Staff, handle: sync.Turn) -> None:
        self._staff, self._handle = staff, handle

    @property
    def _row(self) -> TurnRecord:  # type: ignore[override]  # what the handle knows, this one shows
        return self._handle._row

    @like(sync.Turn.refresh)
    async def refresh(self) -> Self:
        await self._staff.call(self._handle.refresh)
        return self

    @like(sync.Turn.wait)
    async def wait(self, timeout: Timeout = None) -> Message:
        seconds = in_seconds(timeout)
        if await self._staff.until_final(*checked_turn_id(self.id), seconds):
            return await self._staff.look(self._handle.wait)  # for its reply, which is there
        raise SendTimeoutError(self, seconds or 0.0)

    @like(sync.Turn.stream)
    def stream(self, timeout: Timeout = None) -> AsyncGenerator[SessionEvent, None]:
        return self._staff.follow(lambda: self._handle.stream(timeout), in_seconds(timeout), Turn)

    get_attempts = wrapped(sync.Turn.get_attempts)
    get_reply = wrapped(sync.Turn.get_reply)
    cancel = wrapped(sync.Turn.cancel)
    retry = wrapped(sync.Turn.retry, lambda staff, handle: Turn(staff, handle))
