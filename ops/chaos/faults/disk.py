"""Faults of a disk: full. Needs one of our own, as nobody wants to lend us theirs."""

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from ops.chaos.nemesis import Attack

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
SIZE = "512m"
BLOCK = bytes(1 << 20)


def attacks(directory: Path, longest: float) -> list[Attack]:
    return [Attack("disk.full", "sqlite", partial(full, directory), (0.5, longest), silences=True)]


@contextmanager
def full(directory: Path, dice: random.Random) -> Iterator[dict[str, Any]]:
    """Not a byte is left where the file is."""
    filler = directory / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(BLOCK):
                pass
        yield {"bytes": filler.stat().st_size}
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def small_disk(directory: Path) -> Iterator[str]:
    """A disk of our own in this directory, which only this process and its children see. Root is not needed.

    Enter it before the process has started threads: they would not see it.

    Yields: why there is none; empty if there is one.
    """
    refusal = mount(directory)
    try:
        yield refusal
    finally:
        if not refusal:
            ctypes.CDLL(None).umount2(os.fsencode(directory), MNT_DETACH)


def mount(directory: Path) -> str:
    """Returns why not; empty if there is one."""
    if sys.platform != "linux":
        return "only Linux lets us mount one of our own"
    libc = ctypes.CDLL(None, use_errno=True)
    user, group, is_root = os.geteuid(), os.getegid(), os.geteuid() == 0
    if libc.unshare(CLONE_NEWNS if is_root else CLONE_NEWNS | CLONE_NEWUSER):
        return f"this machine lets us mount none ({os.strerror(ctypes.get_errno())})"
    if not is_root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    owner = f"size={SIZE},mode=700,uid={user},gid={group}"
    if libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) or libc.mount(
        b"none", os.fsencode(directory), b"tmpfs", 0, owner.encode()
    ):
        return f"this machine lets us mount none ({os.strerror(ctypes.get_errno())})"
    return ""
