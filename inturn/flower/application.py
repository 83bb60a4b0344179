"""Flower as ``inturn flower`` runs it: its handlers behind the door, ours beside them, and its looks for both."""

import asyncio
import logging
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

from flower.app import Flower
from flower.inspector import Inspector
from flower.options import default_options
from flower.urls import settings as flowers_settings
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.routing import URLSpec
from tornado.template import Loader, Template
from tornado.web import Application

from inturn.client import Client
from inturn.flower.broker import Listener, check_broker
from inturn.flower.door import Assets, guarded
from inturn.flower.pages import BatchesPage, RetentionPage, SessionPage, SessionsPage
from inturn.flower_settings import about_port, check_door, logins, url_of
from inturn.models.errors import SettingsError
from inturn.settings import Settings
from inturn.urls import masked_url
from inturn.workers.app import InturnApp, broker_url, make_app
from inturn.workers.home import LOG_SECONDS, OwnLog

HERE = Path(__file__).parent
READERS = 4
"""Threads that read the database: a page that waits for it keeps neither the loop nor Flower's own threads."""
TASKS_IN_MEMORY = 10_000
INSPECT_MILLISECONDS = 1000.0
COLUMNS = "args,state,received,runtime,name,uuid,worker"
"""Of Flower's page of tasks: the argument of a hint names its session, so it comes first."""

ROUTES = [
    URLSpec(r"/sessions", SessionsPage, name="sessions"),
    URLSpec(r"/session/([^/]+)", SessionPage, name="session"),
    URLSpec(r"/batches", BatchesPage, name="batches"),
    URLSpec(r"/retention", RetentionPage, name="retention"),
    URLSpec(r"/inturn/(.*)", Assets, {"path": str(HERE / "static")}, name="asset"),
]
TABS = re.compile(r"</ul>")
SCRIPT = '<script type="text/javascript">'


class Templates(Loader):
    """Our templates, and Flower's where we have none. Its navigation gets our tabs, its one script in a page our nonce."""

    def __init__(self) -> None:
        super().__init__(str(HERE / "templates"))
        self._flowers = Path(flowers_settings["template_path"])

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Template:
        ours = HERE / "templates" / name
        text = (ours if ours.exists() else self._flowers / name).read_text(encoding="utf-8")
        if name == "navbar.html":
            text, found = TABS.subn('{% include "tabs.html" %}</ul>', text, count=1)
            assert found, "Flower's navigation has no list any more"
        return Template(text.replace(SCRIPT, '<script nonce="{{ handler.nonce }}">'), name=name, loader=self)


class Discreet(Inspector):  # type: ignore[misc]
    """What workers say of themselves, without the passwords of URLs, wherever they stand."""

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        super()._on_update(workername, method, without_passwords(response))


def without_passwords(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: without_passwords(each) for name, each in told.items()}
    if isinstance(told, list | tuple):
        return [without_passwords(each) for each in told]
    return masked_url(told) if isinstance(told, str) and "://" in told else told


class Guard(Application):
    """Stands between Flower and Tornado: what Flower registers goes behind the door, whatever it is."""

    def __init__(self, handlers: list[Any], **settings: Any) -> None:
        super().__init__(handlers=[*ROUTES, *guarded(handlers)], **settings)


class InturnFlower(Flower, Guard):  # type: ignore[misc]
    """Flower, and a client of inturn's for its own pages.

    Args:
        client: reads what the pages show.
        control: whether workers may be told something.
        show_content: whether pages may show what was said.
    """

    def __init__(self, client: Client, *, control: bool = False, show_content: bool = False) -> None:
        self.client, self.control, self.show_content = client, control, show_content
        settings = client.settings
        self.logins = logins(settings.flower_basic_auth)
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="inturn-reader")
        set_options(settings, self.logins, control=control)
        ours = {"template_loader": Templates(), "xsrf_cookie_kwargs": {"samesite": "Strict"}}
        app, loop = asking_app(settings), IOLoop.current()
        events = Listener(
            app, loop, max_workers_in_memory=default_options.max_workers, max_tasks_in_memory=TASKS_IN_MEMORY
        )
        super().__init__(options=default_options, capp=app, events=events, io_loop=loop, **flowers_settings | ours)
        self.inspector = Discreet(self.io_loop, self.capp, INSPECT_MILLISECONDS / 1000)

    @cached_property
    def broker_uri(self) -> str:
        """As it may be shown."""
        return masked_url(broker_url(self.client.settings))


def asking_app(settings: Settings) -> InturnApp:
    """Celery for Flower, which asks workers and listens to them: no task is known here, and none is sent."""
    app = make_app(settings)
    app.conf.include = ()
    return app


def set_options(settings: Settings, known: list[str], *, control: bool) -> None:
    """Flower keeps its options in one place per process."""
    chosen = {
        "address": settings.flower_address,
        "port": settings.flower_port,
        "basic_auth": known,
        "read_only": not control,
        "inspect_timeout": INSPECT_MILLISECONDS,
        "max_tasks": TASKS_IN_MEMORY,
        "tasks_columns": COLUMNS,
    }
    for name, value in chosen.items():
        setattr(default_options, name, value)


def serve(
    settings: Settings, *, control: bool, show_content: bool, tell: Callable[[str], None], waits: bool = False
) -> None:
    """Run Flower until SIGTERM or SIGINT. Only in the main thread.

    Args:
        tell: is told where it is to be seen.
        waits: also for a broker that is away.

    Raises:
        BrokerUnreachableError: it is, and Flower would have nobody to listen to.
        SettingsError: it must not listen where it is to, or cannot.
    """
    check_door(settings.flower_address, logins(settings.flower_basic_auth), control=control)
    if not waits:
        check_broker(settings)
    logging.getLogger("tornado.access").setLevel(logging.CRITICAL)
    with closing(Stopping(Client(settings), control=control, show_content=show_content)) as stopping:
        application = stopping.application
        try:
            port = application.start_http_server()
        except OSError as error:
            raise SettingsError(about_port(settings.flower_address, settings.flower_port, error.strerror)) from None
        tell(url_of(settings.flower_address, port))
        application.start()


class Stopping:
    """An application that ends with a signal, and leaves nothing open."""

    def __init__(self, client: Client, *, control: bool, show_content: bool) -> None:
        asyncio.set_event_loop(loop := asyncio.new_event_loop())
        self._client = client
        self.application = InturnFlower(client, control=control, show_content=show_content)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.application.stop)
        PeriodicCallback(OwnLog(client.settings.home).keep_short, LOG_SECONDS * 1000).start()

    def close(self) -> None:
        self.application.readers.shutdown(wait=False, cancel_futures=True)
        self._client.stop()
