"""Images for prompts: from a file, from bytes, or by their URL."""

import base64
import binascii
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inturn.models.errors import InvalidInputError

_KINDS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}
"""By how they begin. WebP, whose beginning has its length in it, is told by ``_kind``."""

_SCHEME = re.compile(r"(data):|([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_INLINE = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)
_URLS = "an image is a file's path, an http(s):// URL, or a data:image/...;base64, URL"


def image(source: str | Path | bytes) -> dict[str, Any]:
    """A part of a prompt that shows an image, beside ``{"type": "text", "text": "What is this?"}``.

    Args:
        source: a file's path; an ``http(s)://`` or ``data:`` URL; or the image itself (PNG, JPEG, GIF or WebP).

    Raises:
        InvalidInputError: the file cannot be read, or it is none of these kinds of image, or its URL is none.
    """
    if not isinstance(source, str | Path | bytes) or source == "":
        raise InvalidInputError(f"{source!r:.100} is no image: {_URLS}, or its bytes")
    if isinstance(source, str) and (found := _SCHEME.match(source)):
        return _part(_checked_url(source, (found[1] or found[2]).lower()))
    content = source if isinstance(source, bytes) else _read(Path(source))
    kind = _kind(content)
    if kind is None:
        what = "these bytes are" if isinstance(source, bytes) else f"{str(source)!r:.200} is"
        raise InvalidInputError(f"{what} no PNG, JPEG, GIF or WebP image: convert it, or send its URL")
    return _part(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _checked_url(url: str, scheme: str) -> str:
    """The URL, its scheme in small letters. Raises: InvalidInputError."""
    if scheme == "data" and _is_inline_image(url):
        return scheme + url[len(scheme) :]
    if scheme == "data":
        raise InvalidInputError(
            f"{url!r:.40} is no image: a data: URL of one is data:image/png;base64, (or of another kind) and the image in "
            "base64"
        )
    if scheme in ("http", "https") and _has_host(url):
        return scheme + url[len(scheme) :]
    raise InvalidInputError(f"{url!r:.200} is refused: {_URLS}")


def _is_inline_image(url: str) -> bool:
    begins = _INLINE.match(url)
    try:
        return begins is not None and len(base64.b64decode(url[begins.end() :], validate=True)) > 0
    except (binascii.Error, ValueError):
        return False


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # the latter for a NUL in its name
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"the image {str(path)!r:.200} cannot be read ({why})") from None


def _kind(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for begins, kind in _KINDS.items() if content.startswith(begins)), None)
