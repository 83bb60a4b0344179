"""What is counted, and under which names."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from inturn.models.states import AttemptOutcome, Lane, TurnState
from inturn.models.store.receipts import Removal
from inturn.models.store.sweeping import Rescued
from inturn.models.store.working import Settlement, Started
from inturn.settings import Settings
from inturn.workers.telemetry import DEFINITIONS, NAMED, Telemetry
from ops import reference_pages

STARTED = Started(17, "ann", 1, 1, 1, 0, 0, Lane.CHAT, "echo/echo", {}, [], waited_seconds=0.3)
SETTLED = Settlement(
    17, 1, 1, 1, TurnState.COMPLETED, AttemptOutcome.COMPLETED, input_tokens=20, output_tokens=7, price=0.25
)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry(Settings(metrics_port=1))


def samples(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    """By the values of the labels, in the order of their names."""
    text = generate_latest(telemetry.registry).decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_an_attempt_counts_its_tokens_and_its_price_and_a_turn_only_its_end(telemetry: Telemetry) -> None:
    sent = replace(STARTED, sent_at=time.monotonic() - 5)
    telemetry.settled(sent, replace(SETTLED, state=TurnState.QUEUED), TurnState.QUEUED)
    assert samples(telemetry, "inturn_turns_total") == {}
    telemetry.settled(sent, SETTLED, TurnState.COMPLETED)
    assert samples(telemetry, "inturn_turns_total") == {("chat", "echo/echo", "completed"): 1}
    assert samples(telemetry, "inturn_tokens_total") == {("input", "echo/echo"): 40, ("output", "echo/echo"): 14}
    assert samples(telemetry, "inturn_cost_dollars_total") == {("echo/echo",): 0.5}
    assert samples(telemetry, "inturn_turn_seconds_sum")[("chat", "completed")] == pytest.approx(5, abs=1)
    assert samples(telemetry, "inturn_leases_lost_total") == {(): 0}


def test_a_turn_counts_as_what_it_became(telemetry: Telemetry) -> None:
    """Taken back while it was to wait again; refused by the database; held by somebody else by then."""
    telemetry.settled(STARTED, replace(SETTLED, state=TurnState.QUEUED), TurnState.CANCELLED)
    telemetry.settled(STARTED, SETTLED, TurnState.FAILED)
    telemetry.settled(STARTED, SETTLED, None)
    telemetry.settled(STARTED, None, None)
    assert samples(telemetry, "inturn_turns_total") == {
        ("chat", "echo/echo", "cancelled"): 1,
        ("chat", "echo/echo", "failed"): 1,
    }
    assert samples(telemetry, "inturn_leases_lost_total") == {(): 2}
    assert samples(telemetry, "inturn_tokens_total")[("input", "echo/echo")] == 40, "what is not stored is not counted"


def test_who_goes_on_with_a_session_has_not_waited_for_a_worker(telemetry: Telemetry) -> None:
    telemetry.claimed(STARTED, goes_on=False)
    telemetry.claimed(replace(STARTED, waited_seconds=100.0), goes_on=True)
    telemetry.claimed(replace(STARTED, waited_seconds=-0.2), goes_on=False)
    assert samples(telemetry, "inturn_turn_wait_seconds_count") == {("chat",): 3}
    assert samples(telemetry, "inturn_turn_wait_seconds_sum") == {("chat",): pytest.approx(0.3)}


def test_names_that_others_choose_are_few(telemetry: Telemetry) -> None:
    for number in range(NAMED + 50):
        telemetry.called(f"echo/model-{number}", 0.1)
        telemetry.refused("echo/model-0", f"http_{number}")
    telemetry.called("nobody/knows this one", 0.1)
    telemetry.refused("nobody/knows this one", "provider_not_configured")
    calls, errors = samples(telemetry, "inturn_call_seconds_count"), samples(telemetry, "inturn_provider_errors_total")
    assert len(calls) == NAMED + 1
    assert calls[("other",)] == 50 + 1
    assert len(errors) <= NAMED + 2
    assert sum(errors.values()) == NAMED + 51
    assert {provider for _, provider in errors} <= {"echo", "other"}


def test_a_sweep_counts_what_it_took_back_and_what_ended_by_it(telemetry: Telemetry) -> None:
    telemetry.rescued(Rescued([], 3, [(TurnState.FAILED, "echo/echo", Lane.BATCH)]))
    assert samples(telemetry, "inturn_leases_reaped_total") == {(): 3}
    assert samples(telemetry, "inturn_turns_total") == {("batch", "echo/echo", "failed"): 1}


def test_a_cleanup_counts_what_it_removed_by_rule(telemetry: Telemetry) -> None:
    for rule in ("idle", "idle", "drafts"):
        telemetry.removed(Removal("ann", rule, 2, 4, 100, datetime.now(UTC), "nothing"))
    telemetry.cleaned_up(went_well=True)
    telemetry.cleaned_up(went_well=False)
    counted = [samples(telemetry, f"inturn_removed_{what}_total") for what in ("sessions", "turns", "bytes")]
    assert counted == [{("drafts",): n, ("idle",): 2 * n} for n in (1, 2, 100)]
    assert samples(telemetry, "inturn_cleanups_total") == {("completed",): 1, ("failed",): 1}


@pytest.mark.parametrize("what", DEFINITIONS, ids=lambda what: what.name)
def test_names_are_as_prometheus_wants_them(what) -> None:
    assert re.fullmatch(r"inturn_[a-z_]+[a-z]", what.name)
    assert what.name.endswith("_total") == (what.kind == "counter")
    assert not re.search(r"(milliseconds|_ms|_minutes|_kib|_count|_sum|_bucket)(_|$)", what.name)
    assert what.help.endswith(".")
    assert not {"session", "turn", "le", "instance", "job"} & set(what.labels)


def test_the_page_has_the_table_of_the_definitions() -> None:
    page = reference_pages.METRICS.read_text()
    assert page == reference_pages.rewritten(reference_pages.METRICS), "python -m ops.reference_pages writes it"


def test_the_page_names_no_metric_that_there_is_not() -> None:
    page = reference_pages.METRICS.read_text()
    known = {what.name for what in DEFINITIONS}
    named = set(re.findall(r"\binturn_[a-z_]+\b", page)) - {"inturn_hints_failed"}  # the family of a counter, in code
    assert named <= known


def test_an_application_can_show_the_failed_hints_of_its_client() -> None:
    """The page's own code."""
    [code] = re.findall(r"```python\n(.*?)```", reference_pages.METRICS.read_text(), re.DOTALL)
    place = {"client": SimpleNamespace(failed_hints=3)}
    exec(code, place)
    assert REGISTRY.get_sample_value("inturn_hints_failed_total") == 3


def test_without_a_port_nothing_of_it_is_imported() -> None:
    program = """
import json, sys
from inturn.settings import Settings
import inturn.workers.beat, inturn.workers.crew
from inturn.workers.metering import make_meter
make_meter(Settings())
print(json.dumps([name for name in sys.modules if name.startswith("prometheus_client")]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_an_applications_directory_for_several_processes_takes_nothing_from_us(tmp_path: Path) -> None:
    """The library would keep values in files there, where they outlive us, and would be taken for the application's."""
    program = """
from inturn.settings import Settings
from inturn.workers.metering import make_meter
meter = make_meter(Settings(metrics_port=1))
meter.called("echo/echo", 0.1)
meter.committed(1, 0.1)
"""
    theirs = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=theirs)
    assert list(tmp_path.iterdir()) == []
