"""Whether anybody counts: the client library is imported only where metrics are wanted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from inturn.settings import Settings
from inturn.workers.meter import Meter


def make_meter(settings: Settings) -> Meter:
    """The meter that the settings ask for."""
    if not settings.metrics_port:
        return Meter()
    with kept_to_ourselves():
        from inturn.workers.telemetry import Telemetry
    return Telemetry(settings)


@contextmanager
def kept_to_ourselves() -> Iterator[None]:
    """Let the library, if it is imported now, keep what it counts in memory. Where it finds an application's directory for
    the metrics of many processes, it keeps it in files there, which outlive us, and are taken for the application's own.
    """
    names = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    found = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(found)
