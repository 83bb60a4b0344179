"""A batch of 10,000 lines and 1,000 sessions whose submitter, workers and Redis are killed until it is done.

In the end every line is in exactly one result file, once, and every session's order is the file's. SEED replays the dice.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.chaos.fleet import ROOT

LINES, SESSIONS = 10_000, 1000
SECONDS = 600
"""Of a machine that is slow."""


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_batch_survives_everything(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report, seed = tmp_path / "report.json", os.environ.get("SEED")
    words = ["batch", f"--database={database}", f"--lines={LINES}", f"--sessions={SESSIONS}", f"--json={report}"]
    words += [f"--seed={seed}"] if seed else []
    done = subprocess.run(
        [sys.executable, "-m", "ops.chaos", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stderr[-5000:]
    (row,) = json.loads(report.read_text())
    assert row["violations"] == {}
    assert row["completed"] + row["failed"] == row["lines"] == LINES
    assert row["failed"] >= LINES // 500, "hardly anything failed, so hardly anything was sent again"
    assert sum(row["faults"].values()) >= 4, "hardly anything happened"
    assert {"checking", "storing", "writing"} <= row["submitter_killed"].keys()
    assert row["visits"] >= 20, "hardly anybody visited"
