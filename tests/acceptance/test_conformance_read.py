"""The conformance list, lines 18 to 22: read. 19 (events) is in test_conformance_live.py."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from inturn import Client, InvalidInputError, Session
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until

LONG = 100_000
LONG_LIFE = """
INSERT INTO turns (session_id, number, state, lane, model, options, ready_at, attempts, ambiguous, rescues, created_at,
    finished_at)
{numbers} SELECT :session, i, 'completed', 'chat', 'echo/echo', '{{}}', {then}, 1, 0, 0, {then}, {then} FROM n;
INSERT INTO messages (session_id, turn_number, position, role, content, created_at)
{numbers} SELECT :session, i, 1, 'user', 'prompt ' || i, {then} FROM n;
INSERT INTO messages (session_id, turn_number, position, role, content, created_at)
{numbers} SELECT :session, i, 2, 'assistant', 'reply ' || i, {then} FROM n;
UPDATE sessions SET next_turn = :turns + 1 WHERE id = :session;
ANALYZE"""

UNICODE = {
    "scripts": "Grüße, 你好, こんにちは, Здравствуй, नमस्ते, שלום, مرحبا, 안녕하세요, ሰላም, ᚠᛇᚻ",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺 👍🏽 ❤️",
    "combining": "e\u0301 \u00e9 Z\u0351\u036b\u0343 \u1100\u1161\u11a8",
    "bidirectional": "\u202eback\u202c \u2066isolated\u2069 \u200f",
    "invisible": "\ufeffbom \u200b \u00ad \u2060 \u00a0",
    "lines": "a\r\nb\nc\rd\u0085e\u2028f\u2029g\x0bh\x0ci",
    "controls": "".join(map(chr, [*range(1, 32), *range(127, 160)])) + "x",
    "noncharacters": "\ufffe \uffff \ufdd0 \U0001ffff \U0010ffff",
    "private": "\ue000 \U000f0000 \U00100000",
    "quotes": "'; DROP TABLE sessions; -- \" \\ \\u0041 \\x00 %s %(x)s {x} $1 :name ?",
}
REPLACED = (
    ("a\x00b", "a\ufffdb"),
    ("a\ud800b", "a\ufffdb"),
    ("a\udfffb", "a\ufffdb"),
    ("\udc80", "\ufffd"),
    ("\x00\x00", "\ufffd\ufffd"),
    ("\ud83d\ude00", "😀"),
    ("\ude00\ud83d", "\ufffd\ufffd"),
)


@contextmanager
def watched(client: Client, dialect: str) -> Iterator[list[int]]:
    """What each statement of the client costs the database: steps of SQLite's machine, or rows that PostgreSQL touches."""
    costs: list[int] = []

    def count_steps(db: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            return
        costs.append(0)

        def step() -> int:
            costs[-1] += 1
            return 0

        cursor.connection.set_progress_handler(step, 1)

    def explain(db: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        costs.append(touched(cursor.fetchone()[0][0]["Plan"]))

    watch = count_steps if dialect == "sqlite" else explain
    engine = client.connections.database.engine
    event.listen(engine, "before_cursor_execute", watch)
    try:
        yield costs
    finally:
        event.remove(engine, "before_cursor_execute", watch)


def touched(plan: dict[str, Any]) -> int:
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return int(own) + sum(map(touched, plan.get("Plans", [])))


def live_long(client: Client, session: Session) -> None:
    """100,000 turns in a moment, past the SDK."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :turns)"
    then = "'2026-01-01 00:00:00.000000'"
    values = {"session": int(session.metadata().cursor), "turns": LONG}
    with client.connections.database.writing() as db:
        for statement in LONG_LIFE.format(numbers=numbers, then=then).split(";"):
            db.execute(text(statement), {name: value for name, value in values.items() if f":{name}" in statement})


def test_18_messages_come_in_order_with_all_that_is_known_of_them(client: Client, name: str):
    began = datetime.now(UTC)
    session = client.create_session(name, system_message="be brief")
    session.send_and_wait("one", timeout=30)
    client.resume_session(name, system_message="be long")
    session.send_and_wait("two", timeout=30)
    messages = list(session.get_messages())
    assert [(message.type, message.turn) for message in messages] == [
        ("system.message", 1),
        ("user.message", 1),
        ("assistant.message", 1),
        ("system.message", 2),
        ("user.message", 2),
        ("assistant.message", 2),
    ]
    assert [message.data.content for message in messages if message.type == "user.message"] == ["one", "two"]
    assert len({message.id for message in messages}) == 6
    times = [message.timestamp for message in messages]
    assert times == sorted(times)
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert began - timedelta(seconds=1) <= times[0] <= times[-1] <= datetime.now(UTC) + timedelta(seconds=1)

    assert list(session.get_messages(limit=2)) == messages[:2]
    assert list(session.get_messages(after=messages[1].id)) == messages[2:]
    assert list(session.get_messages(after=messages[1].id, limit=3)) == messages[2:5]
    assert list(session.get_messages(after=messages[-1].id)) == []
    assert list(session.get_messages(limit=0)) == []
    foreign = client.create_session(f"{name}-other").send_and_wait("hello", timeout=30)
    for bad in (foreign.id, "", "1", "x.y.z", messages[0].id + ".1", messages[0].id.replace(".", ".-", 1), "9" * 40):
        with pytest.raises(InvalidInputError):
            session.get_messages(after=bad)


def test_18_a_page_costs_the_same_at_turn_10_and_at_turn_100_000(deserted: Deployment, name: str):
    with deserted.client() as client:
        session = client.create_session(name)
        live_long(client, session)
        surrogate = session.metadata().cursor
        pages = []
        with watched(client, client.connections.database.dialect) as costs:
            for turn in (10, LONG - 10):
                pages.append(list(session.get_messages(after=f"{surrogate}.{turn}.2", limit=10)))
        for first, page in zip((11, LONG - 9), pages, strict=True):
            said = [f"{word} {turn}" for turn in range(first, first + 5) for word in ("prompt", "reply")]
            assert [message.data.content for message in page] == said
        assert len(costs) == 2, "one statement a page"
        assert costs[1] <= costs[0] * 1.1
        assert costs[0] < 2000
        many = itertools.islice(session.get_messages(after=f"{surrogate}.{LONG - 200}.1"), 500)
        assert [message.turn for message in many] == sorted([*range(LONG - 199, LONG + 1)] * 2 + [LONG - 200])
        assert session.send("still there?").number == LONG + 1


def test_20_list_sessions_tells_about_each(client: Client, name: str):
    session = client.create_session(name, model="server/model", labels={"user": "u1"}, system_message="be brief")
    began = datetime.now(UTC) - timedelta(seconds=1)
    idle = next(client.list_sessions(prefix=name))
    turn = session.send('hello !{"act": "hang"}')
    busy = next(client.list_sessions(prefix=name))
    turn.cancel()
    wait_until(lambda: not session.metadata().busy)
    assert (idle.session_id, idle.model, idle.labels, idle.system_message) == (
        name, "server/model", {"user": "u1"}, "be brief",
    )  # fmt: skip
    assert (idle.turns, idle.messages, idle.busy) == (0, 1, False)
    assert (busy.turns, busy.messages, busy.busy) == (1, 2, True)
    assert (
        began
        < idle.created_at
        <= idle.last_activity_at
        < busy.last_activity_at
        < datetime.now(UTC) + timedelta(seconds=1)
    )
    assert session.metadata() == next(client.list_sessions(prefix=name))


def test_20_list_sessions_filters(client: Client, name: str):
    def found(**wanted: Any) -> list[str]:
        return [one.session_id.removeprefix(name) for one in client.list_sessions(**({"prefix": name} | wanted))]

    strange = {'a"b': "x", "a.b[0]": "y", "$": "z", "it's": "1", "ключ": "значение", "\x00": "\ud800"}
    for ending, how in (
        ("", {}),
        ("-a", {"labels": {"user": "u1", "kind": "x"}}),
        ("-b", {"labels": {"user": "u2", "kind": "x"}, "model": "echo/other"}),
        ("_c", {"labels": strange}),
        ("A", {"labels": {"user": "U1"}}),
    ):
        client.create_session(name + ending, **how)
    assert found() == ["", "-a", "-b", "_c", "A"]
    assert found(prefix=f"{name}-") == ["-a", "-b"]
    assert found(prefix=f"{name}_") == ["_c"]
    assert found(prefix=f"{name}a") == []
    for prefix in (f"{name}%", f"{name}\x00", f"{name}\ud800", f"{name}\ud7ff", "\U0010ffff"):
        assert found(prefix=prefix) == []
    assert found(labels={"kind": "x"}) == ["-a", "-b"]
    assert found(labels={"kind": "x", "user": "u2"}) == ["-b"]
    assert found(labels={"user": "nobody"}) == []
    for label, value in strange.items():
        assert found(labels={label: value}) == ["_c"]
    assert found(model="echo/other") == ["-b"]
    assert found(model="echo/\x00") == []
    held = client.resume_session(f"{name}-a", model="server/model").send('hello !{"act": "hang"}')
    assert found(busy=True) == ["-a"]
    assert found(busy=False) == ["", "-b", "_c", "A"]
    held.cancel()
    moment = client.resume_session(f"{name}-b").metadata().last_activity_at
    assert found(active_after=moment) == ["-b"]
    assert found(active_before=moment) == ["", "-a", "_c", "A"]
    assert found(active_after=moment.astimezone(), labels={"kind": "x"}) == ["-b"]
    assert found(active_after=moment, active_before=moment) == []
    with pytest.raises(InvalidInputError, match="timezone"):
        found(active_after=moment.replace(tzinfo=None))


def test_20_list_sessions_pages_and_is_stable_while_rows_arrive(client: Client, name: str, threads: ThreadPoolExecutor):
    def create(number: int) -> str:
        return client.create_session(f"{name}-{number:03}").session_id

    made = set(threads.map(create, range(105)))
    page = list(client.list_sessions(prefix=name, limit=40))
    assert len(page) == 40
    client.delete_session(page[0].session_id)
    client.resume_session(page[1].session_id).send("I come first now")
    late = {create(number) for number in range(105, 110)}
    rest = list(client.list_sessions(prefix=name, after=page[-1].cursor))
    listed = [one.session_id for one in (*page, *rest)]
    assert set(listed) == made | late
    assert len(listed) == 110, "none twice"
    assert set(listed[-5:]) == late

    going_on = client.list_sessions(prefix=name)
    first = next(going_on)
    latest = create(110)
    assert [first.session_id, *(one.session_id for one in going_on)] == [*listed[1:], latest]
    assert list(client.list_sessions(prefix=name, limit=0)) == []
    for bad in ("x", "-1", "1.5", "9" * 40):
        with pytest.raises(InvalidInputError):
            client.list_sessions(after=bad)


def test_21_metadata_of_the_unknown_and_the_last_session(deserted: Deployment, name: str):
    with deserted.client() as client:
        assert client.get_last_session_id() is None
        assert client.get_session_metadata(name) is None
        first = client.create_session(f"{name}-first")
        assert client.get_last_session_id() == f"{name}-first"
        client.create_session(f"{name}-second")
        assert client.get_last_session_id() == f"{name}-second"
        first.send("hello")
        assert client.get_last_session_id() == f"{name}-first"
        client.resume_session(f"{name}-second")
        client.get_session_metadata(f"{name}-first")
        list(first.get_messages())
        assert client.get_last_session_id() == f"{name}-second"
        client.delete_session(f"{name}-second")
        assert client.get_last_session_id() == f"{name}-first"
        assert client.get_session_metadata(f"{name}-second") is None
        client.delete_session(f"{name}-first")
        assert client.get_last_session_id() is None


@pytest.mark.parametrize("kind", UNICODE)
def test_22_unicode_of_every_kind_round_trips(deployment: Deployment, client: Client, name: str, kind: str):
    said = UNICODE[kind]
    client.create_session(name, system_message=said, labels={said: said}, options={"reply": said})
    with deployment.client() as other:
        session = other.resume_session(name)
        assert session.send_and_wait(said, timeout=30).data.content == said
        assert [message.data.content for message in session.get_messages()] == [said] * 3
        assert next(session.get_turns()).prompt == said
        metadata = session.metadata()
    assert (metadata.system_message, metadata.labels, metadata.options) == (said, {said: said}, {"reply": said})
    assert [one.session_id for one in client.list_sessions(prefix=name, labels={said: said})] == [name]


def test_22_nul_and_lone_surrogates_are_replaced(client: Client, name: str):
    for number, (said, stored) in enumerate(REPLACED):
        session = client.create_session(
            f"{name}-{number}", system_message=said, labels={said: said}, options={"reply": said}
        )
        reply = session.send_and_wait(said, timeout=30, options={"reply": f"{said}!"})
        assert reply.data.content == f"{stored}!"
        assert [message.data.content for message in session.get_messages()] == [stored, stored, f"{stored}!"]
        assert session.metadata().labels == {stored: stored}
        assert (
            client.resume_session(session.session_id, system_message=f"{said}?").metadata().system_message
            == f"{stored}?"
        )
        assert session.send("again", idempotency_key="k").id == session.send("again", idempotency_key="k").id
        assert session.send(said, idempotency_key="s").id == session.send(said, idempotency_key="s").id
