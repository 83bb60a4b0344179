"""What a person is told who waits for long: what the turn waits for, looked at from time to time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from inturn.cli import render

if TYPE_CHECKING:
    from inturn.client import Client, Turn

LOOK_SECONDS = 3.0
"""Before the first look, and from the end of one to the next: most replies come sooner, and cost none."""


@contextmanager
def waiting_for(client: "Client", turn: "Turn", remark: str, *, besides: str = "") -> Iterator[None]:
    """A sign of life while a turn is waited for, which after a while says why; nothing where nobody watches.

    Args:
        remark: what is said at first.
        besides: what stands behind every reason.
    """
    with render.waiting(remark) as tell:
        if tell is None:
            yield
            return
        watch = _Watch(lambda: f"{client.why(turn.id).sentence}{besides}", tell)
        Thread(target=watch.run, name="inturn-why", daemon=True).start()
        try:
            yield
        finally:
            watch.end()


class _Watch:
    """Looks again and again. It has a thread of its own, for whose look nobody waits, and which fails nobody."""

    def __init__(self, look: Callable[[], str], tell: Callable[[str], None]) -> None:
        self._look, self._tell = look, tell
        self._over, self._telling = Event(), Lock()

    def run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                seen = self._look()
            except Exception:  # noqa: BLE001 (who waits is told by the wait itself what is wrong)
                continue
            with self._telling:
                if not self._over.is_set():  # the terminal is somebody else's now
                    self._tell(seen)

    def end(self) -> None:
        with self._telling:
            self._over.set()
