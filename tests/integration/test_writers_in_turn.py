"""SQLite's writers, of several processes: how long one waits while another writes all the time."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.integration.stores import Store, only_sqlite
from tests.integration.test_store_sending import start_python

SEND_ON = """
import sys, time
from inturn.models.database import Database
from inturn.models.store import sending
database, waits = Database(sys.argv[1]), []
print("ready", flush=True)
sys.stdin.readline()
until = time.monotonic() + 2
while (began := time.monotonic()) < until:
    sending.send(database, "there", "hello")
    waits.append(time.monotonic() - began)
print(len(waits), max(waits))
"""


@only_sqlite
def test_a_process_that_writes_all_the_time_leaves_the_others_their_turn(store: Store, migrated_url: str):
    """Or replies would wait for those who send: SQLite has one writer at a time, and no queue of those who wait."""
    for key in "here", "there":
        store.session(key)
    with start_python(SEND_ON, migrated_url) as process, ThreadPoolExecutor(4) as threads:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until = time.monotonic() + 2.2

        def send_on(_: int) -> int:
            return sum(1 for _ in iter(lambda: time.monotonic() < until and store.send("here"), False))

        mine = threads.map(send_on, range(4))
        theirs, longest = process.communicate("go\n", timeout=30)[0].split()
        assert float(longest) < 0.5
        assert int(theirs) > sum(mine) / 4
