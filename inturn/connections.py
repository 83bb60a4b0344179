"""What a client is connected with: the database, the broker, and who waits for replies."""

from typing import Protocol

from inturn.models import migrations
from inturn.models.database import Database
from inturn.settings import Settings
from inturn.waiting import Waiter
from inturn.workers.app import broker_url, make_app
from inturn.workers.queues import Hints, connect
from inturn.workers.tracing import make_tracer


class Connections:
    """Open as soon as it is made; threads share it. The broker may be away, the database may not.

    Raises:
        DatabaseUnreachableError, SchemaError, StorageError: the database cannot be worked with.
        SettingsError: traces are wanted, and cannot be had.
    """

    def __init__(self, settings: Settings) -> None:
        self.tracer = make_tracer(settings, "client")
        self.database = Database(settings.effective_database_url)
        try:
            migrations.prepare(self.database)
        except BaseException:
            self.database.close()
            self.tracer.stop()
            raise
        self.broker = connect(broker_url(settings))
        self._app = make_app(settings, producer=True)
        self.hints = Hints(self._app)
        self.hooks = settings.hooks()
        self.waiter = Waiter(self.database, settings, self.broker, self.hints)

    def close(self) -> None:
        self.waiter.close()
        self._app.close()
        self.broker.close()
        self.database.close()
        self.tracer.stop()


class Connected(Protocol):
    """Whoever has connections: what a handle needs of its client."""

    @property
    def connections(self) -> Connections: ...
