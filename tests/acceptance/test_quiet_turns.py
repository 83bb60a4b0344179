"""What a turn costs Redis that nobody asked to hear: nothing but its hint and its bells."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from inturn import Client
from inturn.workers.app import broker_url
from inturn.workers.queues import connect, live
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until

SLOWLY = '!{"words": 40, "gap": 0.02}'
LAST_WORD = "word39"


@contextmanager
def watching(deployment: Deployment) -> Iterator[list[str]]:
    """Every command that Redis gets meanwhile, as MONITOR tells it."""
    commands: list[str] = []
    with connect(broker_url(deployment.settings), socket_timeout=60) as client, client.monitor() as monitor:

        def listen() -> None:
            for told in monitor.listen():
                commands.append(told["command"])
                if "that-is-all" in told["command"]:
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield commands
        finally:
            client.get("that-is-all")
            thread.join()


def test_of_a_turn_that_nobody_asked_to_hear_nothing_is_told(deployment: Deployment, client: Client, name: str):
    quiet, heard = (client.create_session(f"{name}-{kind}", model="server/model") for kind in ("quiet", "heard"))
    with watching(deployment) as commands:
        silent = quiet.send(SLOWLY)
        assert silent.wait(timeout=30).data.content.endswith(LAST_WORD)
        told = heard.send(SLOWLY, stream=True)
        told.wait(timeout=30)
        wait_until(lambda: any(LAST_WORD in command for command in commands))
    streams = {turn: live(int(turn.partition(".")[0])) for turn in (silent.id, told.id)}
    assert any(streams[told.id] in command for command in commands), "or nothing was seen of it at all"
    about = [command for command in commands if streams[told.id] not in command]
    assert not any(streams[silent.id] in command for command in about)
    assert not any("word" in command for command in about)
