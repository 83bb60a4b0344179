"""Where the metrics of a process can be read, and whether it is well: a small HTTP server, on a port of its own."""

import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

logger = logging.getLogger(__name__)

PORTS = 100
"""Of a host's processes each takes the first of so many ports that is free."""
PATIENCE_SECONDS = 10.0
"""Who has not said by then what he wants is hung up on."""


class Scrape(WSGIRequestHandler):
    """One request."""

    timeout = PATIENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: there is one every few seconds."""


class Server(ThreadingMixIn, WSGIServer):
    """The library's own looks its host's name up in the DNS first, and writes tracebacks when a reader hangs up."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Scrape)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.info("action=scrape_broken_off reason=%r", sys.exception())


class Exposition:
    """Serves a registry at ``/metrics``, from threads of its own.

    Args:
        host: where it listens.
        port: where it tries first. Where that is taken, by another process of inturn or by anybody, the next is tried.
        pages: by path, what says whether all is well: None, or what is not.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        pages: Mapping[str, Callable[[], str | None]] | None = None,
    ) -> None:
        self._metrics, self._pages, self._host, self._port = make_wsgi_app(registry), pages or {}, host, port
        self._server: Server | None = None

    @property
    def url(self) -> str | None:
        """Where it is read; None: nowhere."""
        if self._server is None:
            return None
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}/metrics"

    def start(self) -> None:
        """Serve, and say where. Where that cannot be, say why: nobody stops working for it."""
        last = min(self._port + PORTS - 1, 65535)
        for port in range(self._port, last + 1):
            try:
                self._listen(port)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                return self._complain(f"{self._host} port {port} cannot be listened on ({error.strerror or error})")
            return self._tell(port)
        return self._complain(f"all ports of {self._host} from {self._port} to {last} are taken")

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _listen(self, port: int) -> None:
        """Raises: OSError."""
        self._server = Server(self._host, port)
        self._server.set_app(self._answer)
        threading.Thread(target=self._server.serve_forever, name="inturn-metrics", daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        page = self._pages.get(environ["PATH_INFO"])
        if page is None:
            return self._metrics(environ, start_response)
        wrong = page()
        status = "503 Service Unavailable" if wrong else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{wrong or 'ok'}\n".encode()]

    def _tell(self, port: int) -> None:
        taken = f": {self._port} to {port - 1} were taken" if port > self._port + 1 else f": {self._port} was taken"
        logger.info("action=metrics_served url=%s%s", self.url, taken if port > self._port else "")

    def _complain(self, reason: str) -> None:
        logger.warning(
            "action=metrics_not_served: %s. It works on without; set metrics_port or metrics_host to what is free",
            reason,
        )
