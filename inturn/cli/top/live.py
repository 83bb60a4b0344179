"""The terminal of ``inturn top``: drawn again and again, with keys, and left as it was found."""

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections import deque
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from inturn.cli.top.picture import ORDERS, View, drawn
from inturn.cli.top.snapshot import Outlook, Snapshot, Watch

LOOK_SECONDS = 0.1
"""How soon a key, another size of the terminal, and something new are noticed."""
DRAWN_SECONDS = 1.0
"""Drawn at least as often, since what is shown grows older."""
SUSPEND = "\x1a"
TERMINATED = 128 + signal.SIGTERM
REMEMBERED = 240
"""Rates that the curve can show."""


def watch(outlook: Outlook, interval: float) -> None:
    """Until somebody quits."""
    with Stage() as stage, outlook.watch(interval) as watching:
        Watcher(outlook, stage, watching, interval).run()


class Stage:
    """A terminal of which all is ours, and keys are heard as they are pressed. Use it in ``with``: whatever ends it, also
    SIGTERM, the terminal is as it was before.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[Any] | None = None
        self._handler: Any = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGTERM, self._terminate)
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        signal.signal(signal.SIGTERM, self._handler)

    def draw(self, lines: list[Text]) -> None:
        if self._live is not None:
            self._live.update(Group(*lines), refresh=True)

    def key(self, seconds: float) -> str:
        """The next key, if one is pressed in time; else nothing."""
        if self._keys is None:
            time.sleep(seconds)
            return ""
        readable, _, _ = select.select([self._keys], [], [], seconds)
        pressed = os.read(self._keys, 64).decode(errors="replace") if readable else ""
        if readable and not pressed:  # the terminal has gone
            return "q"
        if pressed == SUSPEND:
            self._suspend()
            return ""
        return "q" if pressed == "\x1b" else pressed[:1]

    def _begin(self) -> None:
        if self._keys is not None:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
            ours = termios.tcgetattr(self._keys)
            ours[6][termios.VSUSP] = b"\0"  # Ctrl-Z comes as a key: the screen is given back before we stop
            termios.tcsetattr(self._keys, termios.TCSADRAIN, ours)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def _leave(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._keys is not None and self._before is not None:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, self._before)

    def _suspend(self) -> None:
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._begin()

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        sys.exit(TERMINATED)


class Watcher:
    """Draws what is new, and does what keys ask for."""

    def __init__(self, outlook: Outlook, stage: Stage, watching: Watch, interval: float) -> None:
        self._outlook, self._stage, self._watching = outlook, stage, watching
        self._view = View(interval=interval, rates=deque(maxlen=REMEMBERED))
        self._frozen: Snapshot | None = None
        self._drawn: tuple[object, ...] = ()

    def run(self) -> None:
        while (key := self._stage.key(LOOK_SECONDS)) != "q":
            if key:
                self._press(key)
            snapshot = self._frozen or self._outlook.snapshot(self._watching)
            self._remember(snapshot)
            size = shutil.get_terminal_size()
            now = (size, self._looks(), int(time.monotonic() / DRAWN_SECONDS))
            if key or now != self._drawn:
                self._drawn = now
                self._stage.draw(drawn(snapshot, self._view, size.columns, size.lines))

    def _looks(self) -> int:
        watching = self._watching
        return watching.activity.looks + watching.broker.looks + watching.spent.looks

    def _press(self, key: str) -> None:
        if key in ("p", " "):
            self._frozen = None if self._frozen else self._outlook.snapshot(self._watching)
            self._view.is_paused = self._frozen is not None
        elif key == "s":
            self._view.order = (self._view.order + 1) % len(ORDERS)

    def _remember(self, snapshot: Snapshot) -> None:
        """One rate for each look, for the curve."""
        activity, rates = snapshot.activity, self._view.rates
        if activity is not None and (not rates or rates[-1][0] != activity.at):
            rates.append((activity.at, sum(lane.turns_per_second for lane in activity.lanes)))
