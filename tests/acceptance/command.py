"""The command line as processes, and what they leave in the database."""

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import inspect, text

from inturn.cli.exits import Exit
from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.store import opening
from inturn.models.store.opening import NewSession
from inturn.workers.stack import inturn_command
from tests import warm
from tests.acceptance.deployment import clean_environment
from tests.stacks import wait_until

PATIENCE_SECONDS = 100
START_SECONDS = 30
PASSWORD = "hidden-7c1f"
"""Is in no sentence."""


class Inturn:
    """The command line in a home and on a database of its own."""

    def __init__(self, home: Path, database_url: str = "", broker_url: str = "") -> None:
        self.home = home
        self.database_url = database_url or f"sqlite:///{home / 'inturn.db'}"
        urls = {"INTURN_DATABASE_URL": database_url, "INTURN_BROKER_URL": broker_url}
        self.environment = clean_environment(home) | {"INTURN_HOME": str(home)} | urls

    def run(self, *words: str, typed: str = "", through: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``through`` is a program that becomes it."""
        if not through:
            return warm.run(words, self.environment, Path.cwd(), typed, timeout=PATIENCE_SECONDS)
        return subprocess.run(
            [*through, *inturn_command(*words)], env=self.environment, input=typed, capture_output=True, text=True,
            check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip

    def ok(self, *words: str, typed: str = "") -> str:
        done = self.run(*words, typed=typed)
        assert done.returncode == Exit.OK, done.stderr
        return done.stdout

    def refused(self, code: Exit, *words: str, typed: str = "") -> str:
        """The one sentence of a command that fails, which has written nothing."""
        before = self.contents()
        done = self.run(*words, typed=typed)
        assert done.returncode == code, (done.returncode, done.stderr)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stderr
        assert self.contents() == before, f"{words} left something behind"
        return done.stderr.splitlines()[-1].removeprefix("inturn: ")

    def contents(self) -> dict[str, list[str]]:
        """Every row of every table; empty without a database."""
        if self.database_url.startswith("sqlite") and not (self.home / "inturn.db").exists():
            return {}
        with closing(Database(self.database_url)) as database, database.reading() as db:
            tables = inspect(db).get_table_names()
            return {table: sorted(map(repr, db.execute(text(f"SELECT * FROM {table}")))) for table in tables}

    def prepare(self) -> "Inturn":
        """Make the tables, and the session ``s``."""
        with closing(Database(self.database_url)) as database:
            migrations.upgrade(database)
            opening.create_session(database, NewSession("s", "echo/echo"))
        return self

    def pretend(self, version: str) -> None:
        """Let the database look as if another inturn had made it."""
        with closing(Database(self.database_url)) as database, database.writing() as db:
            db.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})


class Up:
    """``inturn up`` in the background."""

    def __init__(self, inturn: Inturn) -> None:
        self._output = inturn.home.with_name(f"{inturn.home.name}.said.{time.monotonic_ns()}")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                inturn_command("up"), env=inturn.environment, stdout=output, stderr=output, start_new_session=True
            )

    def said(self) -> str:
        return self._output.read_text()

    def await_words(self, *words: str) -> None:
        """Wait until it has said any of them."""
        wait_until(lambda: any(word in self.said() for word in words) or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.said()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(PATIENCE_SECONDS / 2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
