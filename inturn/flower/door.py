"""The door before every page of Flower's and ours: who comes in, what may be changed, and what a browser may do with it.

Flower checks its logins handler by handler, and leaves some out; here each of its handlers gets this door in front.

- A login, where there are any: compared in constant time, for every path but ``/healthcheck`` and the files of the pages.
- No login: only for who names this machine by a loopback address (a page elsewhere that has its own name lead to 127.0.0.1,
  "DNS rebinding", does not), and without the API, which Flower closes then.
- What changes something: only with ``--control``, and never from another site: the browser has to say that it comes from
  here (``Sec-Fetch-Site``, ``Origin``), and to send back the token of a cookie that no other site can read.
"""

import binascii
import hmac
import logging
import secrets
from base64 import b64decode
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flower.api import BaseApiHandler, tasks
from flower.views import monitor
from flower.views.auth import LoginHandler, LogoutHandler
from flower.views.tasks import TasksDataTable
from tornado.routing import URLSpec
from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from inturn.flower_settings import is_loopback

if TYPE_CHECKING:
    from inturn.flower.application import InturnFlower

logger = logging.getLogger(__name__)

READING = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "img-src 'self' data:; script-src 'self' 'nonce-{nonce}'; style-src 'self'"
)
READ_ONLY = "This Flower only shows. Start it with --control to change something."
NO_API = "The API answers only where there is a login: set INTURN_FLOWER_BASIC_AUTH to USER:PASSWORD."
NO_SENDING = "Tasks are not sent from here: what is to be answered is sent by inturn, which stores it first."


class Guarded(RequestHandler):
    """What every handler of Flower's becomes, too."""

    application: "InturnFlower"
    needs_login = True
    posts_to_read = False
    """Whether it asks by POST, and changes nothing."""
    unauthenticated_api = False
    """Flower's way to open its API to everybody, by a variable."""

    @property
    def nonce(self) -> str:
        """What makes a script in a page one of ours."""
        if not hasattr(self, "_nonce"):
            self._nonce = secrets.token_urlsafe(16)
        return self._nonce

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Security-Policy", POLICY.format(nonce=self.nonce))
        self.clear_header("Server")

    def check_xsrf_cookie(self) -> None:
        """Called before ``prepare`` where something may be changed. Raises: HTTPError."""
        self._admit()
        headers = self.request.headers
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        if site not in (None, "same-origin") or (origin is not None and urlsplit(origin).netloc != self.request.host):
            raise HTTPError(403, "Another site must not change anything here.")
        if site or origin or self.request.cookies:  # a browser, which shows the login to anybody who asks it to
            RequestHandler.check_xsrf_cookie(self)

    def prepare(self) -> Any:
        """Raises: HTTPError: it is not for whoever asks."""
        self._admit()
        if isinstance(self, BaseApiHandler) and not self.application.logins:
            raise HTTPError(403, NO_API)
        if self.request.method not in READING and not (self.posts_to_read or self.application.control):
            raise HTTPError(403, READ_ONLY)
        return super().prepare()

    def _admit(self) -> None:
        """Raises: HTTPError."""
        if not self.needs_login:
            return
        if self.application.logins:
            _ = self.current_user
        elif not self._is_for_us():
            raise HTTPError(403, f"{self.request.host_name} is no name of this machine's own: use http://127.0.0.1")

    def _is_for_us(self) -> bool:
        return is_loopback(self.request.host_name)

    def get_current_user(self) -> str:
        """The name of who looks. Raises: HTTPError: there is no such login."""
        if not self.application.logins:
            return "anybody"
        scheme, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        try:
            given = b64decode(credentials.strip(), validate=True)
        except binascii.Error:
            raise HTTPError(401) from None
        matching = [hmac.compare_digest(given, login.encode()) for login in self.application.logins]
        if scheme.lower() != "basic" or not any(matching):
            raise HTTPError(401)
        return given.partition(b":")[0].decode()

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """No page shows what went wrong inside: the log does."""
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="inturn", charset="UTF-8"')
        if status_code == 401 or status_code >= 500:
            error = kwargs.get("exc_info", (None, None))[1]
            told = error.log_message if isinstance(error, HTTPError) and status_code == 503 else None
            self.set_header("Content-Type", "text/plain; charset=UTF-8")
            self.finish(told or {401: "Access denied"}.get(status_code, f"Error {status_code}: Flower's log says more"))
            return
        super().write_error(status_code, **kwargs)


class Closed:
    """In the place of what must not be done by anybody."""

    def prepare(self) -> None:
        super().prepare()  # type: ignore[misc]  # Guarded's
        raise HTTPError(403, NO_SENDING)


class Assets(StaticFileHandler):
    """Files of the pages: the same for everybody, and nothing is in them."""

    def set_extra_headers(self, path: str) -> None:
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")


SENDING = (tasks.TaskApply, tasks.TaskAsyncApply, tasks.TaskSend)
OUT_OF_USE = (LoginHandler, LogoutHandler)
"""Of logins by other services, which are not set up here."""


def guarded(routes: list[Any]) -> list[URLSpec]:
    """Flower's routes, each behind the door."""
    specs = [route if isinstance(route, URLSpec) else URLSpec(*route) for route in routes]
    return [
        URLSpec(spec.regex.pattern, _behind_the_door(spec.handler_class), spec.kwargs, spec.name)
        for spec in specs
        if spec.handler_class not in OUT_OF_USE
    ]


def _behind_the_door(handler: type[Any]) -> type[Any]:
    if issubclass(handler, StaticFileHandler):
        return Assets
    ways = {
        "needs_login": handler is not monitor.Healthcheck,
        "posts_to_read": handler is TasksDataTable,
    }
    closed = (Closed,) if handler in SENDING else ()
    return type(handler.__name__, (*closed, Guarded, handler), ways)
