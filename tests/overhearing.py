"""What Redis is given while a test runs, by anybody."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from inturn.workers.queues import connect

SILENCE_SECONDS = 60


class Told(NamedTuple):
    """A command, also one of a script, and the Unix time in seconds at which Redis took it."""

    command: str
    at: float


@contextmanager
def overheard(broker_url: str) -> Iterator[list[Told]]:
    """Every command that Redis gets meanwhile, as MONITOR tells it; the list grows as they come, and is whole at the end."""
    told, end = list[Told](), f"end-{secrets.token_hex(8)}"
    with connect(broker_url, socket_timeout=SILENCE_SECONDS) as client, client.monitor() as monitor:

        def listen() -> None:
            for said in monitor.listen():
                if end in said["command"]:
                    return
                told.append(Told(said["command"], said["time"]))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield told
        finally:
            client.echo(end)
            thread.join()
