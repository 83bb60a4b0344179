"""Metrics as a Prometheus would read them from running processes."""

import re
from dataclasses import dataclass, field
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.failing import FAULT_SECONDS, Actor


@dataclass
class Scrape:
    """What a process said of itself.

    Attributes:
        values: by name and labels.
    """

    text: str
    values: dict[str, dict[frozenset[tuple[str, str]], float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                series = self.values.setdefault(sample.name, {})
                assert frozenset(sample.labels.items()) not in series, "one series, one line"
                series[frozenset(sample.labels.items())] = sample.value

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels."""
        return sum(value for have, value in self.values.get(name, {}).items() if set(labels.items()) <= have)


def url_of(actor: Actor) -> str:
    """Where the process says that it can be read."""
    actor.await_words("action=metrics_served url=", FAULT_SECONDS)
    found = re.search(r"action=metrics_served url=(http://[^\s:]+:\d+/metrics)", actor.said())
    assert found
    return found[1]


def scrape(url: str) -> Scrape:
    with urlopen(url, timeout=5) as response:
        assert response.status == 200
        return Scrape(response.read().decode())
