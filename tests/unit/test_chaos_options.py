"""What ``python -m ops.chaos`` can be asked for, and what it refuses."""

from pathlib import Path

import pytest

from ops.chaos.catalogue import catalogue, chosen, listing
from ops.chaos.nemesis import KINDS
from ops.chaos.options import parse


def test_a_run_by_default():
    options = parse(["run"])
    assert (options.database, options.seconds, options.seed, options.workers) == ("both", 60, None, 2)
    assert (options.faults, options.fault, options.own, options.no_meddle) == ([], [], False, False)


def test_a_soak_by_default():
    options = parse(["soak"])
    assert (options.minutes, options.rate) == (20, None)


def test_faults_go_by_name_group_and_kind():
    options = parse(["run", "--faults", "redis.flush, beat,kill"])
    names = {attack.name for attack in chosen(catalogue(), options.faults)}
    kills = {"workers.kill_busiest", "workers.kill_any", "workers.kill_everybody"}
    assert names == {"redis.flush", "beat.dead", "beat.twice"} | kills


def test_without_a_choice_everything_may_happen():
    known = catalogue()
    assert chosen(known, parse(["run"]).faults) == known


def test_commands_for_a_deployment_of_ones_own():
    options = parse(["run", "--own", "--fault", "kill=docker kill w=1", "--fault", "b=true", "--model", "fake/x"])
    assert options.fault == [("kill", "docker kill w=1"), ("b", "true")]
    assert options.model == "fake/x"


def test_the_place_of_the_figures_is_known_before_anybody_moves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert parse(["run", "--json", "figures.json"]).json == tmp_path / "figures.json"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--faults", "earthquake"], "'earthquake' is neither a fault nor a group nor a kind"),
        (["run", "--fault", "kill"], "'kill' is not NAME=COMMAND"),
        (["run", "--fault", "=ls"], "'=ls' is not NAME=COMMAND"),
        (["run", "--seconds", "0"], "0 is not above 0"),
        (["run", "--workers", "0"], "0 is not above 0"),
        (["run", "--misbehave", "1.5"], "1.5 is not between 0 and 1"),
        (["run", "--rate", "many"], "invalid positive value: 'many'"),
        (["run", "--database", "mysql"], "invalid choice: 'mysql'"),
        (["soak", "--faults", "kill"], "unrecognized arguments"),
        ([], "required: command"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        parse(words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_every_fault_is_listed_once_under_a_known_kind():
    names = [attack.name for attack in catalogue()]
    assert len(names) == len(set(names))
    assert {attack.kind for attack in catalogue()} <= set(KINDS)
    for line, attack in zip(listing(), catalogue(), strict=True):
        name, kind, *said = line.split()
        assert (name, kind) == (attack.name, attack.kind)
        assert said, f"{name} says nothing about itself"
