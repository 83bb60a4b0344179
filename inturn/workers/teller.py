"""The teller: tells Redis the replies that somebody may listen to, while they are written.

A slot only notes each piece; one thread gathers what has come for all of them and writes it in one go. A Redis that is
slow, frozen or gone makes nobody wait: what was not told yet is told later, in one piece, or not at all.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import redis

from inturn.models.store.working import Settlement, Started
from inturn.workers.events import RECONNECT_SECONDS
from inturn.workers.live import Entry, Stylus
from inturn.workers.queues import connect

logger = logging.getLogger(__name__)

GATHER_SECONDS = 0.05
"""From one write to the next: a reader sees text flow at twenty pieces a second, and a model sends up to a hundred."""
ENTRIES_A_WRITE = 500
"""Redis does nothing else meanwhile: for two or three milliseconds."""
ENTRY_LIMIT = 256 * 1024
"""Characters, if the pieces are smaller: after a Redis that was away, what has gathered is told in parts."""
SILENCE_SECONDS = 180
"""How much longer than the longest call a stream lives, from its beginning: its worker may have died."""


class Telling:
    """The reply to one attempt, as far as it has come. Called in the loop with each piece."""

    __slots__ = ("_at", "_begun", "_is_over", "_note", "_pieces", "_told", "attempt", "is_due", "number", "session_id")

    def __init__(self, started: Started, note: Callable[["Telling"], None]) -> None:
        self.session_id, self.number, self.attempt = started.session_id, started.number, started.attempts
        self._note = note
        self._pieces: list[str] = []
        self._told = self._at = 0
        """How many pieces are told, and how many characters those are."""
        self._begun = self._is_over = False
        self.is_due = False

    def __call__(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            if not self.is_due:
                self._note(self)

    @property
    def text(self) -> str | None:
        """What has come so far; None: nothing."""
        return "".join(self._pieces) or None

    @property
    def is_over(self) -> bool:
        return self._is_over

    def end(self) -> None:
        self._is_over = True

    def untold(self) -> Iterator[Entry]:
        """What is to be written next."""
        is_over = self._is_over  # before the pieces are looked at: the last of them came before it
        if not self._begun:
            yield Entry(self.number, self.attempt)
        text = "".join(self._next())
        if text:
            yield Entry(self.number, self.attempt, self._at, text)
        if is_over and self._at + len(text) == sum(map(len, self._pieces)):
            yield Entry(self.number, self.attempt, end=True)

    def _next(self) -> Sequence[str]:
        pieces, size = self._pieces[self._told :], 0
        for place, piece in enumerate(pieces):
            size += len(piece)
            if size >= ENTRY_LIMIT:
                return pieces[: place + 1]
        return pieces

    def wrote(self, entry: Entry) -> None:
        self._begun = True
        left = len(entry.text)
        self._at += left
        while left > 0:
            left -= len(self._pieces[self._told])
            self._told += 1

    def start_over(self) -> None:
        """All of it was lost on the other side."""
        self._told = self._at = 0

    @property
    def has_more(self) -> bool:
        return self._told < len(self._pieces)


class Teller:
    """One per worker process.

    Args:
        longest_call_seconds: a stream outlives it.
    """

    def __init__(self, broker_url: str, longest_call_seconds: float) -> None:
        self._broker = connect(broker_url)
        self._stylus = Stylus(self._broker, int(longest_call_seconds) + SILENCE_SECONDS)
        self._tellings: dict[int, Telling] = {}
        """By session: what is under way, until its end is stored."""
        self._due: deque[Telling] = deque()
        self._called, self._stopping = threading.Event(), threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="inturn-teller", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Tell what is left, and end."""
        self._stopping.set()
        self._called.set()
        self._thread.join(timeout=5)
        self._broker.close()

    def begin(self, started: Started) -> Telling:
        """An attempt begins whose reply is to be told. Called in the loop."""
        telling = self._tellings[started.session_id] = Telling(started, self._note)
        self._note(telling)
        return telling

    def settled(self, settlement: Settlement) -> None:
        """How an attempt ended is stored. Called in the ledger's thread, before the session's next attempt can begin."""
        self._end(settlement.session_id, settlement.number, settlement.attempt)

    def forget(self, started: Started) -> None:
        """Nothing of this attempt will be stored any more: its session is somebody else's, or gone."""
        self._end(started.session_id, started.number, started.attempts)

    def _end(self, session_id: int, number: int, attempt: int) -> None:
        telling = self._tellings.get(session_id)
        if telling is not None and (telling.number, telling.attempt) == (number, attempt):
            self._tellings.pop(session_id, None)
            telling.end()
            self._note(telling)

    def _note(self, telling: Telling) -> None:
        telling.is_due = True
        self._due.append(telling)
        if not self._called.is_set():
            self._called.set()

    def _run(self) -> None:
        while True:
            self._called.wait()
            self._called.clear()
            is_last = self._stopping.is_set()
            next_at = time.monotonic() + GATHER_SECONDS
            reached = self._tell(list(dict.fromkeys(self._due.popleft() for _ in range(len(self._due)))))
            if is_last:
                return
            self._stopping.wait(max(0.0, next_at - time.monotonic()) if reached else RECONNECT_SECONDS)

    def _tell(self, due: Sequence[Telling]) -> bool:
        """Returns whether Redis took it. What it did not take comes next time; of what is over, the database knows more."""
        for telling in due:
            telling.is_due = False
        lines = [(telling, entry) for telling in due for entry in telling.untold()]
        try:
            for first in range(0, len(lines), ENTRIES_A_WRITE):
                self._write(lines[first : first + ENTRIES_A_WRITE])
        except (redis.RedisError, OSError) as error:
            self._miss(due, error)
            return False
        except Exception:
            logger.exception("action=telling_failed")  # the thread goes on: others are to be told
            return True
        self._is_away = False
        for telling in due:
            if telling.has_more and not telling.is_due:
                self._note(telling)
        return True

    def _write(self, lines: Sequence[tuple[Telling, Entry]]) -> None:
        torn = self._stylus.write([(telling.session_id, entry) for telling, entry in lines])
        for place, (telling, entry) in enumerate(lines):
            if place in torn:
                telling.start_over()
            else:
                telling.wrote(entry)

    def _miss(self, due: Sequence[Telling], error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("action=live_text_missed reason=%s: who listens gets it later", error)
        for telling in due:
            if not (telling.is_over or telling.is_due):
                self._note(telling)
