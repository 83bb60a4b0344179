"""Several sessions at once, each in order: without threads, and in asyncio.

    python examples/multiple_sessions.py

It needs no server and no key: inturn starts what it needs and stops it again, and a stand-in for a model answers, which
takes as long as it is told to. With OPENAI_API_KEY in the environment the default model of OpenAI answers.
"""

import asyncio
import time
from collections.abc import Iterable

from inturn import Client, Message, Settings
from inturn.aio import Client as AsyncClient

TRIP = {
    "ann": ["Plan a day in Lisbon", "Make it rainy-day proof", "Add one good lunch"],
    "ben": ["Explain leases to me", "Now to my grandmother", "What were we discussing?"],
    "eve": ["Draft a release note", "Shorter, please", "And now as a haiku"],
}
SLOW = {"latency": 0.7} if Settings.load().effective_default_model == "echo/echo" else {}
"""Seconds that the stand-in takes for each reply."""


def session_of(person: str) -> str:
    """One session per person: nobody sees what others say, and each is answered in order."""
    return f"multi-{person}"


def forget(client: Client) -> None:
    for person in TRIP:
        client.delete_session(session_of(person), missing_ok=True)


def show(said: Iterable[tuple[str, Message]], began: float) -> None:
    for person, reply in said:
        print(f"  {person} {reply.turn}: {reply.data.content.splitlines()[0]}")
    print(f"  nine replies, three at a time: {time.monotonic() - began:.1f} s")


def without_threads(client: Client) -> None:
    """Send everything first. ``send`` returns once a prompt is stored, so nothing here waits for a model; the workers take
    the sessions side by side, and each session's prompts one after the other.
    """
    began = time.monotonic()
    turns = [
        (person, client.get_or_create_session(session_of(person), options=SLOW).send(prompt))
        for person, prompts in TRIP.items()
        for prompt in prompts
    ]
    show([(person, turn.wait(timeout=60)) for person, turn in turns], began)


async def talk(client: AsyncClient, person: str) -> list[tuple[str, Message]]:
    """One conversation, in which each prompt could depend on the reply before it."""
    async with await client.get_or_create_session(session_of(person), options=SLOW) as session:
        return [(person, await session.send_and_wait(prompt, timeout=60)) for prompt in TRIP[person]]


async def in_asyncio() -> None:
    """A task for each conversation. However many there are, those who wait need no thread each."""
    async with AsyncClient() as client:
        began = time.monotonic()
        conversations = await asyncio.gather(*(talk(client, person) for person in TRIP))
        show([reply for conversation in conversations for reply in conversation], began)

        print("--- what there is now ---")
        found = [f"{one.session_id} ({one.turns} turns)" async for one in client.list_sessions(prefix="multi-")]
        print(" ", ", ".join(sorted(found)))


def main() -> None:
    with Client() as client:
        forget(client)  # what an earlier run of this example left that was interrupted
        with client.get_or_create_session(session_of("ann")) as session:
            session.send_and_wait(
                "Hello", timeout=60
            )  # Starts what inturn needs, so that the times below are without it.

        print("--- all sent, then waited for ---")
        forget(client)
        without_threads(client)
        print("--- a task for each ---")
        forget(client)
        asyncio.run(in_asyncio())
        forget(client)


if __name__ == "__main__":
    main()
