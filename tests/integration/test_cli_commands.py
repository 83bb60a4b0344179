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
from inturn.cli.send import closed
from inturn.cli.usage import show_budgets, show_usage
from inturn.models.states import AttemptOutcome, TurnState
from inturn.models.store.budgets import Budget, Standing, spend
from inturn.models.tables import ATTEMPTS
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


def test_a_session_is_forked_renamed_exported_and_imported(shell: Shell, tmp_path: Path) -> None:
    shell.ok("session", "create", "ann-1", "--system", "Be brief.", "--label", "team=red")
    assert shell.ok("session", "fork", "ann-1", "ann-2") == "ann-2\n"
    [record] = shell.records("session", "fork", "ann-1")
    assert (record["session_id"][:8], record["labels"]) == ("session-", {"team": "red"})
    refused = shell.run("session", "fork", "ann-1", "ann-3", "--to-turn", "1")
    assert (refused.returncode, "to_turn is 1: the last turn of session 'ann-1' is 0" in refused.stderr) == (2, True)

    assert "session ann-2 is session bob now" in shell.run("session", "rename", "ann-2", "bob").stderr
    shell.ok("send", "bob", "hello")
    busy = shell.run("session", "rename", "bob", "carl")
    assert (busy.returncode, "turn 1 of session 'bob' is not finished" in busy.stderr) == (1, True)

    file = tmp_path / "ann.jsonl"
    assert f"session ann-1 is in {file}" in shell.run("session", "export", "ann-1", "-o", str(file)).stderr
    again = shell.run("session", "export", "ann-1", "-o", str(file))
    assert (again.returncode, "is there: name another file, or overwrite it with --force" in again.stderr) == (2, True)
    shell.ok("session", "export", "ann-1", "-o", str(file), "--force")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    lost = shell.run("session", "export", "ann-1", "-o", str(tmp_path / "none" / "ann.jsonl"))
    assert (lost.returncode, "cannot be written: No such file or directory" in lost.stderr) == (2, True)
    assert "# ann-1" in shell.ok("session", "export", "ann-1", "--format", "md")

    assert shell.run("session", "import", str(file)).returncode == 1, "ann-1 is there"
    assert shell.ok("session", "import", str(file), "dora", "--model", "echo/other") == "dora\n"
    [record] = shell.records("session", "show", "dora")
    assert (record["system_message"], record["model"], record["labels"]) == ("Be brief.", "echo/other", {"team": "red"})
    file.write_bytes(file.read_bytes().replace(b"brief", b"wordy"))
    damaged = shell.run("session", "import", str(file), "emil")
    assert (damaged.returncode, f"{file}, line 2: the lines before it are not those" in damaged.stderr) == (2, True)
    assert shell.run("session", "show", "emil").returncode == 4


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
        (("session", "create", "--option", "latncy=1"), 2, "no option 'latncy' (did you mean latency?)"),
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
    assert shell.run("cleanup", "--dry-run").stderr == "1 session (1 by own; 0 bytes of text) would be removed\n"
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


BUDGETS = """
[[budgets]]
name = "the day's"
usd = 0.5

[[budgets]]
name = "legal"
scope = "label:team=legal"
period = "ever"
tokens = 1_000_000
"""


def use(shell: Shell, key: str, **values: Any) -> str:
    """A turn whose only attempt used this; returns its ID."""
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        started = store.answer(key)
        store.change(ATTEMPTS, ATTEMPTS.c.session_id == started.session_id, **values)
        store.write(spend, [(("all", True), values.get("price") or 0.0, 110)])
    return started.turn_id


def test_usage_is_told_with_what_is_not_known_of_it(shell: Shell) -> None:
    assert (shell.ok("usage"), shell.run("usage").stderr) == ("", "nothing was used\n")
    for key in ("ann-1", "bob-1", "old-1"):
        shell.ok("session", "create", key, "--label", f"of={key}")
    tokens = {"input_tokens": 100, "output_tokens": 10}
    use(shell, "ann-1", model="openai/gpt-5", price=0.25, **tokens)
    use(shell, "bob-1", model="ollama/llama3.2", estimated=True, **tokens)
    use(shell, "old-1", model="openai/gpt-5", price=0.125, **tokens)
    shell.ok("session", "delete", "old-1", "--yes")

    heading, paid, unpriced = [line.split("\t") for line in shell.ok("usage").splitlines()]
    assert heading[:7] == ["MODEL", "ATTEMPTS", "COMPLETED", "FAILED", "TOKENS IN", "TOKENS OUT", "US DOLLARS"]
    assert paid[:7] == ["openai/gpt-5", "2", "2", "0", "200", "20", "0.375"]
    assert unpriced[:8] == ["ollama/llama3.2", "1", "1", "0", "~100", "~10", "unpriced", "1"]
    records = shell.records("usage", "--by", "session")
    assert {(one["key"], one["price"]) for one in records} == {
        ("ann-1", 0.25),
        ("bob-1", None),
        ("(removed sessions)", 0.125),
    }
    for filtered in (("--session", "ann-1"), ("--prefix", "ann"), ("--label", "of=ann-1")):
        assert [one["key"] for one in shell.records("usage", "--by", "session", *filtered)] == ["ann-1"]
    assert len(shell.records("usage", "--by", "day", "--since", "1h")) == 1
    assert shell.ok("usage", "--until", "1d") == ""
    assert shell.run("usage", "--session", "nobody").returncode == 4
    assert shell.run("usage", "--by", "month").returncode == 2


def test_a_terminal_gets_a_total_and_a_pipe_adds_up_itself(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, price in ("ann-1", 0.25), ("bob-1", None):
        shell.ok("session", "create", key)
        use(shell, key, model="openai/gpt-5", price=price, input_tokens=100, output_tokens=10)
    assert "total" not in shell.ok("usage", "--by", "session")
    with Client(home=shell.home) as client:
        records = client.usage("session")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_usage("session", records)
    assert re.search(r"^total +2 .* 200 +20 +0\.25 +1$", capsys.readouterr().out, re.MULTILINE)
    show_usage("session", records[:1])
    assert "total" not in capsys.readouterr().out, "of one there is none"


def test_usage_says_how_budgets_stand(shell: Shell) -> None:
    Path("inturn.toml").write_text(BUDGETS)
    shell.ok("session", "create", "ann-1")
    use(shell, "ann-1", model="openai/gpt-5", price=0.625)
    lines = [line.split("\t") for line in shell.ok("usage").splitlines()]
    assert ["the day's", "all", "day", "0.625", "0.50", "110", "-", "yes"] in lines
    assert ["legal", "team=legal", "ever", "0.00", "-", "0", "1000000", "no"] in lines
    (_, first, second) = shell.records("usage")
    assert (first["budget"], first["usd"], first["usd_limit"], first["used_up"]) == ("the day's", 0.625, 0.5, True)
    assert (second["whose"], second["tokens_limit"], second["used_up"]) == ("team=legal", 1_000_000, False)
    config = shell.ok("config", "show")
    assert "budgets.1\tname=legal, scope=label:team=legal, period=ever, tokens=1000000, on_budget=fail" in config


def test_a_turn_shows_its_attempts_and_what_they_cost(shell: Shell) -> None:
    shell.ok("session", "create", "ann-1")
    assert shell.records("turn", "show", shell.ok("send", "ann-1", "later").strip())[0]["attempt_records"] == []
    shell.ok("turn", "cancel", "1.1")
    turn = use(shell, "ann-1", model="m/m", input_tokens=7, output_tokens=8, estimated=True, price=0.5, price_table="t")
    [record] = shell.records("turn", "show", turn)
    [attempt] = record["attempt_records"]
    expected = {"number": 1, "model": "m/m", "outcome": "completed", "input_tokens": 7, "output_tokens": 8,
                "estimated": True, "price": 0.5, "price_table": "t", "error_type": None}  # fmt: skip
    assert attempt | expected == attempt
    assert record["attempts"] == 1
    assert re.search(r"^1\tm/m\tcompleted\t.*\t~7\t~8\t~0.50$", shell.ok("turn", "show", turn), re.MULTILINE)
    use(shell, "ann-1", price=None, error_type="timeout")
    assert re.search(r"^1\techo/echo\ttimeout\t.*\t-\t-\tunpriced$", shell.ok("turn", "show", "1.3"), re.MULTILINE)


@pytest.mark.parametrize(
    ("values", "told"),
    [({"outcome": "safe", "error_type": "refused"}, "-"), ({"outcome": "permanent", "error_type": "no_key"}, "-"),
     ({"outcome": "permanent", "error_type": "reply_too_large"}, "unpriced"), ({"outcome": "lost"}, "unpriced"),
     ({"outcome": "safe", "input_tokens": 5}, "unpriced"), ({"outcome": "safe", "price": 0.5}, "0.50"),
     ({"outcome": None, "ended_at": None}, "-")],
)  # fmt: skip
def test_what_a_provider_did_nothing_for_is_not_unpriced(shell: Shell, values: dict[str, Any], told: str) -> None:
    shell.ok("session", "create", "ann-1")
    use(shell, "ann-1", **values)
    [line] = [line for line in shell.ok("turn", "show", "1.1").splitlines() if line.startswith("1\t")]
    assert line.split("\t")[-1] == told


def test_whose_budget_a_row_is_can_be_read_in_every_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = Budget("what each conversation may spend", "session", True, 12.5, 1_000_000, False)
    standings = [Standing(budget, f"user-{number}-conversation", 0.125, 4711, 14) for number in range(20)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    show_budgets(standings, is_filtered=True)
    said = capsys.readouterr()
    assert "budgets (of everybody, whichever sessions were asked for)" in said.out
    assert "OF " in said.out
    assert said.out.count("user-7-conversation") == 1
    assert max(map(len, said.out.splitlines())) <= 80
    assert (
        said.err == "budget 'what each conversation may spend': the 20 that spent most, and 14 more have spent of it\n"
    )
    show_budgets([Standing(budget, "ann-1", 0.125, 4711)])
    said = capsys.readouterr()
    assert "of everybody" not in said.out
    assert said.err == ""


def test_a_hold_is_against_cleanup_and_says_so(shell: Shell) -> None:
    assert "Cleanup never removes it; `inturn session delete` still does." in shell.ok("session", "hold", "--help")
    assert "cleanup never removes it" in str(Client.hold_session.__doc__)
    shell.ok("session", "create", "ann-1")
    shell.ok("session", "hold", "ann-1")
    shell.ok("session", "delete", "ann-1", "--yes")
    assert shell.run("session", "show", "ann-1").returncode == 4


def test_what_went_wrong_with_a_turn_has_lines_of_its_own(shell: Shell) -> None:
    shell.ok("session", "create", "ann-1")
    with closing(Store(f"sqlite:///{shell.home / 'inturn.db'}")) as store:
        store.send("ann-1", "hello")
        failure = {"error_type": "refused", "error_message": "nobody listens there.\nDoes the server run?"}
        store.settle(store.start(), outcome=AttemptOutcome.SAFE, state=TurnState.FAILED, retryable=True, **failure)
    lines = [line.split(": ", 1) for line in shell.ok("turn", "show", "1.1").splitlines() if line.startswith("error")]
    assert [(name, value.strip()) for name, value in lines] == [
        ("error_type", "refused"),
        ("error_message", "nobody listens there. Does the server run?"),
        ("error_status", "-"),
        ("error_retryable", "yes"),
    ]
    assert shell.records("turn", "show", "1.1")[0]["error"]["message"] == failure["error_message"]
    shell.ok("turn", "retry", "1.1")
    assert re.search(r"^error: +-$", shell.ok("turn", "show", "1.2"), re.MULTILINE)


@pytest.mark.parametrize("said", ["Does the server run?", "it waits for a retry", "It does."])
def test_a_sentence_is_closed_once(said: str) -> None:
    assert re.search(r"[a-z][?.]$", closed(said))
