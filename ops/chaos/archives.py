"""The archives of a run, read back: those that are whole, and those whose cleanup was broken off."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inturn.archives.directory import PARTIAL
from inturn.archives.reading import opened
from inturn.models.errors import InvalidInputError
from inturn.models.store.transcripts import Transcript
from inturn.transcripts import as_jsonl


@dataclass(frozen=True)
class Copy:
    """A session in an archive.

    Attributes:
        transcript: as it stands there.
        turns: state, and what was said, of each.
    """

    key: str
    transcript: bytes
    turns: list[tuple[str, list[str]]]

    @property
    def said(self) -> list[str]:
        return [text for _, said in self.turns for text in said]

    def answers(self, prompt: str) -> bool:
        """Whether a turn of it is this prompt, with the reply if it has one."""
        return any(
            said[:1] == [prompt] and (state != "completed" or said[-1].startswith(f"reply to: {prompt} (seen"))
            for state, said in self.turns
        )


@dataclass(frozen=True)
class Archive:
    """A file.

    Attributes:
        run: that wrote it, as its name says.
        fault: why it cannot be read.
    """

    path: Path
    run: int
    checksum: str
    copies: list[Copy]
    fault: str = ""


def archives_in(directory: Path) -> list[Archive]:
    return [archive(path) for path in sorted(directory.iterdir())] if directory.is_dir() else []


def archive(path: Path) -> Archive:
    run = int(path.name.partition(".")[0].rpartition("-")[2])
    copies, fault = list[Copy](), ""
    try:
        copies = read(path)
    except InvalidInputError as error:
        fault = str(error)
    return Archive(path, run, hashlib.sha256(path.read_bytes()).hexdigest(), copies, fault)


def read(path: Path) -> list[Copy]:
    """Raises: InvalidInputError: it cannot be read."""
    with opened(path) as file:
        return [copy_of(found.session_id, found.transcript) for found in file.sessions()]


def copies_in(path: Path) -> list[Copy]:
    """None of one that is being written, or is given its name just now, and so cannot be read."""
    try:
        return read(path)
    except (InvalidInputError, FileNotFoundError):
        if path.name.endswith(PARTIAL) or not path.exists():
            return []
        raise


def copy_of(key: str, it: Transcript) -> Copy:
    turns = [(str(turn["state"]), [said(message) for message in turn["messages"]]) for turn in it.turns()]
    return Copy(key, b"".join(as_jsonl(key, it)), turns)


def said(message: Any) -> str:
    return str(message["content"])
