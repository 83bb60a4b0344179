"""A collector of traces: a real OTLP/HTTP server on loopback, and what it was told."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.integration.receiver import Receiver


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it came.

    Attributes:
        service: whose.
        links: the spans that it points to.
        error: its ``error.type``; empty: it has none, and its status is none either.
    """

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    service: str
    attributes: dict[str, Any]
    links: tuple[str, ...]
    error: str

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]


class Collector(Receiver):
    """Whom ``OTEL_EXPORTER_OTLP_ENDPOINT`` names."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spans(self) -> list[Seen]:
        """All so far, in the order in which they began."""
        found = [span for told in list(self.told) for span in decoded(told.body)]
        assert all(told.path == "/v1/traces" for told in self.told)
        return sorted(found, key=lambda span: span.start)

    def of_turn(self, turn_id: str) -> list[Seen]:
        """The trace that the turn's spans are in: whole, and just one."""
        spans = self.spans()
        traces = {span.trace for span in spans if span.attributes.get("messaging.message.id") == turn_id}
        assert len(traces) == 1, (turn_id, traces, spans)
        return [span for span in spans if span.trace in traces]


def decoded(body: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        whose = {each.key: plain(each.value) for each in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {each.key: plain(each.value) for each in span.attributes}
                error = attributes.get("error.type", "")
                assert (span.status.code == Status.STATUS_CODE_ERROR) is bool(error), span
                assert not span.status.message
                yield Seen(
                    span.name, Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"), span.trace_id.hex(),
                    span.span_id.hex(), span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano,
                    whose["service.name"], attributes, tuple(link.span_id.hex() for link in span.links), error,
                )  # fmt: skip


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    return getattr(value, kind) if kind else None


def tree(spans: list[Seen]) -> list[str]:
    """Their names as a tree, those that began first ahead, each indented under its parent."""
    there = {span.id for span in spans}

    def branch(parent: str, depth: int) -> Iterator[str]:
        for span in spans:
            if (span.parent if span.parent in there else "") == parent:
                yield "  " * depth + span.name
                yield from branch(span.id, depth + 1)

    return list(branch("", 0))
