"""Traces of real processes, told to a real collector: one from ``send`` to the stored reply, whatever happens on the way."""

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.trace import TracerProvider

from inturn import Client, Turn, TurnFailedError
from inturn.aio import Client as AsyncClient
from ops.chaos.model import ModelServer
from ops.chaos.wires import ANSWERS
from ops.servers import RedisServer
from tests.acceptance.collector import Collector, Seen, tree
from tests.acceptance.failing import FAULT_SECONDS, REPAIR_SECONDS, Actor, Stage, wait_until
from tests.acceptance.test_metrics import broker_of
from tests.acceptance.test_schedules import last_turn, make_due

pytestmark = pytest.mark.timeout(240)

CANARY = "c4n4ry"
"""In everything that is said, and in nothing else."""
WHOLE = ["send chat", "  process chat", "    chat model", "    store reply"]
TOOLS = [
    "send chat",
    *("  process chat", "    chat model", "    execute_tool note", "    store attempt"),
    *("  process chat", "    chat model", "    store reply"),
]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        for name in ("OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
            monkeypatch.delenv(name, raising=False)
        yield collector


@pytest.fixture
def stage(
    database_url: str, tmp_path: Path, redis: RedisServer, model: ModelServer, collector: Collector
) -> Iterator[Stage]:
    yield from playing(Stage(tmp_path / "home", database_url, broker_of(redis), model, traces="true"))


def playing(stage: Stage) -> Iterator[Stage]:
    assert stage.command("db", "upgrade").await_end() == 0
    yield stage
    stage.stop()


def asked(stage: Stage, prompt: str, *, tools: list[str] | None = None, **directive: Any) -> Turn:
    session = stage.client.create_session(f"ann-{secrets.token_hex(4)}", tools=tools)
    return session.send(f"{CANARY} {prompt}" + (f" !{json.dumps(directive)}" if directive else ""))


def answered(turn: Turn) -> str:
    turn.wait(timeout=REPAIR_SECONDS)
    return turn.id


def told(collector: Collector, turn_id: str, is_whole: Callable[[list[Seen]], bool]) -> list[Seen]:
    """The turn's trace, once what comes last is there: it is told a moment after the reply can be read."""

    def looks_whole() -> bool:
        mine = {span.trace for span in collector.spans() if span.attributes.get("messaging.message.id") == turn_id}
        return bool(mine) and is_whole([span for span in collector.spans() if span.trace in mine])

    wait_until(looks_whole, FAULT_SECONDS)
    return collector.of_turn(turn_id)


def is_over(spans: list[Seen]) -> bool:
    names = [span.name.partition(" ")[0] for span in spans]
    ends = [span.attributes.get("inturn.turn.state") for span in spans]
    return "send" in names and ("completed" in ends or "failed" in ends)


def test_a_turn_is_one_trace_across_processes_retries_and_deaths(stage: Stage, collector: Collector) -> None:
    worker = stage.worker()
    follow_a_whole_turn(stage, collector)
    follow_tools_retries_and_failures(stage, collector)
    follow_many_at_once(stage, collector)
    survivor = outlive(stage, collector, worker)
    follow_an_asyncio_caller(stage, collector)
    follow_a_schedule(stage, collector)
    assert {span.service for span in collector.spans()} == {"inturn-client", "inturn-worker", "inturn-beat"}
    assert not [said for said in collector.told if CANARY.encode() in said.body], "what was said is nobody's business"

    read_the_logs(collector, worker, survivor)

    last = answered(asked(stage, "and good night"))
    survivor.process.terminate()
    assert survivor.await_end() == 0
    assert is_over(collector.of_turn(last)), "a worker that leaves tells what it has not told yet"
    said = [json.loads(line)["message"] for line in survivor.said().splitlines()]
    assert "worker: Warm shutdown (MainProcess)" in said, "Celery says this past its own logging"


def follow_a_whole_turn(stage: Stage, collector: Collector) -> None:
    caller = TracerProvider().get_tracer("a web application").start_span("GET /chat")
    with api.use_span(caller, end_on_exit=True):
        turn = asked(stage, "hello")
    spans = told(collector, answered(turn), is_over)
    assert tree(spans) == WHOLE
    send, process, chat, store = spans
    assert int(send.trace, 16) == caller.get_span_context().trace_id, "the caller's trace goes on"
    assert int(send.parent, 16) == caller.get_span_context().span_id
    assert [span.kind for span in spans] == ["PRODUCER", "CONSUMER", "CLIENT", "CLIENT"]
    for span in send, process:
        assert span["messaging.system"] == "inturn"
        assert span["messaging.destination.name"] == "chat"
        assert span["messaging.message.id"] == turn.id
        assert span["messaging.message.conversation_id"] == span["gen_ai.conversation.id"] == turn.session_id
        assert span["messaging.operation.type"] == span.name.split()[0]
    assert process["inturn.turn.attempt"] == 1
    assert process["inturn.turn.state"] == "completed"
    (row,) = stage.query(
        "SELECT input_tokens, output_tokens FROM turns WHERE session_id = :s", s=int(turn.id.split(".")[0])
    )
    said = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "model",
        "gen_ai.response.model": ANSWERS, "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": row.input_tokens, "gen_ai.usage.output_tokens": row.output_tokens,
        "server.address": "127.0.0.1", "server.port": stage.model.port,
    }  # fmt: skip
    assert said == {name: chat.attributes.get(name) for name in said}
    assert process.start <= chat.start <= chat.end <= store.start <= store.end <= process.end
    assert store["db.system.name"] == stage.database.dialect


def follow_tools_retries_and_failures(stage: Stage, collector: Collector) -> None:
    session = stage.client.create_session()
    spans = told(
        collector, answered(session.send(f'{CANARY} slowly !{{"words": 3, "gap": 0.1}}', stream=True)), is_over
    )
    first, last = spans[2]["gen_ai.response.time_to_first_chunk"], (spans[2].end - spans[2].start) / 1e9
    assert 0 < first < last
    assert spans[2]["gen_ai.request.stream"] is True

    calls = [{"name": "note", "arguments": {"text": CANARY}}]
    spans = told(collector, answered(asked(stage, "note this", tools=["note"], calls=calls)), is_over)
    assert tree(spans) == TOOLS
    tool = spans[3]
    assert (tool["gen_ai.tool.name"], tool["gen_ai.operation.name"]) == ("note", "execute_tool")

    spans = told(collector, answered(asked(stage, "again", status=503, times=2)), is_over)
    tries = [span for span in spans if span.name == "process chat"]
    assert [each["inturn.turn.attempt"] for each in tries] == [1, 2, 3]
    assert [each["inturn.turn.state"] for each in tries] == ["queued", "queued", "completed"]
    assert [span.error for span in spans if span.name == "chat model"] == ["unavailable", "unavailable", ""]

    refused = asked(stage, "no", status=400)
    with pytest.raises(TurnFailedError):
        refused.wait(timeout=REPAIR_SECONDS)
    spans = told(collector, refused.id, is_over)
    assert [span.error for span in spans] == ["", "invalid_request", "invalid_request", ""]


def follow_many_at_once(stage: Stage, collector: Collector) -> None:
    """Each is a trace of its own, whose attempts find one another, and points to where all of them were sent."""
    lines = [f"{CANARY} {number}" + (' !{"status": 503, "times": 1}' if number == 2 else "") for number in range(3)]
    turns = [answered(turn) for turn in stage.client.send_many(lines)]
    batch = stage.client.submit_batch(lines)
    wait_until(lambda: batch.refresh().state == "completed", REPAIR_SECONDS)
    stored = [row.id for row in batch_turns(stage, batch.id)]
    for whole, name in ((turns, None), (stored, batch.id)):
        traces = [told(collector, turn_id, lambda spans: is_over([*spans, SENT])) for turn_id in whole]
        (send,) = {link for spans in traces for span in spans for link in span.links}
        (origin,) = [span for span in collector.spans() if span.id == send]
        assert (origin.name, origin["messaging.batch.message_count"]) == ("send batch", len(lines))
        assert origin.attributes.get("inturn.batch.id") == name
        assert len({origin.trace, *(spans[0].trace for spans in traces)}) == len(lines) + 1
        assert [sum(span.name == "process batch" for span in spans) for spans in traces] == [1, 1, 2]


SENT = Seen("send batch", "PRODUCER", "", "", "", 0, 0, "", {}, (), "")
"""The one that is in another trace."""


def batch_turns(stage: Stage, batch_id: str) -> list[Any]:
    sql = (
        "SELECT t.session_id || '.' || t.number AS id FROM turns AS t JOIN batches AS b ON b.id = t.batch_id "
        "WHERE b.key = :key ORDER BY t.line"
    )
    return stage.query(sql, key=batch_id)


def read_the_logs(collector: Collector, *workers: Actor) -> None:
    """They went to no terminal: each line is an object, and says in which trace it was."""
    lines = [json.loads(line) for worker in workers for line in worker.said().splitlines()]
    assert {line["role"] for line in lines} == {"worker"}
    assert len({line["process"] for line in lines}) == len(workers)
    failed = [line for line in lines if line.get("action") == "attempt_failed"]
    assert len(failed) == 5, "twice, once, and a line of each of two batches"
    for line in failed:
        tries = [span for span in collector.of_turn(line["turn"]) if span.attributes.get("inturn.turn.attempt")]
        (where,) = [span for span in tries if span["inturn.turn.attempt"] == line["attempt"]]
        assert (line["trace_id"], line["span_id"]) == (where.trace, where.id)


def outlive(stage: Stage, collector: Collector, worker: Actor) -> Actor:
    """The worker dies in mid-call; what the next one does is in the same trace."""
    turn = asked(stage, "stay with me", act="hang", times=1)
    wait_until(lambda: stage.query("SELECT 1 FROM turns WHERE state = 'running'"), FAULT_SECONDS)
    wait_until(lambda: any("stay with me" in call.prompt for call in stage.model.calls()), FAULT_SECONDS)
    worker.kill()
    survivor = stage.command("worker")
    there = "SELECT 1 FROM worker_processes WHERE pid = :pid"
    wait_until(lambda: stage.query(there, pid=survivor.process.pid), FAULT_SECONDS)
    spans = told(collector, answered(turn), is_over)
    assert tree(spans) == WHOLE, "who was killed told nothing"
    assert (spans[1]["inturn.turn.attempt"], spans[1]["inturn.turn.rescues"]) == (2, 1)
    return survivor


def follow_an_asyncio_caller(stage: Stage, collector: Collector) -> None:
    async def send() -> tuple[str, int]:
        caller = TracerProvider().get_tracer("a web application").start_span("POST /chat")
        async with AsyncClient(stage.settings) as client:
            with api.use_span(caller, end_on_exit=True):
                session = await client.create_session()
                turn = await session.send(f"{CANARY} from a loop")
            await turn.wait(timeout=REPAIR_SECONDS)
        return turn.id, caller.get_span_context().trace_id

    turn_id, trace = asyncio.run(send())
    assert int(told(collector, turn_id, is_over)[0].trace, 16) == trace


def follow_a_schedule(stage: Stage, collector: Collector) -> None:
    stage.client.create_session("minutely")
    stage.client.add_schedule("minutely", f"{CANARY} by the clock", cron="* * * * *", name="news")
    beat = stage.command("beat")
    make_due(stage, "news")
    wait_until(lambda: last_turn(stage, "news") is not None, FAULT_SECONDS)
    spans = told(collector, answered(stage.client.get_turn(last_turn(stage, "news") or "")), is_over)
    assert tree(spans) == WHOLE
    assert [span.service for span in spans[:2]] == ["inturn-beat", "inturn-worker"]
    assert {json.loads(line)["role"] for line in beat.said().splitlines()} == {"beat"}
    beat.kill()


def test_what_was_said_is_told_where_it_is_asked_for(
    tmp_path: Path, redis: RedisServer, model: ModelServer, collector: Collector
) -> None:
    url = f"sqlite:///{tmp_path / 'inturn.db'}"
    for stage in playing(Stage(tmp_path / "home", url, broker_of(redis), model, traces="true", trace_content="true")):
        stage.worker()
        calls = [{"name": "note", "arguments": {"text": "the key"}}]
        spans = told(collector, answered(asked(stage, "where is it?", tools=["note"], calls=calls)), is_over)
        first, tool, last = spans[2], spans[3], spans[6]
        shown, given = json.loads(first["gen_ai.input.messages"]), json.loads(first["gen_ai.output.messages"])
        assert [message["role"] for message in shown] == ["user"]
        assert shown[0]["parts"][0]["content"].startswith(f"{CANARY} where is it?")
        assert (given[0]["parts"][0]["type"], given[0]["parts"][0]["name"]) == ("tool_call", "note")
        assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"text": "the key"}
        assert tool["gen_ai.tool.call.result"] == "noted the key"
        shown = json.loads(last["gen_ai.input.messages"])
        assert [message["parts"][0]["type"] for message in shown] == ["text", "tool_call", "tool_call_response"]
        assert json.loads(last["gen_ai.output.messages"])[0]["parts"][0]["content"].startswith(f"reply to: {CANARY}")


def test_a_collector_that_is_away_holds_up_nobody(
    tmp_path: Path, redis: RedisServer, model: ModelServer, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    url = f"sqlite:///{tmp_path / 'inturn.db'}"
    for stage in playing(Stage(tmp_path / "home", url, broker_of(redis), model, traces="true")):
        worker = stage.worker()
        answered(asked(stage, "is anybody there?"))
        worker.process.terminate()
        assert worker.await_end() == 0
        assert re.search(r"opentelemetry|127\.0\.0\.1.*port=1\b", worker.said()), "and the log says so"
        assert CANARY not in worker.said()


def test_a_client_that_cannot_trace_says_how_it_could(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inturn import Settings, SettingsError
    from inturn.workers import tracing

    settings = Settings.load(home=tmp_path, traces=True)
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'inturn\[traces\]'"):
        Client(settings).start()
    monkeypatch.undo()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match="http/protobuf"):
        Client(settings).start()
