"""JSON that is written to stdout as it is, and does nothing to a terminal."""

import re
import sys
from typing import BinaryIO, cast

CONTROLS = re.compile(rb"\x7f|\xc2[\x80-\x9f]")
"""What JSON may have in a string as it is, and a terminal acts on."""


class Screen:
    """A terminal, in which nothing that a model said does anything."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        return self._stream.write(CONTROLS.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), data))

    def flush(self) -> None:
        self._stream.flush()


def stdout() -> BinaryIO:
    """For JSON in bytes."""
    stream = sys.stdout.buffer
    return cast(BinaryIO, Screen(stream)) if sys.stdout.isatty() else stream
