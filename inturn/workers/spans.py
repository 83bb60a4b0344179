"""The way of a turn as OpenTelemetry tells it: one trace from ``send`` to the stored reply, whoever works on it.

Spans are named, and say, what the semantic conventions for messaging and for generative AI want. What was said is in none
of them, unless ``trace_content`` asks for it; nor is the message of any error.

What was killed tells nothing: a span is told at its end. The next attempt is in the same trace, and says which it is.
"""

import atexit
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, ProxyTracerProvider, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inturn import __version__
from inturn.models.states import TurnState
from inturn.models.store.reading import TurnRecord
from inturn.models.store.working import Settlement, Started
from inturn.settings import Settings
from inturn.workers.processes import ProcessIdentity
from inturn.workers.spoken import as_told, reply_as_told
from inturn.workers.tracer import NOTHING, Span, Tracer

if TYPE_CHECKING:
    from inturn.workers.provider import OnDelta, Prompt, Reply, ToolCall

T = TypeVar("T")
Attributes = dict[str, str | int | float | bool | Sequence[str]]

SCHEMA = "https://opentelemetry.io/schemas/1.37.0"
"""The version of the conventions that names are taken from."""
STOP_SECONDS = 5.0
"""How long the end of a process waits for a collector."""
LINK = "link"
"""Stands in a stored trace for the ``traceparent`` of many that were sent together: each is a trace of its own."""
W3C = TraceContextTextMapPropagator()
TUNED = ("temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "seed")
"""Options whose numbers are told."""


class Ids(RandomIdGenerator):
    """At random, but for those traces whose attempts have to find one another."""

    wanted: ContextVar[int | None] = ContextVar("wanted", default=None)

    def generate_trace_id(self) -> int:
        return self.wanted.get() or super().generate_trace_id()


class Told(Span):
    """A span of OpenTelemetry's, and the current one within its ``with``."""

    _token: Token[Context]

    def __init__(self, span: api.Span, *, says_content: bool = False, trace: Mapping[str, str] | None = None) -> None:
        self._span, self._says_content, self.trace = span, says_content, trace
        self._is_dropped = False

    def __enter__(self) -> Self:
        self._token = contexts.attach(api.set_span_in_context(self._span))
        return self

    def __exit__(self, *error: object) -> None:
        contexts.detach(self._token)
        if error[1] is not None:
            self._failed(getattr(error[1], "error_type", None) or type(error[1]).__name__)
        if not self._is_dropped:
            self._span.end()

    def sent(self, turn: TurnRecord) -> None:
        self._span.set_attributes(about(turn.key, f"{turn.session_id}.{turn.number}"))

    def sent_together(self, many: int, batch: str = "") -> None:
        self._span.set_attribute("messaging.batch.message_count", many)
        if batch:
            self._span.set_attribute("inturn.batch.id", batch)

    def hearing(self, tell: "OnDelta | None") -> "OnDelta | None":
        began, is_first = time.monotonic(), True

        def hear(piece: str) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                self._span.set_attribute("gen_ai.response.time_to_first_chunk", time.monotonic() - began)
            assert tell is not None
            tell(piece)

        return None if tell is None else hear

    def answered(self, reply: "Reply") -> None:
        figures = {
            "gen_ai.response.model": reply.answered_by,
            "gen_ai.usage.input_tokens": reply.input_tokens,
            "gen_ai.usage.output_tokens": reply.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": reply.cache_read_tokens or None,
            "gen_ai.usage.cache_creation.input_tokens": reply.cache_write_tokens or None,
            "inturn.request.id": reply.request_id,
        }
        self._span.set_attributes({name: value for name, value in figures.items() if value is not None})
        if reply.finish_reason:
            self._span.set_attribute("gen_ai.response.finish_reasons", [reply.finish_reason])
        if self._says_content:
            self._span.set_attribute("gen_ai.output.messages", reply_as_told(reply))

    def came_back(self, result: str, error: str) -> None:
        if error:
            self._failed(error)
        if self._says_content:
            self._span.set_attribute("gen_ai.tool.call.result", result)

    def ended(self, settlement: Settlement | None, becomes: TurnState | None) -> None:
        self._span.set_attribute("inturn.turn.state", "lost" if becomes is None else str(becomes))
        if becomes is TurnState.FAILED and settlement is not None:
            self._failed(settlement.error_type or "_OTHER")

    def drop(self) -> None:
        self._is_dropped = True

    def within(self, work: Callable[[], T]) -> Callable[[], T]:
        return partial(copy_context().run, work)

    def _failed(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


class Spans(Tracer):
    """Tells a collector, or whomever the application that we are in has told OpenTelemetry to tell.

    Args:
        kind: of this process.
        exporter: ``otlp``, ``console`` or ``none``.
    """

    def __init__(self, settings: Settings, kind: str, exporter: str) -> None:
        found = api.get_tracer_provider()
        self._own = own_provider(kind, exporter) if isinstance(found, ProxyTracerProvider) else None
        if self._own is not None:
            atexit.register(self.stop)
            if kind != "client":  # the process is ours: what tools trace goes along
                api.set_tracer_provider(self._own)
        self._tracer = (self._own or found).get_tracer("inturn", __version__, schema_url=SCHEMA)
        self._says_content = settings.trace_content
        self._database = "sqlite" if settings.effective_database_url.startswith("sqlite") else "postgresql"
        self._providers = {
            name: addressed(one.type, one.base_url) for name, one in settings.available_providers.items()
        }
        self._name_of = {name: one.model_name for name, one in settings.available_providers.items()}

    def send(self, lane: str, session: str = "") -> Span:
        span = self._tracer.start_span(
            f"send {lane}", kind=SpanKind.PRODUCER, attributes={**queued("send", lane), **about(session)}
        )
        return Told(span, trace=written(span) or None)

    def send_many(self, lane: str) -> Span:
        span = self._tracer.start_span(f"send {lane}", kind=SpanKind.PRODUCER, attributes=queued("send", lane))
        origin = written(span).get("traceparent")
        return Told(span, trace={LINK: origin} if origin else None)

    def process(self, started: Started) -> Span:
        attributes = {
            **queued("process", started.lane),
            **about(started.key, started.turn_id),
            "inturn.turn.attempt": started.attempts,
            "inturn.turn.rescues": started.rescues,
        }
        where: dict[str, Any] = {"kind": SpanKind.CONSUMER, "attributes": attributes}
        trace, name = started.trace or {}, f"process {started.lane}"
        if LINK not in trace:
            return Told(self._tracer.start_span(name, W3C.extract(trace, Context()), **where))
        origin = api.get_current_span(W3C.extract({"traceparent": trace[LINK]}, Context())).get_span_context()
        before = Ids.wanted.set(trace_id_of(trace[LINK], started.turn_id))
        try:
            return Told(self._tracer.start_span(name, Context(), links=[Link(origin)], **where))
        finally:
            Ids.wanted.reset(before)

    def chat(self, started: Started, prompt: "Prompt") -> Span:
        provider, _, alias = started.model.partition("/")
        model = self._name_of[provider](alias) if provider in self._name_of else alias
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.conversation.id": started.key,
            "inturn.provider": provider,
            **({"gen_ai.request.stream": True} if started.streams else {}),
            **self._providers.get(provider, {"gen_ai.provider.name": provider}),
        }
        options: Attributes = {
            f"gen_ai.request.{name}": value
            for name in TUNED
            if isinstance(value := prompt.options.get(name), int | float) and not isinstance(value, bool)
        }
        attributes |= options
        if self._says_content:
            attributes["gen_ai.input.messages"] = as_told(prompt.messages)
        span = self._tracer.start_span(f"chat {model}", kind=SpanKind.CLIENT, attributes=attributes)
        return Told(span, says_content=self._says_content)

    def tool(self, call: "ToolCall", *, is_known: bool) -> Span:
        attributes: Attributes = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.type": "function"}
        if is_known:
            attributes["gen_ai.tool.name"] = call.name
        if self._says_content:
            attributes |= {"gen_ai.tool.call.id": call.id, "gen_ai.tool.call.arguments": call.arguments}
        span = self._tracer.start_span(
            f"execute_tool {call.name}" if is_known else "execute_tool", attributes=attributes
        )
        return Told(span, says_content=self._says_content)

    def store(self, settlement: Settlement | None) -> Span:
        if settlement is None:
            return NOTHING
        what = "store reply" if settlement.state is TurnState.COMPLETED else "store attempt"
        return Told(self._tracer.start_span(what, kind=SpanKind.CLIENT, attributes={"db.system.name": self._database}))

    def stop(self) -> None:
        own, self._own = self._own, None
        if own is None:
            return
        atexit.unregister(self.stop)
        # In a thread, as it would wait for half a minute for a collector that is away.
        ending = threading.Thread(target=own.shutdown, name="inturn-traces", daemon=True)
        ending.start()
        ending.join(STOP_SECONDS)


def own_provider(kind: str, exporter: str) -> TracerProvider:
    """A provider as OpenTelemetry's own variables describe it: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``."""
    named = OTELResourceDetector().detect().attributes.get("service.name")
    resource = Resource.create(
        {
            "service.name": str(named or f"inturn-{kind}"),
            "service.version": __version__,
            "service.instance.id": str(ProcessIdentity.mine()),
        }
    )
    provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
    if exporter != "none":
        made: SpanExporter = ConsoleSpanExporter() if exporter == "console" else OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(made))
    return provider


def written(span: api.Span) -> dict[str, str]:
    """Where a span is, as W3C writes it."""
    carrier: dict[str, str] = {}
    W3C.inject(carrier, api.set_span_in_context(span, Context()))
    return carrier


def trace_id_of(link: str, turn_id: str) -> int:
    """The trace of one of many that were sent together: the same for each of its attempts, in whichever process."""
    return int.from_bytes(hashlib.sha256(f"{link}/{turn_id}".encode()).digest()[:16])


def queued(operation: str, lane: str) -> Attributes:
    return {
        "messaging.system": "inturn",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": str(lane),
    }


def about(session: str, turn_id: str = "") -> Attributes:
    """Whose it is."""
    said: Attributes = {}
    if session:
        said |= {"messaging.message.conversation_id": session, "gen_ai.conversation.id": session}
    if turn_id:
        said |= {"messaging.message.id": turn_id}
    return said


def addressed(kind: str, base_url: str) -> Attributes:
    """Who a provider is, and where."""
    said: Attributes = {"gen_ai.provider.name": kind}
    url = urlsplit(base_url)
    if url.hostname:
        said |= {"server.address": url.hostname, "server.port": url.port or (443 if url.scheme == "https" else 80)}
    return said
