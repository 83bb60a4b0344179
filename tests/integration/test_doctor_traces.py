"""What ``inturn doctor`` finds of traces: asked of a real collector, or of none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from inturn import Settings
from inturn.cli.checkup.collector import check_collector
from inturn.cli.checkup.finding import Finding
from inturn.workers import tracing
from ops.servers import free_port
from tests.integration.receiver import Receiver


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        yield receiver


def found(home: Path, *, traces: bool = True, trace_content: bool = False, offline: bool = False) -> list[Finding]:
    settings = Settings.load(home=home, traces=traces, trace_content=trace_content)
    return list(check_collector(settings, offline=offline))


def test_a_collector_that_takes_them(collector: Receiver, tmp_path: Path) -> None:
    said, content = found(tmp_path, trace_content=True)
    assert said == Finding("ok", "traces", f"http://127.0.0.1:{collector.port} takes them")
    assert (content.state, [told.path for told in collector.told]) == ("note", ["/v1/traces"])
    assert found(tmp_path, traces=False) == found(tmp_path, offline=True) == []
    assert len(collector.told) == 1


def test_a_collector_that_refuses_them(collector: Receiver, tmp_path: Path) -> None:
    collector.answer_with(401)
    (said,) = found(tmp_path)
    assert said.state == "warn"
    assert "does not take them" in said.sentence
    assert "OTEL_EXPORTER_OTLP_HEADERS" in said.sentence


def test_nobody_there(collector: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://me:secret@127.0.0.1:{free_port()}")
    (said,) = found(tmp_path)
    assert said.state == "warn"
    assert "secret" not in said.sentence


def test_what_cannot_be(collector: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    (said,) = found(tmp_path)
    assert said == Finding("note", "traces", "are told to nobody: OTEL_TRACES_EXPORTER is none")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    (said,) = found(tmp_path)
    assert (said.state, "zipkin" in said.sentence) == ("fail", True)
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    (said,) = found(tmp_path)
    assert (said.state, "pip install" in said.sentence) == ("fail", True)
