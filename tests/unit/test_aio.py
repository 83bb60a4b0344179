"""The asyncio face is whole: whatever the synchronous SDK can do, it can, in the same words."""

import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest

import inturn.batch
import inturn.client
import inturn.session
import inturn.turn
from inturn import aio

PAIRS = [
    (inturn.batch.Batch, aio.Batch),
    (inturn.client.Client, aio.Client),
    (inturn.session.Session, aio.Session),
    (inturn.turn.Turn, aio.Turn),
]
AWAITED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
LEFT_OUT = {(inturn.client.Client, "connections")}
"""Of the handles, and of nobody else."""

ATTRIBUTES = {"settings", "session_id"}
"""Of the synchronous ones' instances."""


def public(face: type) -> Iterator[str]:
    yield from (name for name in vars(face) if not name.startswith("_") or name in AWAITED)


def cases() -> Iterator[tuple[type, type, str]]:
    for sync, face in PAIRS:
        names = {name for base in sync.__mro__[:-1] for name in public(base)}
        yield from ((sync, face, name) for name in sorted(names) if (sync, name) not in LEFT_OUT)


@pytest.mark.parametrize(("sync", "face", "name"), list(cases()))
def test_it_has_a_counterpart_that_is_called_in_the_same_way(sync: type, face: type, name: str) -> None:
    theirs, ours = getattr(sync, name), getattr(face, AWAITED.get(name, name), None)
    assert ours is not None, f"inturn.aio.{face.__name__} lacks {name}: see how its neighbours are wrapped"
    if not callable(theirs):
        assert isinstance(ours, property), "plain to see, without awaiting"
        return
    lists = "Iterator" in str(inspect.signature(theirs).return_annotation)
    assert inspect.iscoroutinefunction(ours) is not lists, "what lists is for `async for`, all else is awaited"
    assert inspect.getdoc(ours) or not inspect.getdoc(theirs)
    if name not in AWAITED:
        assert inspect.signature(ours) == inspect.signature(theirs)


def test_a_client_is_made_in_the_same_way() -> None:
    assert inspect.signature(aio.Client) == inspect.signature(inturn.client.Client)


@pytest.mark.parametrize(("sync", "face"), PAIRS)
def test_it_has_nothing_that_the_synchronous_one_lacks(sync: type, face: type) -> None:
    names = {name for name in dir(face) if not name.startswith("_")}
    assert names - set(dir(sync)) <= ATTRIBUTES


def test_it_loads_no_more_than_the_synchronous_client() -> None:
    program = """
import sys
from inturn.client import Client
before = {name for name in sys.modules if name.startswith(("inturn", "celery", "httpx", "aiohttp", "sqlalchemy"))}
from inturn.aio import Client
after = {name for name in sys.modules if name.startswith(("inturn", "celery", "httpx", "aiohttp", "sqlalchemy"))}
print(*sorted(name for name in after - before if not name.startswith("inturn.aio")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
