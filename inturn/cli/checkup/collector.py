"""What a check-up finds of traces: whether they can be had, and whether the collector takes them."""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inturn.cli.checkup.finding import Finding
from inturn.models.errors import SettingsError
from inturn.urls import masked_url

if TYPE_CHECKING:
    from inturn.settings import Settings

ASK_SECONDS = 3.0
DEFAULT = "http://localhost:4318"


def check_collector(settings: "Settings", *, offline: bool) -> Iterator[Finding]:
    """Where traces are on; the collector is told of no span at all, which it has to take."""
    from inturn.workers import tracing

    if not settings.traces:
        return
    try:
        tracing.check(settings)
    except SettingsError as error:
        yield Finding("fail", "traces", str(error))
        return
    if (exporter := os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp") != "otlp":
        yield Finding("note", "traces", f"are told to nobody: OTEL_TRACES_EXPORTER is {exporter}")
    elif not offline:
        yield _ask()
    if settings.trace_content:
        yield Finding("note", "traces", "say what was said: trace_content is on")


def _ask() -> Finding:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import SpanExportResult

    where = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    shown, secret = masked_url(where or DEFAULT), urlsplit(where or "").netloc.rpartition("@")[0]
    logging.getLogger("opentelemetry").addHandler(kept := _Kept())
    try:
        told = OTLPSpanExporter(timeout=ASK_SECONDS).export([])
    finally:
        logging.getLogger("opentelemetry").removeHandler(kept)
    if told is SpanExportResult.SUCCESS:
        return Finding("ok", "traces", f"{shown} takes them")
    said = kept.said[-1].replace(f"{secret}@", "") if secret and kept.said else "".join(kept.said[-1:])
    why = f" ({said:.300})" if said else ""
    return Finding(
        "warn",
        "traces",
        f"{shown} does not take them{why}: turns go on without. Is a collector there that hears OTLP over HTTP? "
        "OTEL_EXPORTER_OTLP_ENDPOINT says where, OTEL_EXPORTER_OTLP_HEADERS with which key",
    )


class _Kept(logging.Handler):
    """Why it was not taken, which is only logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
