"""Images for prompts: from files, bytes and URLs, told by how they begin."""

import base64
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from inturn import InvalidInputError, image
from inturn.cli.send import content
from inturn.models.content import PARTS_LIMIT, PROMPT_LIMIT, checked_content
from inturn.models.errors import InvalidPromptError


def png(width: int = 2, height: int = 2) -> bytes:
    """A whole one, in red."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


KINDS = {
    "image/png": png(),
    "image/jpeg": b"\xff\xd8\xff\xe0rest",
    "image/gif": b"GIF89arest",
    "image/webp": b"RIFF\x10\0\0\0WEBPVP8 rest",
}
TEXT = {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_kind_it_is_is_told_by_how_it_begins(kind: str, tmp_path: Path) -> None:
    content = KINDS[kind]
    path = tmp_path / "picture.txt"
    path.write_bytes(content)
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    for source in (content, path, str(path)):
        assert image(source) == {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize(
    "url", ["https://example.org/a.png", "http://example.org/a", "data:image/png;base64,iVBORw0KGgo="]
)
def test_a_url_is_passed_on_as_it_is(url: str) -> None:
    assert image(url) == {"type": "image_url", "image_url": {"url": url}}


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7", b"RIFF\x10\0\0\0WAVEfmt ", b"<svg/>"])
def test_what_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="these bytes are no PNG, JPEG, GIF or WebP image"):
        image(content)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"picture\.png' is no PNG"):
        image(path)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "'' is no image: an image is a file's path"),
        (None, "None is no image: an image is a file's path"),
        (5, "5 is no image"),
        ("ftp://x/y.png", "'ftp://x/y.png' is refused: an image is a file's path, an http(s):// URL, or a data:image/"),
        ("file:///tmp/a.png", "is refused: an image is a file's path"),
        ("https://", "'https://' is refused"),
        ("http://[", "is refused"),
        ("data:", "'data:' is no image: a data: URL of one is data:image/png;base64,"),
        ("data:text/plain;base64,aGVsbG8=", "is no image"),
        ("data:image/png,rawbytes", "is no image"),
        ("data:image/png;base64,", "is no image"),
        ("data:image/png;base64,%%%%", "is no image"),
    ],
)
def test_what_leads_to_no_image_is_refused_with_what_does(source: Any, why: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(why)):
        image(source)


def test_a_scheme_may_be_written_in_capitals() -> None:
    assert image("HTTPS://h/A.png")["image_url"]["url"] == "https://h/A.png"


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.png' cannot be read \(No such file"):
        image(tmp_path / "none.png")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        image(str(tmp_path))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        image("a\0b.png")


# What goes in.


def test_a_prompt_in_parts_has_its_text_and_a_mark_for_each_image() -> None:
    parts = [TEXT, image(png()), {"type": "document", "source": {}}, {"type": "text", "text": "And this?"}]
    text, data = checked_content(parts)
    assert text == "What is this?\n[image]\n[document]\nAnd this?"
    assert data == {"parts": parts}
    assert checked_content([image(png())])[0] == "[image]"
    alone = checked_content([{"type": "text", "text": " "}, image(png())])
    assert alone == ("[image]", {"parts": [image(png())]}), "an empty text is refused by some models"


def test_a_command_may_send_an_image_without_a_text(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png())
    assert content("", [str(tmp_path / "p.png")]) == [image(png())]
    assert content("so?", [str(tmp_path / "p.png")]) == [{"type": "text", "text": "so?"}, image(png())]
    with pytest.raises(InvalidPromptError, match="empty"):
        content(" ", [])


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "empty"),
        ([{"type": "text", "text": "  "}], "empty"),
        ([{"type": "text"}], "empty"),
        (["a text"], "no part of a prompt"),
        ([{"text": "a text"}], "no part of a prompt"),
        ([{"type": 7}], "no part of a prompt"),
        ([TEXT, {"type": "image_url", "image_url": {"url": "data:" + "x" * PARTS_LIMIT}}], "4 MiB.* about 3 MB"),
        ([{"type": "text", "text": "x" * (PROMPT_LIMIT + 1)}], "256 KiB"),
        ({"type": "text", "text": "a dict is no list"}, "list of parts"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused(parts: object, why: str) -> None:
    with pytest.raises(InvalidPromptError, match=why):
        checked_content(parts)


@pytest.mark.parametrize("value", [b"bytes", float("nan"), float("inf")])
def test_what_json_does_not_have_is_refused(value: object) -> None:
    """Or a database would refuse it, or no worker could read it back."""
    with pytest.raises(InvalidInputError):
        checked_content([TEXT, {"type": "image_url", "image_url": {"url": "data:", "detail": value}}])


def test_the_function_is_not_hidden_by_its_module():
    """A module that is imported becomes an attribute of its package."""
    words = "import inturn.cli.send, inturn; print(callable(inturn.image))"
    assert subprocess.check_output([sys.executable, "-c", words], text=True) == "True\n"
