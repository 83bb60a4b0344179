"""The model server as the bench sees it."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ops.bench.processes import first_line, module, running


@dataclass(frozen=True, slots=True)
class ModelServer:
    """Attributes:
    address: where it listens, without a path.
    """

    address: str

    @property
    def base_url(self) -> str:
        """What a provider is configured with."""
        return f"{self.address}/v1"

    def served(self) -> int:
        """How many completions it has answered since it started."""
        with urllib.request.urlopen(f"{self.address}/served") as answer:
            return int(json.load(answer)["served"])

    def moments(self) -> list[float]:
        """When each of its completions was asked for, in seconds since the epoch, in order."""
        with urllib.request.urlopen(f"{self.address}/moments") as answer:
            return [float(moment) for moment in json.load(answer)]


@contextmanager
def model_server(
    seed: int, low: float = 0.5, high: float = 1.5, deltas: int = 200, pace: float = 0.1
) -> Iterator[ModelServer]:
    """A model server in a process of its own, its latency in seconds drawn from ``seed``.

    Args:
        deltas: of a stream, with ``pace`` seconds between two of them.
    """
    options = {"seed": seed, "low": low, "high": high, "deltas": deltas, "pace": pace}
    with running(module("ops.bench.model", *(f"--{name}={value}" for name, value in options.items()))) as child:
        yield ModelServer(f"http://127.0.0.1:{first_line(child)}")
