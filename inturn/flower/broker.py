"""The broker, as Flower needs it: there when it starts, and listened to whenever it is; who is away is told of once."""

import logging
import time
from typing import Any

from celery.events.receiver import EventReceiver
from flower.events import Events

from inturn.models.errors import BrokerUnreachableError
from inturn.settings import Settings
from inturn.workers.app import broker_url
from inturn.workers.embedded import broker_answers, broker_is_silent
from inturn.workers.queues import about, connect
from inturn.workers.stack import about_silent_broker

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0


def check_broker(settings: Settings) -> None:
    """Raises: BrokerUnreachableError: nobody would tell Flower anything."""
    if not settings.has_embedded_broker:
        about(broker_url(settings))
    elif broker_is_silent(settings.home):
        raise BrokerUnreachableError(about_silent_broker(settings.home))
    elif not broker_answers(settings.home):
        raise BrokerUnreachableError(
            "the embedded broker does not run, by which Flower hears of workers: `inturn up --flower` starts it, with a "
            "worker, beat and Flower"
        )


class Listener(Events):  # type: ignore[misc]
    """Hears what workers tell, and asks them every few seconds to tell it: that also shows whether the broker is there.

    Flower says so each time it tries, also that no worker is there to be asked, and tries ever more rarely: here it is said
    when it changes.
    """

    def __init__(self, capp: Any, io_loop: Any, **limits: int) -> None:
        super().__init__(capp, io_loop, **limits)
        self._is_away = False
        logging.getLogger("flower.inspector").addFilter(lambda record: record.levelno != logging.WARNING)

    def run(self) -> None:
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(connection, handlers={"*": self.on_event}, app=self.capp)
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:  # noqa: BLE001 (whatever it is, the thread goes on)
                self._miss(error)
            time.sleep(AGAIN_SECONDS)

    async def on_enable_events(self) -> None:
        """Have workers tell, those that came lately, too."""
        try:
            await self.io_loop.run_in_executor(None, self._ask)
        except Exception as error:  # noqa: BLE001 (as above)
            self._miss(error)
        else:
            if self._is_away:
                self._is_away = False
                logger.info("action=broker_back: workers and tasks are shown again")

    def _ask(self) -> None:
        with connect(broker_url(self.capp.settings)) as client:
            client.ping()  # Celery waits for long for one that hangs
        self.capp.control.enable_events()

    def _miss(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            mend = "`inturn up` starts it" if self.capp.settings.has_embedded_broker else "start it"
            missed = (
                "action=broker_away reason=%s: %s. Meanwhile sessions, batches and retention are shown, and no workers"
            )
            logger.warning(missed, str(error), mend)
