"""A bare loop as a subject: a filled database, the loop's process, a meter."""

from ops.bench.databases import Databases, copy_of
from ops.bench.meter import Reading, memory_bytes, read, watch
from ops.bench.model_server import ModelServer
from ops.bench.processes import RAMP_SECONDS, first_line, module, running, tell, wait_until
from ops.bench.workload import PROMPT, TURNS_PER_SESSION, Load

TABLE = {
    "postgresql": """
CREATE TABLE messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id bigint NOT NULL, turn_number int NOT NULL, position int NOT NULL, role text NOT NULL,
    content text NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (session_id, turn_number, position)
);
INSERT INTO messages (session_id, turn_number, position, role, content)
SELECT session, turn, 0, 'user', '{prompt}'
FROM generate_series(1, {sessions}) session, generate_series(1, {turns}) turn;
ANALYZE messages
""",
    "sqlite": """
PRAGMA journal_mode=WAL;
CREATE TABLE messages (
    id integer PRIMARY KEY,
    session_id bigint NOT NULL, turn_number int NOT NULL, position int NOT NULL, role text NOT NULL,
    content text NOT NULL, created_at real NOT NULL DEFAULT (julianday('now')),
    UNIQUE (session_id, turn_number, position)
);
INSERT INTO messages (session_id, turn_number, position, role, content)
WITH RECURSIVE session (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM session WHERE id < {sessions}),
    turn (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM turn WHERE number < {turns})
SELECT session.id, turn.number, 0, 'user', '{prompt}' FROM session, turn;
ANALYZE messages
""",
}
FINISHED = {
    "postgresql": "SELECT extract(epoch FROM created_at) FROM messages WHERE role = 'assistant'",
    "sqlite": "SELECT (created_at - 2440587.5) * 86400 FROM messages WHERE role = 'assistant'",
}


def prepared(databases: Databases, load: Load) -> str:
    """A database with the one table of all baselines, and its prompts."""
    url = databases.create()
    script = TABLE[databases.kind].format(prompt=PROMPT, sessions=load.sessions, turns=TURNS_PER_SESSION)
    databases.run_script(url, script)
    return url


class BareLoop:
    """A bare loop in its own process.

    Args:
        name: what the table calls it.
        store: ``module:Class`` in `ops.bench.loops`.
        databases: where to work.
        model: answers the calls.
    """

    def __init__(self, name: str, store: str, databases: Databases, model: ModelServer) -> None:
        self.name = name
        self.database = databases.kind
        self._store = store
        self._databases = databases
        self._model = model
        self._template = ""

    def prepare(self, load: Load) -> None:
        self._template = prepared(self._databases, load)

    def run(self, load: Load) -> Reading:
        with copy_of(self._databases, self._template) as url:
            return self._measure(url, load)

    def _measure(self, url: str, load: Load) -> Reading:
        command = module(
            "ops.bench.bare",
            f"--store={self._store}",
            f"--database-url={url}",
            f"--model-url={self._model.base_url}",
            f"--in-flight={load.in_flight}",
            f"--sessions={load.sessions}",
        )
        with running(command) as child:
            first_line(child)
            idle = memory_bytes(child.pid)
            parts = {"worker": child.pid, **self._databases.parts}
            full = self._model.served() + load.in_flight
            tell(child, "go")
            wait_until(lambda: self._model.served() >= full, child, RAMP_SECONDS)
            samples = watch(parts, load.seconds)
        return read(samples, self._databases.times(url, FINISHED[self.database]), load.in_flight, idle)
