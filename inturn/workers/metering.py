"""Whether anybody counts: the client library is imported only where metrics are wanted."""

from inturn.settings import Settings
from inturn.workers.meter import Meter


def make_meter(settings: Settings) -> Meter:
    """The meter that the settings ask for."""
    if not settings.metrics_port:
        return Meter()
    from inturn.workers.telemetry import Telemetry

    return Telemetry(settings)
