"""Sessions that are exported and imported: the same history, on either database, or one sentence and nothing."""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inturn import Client, InvalidInputError, Session, SessionExistsError, Settings, UnknownModelError
from inturn.models.states import AttemptOutcome, TurnState
from inturn.models.store import opening
from inturn.models.store.transcripts import OF_TURN
from inturn.models.store.working import Summary
from inturn.models.tables import SESSIONS, SUMMARY, TURNS
from ops.servers import PostgresServer
from tests.integration.rounds import answered, begun, go_round, settle
from tests.integration.stores import Store, settlement

Lines = list[dict[str, Any]]


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[Client]:
    url = store.database.url.render_as_string(hide_password=False)
    with Client(Settings.load(home=tmp_path / "home", database_url=url, broker_url="redis://127.0.0.1:1/0")) as client:
        yield client


@pytest.fixture
def told(store: Store, client: Client) -> Session:
    """A session with a bit of everything."""
    session = store.session(
        system_message="be brief", labels={"owner": "ada"}, options={"temperature": 0.2}, context_turns=7, halts=True
    )
    store.answer(prompt="one ü \u2028 🙂")
    store.answer(prompt="two", state=TurnState.FAILED)
    opening.resume_session(store.database, "s", system_message="be long")
    store.send(prompt="three", when_busy="coalesce", options={"seed": 1})
    store.send(prompt="four", when_busy="coalesce")
    store.settle(store.start(session), reply="both", input_tokens=20, output_tokens=3)
    store.send(prompt="five")
    store.send(prompt="never mind")
    opening.resume_session(store.database, "s", system_message="from now on")
    return client.get_session("s")


def exported(session: Session, form: Any = "jsonl") -> bytes:
    return b"".join(session.export(form))


def imported(client: Client, text: bytes, key: str = "t", **how: Any) -> Session:
    return client.import_session(io.BytesIO(text), key, **how)


def without(name: str, text: bytes) -> Any:
    """A transcript in lines, and what is not the same in another session taken out."""
    return [{field: value for field, value in json.loads(line).items() if field != name} for line in text.splitlines()]


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_what_is_exported_is_the_same_when_it_is_imported(store: Store, client: Client, told: Session, form: str):
    text = exported(told, form)
    there = imported(client, text)
    assert [(m.type, m.data.content, m.timestamp) for m in there.get_messages()] == [
        (m.type, m.data.content, m.timestamp) for m in told.get_messages()
    ][: len(list(there.get_messages()))]
    again = exported(there)
    first, *turns, end = without("session_id", exported(told))
    assert without("session_id", again)[:-1] == [first, *turns]
    assert end["turns"] == len(turns) == 4
    assert set(json.loads(again.splitlines()[1])) == {"type", "messages", *OF_TURN}
    metadata, there_too = told.metadata(), there.metadata()
    for name in ("model", "labels", "options", "context_turns", "halts", "created_at", "retention"):
        assert getattr(metadata, name) == getattr(there_too, name)


def test_an_imported_session_goes_on(store: Store, client: Client, told: Session):
    there = imported(client, exported(told))
    sent = there.send("and now?")
    started = store.start(int(sent.id.partition(".")[0]))
    assert [message["content"] for message in started.messages] == [
        "be long", "one ü \u2028 🙂", "reply to: one ü \u2028 🙂", "three\n\nfour", "both", "and now?",
    ]  # fmt: skip


def test_a_system_message_that_waits_goes_along(store: Store, client: Client):
    session = store.session()
    store.answer(prompt="one")
    opening.resume_session(store.database, "s", system_message="from now on")
    there = imported(client, exported(client.get_session("s")))
    started = store.start(int(there.send("two").id.partition(".")[0]))
    assert started.messages[0]["content"] == "from now on"
    assert session != started.session_id


def test_calls_of_tools_and_summaries_go_along(store: Store, client: Client):
    again = go_round(store, begun(store), "cold")
    store.change(SESSIONS, SESSIONS.c.id == again.session_id, overflow="summarise")
    store.send(prompt="and tomorrow?")
    _, second = settle(store, answered(again), claims=True)
    assert second is not None
    summary = Summary(1, "it was cold")
    summed = settlement(second, TurnState.QUEUED, outcome=AttemptOutcome.COMPLETED, summary=summary)
    _, under_it = settle(store, summed, claims=True)
    assert under_it is not None
    settle(store, answered(under_it, "windy"))
    text = exported(client.get_session("s"))
    there = imported(client, text)
    assert exported(there).splitlines()[1:-1] == text.splitlines()[1:-1]
    positions = [[message["position"] for message in json.loads(line)["messages"]] for line in text.splitlines()[1:-1]]
    assert positions == [[1, 2, 3, 4, SUMMARY], [1, 2]]
    started = store.start(int(there.send("and then?").id.partition(".")[0]))
    assert started.summary == "it was cold"
    assert [message["content"] for message in started.messages][-3:] == ["and tomorrow?", "windy", "and then?"]


def test_either_database_takes_what_the_other_one_wrote(
    store: Store, client: Client, told: Session, postgres: PostgresServer, tmp_path: Path
):
    url = postgres.create_database() if store.is_sqlite else f"sqlite:///{tmp_path / 'other.db'}"
    other = Store(url)
    elsewhere = Client(Settings.load(home=tmp_path / "other", database_url=url, broker_url="redis://127.0.0.1:1/0"))
    try:
        text = exported(told)
        assert without("session_id", exported(imported(elsewhere, text, "s")))[:-1] == without("session_id", text)[:-1]
    finally:
        elsewhere.stop()
        other.close()


def test_a_long_session_is_exported_page_by_page(store: Store, client: Client):
    session = store.session()
    store.answer(prompt="one")
    with store.database.writing() as db:
        row = dict(db.execute(TURNS.select()).mappings().one())
        db.execute(TURNS.insert(), [row | {"number": number} for number in range(2, 502)])
        db.exec_driver_sql(
            "INSERT INTO messages (session_id, turn_number, position, role, content, created_at) "
            "SELECT m.session_id, t.number, m.position, m.role, m.content, m.created_at "
            "FROM turns t JOIN messages m ON m.turn_number = 1 WHERE t.number > 1"
        )
        db.exec_driver_sql("UPDATE sessions SET next_turn = 502")
    text = exported(client.get_session("s"))
    assert [entry.get("number") for entry in map(json.loads, text.splitlines())] == [None, *range(1, 502), None]
    assert len(list(imported(client, text).get_messages())) == 1002
    assert session


def change(lines: Lines, number: int, **values: Any) -> None:
    lines[number - 1] |= values


def say(lines: Lines, number: int, message: int, **values: Any) -> None:
    lines[number - 1]["messages"][message] |= values


DAMAGES: dict[str, tuple[Callable[[Lines], object], str]] = {
    "no prompt": (lambda lines: say(lines, 2, 1, role="assistant"), "line 2: it has no prompt"),
    "a role that is none": (
        lambda lines: say(lines, 2, 1, role="boss"),
        r"line 2: messages\.1\.role: Input should",
    ),
    "no reply": (lambda lines: lines[1]["messages"].pop(), "line 2: it is completed, and has no reply"),
    "an unfinished turn": (lambda lines: change(lines, 3, state="running"), "line 3: state: Input should be"),
    "a failure for nothing": (
        lambda lines: change(lines, 3, error_type=None),
        "line 3: .* its error_type is None",
    ),
    "a turn is missing": (lambda lines: lines.pop(2), "line 3: turn 3 follows turn 1"),
    "the last turn is missing": (lambda lines: lines.pop(4), "line 1: it says that there are 4 turns, and there are 3"),
    "another system message": (lambda lines: change(lines, 2, system_turn=3), "line 2: system_turn is 3, which has no"),
    "messages in disorder": (lambda lines: lines[1]["messages"].reverse(), "line 2: its messages are not in order"),
    "joined into nothing": (lambda lines: change(lines, 4, merged_into=9), "line 4: merged_into is 9"),
    "a moment without its zone": (
        lambda lines: change(lines, 2, created_at="2026-01-01T00:00:00"),
        "line 2: created_at: ",
    ),
    "what nobody knows": (lambda lines: change(lines, 2, mood="good"), "line 2: mood: Extra inputs are not permitted"),
    "a later version": (lambda lines: change(lines, 1, version=2), "line 1: version: Input should be 1"),
    "a retention that is none": (
        lambda lines: change(lines, 1, retention="soon"),
        "line 1: retention: Input should be",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_transcript_is_refused_by_its_line(store: Store, client: Client, told: Session, damage: str):
    harm, sentence = DAMAGES[damage]
    lines = [json.loads(line) for line in exported(told).splitlines()]
    harm(lines)
    before = store.everything()
    with pytest.raises(InvalidInputError, match=sentence) as refusal:
        imported(client, resealed(lines))
    assert str(refusal.value).endswith("Nothing was imported")
    assert store.everything() == before


def resealed(lines: Lines) -> bytes:
    """With the checksum that they have now."""
    body = "".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines[:-1]).encode()
    end = lines[-1] | {"sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda text: text[: len(text) // 2], r"line \d: "),
        (lambda text: b"".join(text.splitlines(keepends=True)[:-1]), "line 5: the file ends here, .*it was cut off"),
        (lambda text: text.replace(b"be brief", b"be grief"), "line 6: the lines before it are not those"),
        (lambda text: text + b"and more\n", "line 7: something follows"),
        (lambda text: b"", "it is no transcript: neither JSON"),
        (lambda text: b'{"turns": 3', "it is no transcript: neither JSON"),
        (lambda text: b"[1, 2]", "it is no transcript: `inturn session export` writes them"),
        (lambda text: b"\xff\xfe", "it is no transcript"),
    ],
    ids=["half", "no end", "changed", "more", "empty", "half an object", "something else", "no text"],
)
def test_a_file_that_is_not_whole_is_refused(
    store: Store, client: Client, told: Session, spoil: Callable[[bytes], bytes], sentence: str
):
    before = store.everything()
    with pytest.raises(InvalidInputError, match=sentence):
        imported(client, spoil(exported(told)))
    assert store.everything() == before


def test_who_is_asked_has_to_be_known_here(client: Client, told: Session):
    text = exported(told).replace(b'"model":"echo/echo","fallbacks"', b'"model":"lost/model","fallbacks"', 1)
    text = resealed([json.loads(line) for line in text.splitlines()])
    with pytest.raises(UnknownModelError, match="'lost/model'"):
        imported(client, text)
    assert imported(client, text, model="echo/other").metadata().model == "echo/other"


def test_an_id_that_is_taken_is_not_imported_over(store: Store, client: Client, told: Session):
    before = store.everything()
    with pytest.raises(SessionExistsError, match="'s'"):
        client.import_session(io.BytesIO(exported(told)))
    assert store.everything() == before


def test_a_file_that_cannot_be_read(client: Client, tmp_path: Path):
    for path, why in ((tmp_path / "none.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidInputError, match=re.escape(f"{path} cannot be read: {why}")):
            client.import_session(path)
    with pytest.raises(InvalidInputError, match="'yaml' is no form of a transcript: there are jsonl, json, md"):
        client.create_session("x").export("yaml")  # type: ignore[arg-type]


def test_people_can_read_it(told: Session):
    text = exported(told, "md").decode()
    assert text.startswith("# s\n\necho/echo, 4 turns, since 20")
    assert "owner=ada" in text
    for said in (
        "**System**",
        "**User**",
        "**Assistant**",
        "one ü",
        "be long",
        "*failed: http_500: broken*",
        "*cancelled*",
    ):
        assert said in text
    assert "never mind" not in text
