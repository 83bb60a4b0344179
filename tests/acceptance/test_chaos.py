"""A minute of everything at once: whatever the nemesis does to either database, the books balance.

SEED replays a run; ``make chaos SECONDS=600`` makes it longer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.chaos.fleet import ROOT
from ops.chaos.rules import ERASURE, GROUPS

SECONDS = 60
DRAIN_SECONDS = 400
"""Of a machine that is slow: the last turns may have leases and deadlines before them."""


@pytest.mark.timeout(SECONDS + DRAIN_SECONDS)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_minute_of_chaos(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report, seed = tmp_path / "report.json", os.environ.get("SEED")
    words = ["run", f"--database={database}", f"--seconds={SECONDS}", f"--json={report}"]
    words += [f"--seed={seed}"] if seed else []
    done = subprocess.run(
        [sys.executable, "-m", "ops.chaos", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stderr[-5000:]
    (row,) = json.loads(report.read_text())
    assert row["lost"] == row["duplicate_replies"] == row["order_violations"] == 0
    assert not row["violations"]
    assert row["accepted"] >= 200, "hardly anything was sent"
    assert sum(row["faults"].values()) >= 4, "hardly anything happened"
    assert row["removed"].keys() >= {ERASURE} | {group.name for group in GROUPS if group.size and not group.is_kept}
    assert row["by_beat"] > 0
    assert row["brought_back"] > 0
