"""Whether anybody traces: OpenTelemetry is imported only where traces are wanted."""

import os
from importlib.util import find_spec

from inturn.models.errors import SettingsError
from inturn.settings import Settings
from inturn.workers.tracer import Tracer

EXPORTERS = ("otlp", "console", "none")
PROTOCOL = "http/protobuf"


def make_tracer(settings: Settings, kind: str) -> Tracer:
    """The tracer that the settings ask for.

    Args:
        kind: of this process: ``client``, ``worker`` or ``beat``.

    Raises:
        SettingsError: as ``check``.
    """
    check(settings)
    if not settings.traces:
        return Tracer()
    from inturn.workers.spans import Spans

    return Spans(settings, kind, _said("OTEL_TRACES_EXPORTER") or EXPORTERS[0])


def check(settings: Settings) -> None:
    """Raises: SettingsError: traces are wanted, and cannot be had as OpenTelemetry's own variables want them."""
    if not settings.traces:
        return
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise SettingsError(
            "traces is on, and OpenTelemetry is not installed here: `pip install 'inturn[traces]'`, or take the setting "
            "(INTURN_TRACES) out"
        )
    if (exporter := _said("OTEL_TRACES_EXPORTER")) and exporter not in EXPORTERS:
        raise SettingsError(
            f"OTEL_TRACES_EXPORTER is {exporter!r:.80}: inturn knows {', '.join(EXPORTERS)}. Correct it, or unset it"
        )
    protocol = _said("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or _said("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol != PROTOCOL:
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r:.80}: inturn speaks {PROTOCOL}, which collectors hear at 4318. "
            "Set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL to it, and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT to where"
        )


def _said(variable: str) -> str:
    return os.environ.get(variable, "").strip()
