"""The nemesis deals out what it has, in an order that its seed decides, and leaves nothing broken."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from inturn import Settings
from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store.presence import Process
from inturn.workers.maintenance import Pulse
from ops.chaos.nemesis import KINDS, Attack, Fault, Nemesis, NothingToHitError, stalls

NO_PAUSE = (0.0, 0.0)
PATIENCE = 0.02


class Ground:
    """What can be broken: it knows what is broken now, and what ever was."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.history: list[str] = []

    @contextmanager
    def breaking(self, name: str, dice: random.Random) -> Iterator[dict[str, Any]]:
        assert self.broken == []
        self.broken.append(name)
        self.history.append(name)
        try:
            yield {"drawn": dice.random()}
        finally:
            self.broken.remove(name)

    def attack(self, name: str, **how: Any) -> Attack:
        return Attack(name, "command", partial(self.breaking, name), **how)


def dealt(seed: int, count: int) -> list[tuple[str, float]]:
    ground = Ground()
    nemesis = Nemesis([ground.attack(name) for name in "abcdef"], seed, PATIENCE, NO_PAUSE)
    faults = islice(nemesis.run(lambda: True), count)
    return [(fault.name, fault.detail["drawn"]) for fault in faults]


def test_a_seed_replays():
    assert dealt(7, 20) == dealt(7, 20)
    assert dealt(7, 20) != dealt(8, 20)


def test_each_comes_once_before_any_comes_again():
    names = [name for name, _ in dealt(3, 18)]
    assert [sorted(names[start : start + 6]) for start in (0, 6, 12)] == [list("abcdef")] * 3


def test_a_fault_is_undone_when_something_fails_meanwhile():
    ground = Ground()

    @contextmanager
    def failing(dice: random.Random) -> Iterator[dict[str, Any]]:
        with ground.breaking("a", dice) as detail:
            yield detail
            raise RuntimeError("no such luck")

    nemesis = Nemesis([Attack("a", "command", failing)], 1, PATIENCE, NO_PAUSE)
    with pytest.raises(RuntimeError):
        next(nemesis.run(lambda: True))
    assert ground.history == ["a"]
    assert ground.broken == []
    assert nemesis.current == ""


def test_what_finds_nothing_to_hit_is_no_fault():
    ground = Ground()

    @contextmanager
    def missing(dice: random.Random) -> Iterator[dict[str, Any]]:
        raise NothingToHitError
        yield {}

    nemesis = Nemesis([Attack("missing", "command", missing), ground.attack("a")], 1, PATIENCE, NO_PAUSE)
    assert [fault.name for fault in islice(nemesis.run(lambda: True), 3)] == ["a"] * 3


def test_it_stops_when_it_is_told_to():
    ground = Ground()
    nemesis = Nemesis([ground.attack("a")], 1, PATIENCE, NO_PAUSE)
    assert len(list(nemesis.run(lambda: len(ground.history) < 3))) == 3
    assert list(nemesis.run(lambda: False)) == []


@pytest.mark.parametrize(("silences", "seconds", "may"), [(True, 0.03, True), (True, 0.0, False), (False, 0.03, False)])
def test_only_long_silence_excuses_an_overlap(silences: bool, seconds: float, may: bool):
    attack = Ground().attack("a", silences=silences, seconds=(seconds, seconds))
    fault = next(Nemesis([attack], 1, PATIENCE, NO_PAUSE).run(lambda: True))
    assert fault.ended - fault.began >= seconds
    assert fault.may_overlap is may


def test_kinds_are_sentences_for_readers():
    assert Fault("a", "kill", 0, 1).kind in KINDS
    assert all(" " in said for said in KINDS.values())


def test_workers_tell_that_the_machine_starved_them(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """By the line of the log that the heartbeat writes, as Celery formats it; who was stopped by us is left out."""
    settings = Settings(lease_seconds=10, heartbeat_seconds=3)
    pulse = Pulse(
        Database("sqlite://"), settings, Process("x", ProcessKind.WORKER, "", 1, "", 1, ""), dict, print, print
    )
    pulse._beaten_at = time.monotonic() - 9
    with caplog.at_level("WARNING", logger="inturn"):
        pulse._note_beat(7)
        pulse._note_beat(7)
    (said,) = caplog.messages
    at = datetime.fromtimestamp(1_800_000_000, UTC).astimezone()
    (tmp_path / "said.1").write_text(f"noise\n[{at:%Y-%m-%d %H:%M:%S},500: WARNING/MainProcess] {said}\nnoise\n")
    (stall,) = stalls(tmp_path, [], patience=7)
    assert (stall.ended, round(stall.ended - stall.began), stall.may_overlap) == (1_800_000_000, 9, True)
    stopped = Fault("workers.pause", "pause", stall.began, stall.ended - 1, {"outlasts_lease": True})
    assert stalls(tmp_path, [stopped], patience=7) == []
