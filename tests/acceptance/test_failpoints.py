"""Every named place to fail, times every way to fail, times both databases: what was accepted comes to its end.

Each test has a database and a Redis of its own, and a real process that fails once. ``exit`` and ``stop`` are followed
by a healthy worker; ``sleep`` and ``raise`` must be got over by the failing one alone. A stopped process is continued
after others have taken over its work, and must do no harm. (Where it stopped in the middle of writing to a SQLite file
nobody can: the others wait until it goes on.)
"""

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, make_url, update

from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.failpoints import NAMES
from inturn.models.states import Lane, Role, TurnState
from inturn.models.store import working
from inturn.models.store.retention import MANY_TURNS
from inturn.models.store.working import Claim
from inturn.models.tables import MESSAGES, SESSIONS, TURNS
from ops.chaos import rounds
from ops.chaos.model import ModelServer
from ops.servers import RedisServer
from tests.acceptance.failing import FAULT_SECONDS, LEASE_SECONDS, REPAIR_SECONDS, Actor, Stage, Talk, wait_until
from tests.acceptance.toolshed import BOOK
from tests.spares import Spares

SLEEP_SECONDS = 1.5 * LEASE_SECONDS
ACTIONS = ("exit", "stop", "sleep", "raise")
KINDS = ("sqlite", "postgresql")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

IN_A_TURN = {
    "claim.after_commit": (1, 2),
    "start.after_commit": (1, 2),
    "call.after_send": (2, 2),
    "call.after_response": (2, 2),
    "release.before_recheck": (2, 2),
    "settle.before_commit": (2, 2),
    "settle.after_commit": (1, 1),
}
"""Where a worker may die with a turn in hand: how many calls and attempts that turn comes to."""

pytestmark = pytest.mark.timeout(150)

NewStage = Callable[[Path], AbstractContextManager[Stage]]

redis_databases = itertools.cycle(range(15, 4, -1))
"""Not the first ones: other deployments of this pytest process are there."""


def test_every_name_has_its_test() -> None:
    elsewhere = {
        "heartbeat.skip", "sweep.after_mark", "cleanup.between_chunks", "send.after_commit", "cancel.after_flag",
        "schedule.after_commit",  # test_schedules
    }  # fmt: skip
    assert elsewhere | set(IN_A_TURN) == set(NAMES)


@pytest.fixture(scope="module")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "inturn.db"
    database = Database(f"sqlite:///{path}")
    migrations.upgrade(database)
    database.close()
    return path


@pytest.fixture(scope="module", params=KINDS)
def new_stage(request: pytest.FixtureRequest, redis: RedisServer, model: ModelServer) -> NewStage:
    """Makes deployments on one kind of database."""

    @contextmanager
    def make(home: Path) -> Iterator[Stage]:
        if request.param == "sqlite":
            home.mkdir(mode=0o700, exist_ok=True)
            shutil.copy(request.getfixturevalue("empty_file"), home / "inturn.db")
            database_url = f"sqlite:///{home / 'inturn.db'}"
        else:
            spares: Spares = request.getfixturevalue("spares")
            database_url = spares.take()
        broker_url = make_url(redis.url).set(database=str(next(redis_databases))).render_as_string(False)
        stage = Stage(home, database_url, broker_url, model)
        yield stage
        stage.stop()
        if request.param != "sqlite":
            spares.give_back(database_url)

    return make


@pytest.fixture
def stage(new_stage: NewStage, tmp_path: Path) -> Iterator[Stage]:
    with new_stage(tmp_path / "home") as stage:
        yield stage


@pytest.fixture(scope="module")
def shared(new_stage: NewStage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A healthy worker for all tests in which somebody else fails."""
    with new_stage(tmp_path_factory.mktemp("shared") / "home") as stage:
        stage.command("worker")
        yield stage


@pytest.fixture
def name_of_test(request: pytest.FixtureRequest) -> str:
    """As a session's ID, which is in its prompts: the model's log is one for all tests."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")


@pytest.fixture
def talk(shared: Stage, name_of_test: str) -> Talk:
    return shared.talk(name_of_test)


def asked(name: str, action: str) -> str:
    """What the variable says."""
    return f"{name}:{action}" + (f"={SLEEP_SECONDS}" if action == "sleep" else "")


def goes_on_after(stage: Stage, name: str, action: str, talks: list[Talk], failpoint: str = "") -> None:
    """A worker that fails, and what follows: in the end everything is answered, also what is sent then."""
    failing = stage.command("worker", failpoint=failpoint or asked(name, action))
    failing.await_fault(name, action)
    if action == "stop":
        stand_still(stage, failing, talks)
    elif action == "exit":
        stage.command("worker")
    await_final(talks)
    for talk in talks:
        talk.say("and then?")
    await_final(talks)
    for talk in talks:
        talk.check()
    assert stage.is_whole()
    assert failing.has_ended() == (action == "exit"), failing.said()[-3000:]


def stand_still(stage: Stage, failing: Actor, talks: list[Talk]) -> None:
    """Another worker goes on with the turns of a stopped one, which then comes back."""
    kept_out = stage.is_locked()
    stage.command("worker")
    if kept_out:
        time.sleep(SLEEP_SECONDS)
    else:
        await_final(talks)
    failing.go_on()


def await_final(talks: list[Talk]) -> None:
    for talk in talks:
        talk.await_final()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", IN_A_TURN)
def test_a_worker_fails_with_a_turn_in_hand(stage: Stage, name_of_test: str, name: str, action: str) -> None:
    """Neither that session's waiting turns nor the other session's are held up for longer than a repair takes."""
    talks = [stage.talk(name_of_test), stage.talk(f"{name_of_test}-2")]
    for prompt in ("one", "two", "three"):
        talks[0].say(prompt)
    talks[1].say("four")
    goes_on_after(stage, name, action, talks)
    if action == "exit":
        row = talks[0].row(1)
        assert (len(talks[0].calls(1)), row.attempts) == IN_A_TURN[name]


IN_A_ROUND = {"call.after_response": (2, 4), "settle.before_commit": (2, 4), "settle.after_commit": (1, 3)}
"""Where a worker may die with a round in hand: how often its tool is run, and how many calls the turn comes to. The last one
has stored the round, and dies with the next attempt on record.
"""


@pytest.mark.parametrize("name", IN_A_ROUND)
def test_a_worker_fails_with_a_round_in_hand(stage: Stage, name_of_test: str, name: str) -> None:
    """Calls and results are stored together, or not at all; and a call that is made again has the same key."""
    session = stage.client.create_session(name_of_test, tools=["note"])
    call = {"name": "note", "arguments": {"text": "milk"}}
    turn = session.send(f"buy it, {name_of_test} !" + json.dumps({"calls": [call, call]}))
    stage.command("worker", failpoint=asked(name, "exit")).await_fault(name, "exit")
    stage.command("worker")
    reply = turn.wait(REPAIR_SECONDS)
    runs, calls = IN_A_ROUND[name]
    lines = [json.loads(line)["key"] for line in (stage.home / BOOK).read_text().splitlines()]
    assert (len(lines), len(set(lines[:runs])), len(set(lines))) == (runs + 1, 1, 2)
    kinds = [message.type.removesuffix(".message") for message in session.get_messages()]
    assert kinds == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert reply.data.content.endswith("; a tool said: noted milk" * 2)
    shown = [each for each in stage.model.calls() if name_of_test in str(each.messages)]
    assert [rounds.fault({"messages": each.messages}) for each in shown] == [None] * len(shown)
    assert (len(shown), turn.refresh().attempts) == (calls, 4)
    assert stage.is_whole()


@pytest.mark.parametrize("action", ACTIONS)
def test_a_heart_misses_its_beats(stage: Stage, name_of_test: str, action: str) -> None:
    """The call under way is never answered: somebody must notice that its lease has run out."""
    name, talk = "heartbeat.skip", stage.talk(name_of_test)
    talk.say("one", act="hang", times=1)
    talk.say("two")
    many = ",".join(f"{name}:raise@{time}" for time in range(3, 60))
    goes_on_after(stage, name, action, [talk], many if action == "raise" else asked(name, action) + "@3")
    assert (len(talk.calls(1)), talk.row(1).attempts) == (2, 2)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_sweeper_fails_before_it_tells(stage: Stage, name_of_test: str, action: str) -> None:
    """It has taken over a dead worker's session, and no hint says so."""
    talk = stage.talk(name_of_test)
    talk.say("one")
    talk.say("two")
    with stage.database.writing() as db:
        (started,) = working.claim(db, "a worker that died", 0.1, 20, [Claim(Lane.CHAT)])
    assert started
    assert started.number == 1
    goes_on_after(stage, "sweep.after_mark", action, [talk])
    assert (len(talk.calls(1)), talk.row(1).attempts) == (1, 2)


SEND = """
with Client() as client:
    print(client.resume_session(sys.argv[1]).send(sys.argv[2], idempotency_key=sys.argv[2]).id, flush=True)
"""


@pytest.mark.parametrize("action", ACTIONS)
def test_a_sender_fails_after_its_commit(shared: Stage, talk: Talk, action: str) -> None:
    """No hint went out; and it may send again, as it cannot know."""
    name, prompt = "send.after_commit", f"one of {talk.id}"
    talk.prompts[1] = prompt
    failing = shared.python(SEND, talk.id, prompt, failpoint=asked(name, action))
    failing.await_fault(name, action)
    talk.await_final()
    turn = talk.session.send(prompt, idempotency_key=prompt)
    assert turn.number == 1
    await_goodbye(failing, action)
    assert (turn.id in failing.said().splitlines()) == (action in ("stop", "sleep"))
    talk.say("two")
    talk.await_final()
    talk.check()


CANCEL = """
with Client() as client:
    print(client.get_turn(sys.argv[1]).cancel(), flush=True)
"""


@pytest.mark.parametrize("action", ACTIONS)
def test_a_canceller_fails_after_its_flag(shared: Stage, talk: Talk, action: str) -> None:
    """The worker is not told, and finds out; twice is harmless."""
    name = "cancel.after_flag"
    turn = talk.say("one", act="hang")
    talk.say("two")
    wait_until(lambda: talk.calls(1), FAULT_SECONDS)
    failing = shared.python(CANCEL, turn.id, failpoint=asked(name, action))
    failing.await_fault(name, action)
    talk.await_final()
    await_goodbye(failing, action)
    assert not turn.cancel()
    wait_until(lambda: talk.calls(1)[0].outcome == "client gone", REPAIR_SECONDS)
    talk.say("three")
    talk.await_final()
    talk.check(cancelled=frozenset([1]))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_cleanup_fails_between_two_sessions(shared: Stage, name_of_test: str, action: str) -> None:
    """One is removed, one is not, and the third comes back to life meanwhile: it must stay."""
    name = "cleanup.between_chunks"
    due, kept = [shared.talk(f"{name_of_test}-{number}").id for number in range(2)], shared.talk(name_of_test)
    with shared.database.writing() as db:
        db.execute(update(SESSIONS).where(SESSIONS.c.key.in_([*due, kept.id])).values(last_activity_at=LONG_AGO))
    failing = shared.command("cleanup", "--yes", failpoint=asked(name, action))
    failing.await_fault(name, action)
    kept.say("still here")
    kept.await_final()
    await_goodbye(failing, action)
    assert shared.command("cleanup", "--yes").await_end() == 0
    removed = shared.query("SELECT session_key FROM removals WHERE session_key LIKE :keys", keys=f"{name_of_test}%")
    assert [row.session_key for row in removed] == due
    kept.check()


DELETE = """
with Client() as client:
    client.delete_session(sys.argv[1])
"""


@pytest.mark.parametrize("action", ACTIONS)
def test_a_delete_fails_with_half_of_a_session_removed(shared: Stage, name_of_test: str, action: str) -> None:
    """The sweep removes the rest; whoever made the session anew meanwhile keeps that one."""
    name, doomed = "cleanup.between_chunks", shared.talk(name_of_test)
    surrogate = fill(shared.database, doomed.id, MANY_TURNS + 100)
    failing = shared.python(DELETE, doomed.id, failpoint=asked(name, action))
    failing.await_fault(name, action)
    wait_until(lambda: not rows_of(shared, surrogate), REPAIR_SECONDS)
    anew = shared.talk(doomed.id)
    anew.say("one")
    anew.await_final()
    await_goodbye(failing, action)
    anew.check()
    assert not rows_of(shared, surrogate)


def await_goodbye(failing: Actor, action: str) -> None:
    """Who was only held up finishes; who met an error says so."""
    if action == "stop":
        failing.go_on()
    if action in ("stop", "sleep"):
        assert failing.await_end() == 0, failing.said()
    elif action == "raise":
        assert failing.await_end() == 1
        assert "FailpointError" in failing.said()


def fill(database: Database, key: str, turns: int) -> int:
    """Give a session a long past. Returns its surrogate ID."""
    with database.writing() as db:
        mine = update(SESSIONS).where(SESSIONS.c.key == key).values(next_turn=turns + 1).returning(SESSIONS.c.id)
        session = int(db.execute(mine).scalar_one())
        same = {"session_id": session, "created_at": LONG_AGO}
        turn = {"state": TurnState.COMPLETED, "lane": Lane.CHAT, "model": "server/model", "options": {}}
        times = {"ready_at": LONG_AGO, "finished_at": LONG_AGO}
        counts = {"attempts": 1, "ambiguous": 0, "rescues": 0}
        said = {"position": 1, "role": Role.USER, "content": "long ago"}
        numbers = range(1, turns + 1)
        db.execute(insert(TURNS), [same | turn | times | counts | {"number": number} for number in numbers])
        db.execute(insert(MESSAGES), [same | said | {"turn_number": number} for number in numbers])
    return session


def rows_of(stage: Stage, session: int) -> int:
    """How many rows are left of a session."""
    owned = " + ".join(
        f"(SELECT count(*) FROM {table} WHERE session_id = :session)"
        for table in ("turns", "messages", "attempts", "leases")
    )
    (row,) = stage.query(f"SELECT {owned} + (SELECT count(*) FROM sessions WHERE id = :session) AS n", session=session)
    return int(row.n)
