"""One look at a deployment, with what is around it: the broker, budgets, and what was spent today."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from inturn.cli.invocation import Invocation
from inturn.models.errors import DatabaseUnreachableError, InturnError, StorageError

if TYPE_CHECKING:
    from inturn.client import Client
    from inturn.models.store.activity import Activity, Spent
    from inturn.models.store.budgets import Standing

T = TypeVar("T")

SPENT_SECONDS = 15.0
SPENT_SHARE = 20
"""What is spent today is looked at after so many times what a look takes: it reads all of today's attempts."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen last.

    Attributes:
        database, broker: their URLs, masked.
        activity: None: the database never answered.
        database_error, broker_error: why it did not answer the last time; empty: it did.
        spent: None: not known yet.
        age_seconds: how old ``activity`` is.
    """

    database: str
    broker: str
    activity: "Activity | None"
    database_error: str = ""
    broker_error: str = ""
    spent: "list[Spent] | None" = None
    budgets: "list[Standing]" = field(default_factory=list)
    age_seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """As JSON has it: lengths of time in seconds, and workers with what they say of themselves beside what they do."""
        from inturn.cli.usage import standing_record

        known = {} if self.activity is None else _in_seconds(asdict(self.activity))
        for worker in known.get("workers", ()):
            worker.update(worker.pop("process"))
            del worker["settings"]
        return {
            "database": {"url": self.database, "error": self.database_error or None},
            "broker": {"url": self.broker, "error": self.broker_error or None},
            **known,
            "spent_today": None if self.spent is None else [asdict(one) for one in self.spent],
            "budgets": [standing_record(one) for one in self.budgets],
        }


def _in_seconds(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_seconds(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        f"{key}_seconds" if isinstance(one, timedelta) else key: one.total_seconds()
        if isinstance(one, timedelta)
        else _in_seconds(one)
        for key, one in value.items()
    }


class Watched(Generic[T]):
    """Something that is looked at again and again in a thread of its own; what was seen last, and what went wrong since."""

    def __init__(self, name: str, look: Callable[[], T], seconds: float, share: int = 0) -> None:
        self._look, self._seconds, self._share = look, seconds, share
        self._over = Event()
        self._thread = Thread(target=self._run, name=f"inturn-top-{name}", daemon=True)
        self.seen: T | None = None
        self.error = ""
        self.seen_at = time.monotonic()
        self.looks = 0

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """A look that hangs is left behind: it ends with the process."""
        self._over.set()

    def _run(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            began = time.monotonic()
            try:
                self.seen, self.error, self.seen_at = self._look(), "", time.monotonic()
            except InturnError as error:
                self.error = str(error)
            except Exception as error:  # noqa: BLE001 (whoever watches is told, and the next look may succeed)
                self.error = f"{type(error).__name__}: {error}"
            self.looks += 1
            took = time.monotonic() - began
            pause = max(self._seconds - took, took * self._share, 0.05)


class Outlook:
    """Looks at a deployment: at once, or again and again (``watch``)."""

    def __init__(self, invocation: Invocation) -> None:
        from inturn.cli.config import effective

        self._invocation = invocation
        shown = effective(invocation.settings)
        self._database, self._broker = str(shown["database_url"]), str(shown["broker_url"])
        self._client: Client | None = None

    def look(self, *, patiently: bool = False) -> Snapshot:
        """Once, everything.

        Args:
            patiently: a database that is away is told in what is returned.

        Raises:
            InturnError: the database cannot be worked with.
        """
        try:
            client = self._connected()
            activity, spent, budgets = client.activity(), client.spent_today(), client.budgets()
        except (DatabaseUnreachableError, StorageError) as error:
            if not patiently:
                raise
            return Snapshot(self._database, self._broker, None, str(error), self._broker_error())
        return Snapshot(self._database, self._broker, activity, "", self._broker_error(), spent, budgets)

    def watch(self, seconds: float) -> "Watch":
        return Watch(
            self,
            Watched("activity", lambda: (self._connected().activity(), self._connected().budgets()), seconds),
            Watched("broker", self._broker_error, max(seconds, 1.0)),
            Watched("spent", lambda: self._connected().spent_today(), SPENT_SECONDS, SPENT_SHARE),
        )

    def snapshot(self, watch: "Watch") -> Snapshot:
        """What was seen last."""
        activity, budgets = watch.activity.seen or (None, [])
        return Snapshot(
            database=self._database,
            broker=self._broker,
            activity=activity,
            database_error=watch.activity.error,
            broker_error=watch.broker.error or watch.broker.seen or "",
            spent=watch.spent.seen,
            budgets=budgets,
            age_seconds=time.monotonic() - watch.activity.seen_at,
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.stop()

    def _connected(self) -> "Client":
        if self._client is None:
            self._client = self._invocation.client()
        self._client.start()
        return self._client

    def _broker_error(self) -> str:
        """Why it does not answer; empty: it does."""
        import redis

        from inturn.urls import masked_url
        from inturn.workers.app import broker_url
        from inturn.workers.queues import connect

        settings = self._invocation.settings
        try:
            with connect(broker_url(settings)) as broker:
                broker.ping()
        except (redis.RedisError, OSError, ValueError) as error:
            if settings.has_embedded_broker and not settings.database_url:
                return "the embedded one does not run: `inturn up` starts it"
            return masked_url(str(error))
        return ""


@dataclass(frozen=True, slots=True)
class Watch:
    """Everything that is watched, each at its own pace. Use it in ``with``."""

    outlook: Outlook
    activity: Watched[Any]
    broker: Watched[str]
    spent: Watched[Any]

    def __enter__(self) -> "Watch":
        for each in (self.activity, self.broker, self.spent):
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.activity, self.broker, self.spent):
            each.end()
        with suppress(InturnError):
            self.outlook.close()
