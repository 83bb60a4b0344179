"""Which custom IDs a file had before, for as many lines as there are, in memory that the system can take back."""

import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path

from inturn.intake.spool import unwritable

SLOTS = 1 << 17
"""At first: 2 MiB."""
FULL = 0.7
"""Of the slots taken, when there have to be more: beyond that, chains grow long."""
SLOT = 16
"""Bytes: a hash, and a place."""
ZEROS = bytes(1 << 16)
STRETCH = 1 << 13
"""Slots that are copied at a time when the table grows."""


class CustomIds:
    """A hash table in a file: a set of a million strings would take 100 MB, a table of an SQLite five times as long.

    A slot holds a custom ID's hash and, one higher so that 0 is none, the place where the ID can be looked up: two IDs
    may have one hash.
    """

    def __init__(self, directory: Path, look_up: Callable[[int], str]) -> None:
        """Raises: InturnError: the directory takes no file."""
        self._directory, self._look_up = directory, look_up
        self._taken = 0
        self._make(SLOTS)

    def claim(self, custom_id: str, place: int) -> int | None:
        """The place of who claimed it first; None: nobody did before. Raises: InturnError: the disk is full."""
        table, key = self._table, hash(custom_id)
        at = (key & self._mask) * 2
        while taken := table[at + 1]:
            if table[at] == key and self._look_up(taken - 1) == custom_id:
                return taken - 1
            at = (at + 2) & self._wrap
        table[at], table[at + 1] = key, place + 1
        self._taken += 1
        if self._taken > self._most:
            self._grow()
        return None

    def _make(self, slots: int) -> None:
        try:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                # Not truncated to its size: a page that the disk has no room for later would end the process.
                for _ in range(slots * SLOT // len(ZEROS)):
                    file.write(ZEROS)
                file.flush()
                self._map = mmap.mmap(file.fileno(), slots * SLOT)
        except OSError as refused:
            raise unwritable(self._directory, refused) from refused
        self._table = memoryview(self._map).cast("q")
        self._mask, self._wrap, self._most = slots - 1, slots * 2 - 1, int(slots * FULL)

    def _grow(self) -> None:
        former, before = self._table, self._map
        self._make(len(former))  # twice as many: a slot has two numbers
        table, mask, wrap = self._table, self._mask, self._wrap
        for start in range(0, len(former), 2 * STRETCH):
            slots = former[start : start + 2 * STRETCH].tolist()
            for key, taken in zip(slots[::2], slots[1::2], strict=True):
                if taken:
                    at = (key & mask) * 2
                    while table[at + 1]:
                        at = (at + 2) & wrap
                    table[at], table[at + 1] = key, taken
        former.release()
        before.close()

    def close(self) -> None:
        self._table.release()
        self._map.close()
