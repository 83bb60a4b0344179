"""Alerts, dashboard and pages are made of metrics that there are: ``tests/acceptance/test_metrics.py`` scrapes them all."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inturn.workers.telemetry import DEFINITIONS, Definition
from tests.monitoring import ALERTS, CASES, PROMETHEUS, ROOT, alerts, panels, program

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
LIBRARYS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
TARGETS = {"job", "instance"}
"""Labels that Prometheus adds."""


def scraped(what: Definition) -> list[str]:
    if what.kind == "histogram":
        return [f"{what.name}{end}" for end in ("_bucket", "_sum", "_count")]
    return [what.name]


LABELS = {
    name: {*what.labels, *(["le"] if name.endswith("_bucket") else [])}
    for what in DEFINITIONS
    for name in scraped(what)
}


def expressions() -> list[str]:
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [alert["expr"] for alert in alerts()] + of_panels


def wrongs(expression: str) -> Iterator[str]:
    """What of an expression no scrape has."""
    for name, matchers in re.findall(r"\b((?:inturn|process)_[a-z_]+)\b(?:\{([^}]*)\})?", expression):
        if name not in LABELS and name not in LIBRARYS:
            yield name
        yield from (
            f"{name}{{{label}}}"
            for label in re.findall(r"(\w+)\s*[=!]", matchers)
            if label not in LABELS.get(name, set()) | TARGETS
        )
    known = set[str]().union(*LABELS.values()) | TARGETS
    for by in re.findall(r"\bby \(([^)]*)\)", expression):
        yield from (f"by {label}" for label in re.split(r",\s*", by) if label not in known)


@pytest.mark.parametrize("expression", expressions())
def test_it_asks_for_what_there_is(expression: str) -> None:
    assert list(wrongs(expression)) == []


def test_what_there_is_not_is_found() -> None:
    assert list(wrongs('sum by (session) (rate(inturn_turn_total{user="ann"}[5m]))')) == [
        "inturn_turn_total",
        "inturn_turn_total{user}",
        "by session",
    ]


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_a_page_names_no_metric_that_there_is_not(page: Path) -> None:
    named = re.findall(r"\b(inturn_[a-z_]+)(?=[`\[{) ])", page.read_text())
    known = LABELS.keys() | {what.name for what in DEFINITIONS}
    assert set(named) <= known


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_has_its_section_of_the_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert f"\n## {name}\n" in RUNBOOK
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"]["summary"].endswith(".")


def test_the_runbook_has_no_section_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE) == [alert["alert"] for alert in alerts()]
    anchors = re.findall(r"\]\(#(\w+)\)", RUNBOOK)
    assert {anchor for anchor in anchors if f"## {anchor}\n" not in RUNBOOK.lower()} == set()


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_prometheus_takes_its_configuration_and_its_rules() -> None:
    for what, path in ("config", PROMETHEUS / "prometheus.yml"), ("rules", ALERTS):
        done = promtool("check", what, path)
        assert done.returncode == 0, done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    tried = {(case["alertname"], bool(case["exp_alerts"])) for case in cases}
    assert tried == {(alert["alert"], fires) for alert in alerts() for fires in (True, False)}


def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stderr + done.stdout


def test_an_alert_that_fires_too_late_is_found(tmp_path: Path) -> None:
    shutil.copy(CASES, tmp_path)
    (tmp_path / ALERTS.name).write_text(ALERTS.read_text().replace("> 60\n", "> 600\n"))
    done = promtool("test", "rules", tmp_path / CASES.name)
    assert done.returncode != 0
    assert "InturnChatWaits" in done.stdout + done.stderr


def test_each_metric_is_looked_at_by_somebody() -> None:
    """One that nobody looks at is one that nobody needs."""
    seen = " ".join(expressions())
    ignored = {"inturn_build_info", "inturn_removed_turns_total", "inturn_removed_bytes_total"}
    unseen = {what.name for what in DEFINITIONS if what.name not in seen}
    assert unseen == ignored


def test_what_grafana_is_given_points_at_what_there_is() -> None:
    [source] = yaml.safe_load((ROOT / "ops/grafana/provisioning/datasources/inturn.yml").read_text())["datasources"]
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {source["uid"]}
    assert yaml.safe_load((ROOT / "ops/grafana/provisioning/dashboards/inturn.yml").read_text())["providers"]
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers) > 0
