"""Whether anybody traces: OpenTelemetry is imported only where traces are wanted."""

from importlib.util import find_spec

from inturn.models.errors import SettingsError
from inturn.settings import Settings
from inturn.workers.tracer import Tracer


def make_tracer(settings: Settings, kind: str) -> Tracer:
    """The tracer that the settings ask for.

    Args:
        kind: of this process: ``client``, ``worker`` or ``beat``.

    Raises:
        SettingsError: they ask for one, and it is not installed; or OpenTelemetry's own variables ask for what it cannot.
    """
    if not settings.traces:
        return Tracer()
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise SettingsError(
            "traces is on, and OpenTelemetry is not installed here: `pip install 'inturn[traces]'`, or take the setting "
            "(INTURN_TRACES) out"
        )
    from inturn.workers.spans import Spans

    return Spans(settings, kind)
