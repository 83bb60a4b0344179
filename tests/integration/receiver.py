"""Who webhooks are sent to: a real server on loopback, over http or https, that keeps what it was told."""

import json
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from standardwebhooks import Webhook

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_" + "C2FVsBQIhrscChlQIMV1b5sSYspob7oD"


class Told(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> Any:
        """The event, if the library takes the signature for that of this secret."""
        return Webhook(secret).verify(self.body, self.headers)


Answer = int | tuple[int, dict[str, str]] | Callable[[], int]


class Receiver:
    """Answers with one status after the other; the last one stays. In place of one, a function may say it, or be slow."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.told: list[Told] = []
        self._answers, self._lock = list(answers or (200,)), threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver.hear(
                    Told(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                words = b"" if status == HTTPStatus.NO_CONTENT else b"ok"
                for name, value in {"Content-Length": str(len(words)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(words)

            do_GET = do_POST

            def log_message(self, *words: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *about: object) -> None:  # who asked has hung up, as some tests want it
                return

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer_with(self, *answers: Answer) -> None:
        """From now on."""
        with self._lock:
            self._answers[:] = answers

    def hear(self, told: Told) -> int | tuple[int, dict[str, str]]:
        with self._lock:
            self.told.append(told)
            answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        return answer() if callable(answer) else answer

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(told.body) for told in self.told]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
