"""The Celery app and its configuration. Celery carries hints; SQL is the queue of record.

``celery -A inturn.workers.app worker`` works as Celery users expect; ``inturn worker`` does the same with our settings.
"""

import logging
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.log import Logging
from kombu import Connection, Queue

from inturn.models.states import Lane
from inturn.settings import Settings
from inturn.workers import embedded
from inturn.workers.logs import JsonLines, is_json
from inturn.workers.queues import BROKER_TIMEOUT_SECONDS, REMOVE_EXPIRED_SESSIONS

WORKER_SOCKET_TIMEOUT_SECONDS = 120
"""Longer than a worker's blocking read of its queues, so that only a broker that is gone ends it."""


RECONNECT_SECONDS = {"interval_start": 1.0, "interval_step": 0.0, "interval_max": 1.0}
"""Kombu's own waits grow to 30 s, for which workers would stay away from a broker that is back; no setting says less."""


class Line(Connection):
    """A connection to the broker, looked for every second while it is gone."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """What workers and beat come back by."""
        return super().ensure_connection(*args, **(RECONNECT_SECONDS | options))  # type: ignore[no-untyped-call]


class Lines(AMQP):  # type: ignore[misc]
    """Where Celery takes its connections from."""

    Connection = Line


class Logs(Logging):  # type: ignore[misc]
    """Where Celery has its logging from; what it says from within signal handlers, to stdout, is logged with the rest."""

    def setup_logging_subsystem(self, *args: Any, hostname: str | None = None, **how: Any) -> Any:
        """Told a host name, it is a worker's."""
        self._role = "beat" if hostname is None else "worker"
        return super().setup_logging_subsystem(*args, hostname=hostname, **how)

    def setup_handlers(self, *args: Any, **how: Any) -> logging.Logger:
        logger: logging.Logger = super().setup_handlers(*args, **how)
        if is_json(self.app.settings.log_format):
            lines = JsonLines(self._role)
            for handler in logger.handlers:
                handler.setFormatter(lines)
            if self._role == "worker":
                from celery.apps import worker  # by the worker itself long before; an asking program does without

                worker.safe_say = lambda sentence, stream=None: lines.write("celery.apps.worker", sentence)
        return logger


class InturnApp(Celery):  # type: ignore[misc]
    """Celery, and the settings that it was made from."""

    amqp_cls = "inturn.workers.app:Lines"
    log_cls = "inturn.workers.app:Logs"
    settings: Settings


def broker_url(settings: Settings) -> str:
    return settings.broker_url or embedded.broker_url(settings.home)


def make_app(settings: Settings, *, producer: bool = False) -> InturnApp:
    """The app for a worker, or for a producer, which must not wait long for Redis."""
    app = InturnApp("inturn", set_as_current=not producer)
    app.settings = settings
    app.conf.update(configuration(settings))
    app.conf.broker_transport_options = producer_transport() if producer else worker_transport()
    if not producer:
        app.steps["worker"].add("inturn.workers.crew:Crew")
    return app


def configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": broker_url(settings),
        "include": ["inturn.workers.tasks"],
        "task_queues": [Queue(str(lane), routing_key=str(lane)) for lane in Lane],
        "task_default_queue": str(Lane.CHAT),
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        # Late acks buy nothing where SQL is the queue of record, and bring redelivery and poison loops.
        "task_acks_late": False,
        "worker_pool": "inturn.workers.pool:TaskPool",
        "worker_concurrency": settings.concurrency,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis that is out of memory refuses what a worker writes there: it is waited for like one that is away.
        "broker_channel_error_retry": True,
        "beat_enable_remote_control": True,
        "beat_scheduler": "inturn.workers.beat:Timetable",
        "beat_schedule": {
            "remove-expired-sessions": {
                "task": REMOVE_EXPIRED_SESSIONS,
                "schedule": settings.cleanup_interval_seconds,
                "options": {"queue": str(Lane.MAINTENANCE), "expires": settings.cleanup_interval_seconds},
            }
        },
    }


def producer_transport() -> dict[str, Any]:
    """Celery's defaults wait 70 s for a Redis that is down, and for ever for one that is frozen."""
    return {
        "socket_timeout": BROKER_TIMEOUT_SECONDS,
        "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
        "max_retries": 1,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
        # Kombu tries a connection that timed out once more, which would double the wait; one that was refused, it may.
        "connect_retries_timeout": BROKER_TIMEOUT_SECONDS / 2,
    }


def worker_transport() -> dict[str, Any]:
    return {
        "socket_timeout": WORKER_SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": 10,
        "socket_keepalive": True,
        "queue_order_strategy": "inturn.workers.shares:OpenLanes",
    }


def __getattr__(name: str) -> InturnApp:
    """``app``, made when Celery's command line asks for it: importing this module reads no settings."""
    if name not in ("app", "celery"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = globals()["celery"] = made = make_app(Settings.load())
    return made
