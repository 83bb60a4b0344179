"""What a turn costs Redis that nobody asked to hear: nothing but its hint and its bells."""

from inturn import Client
from inturn.workers.app import broker_url
from inturn.workers.queues import live
from tests.acceptance.deployment import Deployment
from tests.overhearing import overheard
from tests.stacks import wait_until

SLOWLY = '!{"words": 40, "gap": 0.02}'
LAST_WORD = "word39"


def test_of_a_turn_that_nobody_asked_to_hear_nothing_is_told(deployment: Deployment, client: Client, name: str):
    quiet, heard = (client.create_session(f"{name}-{kind}", model="server/model") for kind in ("quiet", "heard"))
    with overheard(broker_url(deployment.settings)) as told_of:
        silent = quiet.send(SLOWLY)
        assert silent.wait(timeout=30).data.content.endswith(LAST_WORD)
        told = heard.send(SLOWLY, stream=True)
        told.wait(timeout=30)
        wait_until(lambda: any(LAST_WORD in each.command for each in told_of))
    streams = {turn: live(int(turn.partition(".")[0])) for turn in (silent.id, told.id)}
    commands = [each.command for each in told_of]
    assert any(streams[told.id] in command for command in commands), "or nothing was seen of it at all"
    about = [command for command in commands if streams[told.id] not in command]
    assert not any(streams[silent.id] in command for command in about)
    assert not any("word" in command for command in about)
