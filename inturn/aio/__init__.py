"""The SDK for asyncio: the handles ``Client``, ``Session``, ``Turn`` and ``Batch`` as the synchronous ones, to be awaited.

A thin face. Every call is made by the synchronous SDK in one of a few threads (``staff``); those who wait for replies wait
in the event loop, on one subscription (``belfry``), and take a thread only for the moments in which they look. Whatever
is no handle (messages, events, metadata, errors) is the same in both.
"""

from inturn.aio.batch import Batch
from inturn.aio.client import Client
from inturn.aio.session import Session
from inturn.aio.turn import Turn

__all__ = ["Batch", "Client", "Session", "Turn"]
