"""Deployments in which one process is made to fail at a named place: a database and a Redis of their own, and processes
that are started, stopped and ended one by one.
"""

import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from inturn import Client, Session, Settings, Turn
from inturn.models.database import Database
from inturn.models.failpoints import EXIT_CODE, VARIABLE
from inturn.models.states import ProcessKind
from ops.chaos.model import Call, ModelServer
from tests import warm
from tests.acceptance import toolshed
from tests.acceptance.deployment import clean_environment

FAULT_SECONDS, REPAIR_SECONDS, STOP_SECONDS = 60, 40, 10

LEASE_SECONDS = 2.0
PACE: dict[str, Any] = {
    "default_model": "server/model",
    "lease_seconds": LEASE_SECONDS,
    "heartbeat_seconds": 0.5,
    "sweep_seconds": 0.3,
    "cancel_poll_seconds": 0.3,
    "attempt_deadline_seconds": 10,
    "shutdown_grace_seconds": 11,
    "retry_base_seconds": 0.1,
    "retry_cap_seconds": 0.3,
    "cleanup_chunk": 1,
    "concurrency": 8,
}
"""Repair within seconds."""

PRELUDE = """
import sys
from inturn import *
from inturn.models.failpoints import FailpointError
"""


class Actor:
    """A process of inturn, or one that uses the SDK, and what it has said."""

    def __init__(self, words: Sequence[str], said: Path, environment: dict[str, str], program: str | None) -> None:
        self._said = said
        self.process = warm.Process(words, environment, said.parent, said, program=program)

    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def await_words(self, words: str, seconds: float) -> None:
        """Wait until it has said them."""
        try:
            wait_until(lambda: words in self.said() or self.has_ended(), seconds)
        finally:
            assert words in self.said(), self.said()[-3000:]

    def await_fault(self, name: str, action: str) -> None:
        """Wait until the fail-point was reached, and has done what it should."""
        self.await_words(f"action=failpoint_reached name={name}", FAULT_SECONDS)
        if action == "exit":
            assert self.process.wait(STOP_SECONDS) == EXIT_CODE
        elif action == "stop":
            self._await_stop()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands: on a busy machine it goes on for a while."""
        self.process.send_signal(signal.SIGSTOP)
        self._await_stop()

    def _await_stop(self) -> None:
        wait_until(lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED, STOP_SECONDS)

    def go_on(self) -> None:
        """After a ``stop`` or ``freeze``."""
        self.process.send_signal(signal.SIGCONT)

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def await_end(self) -> int:
        """Its exit code."""
        return self.process.wait(REPAIR_SECONDS)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(STOP_SECONDS)


class Stage:
    """One deployment.

    Args:
        home: a directory of its own.
        model: who answers.
        more: settings that it has besides ``PACE``, or in place of them.
    """

    def __init__(self, home: Path, database_url: str, broker_url: str, model: ModelServer, **more: Any) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(toolshed.__file__, home)
        self.home, self.model = home, model
        providers = {"server": {"type": "openai", "base_url": model.base_url}}
        values = {"home": home, "database_url": database_url, "broker_url": broker_url, **PACE}
        self.settings = Settings.load(providers=providers, **values | more)
        more |= {"providers": providers, "tool_modules": ["toolshed"]}
        values |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in more.items()}
        self._environment = clean_environment(home) | {
            f"INTURN_{key.upper()}": str(each) for key, each in values.items()
        }
        self.database = Database(self.settings.effective_database_url)
        self.client = Client(self.settings)
        self._actors: list[Actor] = []

    def command(self, *words: str, failpoint: str = "") -> Actor:
        """Start a command of ``inturn``: ``worker``, ``cleanup``."""
        return self._start(words, failpoint)

    def worker(self, *words: str) -> Actor:
        """Start one, and wait until it is there: whoever waits for a reply gives up when nobody is for a while."""
        actor, before = self.command("worker", *words), self._workers()
        wait_until(lambda: self._workers() > before, FAULT_SECONDS)
        return actor

    def _workers(self) -> int:
        return sum(one.alive and one.kind is ProcessKind.WORKER for one in self.client.list_workers())

    def python(self, program: str, *arguments: str, failpoint: str) -> Actor:
        """Start a program that uses the SDK."""
        return self._start(arguments, failpoint, PRELUDE + program)

    def _start(self, words: Sequence[str], failpoint: str, program: str | None = None) -> Actor:
        environment = self._environment | ({VARIABLE: failpoint} if failpoint else {})
        actor = Actor(words, self.home / f"said.{len(self._actors)}", environment, program)
        self._actors.append(actor)
        return actor

    def query(self, sql: str, **values: Any) -> list[Any]:
        """Look into the database past the SDK."""
        with self.database.reading() as db:
            return list(db.execute(text(sql), values))

    def talk(self, session_id: str) -> "Talk":
        """A new session whose turns are accounted for."""
        return Talk(self, self.client.create_session(session_id))

    def is_locked(self) -> bool:
        """Whether a process has stopped while it writes to a SQLite file: then nobody else can."""
        if self.database.dialect != "sqlite":
            return False
        with closing(sqlite3.connect(str(self.database.url.database), isolation_level=None, timeout=0.5)) as plain:
            try:
                plain.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            plain.execute("ROLLBACK")
        return False

    def is_whole(self) -> bool:
        """Whether SQLite finds no damage; PostgreSQL looks after itself."""
        return self.database.dialect != "sqlite" or self.query("PRAGMA integrity_check")[0][0] == "ok"

    def stop(self) -> None:
        """Kill what is left."""
        for actor in self._actors:
            actor.kill()
        self.client.stop()
        self.database.close()


class Talk:
    """A session, and what was sent in it."""

    def __init__(self, stage: Stage, session: Session) -> None:
        self._stage, self.session = stage, session
        self.prompts: dict[int, str] = {}

    @property
    def id(self) -> str:
        return self.session.session_id

    def say(self, prompt: str, **directive: Any) -> Turn:
        """Send. Prompts are made unique by the session's ID; ``directive`` tells the model how to misbehave."""
        words = f"{prompt} of {self.id}" + (f" !{json.dumps(directive)}" if directive else "")
        turn = self.session.send(words, idempotency_key=words[:200])
        self.prompts[turn.number] = words
        return turn

    def calls(self, number: int) -> list[Call]:
        """What the model was asked for this turn."""
        return [call for call in self._stage.model.calls() if call.prompt == self.prompts[number]]

    def row(self, number: int) -> Any:
        return next(row for row in self._rows() if row.number == number)

    def _rows(self) -> list[Any]:
        return self._stage.query(
            "SELECT t.* FROM turns AS t JOIN sessions AS s ON s.id = t.session_id WHERE s.key = :key ORDER BY t.number",
            key=self.id,
        )

    def await_final(self, seconds: float = REPAIR_SECONDS) -> None:
        """Wait until every turn is final and nobody holds the session."""
        lease = "SELECT l.* FROM leases AS l JOIN sessions AS s ON s.id = l.session_id WHERE s.key = :key"
        wait_until(lambda: all(row.finished_at for row in self._rows()), seconds)
        wait_until(lambda: self._stage.query(lease, key=self.id)[0].owner is None, seconds)
        assert self._stage.query(lease, key=self.id)[0].ready_at is None

    def check(self, cancelled: frozenset[int] = frozenset()) -> None:
        """What was promised for every turn that was accepted."""
        wrongs = list(self._wrongs(cancelled))
        assert not wrongs, wrongs

    def _wrongs(self, cancelled: frozenset[int]) -> Iterator[str]:
        rows = self._rows()
        if [row.number for row in rows] != list(self.prompts):
            yield f"{list(self.prompts)} were accepted, and {[row.number for row in rows]} are there"
        ends = [row.finished_at for row in rows]
        if ends != sorted(ends):
            yield f"turns finished out of order: {ends}"
        history: list[str] = []
        for row in rows:
            prompt, calls = self.prompts[row.number], self.calls(row.number)
            wanted = "cancelled" if row.number in cancelled else "completed"
            if row.state != wanted:
                yield f"turn {row.number} is {row.state} ({row.error_type}: {row.error_message})"
            said = self._said(row, "assistant")
            if [each.startswith(f"reply to: {prompt} (seen") for each in said] != [True] * (wanted == "completed"):
                yield f"turn {row.number} has the replies {said}"
            tries = self._stage.query(
                "SELECT * FROM attempts WHERE session_id = :session AND turn_number = :number",
                session=row.session_id, number=row.number,
            )  # fmt: skip
            if not len(calls) <= len(tries) == row.attempts <= self._stage.settings.max_attempts:
                yield f"turn {row.number}: {len(calls)} calls, {len(tries)} attempts, {row.attempts} counted"
            if any(each.outcome is None for each in tries):
                yield f"turn {row.number} has an attempt under way"
            for call in calls:
                if [message["content"] for message in call.messages] != [*history, prompt]:
                    yield f"call {call.number} for turn {row.number} was shown {call.messages}"
            if wanted == "completed":
                history += [prompt, *said]

    def _said(self, row: Any, role: str) -> list[str]:
        said = self._stage.query(
            "SELECT content FROM messages WHERE session_id = :session AND turn_number = :number AND role = :role",
            session=row.session_id, number=row.number, role=role,
        )  # fmt: skip
        return [each.content for each in said]


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Fail unless the condition becomes true in time. It looks rarely, as the processes need the machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
