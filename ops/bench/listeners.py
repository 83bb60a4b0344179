"""Some of those who listen to streamed replies, in a process of their own (``python -m ops.bench.listeners``).

It says that it is ready, hears every reply of its sessions to its end, and prints a JSON list: of each delta, when the
model server sent it, which is what it says, and how long it took from there to the handler that was called with it.
"""

import argparse
import json
import threading
import time

from inturn import Client, Settings
from inturn.records import SessionEvent


class Notes:
    """What one listener has heard."""

    def __init__(self) -> None:
        self.deltas: list[tuple[float, float]] = []
        self.is_over = threading.Event()

    def __call__(self, event: SessionEvent) -> None:
        now = time.time()
        self.deltas += [(sent_at, now - sent_at) for sent_at in map(float, event.data.delta_content.split())]
        if event.type in ("assistant.message", "session.error"):
            self.is_over.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--broker-url", required=True)
    parser.add_argument("--sessions", type=int, nargs="+", required=True, help="their numbers")
    arguments = parser.parse_args()
    settings = Settings.load(database_url=arguments.database_url, broker_url=arguments.broker_url)
    with Client(settings) as client:
        notes = [Notes() for _ in arguments.sessions]
        for number, each in zip(arguments.sessions, notes, strict=True):
            client.get_session(f"bench-{number}").on(each)
        print("ready", flush=True)
        for each in notes:
            each.is_over.wait()
    print(json.dumps([delta for each in notes for delta in each.deltas]), flush=True)


if __name__ == "__main__":
    main()
