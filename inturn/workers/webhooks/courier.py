"""The member of the crew that sends webhooks. Each has a round of its own: one that never answers holds up nobody else."""

import asyncio
import logging
import random
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from inturn.models.database import Database
from inturn.models.errors import SettingsError, StorageError
from inturn.models.states import DeliveryState
from inturn.models.store import webhooks
from inturn.models.store.webhooks import WebhookDelivery
from inturn.webhook_settings import WebhookSettings
from inturn.workers.webhooks.outcomes import outcome_of
from inturn.workers.webhooks.poster import DEADLINE_SECONDS, Poster, certificates

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 8
"""Deliveries of one webhook that one process has under way."""
LOOK_SECONDS = 1.0
"""Between two looks for what is due."""
HOLD_SECONDS = 4 * DEADLINE_SECONDS
"""After so long a delivery that nobody settled is sent again: longer than an attempt, with its database away for a while."""
DATABASE_THREADS = 2
STOP_SECONDS = 3.0
"""How long what is under way may take when the process is stopped. What takes longer is sent again, under the same ID."""


class Courier(threading.Thread):
    """Sends what is due, until it is ended. Several processes do it at once, and share the work."""

    def __init__(
        self, database: Database, hooks: Sequence[WebhookSettings], hold_seconds: float = HOLD_SECONDS
    ) -> None:
        super().__init__(name="inturn-courier", daemon=True)
        self.database, self._hooks, self._hold_seconds = database, hooks, hold_seconds
        self._desk = ThreadPoolExecutor(DATABASE_THREADS, thread_name_prefix="inturn-courier")
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def run(self) -> None:
        # Names are looked up in threads; each webhook has its own, so that one whose name server is silent has only that.
        self._loop.set_default_executor(ThreadPoolExecutor(len(self._hooks), thread_name_prefix="inturn-names"))
        try:
            self._loop.run_until_complete(self._serve())
        except SettingsError as error:
            logger.error("action=webhooks_not_sent reason=%s", error)
        finally:
            self._loop.close()
            self._desk.shutdown(wait=False)

    def end(self) -> None:
        """Take no more, and leave when what is under way has ended, or was given up."""
        if self.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self.join(timeout=5)

    async def _serve(self) -> None:
        tls = certificates()
        await asyncio.gather(*(self._go_round(hook, tls) for hook in self._hooks))

    async def _go_round(self, hook: WebhookSettings, tls: ssl.SSLContext) -> None:
        under_way: set[asyncio.Task[None]] = set()
        async with Poster(hook, tls) as poster:
            while not self._over.is_set():
                free = AT_ONCE - len(under_way)
                taken = await self._take(hook.name, free) if free else []
                under_way |= {asyncio.create_task(self._deliver(poster, each)) for each in taken}
                # As long as there is more than room, whoever is done makes room for the next.
                waited_for = under_way if len(taken) == free else set[asyncio.Task[None]]()
                await self._pause(waited_for)
                under_way = {task for task in under_way if not task.done()}
            if under_way:
                _, late = await asyncio.wait(under_way, timeout=STOP_SECONDS)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)

    async def _pause(self, waited_for: set[asyncio.Task[None]]) -> None:
        over = asyncio.create_task(self._over.wait())
        seconds = LOOK_SECONDS * random.uniform(0.8, 1.2)
        await asyncio.wait({over, *waited_for}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()

    async def _take(self, hook: str, limit: int) -> list[WebhookDelivery]:
        def taken() -> list[WebhookDelivery]:
            with self.database.reading() as db:
                if not webhooks.is_due(db, hook):
                    return []
            return self.database.transact(lambda db: webhooks.take(db, hook, self._hold_seconds, limit))

        try:
            return await self._at_desk(taken)
        except StorageError as error:
            logger.warning("action=webhooks_not_taken webhook=%s reason=%s", hook, error)
        except Exception:
            logger.exception("action=webhooks_not_taken webhook=%s", hook)
        return []

    async def _deliver(self, poster: Poster, delivery: WebhookDelivery) -> None:
        """One attempt. What it came to is lost where it cannot be stored: then the delivery is sent again."""
        hook = poster.webhook.name
        try:
            outcome = outcome_of(await poster.post(delivery.event_id, delivery.body), delivery.attempts)
            await self._at_desk(partial(self.database.transact, partial(_settle, delivery, outcome)))
        except StorageError as error:
            logger.warning("action=webhook_not_settled webhook=%s delivery=%d reason=%s", hook, delivery.id, error)
        except Exception:
            logger.exception("action=webhook_not_settled webhook=%s delivery=%d", hook, delivery.id)
        else:
            if outcome.error_message is not None:
                words = "action=webhook_%s webhook=%s delivery=%d event=%s attempt=%d reason=%s"
                fate = "failed" if outcome.state is DeliveryState.FAILED else "put_off"
                logger.warning(words, fate, hook, delivery.id, delivery.event, delivery.attempts, outcome.error_message)

    async def _at_desk(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._desk, work)


def _settle(delivery: WebhookDelivery, outcome: webhooks.Outcome, db: Connection) -> bool:
    return webhooks.settle(db, delivery, outcome)


def couriers(database: Database, hooks: Sequence[WebhookSettings]) -> list[Courier]:
    """The one that a process needs; none where no webhook is configured."""
    return [Courier(database, hooks)] if hooks else []
