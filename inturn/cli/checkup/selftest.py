"""A prompt on its way through the real queue, to echo, in a session of its own: each step is timed, and all is removed."""

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import redis

from inturn.cli import render
from inturn.cli.checkup.clocks import database_offset, offset
from inturn.cli.checkup.finding import RUNBOOK, Finding
from inturn.cli.top.units import lasting
from inturn.cli.words import sentence
from inturn.models.errors import InturnError, SendTimeoutError

if TYPE_CHECKING:
    from inturn.cli.invocation import Invocation
    from inturn.client import Client
    from inturn.turn import Turn

MODEL, PROMPT = "echo/echo", "a check-up of `inturn doctor --send`"
KEPT = timedelta(hours=1)
"""Until retention removes the session of a check-up that was killed."""
WIDTH = 40
STEPS = {
    "started": "the stack was started",
    "stored": "the prompt was stored",
    "hinted": "the hint was published",
    "picked up": "a worker picked it up",
    "answered": "the model answered",
    "reply stored": "the reply was stored",
    "heard": "the reply was heard here",
}


SECTIONS = {
    "started": "inturnnoworker",
    "stored": "inturndatabasedown",
    "picked up": "inturnchatwaits",
    "answered": "inturnprovidererrors",
}
"""Of the runbook, about what sticks at a step."""


@dataclass(slots=True)
class Course:
    """When each step was done: seconds since the beginning, by this machine's clock."""

    began: float = field(default_factory=time.time)
    done: dict[str, float] = field(default_factory=dict)

    def mark(self, step: str, at: float | None = None) -> None:
        self.done[step] = (time.time() if at is None else at) - self.began

    def steps(self) -> Iterator[tuple[str, float, float]]:
        """Each step that was done, with when it began and what it took. Clocks that are compared may be off by a little."""
        before = 0.0
        for step in STEPS:
            if (end := self.done.get(step)) is not None:
                began = self.done["stored"] if step == "picked up" else before  # while the hint is being published
                yield step, began, max(0.0, end - began)
                before = end if step == "picked up" else max(before, end)

    def record(self) -> list[dict[str, Any]]:
        return [
            {"step": step, "began_ms": round(began * 1000, 2), "took_ms": round(took * 1000, 2)}
            for step, began, took in self.steps()
        ]


class SelfTest:
    """One prompt. Whatever comes of it, its session is removed."""

    def __init__(self, client: "Client", timeout: float) -> None:
        self._client, self._timeout = client, timeout
        self._course, self._offset = Course(), 0.0
        self._turn: Turn | None = None
        self._step = "started"
        self._deadline = time.monotonic() + timeout
        self._hinted = True
        self._session_id = f"inturn-doctor-{secrets.token_hex(6)}"

    def run(self) -> Finding:
        try:
            self._start_stack()
            self._go_through()
            return self._went_well()
        except InturnError as error:
            return self._stuck(error)
        finally:
            with suppress(InturnError):
                self._client.delete_session(self._session_id, missing_ok=True)

    def _start_stack(self) -> None:
        """On the embedded default, as ``send --wait`` does; the time of that is told by itself."""
        connections = self._client.connections
        self._offset, _ = database_offset(connections.database)
        began = time.time()
        connections.waiter.hold_stack(self._deadline)
        if self._client.settings.is_embedded and time.time() - began > 1:
            self._course.began = began
            self._course.mark("started")
        else:
            self._course.began = time.time()

    def _go_through(self) -> None:
        from inturn.models.store import sending
        from inturn.turn import Turn

        self._step = "stored"
        self._client.create_session(session_id=self._session_id, model=MODEL, retention=KEPT)
        if "started" not in self._course.done:
            self._course.began = time.time()
        connections = self._client.connections
        sent = sending.send(connections.database, self._session_id, PROMPT, streams=True)
        self._course.mark("stored")
        self._hinted = connections.hints.publish(sent, self._session_id)
        if self._hinted:
            self._course.mark("hinted")
        turn = self._turn = Turn(self._client, sent.turn)
        turn.wait(max(0.1, self._deadline - time.monotonic()))
        self._course.mark("heard")
        self._look_back(turn)

    def _look_back(self, turn: "Turn") -> None:
        """What others did is told by their clocks, which are compared with ours."""
        turn.refresh()
        for step, moment in ("picked up", turn.started_at), ("reply stored", turn.finished_at):
            if moment is not None:
                self._course.mark(step, self._ours(moment))
        if (answered := self._first_word()) is not None:
            self._course.mark("answered", answered)

    def _ours(self, moment: datetime) -> float:
        return moment.timestamp() - self._offset

    def _first_word(self) -> float | None:
        """When the broker was told the first word of the reply: its entries are named by its clock. None, if it was not."""
        from inturn.workers.queues import live

        assert self._turn is not None
        broker = self._client.connections.broker
        try:
            ahead, _ = offset(lambda: _seconds(broker.time()))
            entries: Any = broker.xrange(live(int(self._turn.id.partition(".")[0])))
        except (redis.RedisError, OSError):
            return None
        for name, fields in entries:
            if b"text" in fields:
                return int(name.partition(b"-")[0]) / 1000 - ahead
        return None

    def _went_well(self) -> Finding:
        total = self._course.done["heard"]
        told = f"a prompt went through the queue, and its reply came back, in {total * 1000:.0f} ms"
        if self._hinted:
            return Finding("ok", "send", told, "send", more={"steps": self._course.record()})
        return Finding(
            "warn",
            "send",
            f"{told}; but the broker took no hint, so a worker had to find it by itself: see that the broker runs",
            "send.hinted",
            f"{RUNBOOK}inturnhintsfail",
            {"steps": self._course.record()},
        )

    def _stuck(self, error: InturnError) -> Finding:
        """At which step, why, and what to do."""
        step, reason = self._where(), sentence(error)
        with suppress(InturnError):
            if isinstance(error, SendTimeoutError) and self._turn is not None:
                reason = self._client.why(self._turn.id).sentence
        late = f" within {self._timeout:g} s" if isinstance(error, SendTimeoutError) else ""
        if not self._hinted:
            reason = f"{reason.rstrip('.')}. The broker took no hint of it: see that it runs"
        told = {
            "started": "cannot be sent",
            "stored": "cannot be stored",
            "picked up": f"was not picked up{late}",
            "answered": f"has no reply{late}",
        }
        return Finding(
            "fail",
            "send",
            f"the prompt {told[step]}: {reason}",
            f"send.{step.replace(' ', '_')}",
            f"{RUNBOOK}{SECTIONS[step]}",
            {"steps": self._course.record()},
        )

    def _where(self) -> str:
        """The step that was not done."""
        if self._turn is None:
            return self._step
        with suppress(InturnError):
            self._turn.refresh()
            if self._turn.started_at is not None:
                self._course.mark("picked up", self._ours(self._turn.started_at))
                return "answered"
        return "picked up"


def _seconds(told: Any) -> float:
    return float(told[0]) + float(told[1]) / 1e6


def check_send(invocation: "Invocation", timeout: float) -> Finding:
    """Send a prompt, with what is watched meanwhile where somebody watches."""
    try:
        with render.waiting("sending a prompt through the queue"), invocation.client() as client:
            return SelfTest(client, timeout).run()
    except InturnError as error:
        return Finding("fail", "send", f"the prompt cannot be sent: {sentence(error)}", "send.connected")


def waterfall(finding: Finding) -> list[str]:
    """Its steps, line by line, each where it begins."""
    steps = finding.more.get("steps", [])
    total = max((step["began_ms"] + step["took_ms"] for step in steps), default=0.0) or 1.0
    width = max((len(STEPS[step["step"]]) for step in steps), default=0)
    lines = []
    for step in steps:
        before = round(step["began_ms"] / total * WIDTH)
        bar = " " * min(before, WIDTH - 1) + "▇" * max(1, round(step["took_ms"] / total * WIDTH))
        took = f"{step['took_ms']:.1f} ms" if step["took_ms"] < 1000 else lasting(step["took_ms"] / 1000)
        lines.append(f"{STEPS[step['step']]:<{width}}  {took:>9}  {bar}")
    return lines
