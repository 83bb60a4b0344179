"""Traces that are off: nothing is imported, nothing is stored, and nothing is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from inturn import Client

ALL_OF_IT = """
import sys
from pathlib import Path
from inturn import Client, Settings
from inturn.workers import beat, crew
from inturn.workers.tracing import make_tracer

settings = Settings.load(home=Path(sys.argv[1]))
for kind in ("client", "worker", "beat"):
    with make_tracer(settings, kind).send("chat", "ann") as span:
        assert span.trace is None
with Client(settings) as client:
    client.create_session("ann").send("hello")
assert not {"inturn.workers.spans", "opentelemetry.exporter", "google.protobuf"} & sys.modules.keys()
"""
NOT_INSTALLED = """
import sys
sys.modules["opentelemetry"] = None
"""


@pytest.mark.parametrize("before", ["", NOT_INSTALLED], ids=["installed", "not installed"])
def test_nothing_of_opentelemetry_is_imported_by_us(before: str, tmp_path: Path) -> None:
    """Where it is installed, redis-py imports some of it by itself."""
    command = [sys.executable, "-c", before + ALL_OF_IT, str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_nothing_is_stored(tmp_path: Path) -> None:
    with Client(home=tmp_path / "home") as client:
        client.create_session("ann").send("hello")
        client.send_many(["hello"])
        with client.connections.database.reading() as db:
            assert db.exec_driver_sql("SELECT count(*) FROM turns WHERE trace IS NULL").scalar() == 2
