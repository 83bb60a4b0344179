"""The handle on a batch, for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Self, TypeVar

from inturn import batch as sync
from inturn.aio.staff import Staff
from inturn.aio.wrapping import like, wrapped
from inturn.batch import BatchView
from inturn.models.store.batches import BatchRecord, Progress
from inturn.models.store.lines import LineResult
from inturn.turn import Timeout
from inturn.waiting import in_seconds

T = TypeVar("T")


class Batch(BatchView):
    """A handle on a batch, with what was known of it when it was last looked at (``await batch.refresh()``)."""

    def __init__(self, staff: Staff, handle: sync.Batch) -> None:
        self._staff, self._handle = staff, handle

    @property
    def _row(self) -> BatchRecord:  # type: ignore[override]  # what the handle knows, this one shows
        return self._handle._row

    @like(sync.Batch.refresh)
    async def refresh(self) -> Self:
        await self._staff.call(self._handle.refresh)
        return self

    @like(sync.Batch.watch)
    async def watch(self, timeout: Timeout = None) -> AsyncGenerator[Progress, None]:
        looks = self._handle._watching(in_seconds(timeout))
        while (seen := await self._staff.look(following, looks)) is not None:
            found, pause = seen
            yield found
            await asyncio.sleep(pause)

    @like(sync.Batch.wait)
    async def wait(self, timeout: Timeout = None) -> Progress:
        async for last in self.watch(timeout):
            found = last
        return found

    @like(sync.Batch.results)
    async def results(self, *, follow: bool = False) -> AsyncGenerator[LineResult, None]:
        steps = await self._staff.look(self._handle._stepping, follow)
        while (step := await self._staff.look(following, steps)) is not None:
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            for result in step:
                yield result

    progress = wrapped(sync.Batch.progress)
    note_read = wrapped(sync.Batch.note_read)
    cancel = wrapped(sync.Batch.cancel)
    retry_failed = wrapped(sync.Batch.retry_failed)


def following(steps: Iterator[T]) -> T | None:
    return next(steps, None)
