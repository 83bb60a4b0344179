"""The commands that need no worker, run in this process: what they print, and how they fail."""

import io
import json
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from inturn import Client, cli
from inturn.models.states import TurnState
from tests.integration.stores import Store

PATIENCE_SECONDS = 30


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Shell:
    """Runs ``inturn`` in a home of its own."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._monkeypatch, self._capsys = home, monkeypatch, capsys

    def run(self, *arguments: str, typed: str = "", **environment: str) -> Done:
        with self._monkeypatch.context() as patch:
            for name, value in (environment | {"INTURN_HOME": str(self.home)}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.StringIO(typed))
            return Done(cli.run(list(arguments)), *self._capsys.readouterr())

    def ok(self, *arguments: str, typed: str = "") -> str:
        """What a command prints that is expected to work."""
        done = self.run(*arguments, typed=typed)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def records(self, *arguments: str) -> list[dict[str, Any]]:
        """What a command prints with ``--json``: every line one object."""
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    for name in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "CELERY_BROKER_URL",
        "INTURN_DATABASE_URL",
        "INTURN_BROKER_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path / "home", monkeypatch, capsys)


def test_a_session_from_its_creation_to_its_end(shell: Shell) -> None:
    settled = ("--label", "team=red", "--option", "temperature=0.2", "--retention", "7d", "--context-turns", "3")
    assert shell.ok("session", "create", "ann-1", "--system", "Be brief.", *settled) == "ann-1\n"
    [record] = shell.records("session", "show", "ann-1")
    expected = {"session_id": "ann-1", "labels": {"team": "red"}, "options": {"temperature": 0.2}, "retention": "7d"}
    assert record | expected == record
    assert (record["system_message"], record["context_turns"], record["busy"]) == ("Be brief.", 3, False)
    assert "go on with `inturn chat ann-1`" in shell.run("session", "create", "ann-1").stderr

    shell.ok("session", "hold", "ann-1")
    assert "\tyes\tno\t" not in shell.ok("session", "list", "--prefix", "ann-1")
    assert shell.records("session", "show", "ann-1")[0]["held"] is True
    shell.ok("session", "release", "ann-1")

    refused = shell.run("session", "delete", "ann-1")
    assert refused.returncode == 2
    assert "add --yes" in refused.stderr
    shell.ok("session", "delete", "ann-1", "--yes")
    assert shell.run("session", "show", "ann-1").returncode == 4


def test_a_session_may_be_created_for_a_script(shell: Shell) -> None:
    [made] = shell.records("session", "create", "made-1", "--halts")
    assert (made["session_id"], made["halts"]) == ("made-1", True)
    assert shell.records("session", "list") == [made | {"cursor": "1"}]


def halt(shell: Shell, key: str) -> str:
    """Make a session that stands still behind its first turn, which is quarantined; returns that turn's ID."""
    shell.ok("session", "create", key, "--halts")
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        started = store.start(store.send(key).session_id)
        store.settle(started, TurnState.FAILED, error_type="unstorable", error_message="no database takes it")
    return started.turn_id


def test_a_halted_session_shows_wherever_somebody_looks(shell: Shell) -> None:
    shell.ok("session", "create", "well-1")
    poison = halt(shell, "careful-1")
    heading, well, halted = [line.split("\t") for line in shell.ok("session", "list").splitlines()]
    place = heading.index("HALTED BY")
    assert (well[place], halted[place]) == ("-", poison)
    assert [one["halted_by"] for one in shell.records("session", "list")] == [None, poison]
    assert shell.records("session", "show", "careful-1")[0]["halted_by"] == poison

    remark = f"session careful-1 stands still behind turn {poison}: `inturn session continue careful-1` lets it go on\n"
    retried = shell.run("turn", "retry", poison)
    assert (retried.returncode, retried.stderr) == (0, remark)
    assert remark in shell.run("chat", "careful-1").stderr

    [went_on] = shell.records("session", "continue", "careful-1")
    assert (went_on["session_id"], went_on["halted_by"], went_on["was_halted_by"]) == ("careful-1", None, poison)
    shell.run("turn", "cancel", retried.stdout.strip())
    assert shell.run("turn", "retry", poison).stderr == ""
    assert "stands still" not in shell.run("chat", "careful-1").stderr
    assert "it was not halted" in shell.run("session", "continue", "careful-1").stderr


def test_continuing_names_the_turn_as_commands_take_it(shell: Shell) -> None:
    poison = halt(shell, "careful-1")
    assert f"its turn {poison} stays as it is" in shell.run("session", "continue", "careful-1").stderr
    with Client(home=shell.home) as client:
        assert client.continue_session("careful-1") is None
        again = halt(shell, "careful-2")
        assert client.continue_session("careful-2") == again


def test_a_session_may_be_kept_for_ever(shell: Shell) -> None:
    shell.ok("session", "create", "kept-1", "--retention", "never")
    assert shell.records("session", "show", "kept-1")[0]["retention"] == "never"


def test_the_same_key_sends_once(shell: Shell) -> None:
    keyed = ("--create", "--idempotency-key", "k1")
    assert shell.ok("send", "bob-3", "once", *keyed) == shell.ok("send", "bob-3", "once", *keyed)
    conflict = shell.run("send", "bob-3", "twice", *keyed)
    assert conflict.returncode == 1
    assert "'k1'" in conflict.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("send", "ghost", "hello"), 4, "no session 'ghost'"),
        (("session", "hold", "ghost"), 4, "no session 'ghost'"),
        (("session", "delete", "ghost", "--yes"), 4, "no session 'ghost'"),
        (("turn", "list", "ghost"), 4, "no session 'ghost'"),
        (("turn", "show", "9.9"), 4, "no turn '9.9'"),
        (("turn", "cancel", "nonsense"), 4, "no turn 'nonsense'"),
        (("session", "create", "a b"), 2, "'a b' is no session ID"),
        (("session", "create", "--model", "gpt-5"), 2, "write provider/model"),
        (("session", "create", "--model", "ghost/x"), 2, "configured provider (echo)"),
        (("session", "create", "--option", "a=b"), 2, "is not JSON"),
        (("session", "create", "--label", "a"), 2, "is no pair"),
        (("session", "create", "--retention", "soon"), 2, "is no length of time"),
        (("session", "list", "--active-after", "soon"), 2, "is no time"),
        (("send", "x", "", "--create"), 2, "empty"),
        (("send", "x", "hello", "--create", "--not-before", "soon"), 2, "is no time"),
        (("send", "x", "hello", "--create", "--lane", "maintenance"), 2, "'chat', 'batch'"),
        (("send", "x", "hello", "--model", "echo/echo"), 2, "--create"),
        (("worker", "--lanes", "chat,fast"), 2, "no lane 'fast'"),
        (("lane", "resume", "maintenance"), 2, "is never paused, nor resumed"),
        (("lane", "pause", "fast"), 2, "'chat', 'batch'"),
        (("--database-url", "sqlite:////proc/x/y.db", "session", "list"), 1, "/proc/x"),
        (("--database-url", "postgresql://u:hidden@127.0.0.1:1/x", "session", "list"), 69, "no connection"),
    ],
)
def test_errors_are_one_sentence(shell: Shell, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = shell.run(*arguments)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


def test_an_oversized_prompt_is_refused(shell: Shell) -> None:
    done = shell.run("send", "big-1", "-", "--create", typed="x" * (256 * 1024 + 1))
    assert done.returncode == 2
    assert shell.run("session", "show", "big-1").returncode == 4  # it left no session behind
    assert shell.run("send", "big-1", "-", "--create", typed="x" * (256 * 1024)).returncode == 0


def test_lists_filter_and_page(shell: Shell) -> None:
    for number in range(3):
        shell.ok("session", "create", f"page-{number}", "--label", f"odd={number % 2}")
    first, second = shell.records("session", "list", "--prefix", "page-", "--limit", "2")
    assert [first["session_id"], second["session_id"]] == ["page-0", "page-1"]
    rest = shell.records("session", "list", "--prefix", "page-", "--after", second["cursor"])
    assert [one["session_id"] for one in rest] == ["page-2"]
    assert [one["session_id"] for one in shell.records("session", "list", "--label", "odd=1")] == ["page-1"]
    assert shell.records("session", "list", "--prefix", "page-", "--active-before", "1h") == []
    assert len(shell.records("session", "list", "--prefix", "page-", "--active-after", "1h", "--idle")) == 3
    listed = shell.run("session", "list", "--prefix", "page-", "--limit", "2")
    assert listed.stdout.splitlines()[1].split("\t")[0] == "page-0"
    assert f"--after {second['cursor']}" in listed.stderr


def test_looking_at_a_session_is_no_use_of_it(shell: Shell) -> None:
    shell.ok("session", "create", "still-1")
    [before] = shell.records("session", "show", "still-1")
    shell.ok("turn", "list", "still-1")
    assert shell.records("session", "show", "still-1")[0]["last_activity_at"] == before["last_activity_at"]


def test_cleanup_removes_what_its_dry_run_lists(shell: Shell) -> None:
    shell.ok("session", "create", "old-1", "--retention", "1s")
    shell.ok("session", "create", "old-2", "--retention", "1s")
    shell.ok("session", "hold", "old-2")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (listed := shell.records("cleanup", "--dry-run")):
        assert time.monotonic() < deadline
    assert [one["session_id"] for one in listed] == ["old-1"]
    assert shell.run("cleanup", "--dry-run").stderr == "1 session would be removed\n"
    assert shell.run("cleanup").returncode == 2
    assert shell.records("cleanup", "--yes") == listed
    assert shell.run("session", "show", "old-1").returncode == 4
    shell.ok("session", "show", "old-2")


def test_config_shows_every_value_with_its_origin(shell: Shell) -> None:
    done = shell.run("--broker-url", "redis://:hidden@h/0", "config", "show", "--json", INTURN_LEASE_SECONDS="30")
    shown = {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert (shown["broker_url"]["value"], shown["broker_url"]["origin"]) == ("redis://:***@h/0", "flag")
    assert (shown["lease_seconds"]["value"], shown["lease_seconds"]["origin"]) == (
        30.0,
        "environment INTURN_LEASE_SECONDS",
    )
    assert shown["database_url"]["value"] == f"sqlite:///{shell.home}/inturn.db"
    assert "lease_seconds\t20\tdefault\n" in shell.ok("config", "show")
    (shell.home.parent / "inturn.toml").write_text('[providers.lab]\nbase_url = "http://lab/v1"\n')
    assert "providers.lab\tbase_url=http://lab/v1\t./inturn.toml\n" in shell.ok("config", "show")


def test_the_schema_has_a_version(shell: Shell) -> None:
    assert shell.ok("db", "current") == "none\n"
    assert shell.records("db", "current") == [{"schema": None}]
    refused = shell.run("db", "check", "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    shell.ok("db", "upgrade")
    assert "already" in shell.run("db", "upgrade").stderr
    assert shell.run("db", "check").returncode == 0
    version = shell.ok("db", "current").strip()
    assert version != "none"
    assert shell.records("db", "current") == shell.records("db", "check") == [{"schema": version}]


def test_a_lane_is_paused_and_resumed_for_scripts_too(shell: Shell) -> None:
    assert shell.records("lane", "pause", "chat") == [{"lane": "chat", "paused": True, "changed": True}]
    assert shell.records("lane", "pause", "chat") == [{"lane": "chat", "paused": True, "changed": False}]
    assert shell.records("lane", "resume", "chat") == [{"lane": "chat", "paused": False, "changed": True}]


def test_a_pause_that_goes_along_is_told(shell: Shell, tmp_path: Path) -> None:
    shell.ok("lane", "pause", "batch")
    path, copied = str(tmp_path / "inturn.backup"), f"sqlite:///{tmp_path / 'copied.db'}"
    shell.ok("db", "backup", path)
    ways = (("db", "copy", copied), ("--database-url", f"sqlite:///{tmp_path / 'restored.db'}", "db", "restore", path))
    for words in ways:
        done = shell.run(*words, "--json")
        assert json.loads(done.stdout)["paused"] == ["batch"]
        assert "lane batch is paused there: what waits in it waits until `inturn lane resume batch`" in done.stderr
    shell.ok("--database-url", copied, "lane", "resume", "batch")
    again = shell.run("--database-url", copied, "db", "copy", f"sqlite:///{tmp_path / 'again.db'}")
    assert "paused" not in again.stderr


def test_a_broker_that_is_down_keeps_nobody_from_sending(shell: Shell) -> None:
    down = ("--broker-url", "redis://127.0.0.1:1/0")
    sent = shell.run(*down, "send", "calm-1", "hello", "--create")
    assert (sent.returncode, sent.stdout) == (0, "1.1\n")
    assert "the broker does not answer; what is sent is stored" in sent.stderr
    waited = shell.run(*down, "send", "calm-1", "are you there?", "--wait")
    assert waited.returncode == 69
    assert "inturn worker" in waited.stderr
    assert "`inturn turn show 1.2` has the reply" in waited.stderr
    assert [one["state"] for one in shell.records("turn", "list", "calm-1")] == ["queued", "queued"]


def test_a_wait_that_took_too_long_says_what_for(shell: Shell) -> None:
    sent = ("--broker-url", "redis://127.0.0.1:1/0", "send", "calm-2", "hello", "--create", "--timeout", "0.2")
    late = shell.run(*sent, "--not-before", "90m")
    assert late.returncode == 124
    assert "turn 1.1 is not due before" in late.stderr
    assert "besides: turn 1.1 waits for a worker" in late.stderr
    assert "`inturn why 1.1`" in late.stderr


def test_turns_can_be_cancelled_and_sent_again(shell: Shell) -> None:
    turn = shell.ok("send", "again-1", "hello", "--create").strip()
    assert shell.run("turn", "retry", turn).returncode == 2
    assert shell.run("turn", "cancel", turn).stderr == f"turn {turn} is cancelled\n"
    assert shell.run("turn", "cancel", turn).stderr == f"turn {turn} is cancelled already\n"
    [again] = shell.records("turn", "show", shell.ok("turn", "retry", turn).strip())
    assert (again["prompt"], again["retry_of"], again["reply"]) == ("hello", turn, None)
    assert "hello" in shell.ok("turn", "show", again["id"])


def test_turns_that_wait_can_be_joined_or_put_off(shell: Shell) -> None:
    first = shell.ok("send", "join-1", "one", "--create", "--not-before", "90m").strip()
    joined = shell.ok("send", "join-1", "two", "--when-busy", "coalesce", "--lane", "batch").strip()
    [shown] = shell.records("turn", "show", first)
    assert (shown["state"], shown["merged_into"]) == ("cancelled", joined)
    assert re.search(rf"^merged_into: +{joined}$", shell.ok("turn", "show", first), re.MULTILINE)
    listed = shell.ok("turn", "list", "join-1")
    assert f"{first}\tcancelled, joined into {joined}\t" in listed
    assert f"{joined}\tqueued, lane batch\t" in listed
    assert shell.records("turn", "show", joined)[0]["prompt"] == "one\n\ntwo"
    refused = shell.run("turn", "retry", first)
    assert refused.returncode == 2
    assert f"joined into turn {joined}" in refused.stderr
    shell.ok("send", "join-1", "stop that", "--when-busy", "interrupt", "--not-before", "2099-12-01T08:00")
    states = [one["state"] for one in shell.records("turn", "list", "join-1")]
    assert states == ["cancelled", "cancelled", "queued"]


def test_a_turn_that_was_put_off_says_until_when_and_in_which_lane(shell: Shell) -> None:
    now = shell.ok("send", "off-1", "now", "--create").strip()
    later = shell.ok("send", "off-1", "later", "--not-before", "2099-12-01T08:00+00:00", "--lane", "batch").strip()
    [shown] = shell.records("turn", "show", later)
    assert (shown["lane"], shown["not_before"]) == ("batch", "2099-12-01T08:00:00+00:00")
    told = shell.ok("turn", "show", later)
    assert re.search(r"^not_before: +20(99-12-01|99-11-30|99-12-02) ", told, re.MULTILINE)
    assert re.search(r"^lane: +batch$", told, re.MULTILINE)
    [shown] = shell.records("turn", "show", now)
    assert (shown["lane"], shown["not_before"]) == ("chat", None)
    with Client(home=shell.home) as client:
        turn = client.get_turn(later)
        assert (turn.lane, turn.not_before and turn.not_before.year) == ("batch", 2099)
        turn.cancel()
        assert turn.not_before is None


def test_prompts_that_were_taken_back_are_marked_in_the_history(shell: Shell) -> None:
    for prompt in ("co1", "co2", "co3"):
        shell.ok("send", "talk-1", prompt, "--create", "--when-busy", "coalesce")
    shell.ok("send", "talk-1", "this instead", "--when-busy", "interrupt")
    shell.ok("send", "talk-1", "and that")
    told = shell.ok("session", "show", "talk-1")
    assert told[told.index("you") :].split("\nyou") == [
        "you (joined into 1.2): co1",
        " (joined into 1.3): co1\n\nco2",
        " (cancelled): co1\n\nco2\n\nco3",
        ": this instead",
        ": and that\n",
    ]


def test_of_a_number_that_no_turn_has_it_is_said_how_far_the_session_goes(shell: Shell) -> None:
    shell.ok("send", "short-1", "hello", "--create")
    shell.ok("session", "create", "empty-1")
    for command in (("why",), ("turn", "show")):
        done = shell.run(*command, "1.999")
        assert done.returncode == 4
        assert "no turn '1.999': session 'short-1' has turns up to 1.1 (`inturn turn list short-1`)" in done.stderr
    assert "session 'empty-1' has no turns yet" in shell.run("why", "2.1").stderr
    assert "its session was deleted" in shell.run("why", "3.1").stderr
