"""``ops/systemd``: units that systemd takes, whose commands are inturn's."""

import configparser
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from inturn import Settings, cli
from inturn.models.states import Lane
from ops.server_process import ServerUnavailableError
from tests.composition import ROOT

UNITS = ROOT / "ops" / "systemd"
PROGRAM = "/opt/inturn/bin/inturn"
MOST_EXPOSED = 25
"""Of 100, by systemd's own reckoning; a service that confines nothing has 96."""
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read(UNITS / name)
    return read


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory of units whose program is there, with a worker of each lane."""
    if shutil.which("systemd-analyze") is None:
        raise ServerUnavailableError("no systemd-analyze here: install systemd")
    for path in UNITS.iterdir():
        instances = [path.name.replace("@", f"@{lane}") for lane in Lane] if "@" in path.name else [path.name]
        for name in instances:
            (tmp_path / name).write_text(path.read_text().replace(PROGRAM, "/bin/true"))
    return tmp_path


def analyze(units: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """``SYSTEMD_UNIT_PATH`` ends with a colon: behind ours come the system's."""
    environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{units}:"}
    command = ["systemd-analyze", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_systemd_takes_every_unit(installed: Path) -> None:
    done = analyze(installed, "verify", *sorted(installed.iterdir()))
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_says_what_is_wrong(installed: Path) -> None:
    beat = installed / "inturn-beat.service"
    beat.write_text(beat.read_text().replace("KillMode=mixed", "KillMod=mixed"))
    assert "KillMod" in analyze(installed, "verify", beat).stderr


def test_a_service_can_do_little_but_its_work(installed: Path) -> None:
    for path in installed.glob("*.service"):
        done = analyze(installed, "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", path)
        assert done.returncode == 0, f"{path.name}: {done.stdout.splitlines()[-1]}"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_a_command_that_there_is(name: str) -> None:
    program, command, *flags = unit(name)["Service"]["ExecStart"].replace("%i", Lane.CHAT).split()
    assert program == PROGRAM
    with click.Context(cli.cli) as context:
        found = cli.cli.get_command(context, command)
        assert found is not None
        found.make_context(command, list(flags), parent=context)


@pytest.mark.parametrize("name", SERVICES)
def test_it_is_stopped_as_it_can_be_and_started_again(name: str) -> None:
    service = unit(name)["Service"]
    assert service["KillMode"] == "mixed", "a worker stops what it has started"
    assert (service["User"], service["EnvironmentFile"]) == ("inturn", "/etc/inturn/inturn.env")
    if service["Type"] == "oneshot":
        assert "Restart" not in service
        return
    assert service["Restart"] == "always"
    assert unit(name)["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit(name)["Unit"]["PartOf"] == unit(name)["Install"]["WantedBy"] == "inturn.target"


def test_a_stopping_worker_is_given_the_time_that_its_calls_may_take() -> None:
    fields = Settings.model_fields
    needs = fields["attempt_deadline_seconds"].default + fields["shutdown_grace_seconds"].default
    assert int(unit("inturn-worker@.service")["Service"]["TimeoutStopSec"]) > needs


def test_flower_listens_on_loopback() -> None:
    assert "--address 127.0.0.1" in unit("inturn-flower.service")["Service"]["ExecStart"]
