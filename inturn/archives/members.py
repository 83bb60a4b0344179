"""The members that a gzip file is made of: how far they are whole, and whether others come behind."""

import re
import zlib
from collections.abc import Iterator
from typing import IO

from inturn.archives.writing import GZIP

PIECE_BYTES = 256 * 1024
MAGIC = b"\x1f\x8b\x08"
"""What a member begins with: gzip's two bytes, and that it is deflated."""
HEADER_BYTES = 4096
"""So much of a member says how what is in it begins."""


def whole(file: IO[bytes]) -> tuple[int, int]:
    """How many bytes the members take that are whole, from the first one on, and how many lines are in them."""
    place = lines = 0
    while (found := _whole(file, place)) is not None:
        place, lines = found[0], lines + found[1]
    return place, lines


def _whole(file: IO[bytes], place: int) -> tuple[int, int] | None:
    """Where the member ends that begins there, and how many lines are in it; None: there is none, or it is not whole."""
    file.seek(place)
    member, lines = zlib.decompressobj(GZIP), 0
    try:
        while not member.eof:
            piece = member.unconsumed_tail or file.read(PIECE_BYTES)
            if not piece:
                return None
            lines += member.decompress(piece, PIECE_BYTES).count(b"\n")
    except zlib.error:
        return None
    return file.tell() - len(member.unused_data), lines


def is_there(file: IO[bytes], place: int, start: bytes) -> bool:
    """Whether a member begins behind a place whose content begins like that."""
    return any(_begins(file, found, start) for found in _found(file, place + 1))


def _found(file: IO[bytes], place: int) -> Iterator[int]:
    """Where members may begin."""
    while True:
        file.seek(place)
        piece = file.read(PIECE_BYTES)
        yield from (place + hit.start() for hit in re.finditer(re.escape(MAGIC), piece))
        if len(piece) < PIECE_BYTES:
            return
        place += len(piece) - (len(MAGIC) - 1)


def _begins(file: IO[bytes], place: int, start: bytes) -> bool:
    file.seek(place)
    try:
        return zlib.decompressobj(GZIP).decompress(file.read(HEADER_BYTES), len(start)) == start
    except zlib.error:
        return False
