"""``ops/prometheus`` and ``ops/grafana``: what lies there, and the programs of Prometheus that read it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from ops.server_process import ServerUnavailableError

ROOT = Path(__file__).parents[1]
PROMETHEUS, DASHBOARDS = ROOT / "ops" / "prometheus", ROOT / "ops" / "grafana" / "dashboards"
ALERTS, CASES = PROMETHEUS / "alerts.yml", PROMETHEUS / "alerts_test.yml"
RATE_INTERVAL = "1m"
"""What Grafana makes of $__rate_interval: four scrapes of 15 s."""


def alerts() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panels() -> Iterator[dict[str, Any]]:
    for path in DASHBOARDS.glob("*.json"):
        yield from json.loads(path.read_text())["panels"]


def program(name: str) -> str:
    """Where one of ``prometheus``, ``promtool`` and ``wget`` is. Skips where it is not; root's CI has to have it."""
    if found := shutil.which(name):
        return found
    missing = f"no {name} here: `apt-get install prometheus wget` brings it"
    if os.environ.get("CI") and os.geteuid() == 0:
        raise ServerUnavailableError(missing)
    pytest.skip(missing)


class Prometheus:
    """One that runs here."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now.

        Raises:
            HTTPError: it is none.
        """
        found: list[dict[str, Any]] = self._ask("query", query=expression)["result"]
        return found

    def up(self) -> dict[str, bool]:
        """Whether a target answered when it was last asked, by its address."""
        return {each["metric"]["instance"]: each["value"][1] == "1" for each in self.query("up")}

    def rulings(self) -> dict[str, tuple[str, str]]:
        """Each rule's health, and whether its alert is firing, or quiet."""
        [group] = self._ask("rules")["groups"]
        states = {"inactive": "quiet", "pending": "quiet"}
        return {rule["name"]: (rule["health"], states.get(rule["state"], rule["state"])) for rule in group["rules"]}

    def empty_panels(self) -> set[str]:
        """The titles of panels for which it has nothing, in one of their expressions at least."""
        return {
            panel["title"]
            for panel in panels()
            for target in panel["targets"]
            if not self.query(target["expr"].replace("$__rate_interval", RATE_INTERVAL))
        }

    def _ask(self, what: str, **parameters: str) -> Any:
        with urlopen(f"http://{self.address}/api/v1/{what}?{urlencode(parameters)}", timeout=60) as response:
            return json.load(response)["data"]
