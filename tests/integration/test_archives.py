"""Sessions that are archived before they are removed, and imported again: all that was asked for, or a sentence."""

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from inturn import (
    ArchiveError,
    Client,
    InvalidInputError,
    SessionExistsError,
    Settings,
    StorageError,
    UnfinishedTurnsError,
    UnknownModelError,
    aio,
)
from inturn.archives import importing
from inturn.archives.importing import ImportedSession
from inturn.archives.reading import opened
from inturn.archives.writing import Archive, Sealed
from inturn.cleaning import Cleanup
from inturn.models.clock import now
from inturn.models.states import TurnState
from inturn.models.store.rules import Rule
from inturn.models.store.transcripts import store_transcript
from inturn.models.tables import SESSIONS
from ops.servers import PostgresServer
from tests.integration.stores import Store
from tests.integration.test_cli_commands import Shell, shell

__all__ = ["shell"]

NAME = "inturn-20261129T030000Z-idle-7.jsonl.gz"
KEYS = ("ann-1", "ann-2", "bob-1")


def client_of(store: Store, home: Path) -> Client:
    url = store.database.url.render_as_string(hide_password=False)
    return Client(Settings.load(home=home, database_url=url, broker_url="redis://127.0.0.1:1/0"))


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[Client]:
    with client_of(store, tmp_path / "home") as client:
        yield client


@pytest.fixture
def told(store: Store) -> dict[str, int]:
    """Three sessions, by their keys."""
    made = {}
    for key in KEYS:
        made[key] = store.session(key, system_message="be brief", labels={"key": key})
        store.answer(key, f"one of {key} \u2028 🙂")
        store.answer(key, "two", state=TurnState.FAILED)
    return made


def histories(client: Client) -> dict[str, list[Any]]:
    return {
        key: [(m.type, m.data.content, m.timestamp) for m in client.get_session(key).get_messages()] for key in KEYS
    }


def keep(store: Store, archive: Archive, chunk: list[int]) -> int:
    with store.database.snapshot() as db:
        kept = archive.keep(db, chunk)
    archive.sync()
    return kept


def archived(store: Store, directory: Path, *chunks: list[int]) -> Sealed:
    """As a cleanup run does it."""

    with Archive.create(directory, NAME) as into:
        for chunk in chunks:
            assert keep(store, into, chunk) == len(chunk)
            store.write(lambda db, chunk: db.execute(delete(SESSIONS).where(SESSIONS.c.id.in_(chunk))), chunk)
        sealed = into.seal()
    assert sealed is not None
    return sealed


@pytest.fixture
def archive(store: Store, client: Client, told: dict[str, int], tmp_path: Path) -> str:
    """Their archive; they are removed."""
    first, *others = told.values()
    return archived(store, tmp_path, [first], others).location


def test_what_is_archived_and_removed_can_be_imported_again(
    store: Store, client: Client, told: dict[str, int], tmp_path: Path
):
    before, (first, *others) = histories(client), told.values()
    sealed = archived(store, tmp_path, [first], others)
    assert sealed.sessions == 3
    assert list(client.list_sessions()) == []
    seen: list[tuple[int, int]] = []
    found = client.import_archive(sealed.location, on_progress=lambda *done: seen.append(done))
    assert found == [ImportedSession(key, 2) for key in KEYS]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert histories(client) == before
    assert client.get_session("bob-1").metadata().labels == {"key": "bob-1"}
    client.get_session("bob-1").send("three")
    assert store.start().messages[-1]["content"] == "three"


def test_what_is_imported_is_not_removed_by_the_same_rule_at_once(
    store: Store, client: Client, told: dict[str, int], tmp_path: Path
):
    """Its age and its idle time count from the import; when it was made stays true."""
    rules = [
        Rule("idle", match="ann-*", idle_seconds=60.0, archive=str(tmp_path)),
        Rule("age", match="bob-*", age_seconds=60.0, archive=str(tmp_path)),
    ]
    work = Cleanup(store.database, rules, "a test")
    past = {"created_at": now(-3600), "last_activity_at": now(-3600)}
    store.change(SESSIONS, SESSIONS.c.id > 0, **past)
    made = client.get_session("bob-1").metadata().created_at
    assert {removal.session_id for removal in work.run()} == set(KEYS)
    for archive in tmp_path.glob("inturn-*.gz"):
        client.import_archive(archive)
    assert list(work.due()) == []
    again = client.get_session("bob-1").metadata()
    assert again.created_at == made
    assert again.imported_at is not None
    assert made < again.imported_at
    assert abs(again.imported_at - again.last_activity_at) < timedelta(seconds=1), (
        "one statement, and two looks at the clock"
    )
    fork = client.get_session("bob-1").fork("bob-2").metadata()
    assert (fork.imported_at, fork.created_at > made) == (None, True)
    store.change(SESSIONS, SESSIONS.c.key == "bob-1", imported_at=now(-61))
    assert [removal.session_id for removal in work.run()] == ["bob-1"]


def test_either_database_takes_what_the_other_one_archived(
    store: Store, client: Client, told: dict[str, int], archive: str, postgres: PostgresServer, tmp_path: Path
):
    url = postgres.create_database() if store.is_sqlite else f"sqlite:///{tmp_path / 'other.db'}"
    other = Store(url)
    try:
        with client_of(other, tmp_path / "other") as elsewhere:
            elsewhere.import_archive(Path(archive))
            client.import_archive(Path(archive))
            assert histories(elsewhere) == histories(client)
    finally:
        other.close()


def test_a_session_at_work_is_not_archived(store: Store, told: dict[str, int], tmp_path: Path):
    store.send("ann-2", "three")
    before = store.everything()
    with Archive.create(tmp_path, NAME) as archive:
        with pytest.raises(UnfinishedTurnsError, match="turn 3 of session 'ann-2'"):
            keep(store, archive, list(told.values()))
        assert archive.seal() is None
    assert store.everything() == before
    assert not list(tmp_path.glob("inturn-*"))


def test_sessions_that_are_gone_are_left_out(store: Store, told: dict[str, int], tmp_path: Path):
    with Archive.create(tmp_path, NAME) as archive:
        assert keep(store, archive, [told["ann-1"], 4711]) == 1
        assert keep(store, archive, [4711]) == 0


def test_many_sessions_are_archived_page_by_page(store: Store, client: Client, tmp_path: Path):
    sessions = [store.session(f"s-{number}") for number in range(450)]
    sealed = archived(store, tmp_path, sessions)
    assert sealed.sessions == len(client.import_archive(sealed.location)) == 450


def test_nothing_is_removed_where_nothing_can_be_written(store: Store, told: dict[str, int], tmp_path: Path):
    before = store.everything()
    with pytest.raises(ArchiveError, match="No such file or directory"):
        archived(store, tmp_path / "none", list(told.values()))
    assert store.everything() == before


def test_of_a_session_that_is_in_it_twice_the_last_one_counts(
    store: Store, client: Client, told: dict[str, int], tmp_path: Path
):
    with Archive.create(tmp_path, NAME) as archive:
        keep(store, archive, list(told.values()))
        store.answer("ann-1", "more")
        keep(store, archive, [told["ann-1"]])
        archive.seal()
    for key in KEYS:
        client.delete_session(key)
    found = client.import_archive(tmp_path / NAME)
    assert found == [ImportedSession("ann-2", 2), ImportedSession("bob-1", 2), ImportedSession("ann-1", 3)]


def test_only_some(client: Client, archive: str):
    assert [one.session_id for one in client.import_archive(archive, only="ann-*")] == ["ann-1", "ann-2"]
    assert [one.session_id for one in client.import_archive(archive, only=["b?b-1"])] == ["bob-1"]
    with pytest.raises(InvalidInputError, match=r"no session in .* matches 'carl', 'dora-\*'. Nothing was imported"):
        client.import_archive(archive, only=["dora-*", "ann-1", "carl"])


def test_one_session_of_an_archive_is_imported_under_another_id(
    store: Store, client: Client, told: dict[str, int], tmp_path: Path
):
    before = histories(client)
    alone = archived(store, tmp_path, [told["bob-1"]]).location
    assert client.import_session(alone, "carl").session_id == "carl"
    assert [(m.type, m.data.content, m.timestamp) for m in client.get_session("carl").get_messages()] == before["bob-1"]
    Path(alone).unlink()
    several = archived(store, tmp_path, [told["ann-1"], told["ann-2"]]).location
    for only, sentence in (
        (None, r"has 2 sessions \('ann-1', 'ann-2'\).*--only ID"),
        ("ann-*", r"has 2 sessions \('ann-1', 'ann-2'\).*--only ID"),
        ("dora", "matches 'dora'"),
    ):
        with pytest.raises(InvalidInputError, match=f"{sentence}.*Nothing was imported"):
            client.import_session(several, "dave", only=only)
    with pytest.raises(SessionExistsError, match="'carl'"):
        client.import_session(several, "carl", only="ann-2")
    assert client.import_session(several, only="ann-2").session_id == "ann-2"
    client.import_session(Path(several), "dave", only="ann-1", model="echo/other")
    assert client.get_session("dave").metadata().labels == {"key": "ann-1"}
    assert client.get_session("dave").metadata().model == "echo/other"


def test_of_one_session_that_is_in_it_twice_the_last_one_is_imported(
    store: Store, client: Client, told: dict[str, int], tmp_path: Path
):
    with Archive.create(tmp_path, NAME) as archive:
        keep(store, archive, [told["ann-1"]])
        store.answer("ann-1", "more")
        keep(store, archive, [told["ann-1"]])
        archive.seal()
    assert client.import_session(tmp_path / NAME, "carl").metadata().messages == 6
    (tmp_path / f"{NAME}.partial").write_bytes((tmp_path / NAME).read_bytes()[:-30])
    assert client.import_session(tmp_path / f"{NAME}.partial", "cut").metadata().messages == 4


def test_what_exists_is_refused_or_left_out(store: Store, client: Client, archive: str):
    client.create_session("ann-2")
    before = store.everything()
    with pytest.raises(SessionExistsError, match=r"'ann-2' exists already: of the 3 in .*, 1 are there.*Nothing was"):
        client.import_archive(archive)
    assert store.everything() == before
    found = client.import_archive(archive, skip_existing=True)
    assert [(one.session_id, one.existed) for one in found] == [("ann-1", False), ("ann-2", True), ("bob-1", False)]
    assert list(client.get_session("ann-2").get_messages()) == []
    assert all(one.existed for one in client.import_archive(archive, skip_existing=True))


def test_an_archive_that_is_damaged_imports_nothing(store: Store, client: Client, archive: str):
    before = store.everything()
    text = gzip.decompress(Path(archive).read_bytes())
    for damaged, sentence in (
        (
            gzip.compress(text.replace(b"one of bob-1", b"one of bob-2")),
            "session 'bob-1', line 12: the lines before",
        ),
        (Path(archive).read_bytes()[:-30], "the file ends here, in the middle of what gzip wrote: it was cut off"),
    ):
        Path(archive).write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=sentence) as refused:
            client.import_archive(archive)
        assert archive in str(refused.value)
        assert store.everything() == before


def test_one_that_its_run_did_not_finish_is_imported_as_far_as_it_is_whole(client: Client, archive: str):
    partial = Path(f"{archive}.partial")
    partial.write_bytes(Path(archive).read_bytes()[:-30])
    assert [one.session_id for one in client.import_archive(partial)] == ["ann-1", "ann-2"]


def test_where_one_is_cut_off_or_damaged_is_told(shell: Shell, tmp_path: Path):
    partial = tmp_path / f"{NAME}.partial"
    with Client(home=shell.home) as client, Archive.create(tmp_path, NAME) as archive:
        for key in KEYS:
            archive.add(client.create_session(key).export())
            archive.sync()
            client.delete_session(key)
    written = partial.read_bytes()
    ends = [match.start() for match in re.finditer(b"\x1f\x8b\x08", written)][1:]
    partial.write_bytes(written[: ends[0] + 20] + b"?" + written[ends[0] + 21 :])
    damaged = shell.run("session", "import", str(partial))
    assert (damaged.returncode, damaged.stdout) == (2, "")
    assert f"{NAME}.partial, line 3: it is damaged: gzip says" in damaged.stderr
    assert shell.ok("session", "list", "--json") == ""
    partial.write_bytes(written[: ends[1] + 20])
    for how in ([], ["--json", "--skip-existing"]):
        cut = shell.run("session", "import", str(partial), *how)
        assert (cut.returncode, cut.stderr.count(f"{NAME}.partial is cut off at line 5: ")) == (0, 1)
    assert [one["session_id"] for one in shell.records("session", "list")] == ["ann-1", "ann-2"]


def test_who_is_asked_has_to_be_known_here(store: Store, client: Client, archive: str, tmp_path: Path):
    with opened(archive) as content:
        first = next(iter(content.sessions()))
        assert first.transcript.chain == "echo/echo"
    lost = store.session("lost")
    store.write(lambda db: db.exec_driver_sql("UPDATE sessions SET model = 'lost/model' WHERE key = 'lost'"))
    Path(archive).unlink()
    archived(store, tmp_path, [lost])
    with pytest.raises(UnknownModelError, match="'lost/model'"):
        client.import_archive(archive)
    assert client.get_session_metadata("lost") is None
    client.import_archive(archive, model="echo/other")
    assert client.get_session("lost").metadata().model == "echo/other"


def test_an_import_that_the_database_breaks_off_goes_on(client: Client, archive: str, monkeypatch: pytest.MonkeyPatch):
    def full(database: Any, key: str, it: Any) -> int:
        if key == "bob-1":
            raise StorageError("the disk is full")
        return store_transcript(database, key, it)

    with monkeypatch.context() as patch:
        patch.setattr(importing, "store_transcript", full)
        with pytest.raises(StorageError) as broken:
            client.import_archive(archive)
    assert broken.value.__notes__ == [
        "2 of 3 sessions were imported; the same again with --skip-existing (skip_existing=True) goes on behind them"
    ]
    assert [one.existed for one in client.import_archive(archive, skip_existing=True)] == [True, True, False]


@pytest.mark.parametrize("skips", [True, False])
def test_a_session_that_somebody_makes_meanwhile(
    client: Client, archive: str, monkeypatch: pytest.MonkeyPatch, skips: bool
):
    monkeypatch.setattr(importing, "taken", lambda *_: client.create_session("ann-2") and set())
    if skips:
        found = client.import_archive(archive, skip_existing=True)
        assert [one.existed for one in found] == [False, True, False]
    else:
        with pytest.raises(SessionExistsError):
            client.import_archive(archive)


def test_in_asyncio(client: Client, archive: str):
    async def imported() -> list[ImportedSession]:
        async with aio.Client(client.settings) as ours:
            return await ours.import_archive(archive, only="ann-*")

    assert [one.session_id for one in asyncio.run(imported())] == ["ann-1", "ann-2"]


def test_on_the_command_line(shell: Shell, tmp_path: Path) -> None:
    with Client(home=shell.home) as client, Archive.create(tmp_path, NAME) as archive:
        for key in KEYS:
            archive.add(client.create_session(key, labels={"key": key}).export())
            client.delete_session(key)
        archive.seal()
    file = str(tmp_path / NAME)

    only = shell.run("session", "import", file, "--only", "ann-1")
    assert (only.returncode, only.stdout, only.stderr) == (0, "ann-1\n", "1 session imported\n")
    refused = shell.run("session", "import", file)
    assert (refused.returncode, "'ann-1' exists already: of the 3 in" in refused.stderr) == (1, True)
    [second, third] = shell.records("session", "import", file, "--skip-existing")
    assert (second["session_id"], third["labels"]) == ("ann-2", {"key": "bob-1"})
    again = shell.run("session", "import", file, "--skip-existing")
    assert (again.stdout, again.stderr) == ("", "0 sessions imported, 3 left out: they exist already\n")
    for arguments, sentence in (
        (("carl", "--skip-existing"), "an ID is for one session"),
        (("carl", "--only", "x"), "matches 'x'"),
        (("carl",), "has 3 sessions ('ann-1', 'ann-2', 'bob-1')"),
        (("--only", "carl"), "matches 'carl'"),
    ):
        wrong = shell.run("session", "import", file, *arguments)
        assert (wrong.returncode, sentence in wrong.stderr) == (2, True)
    assert shell.ok("session", "import", file, "carl", "--only", "ann-2") == "carl\n"
    plain = tmp_path / "plain.jsonl"
    plain.write_bytes(gzip.decompress(Path(file).read_bytes()))
    many = shell.run("session", "import", str(plain), "carl")
    assert (many.returncode, "line 3: something follows" in many.stderr) == (2, True)
    assert shell.ok("session", "import", str(plain), "dora", "--only", "ann-2") == "dora\n"
    nowhere = shell.run("session", "import", "nowhere://x/y.jsonl.gz")
    assert (nowhere.returncode, "nowhere://x/y.jsonl.gz cannot be read: " in nowhere.stderr) == (2, True)
    assert json.loads(shell.ok("session", "show", "bob-1", "--json"))["labels"] == {"key": "bob-1"}
