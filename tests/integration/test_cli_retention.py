"""``inturn retention`` and ``inturn cleanup`` with rules; and the SDK's way to the same."""

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import insert

from inturn import Client, InvalidInputError, Settings, __version__, aio
from inturn.cleaning import caller
from inturn.fingerprints import fingerprints
from inturn.models.clock import now
from inturn.models.cron import Cron
from inturn.models.states import ProcessKind
from inturn.models.store import presence
from inturn.models.store.moments import tick_name
from inturn.models.store.presence import Process
from inturn.models.tables import SESSIONS, SPENDING
from tests.integration.stores import Store
from tests.integration.test_cli_commands import Shell, shell
from tests.integration.test_store_expiry import ended

__all__ = ["shell"]

YEARLY, ZONE = "0 3 1 1 *", "Europe/Berlin"
RULES = """
[[retention]]
name = "gold"
labels = { tier = "gold" }
forever = true

[[retention]]
name = "drafts"
match = "draft-*"
idle_days = 1
more_than = 10
archive = "archives"
"""


def fill(shell: Shell) -> None:
    """Sessions that were last used two days ago, some of which are due."""
    Path("inturn.toml").write_text(RULES)
    Path("archives").mkdir()
    for key, how in {"draft-1": (), "draft-2": (), "gold": ("--label", "tier=gold"), "else": (), "own": ()}.items():
        shell.ok("session", "create", key, *how, *(("--retention", "1d") if key == "own" else ()))
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.answer("draft-1", prompt="hello")
        store.change(SESSIONS, SESSIONS.c.id > 0, last_activity_at=now(-2 * 86400))


def test_the_password_of_an_archive_is_nowhere_shown(shell: Shell) -> None:
    Path("inturn.toml").write_text(RULES.replace('"archives"', '"memory://ann:se/cret@bucket/x"'))
    shell.ok("session", "create", "draft-1")
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.change(SESSIONS, SESSIONS.c.id > 0, last_activity_at=now(-2 * 86400))
    shell.ok("cleanup", "--yes")
    for words in (("retention", "show"), ("retention", "history"), ("config", "show")):
        for flags in ((), ("--json",)):
            told = shell.ok(*words, *flags)
            assert "cret" not in told
            assert "memory://ann:***@bucket/x" in told
    assert "cret" not in repr(Settings.load().retention)


def test_rules_are_shown_with_what_they_come_to(shell: Shell) -> None:
    fill(shell)
    assert [line.split("\t")[:5] for line in shell.ok("retention", "show").splitlines()] == [
        ["RULE", "COVERS", "REMOVED", "SESSIONS", "DUE"],
        ["own", "sessions with an idle time of their own", "after that time", "1", "1"],
        ["gold", "tier=gold", "never", "1", "0"],
        ["drafts", "draft-*", "idle for 1d or beyond the 10 active last", "2", "2"],
        ["default", "all others", "idle for 30d", "1", "0"],
        ["read batches", "batches whose results were read", "after 90d", "-", "0"],
        ["unread batches", "batches that are over, and that nobody read", "after 365d", "-", "0"],
        ["old deliveries", "deliveries of webhooks that are over, or that nobody sends", "after 30d", "-", "0"],
        ["past spending", "what was spent of budgets on past days", "after 30d", "-", "0"],
        ["old receipts", "receipts of removals, and past holds", "after 3650d", "-", "0"],
        ["old ticks", "what the timetable fired, but for each last time", "after 30d", "-", "0"],
    ]
    assert "3 sessions due now" in shell.run("retention", "show").stderr
    assert [(one["name"], one["due"]) for one in shell.records("retention", "show")][2] == ("drafts", 2)


def test_it_is_shown_when_rules_are_carried_out_next(shell: Shell) -> None:
    def shown(name: str, *words: str) -> dict[str, Any]:
        return next(one for one in shell.records("retention", "show", *words) if one["name"] == name)

    fill(shell)
    Path("inturn.toml").write_text(
        RULES.replace("idle_days = 1\n", f"idle_days = 1\ncron = '{YEARLY}'\ntimezone = '{ZONE}'\n")
    )
    drafts, default, gold = shown("drafts"), shown("default"), shown("gold")
    assert (drafts["cron"], drafts["timezone"], drafts["due"]) == (YEARLY, ZONE, 2)
    run = datetime.fromisoformat(drafts["next_at"])
    assert f"{run.astimezone(ZoneInfo(ZONE)):%m-%d %H:%M}" == "01-01 03:00"
    assert run > datetime.now(UTC)
    assert (default["cron"], default["timezone"], default["next_at"], gold["next_at"]) == (None, None, None, None)
    found = shell.run("retention", "show")
    assert found.stdout.splitlines()[0].split("\t")[5:] == ["NEXT", "CRON", "ARCHIVE", "WHAT"]
    assert f"\t{YEARLY} {ZONE}\t" in found.stdout
    assert "no beat is alive, so no rule is carried out by itself: `inturn up` starts one" in found.stderr

    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        store.write(presence.appear, Process("b", ProcessKind.BEAT, "h", 1, "", 0, "0"))
        soon = datetime.fromisoformat(shown("default")["next_at"]) - datetime.now(UTC)
        assert timedelta(minutes=59) < soon < timedelta(minutes=61)
        assert shown("gold")["next_at"] is None
        assert "no beat" not in shell.run("retention", "show").stderr
        name = tick_name("drafts", Cron(YEARLY, ZONE))
        store.write(presence.tick, name, int(run.timestamp()) // 60 - 2 * 366 * 24 * 60)
    assert datetime.fromisoformat(shown("drafts")["next_at"]) < datetime.now(UTC), "it is due"
    assert {one["session_id"] for one in shell.records("cleanup", "--yes")} == {"draft-1", "draft-2", "own"}


def test_it_is_shown_who_goes_by_other_rules(shell: Shell) -> None:
    fill(shell)
    told = "beat h/1 was started with other rules than these. If these were changed since, stop `inturn up` and start"
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        known = fingerprints(Settings(), ProcessKind.BEAT, [])
        store.write(presence.appear, Process("b", ProcessKind.BEAT, "h", 1, "", 0, __version__, known))
    assert "other rules" not in shell.run("retention", "show").stderr
    Path("inturn.toml").write_text(RULES.replace("idle_days = 1", "idle_days = 2"))
    assert told in shell.run("retention", "show").stderr
    Path("inturn.toml").write_text(RULES + "[[webhooks]]\nname = 'a'\nurl = 'https://example.org'\nsecret_env = 'A'\n")
    assert "other rules" not in shell.run("retention", "show").stderr


def test_what_else_expired_goes_with_the_same_cleanup(shell: Shell) -> None:
    Path("inturn.toml").write_text("batch_days = 5\nunread_batch_days = 9\n")
    shell.ok("db", "upgrade")
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        ended(store, "read", 10, 6)
        ended(store, "lately", 10, 4)
        for day in ("2026-01-01", "2026-01-02"):
            values = {"scope": "all", "slot": day, "usd": 1.0, "tokens": 1}
            store.write(lambda db, values=values: db.execute(insert(SPENDING).values(values)))
    due = [{"rule": "read batches", "rows": 1}, {"rule": "past spending", "rows": 2}]
    assert shell.records("cleanup", "--dry-run") == due
    assert (
        "besides, 1 row of read batches, 2 rows of past spending would go" in shell.run("cleanup", "--dry-run").stderr
    )
    shown = {one["name"]: one for one in shell.records("retention", "show")}
    assert (shown["read batches"]["seconds"], shown["read batches"]["due"]) == (5 * 86400, 1)
    assert shell.records("cleanup", "--older-than", "9d", "--yes") == [], "that is about sessions, and nothing else"
    assert shell.records("cleanup") == due, "of sessions nothing is due, so nobody is asked"
    assert [one["id"] for one in shell.records("batch", "list")] == ["lately"]
    assert shell.records("cleanup", "--dry-run") == []
    runs = [(one["rule"], one["sessions"], one["rows"]) for one in shell.records("retention", "history")]
    assert runs == [("past spending", 0, 2), ("read batches", 0, 1)]
    assert "past spending" in shell.ok("retention", "history")
    refused = shell.run("cleanup", "--dry-run", INTURN_BATCH_DAYS="10")
    assert refused.returncode != 0
    assert "batch_days is 10" in refused.stderr
    assert "unread_batch_days" in refused.stderr


def test_a_session_is_tested_against_them(shell: Shell) -> None:
    fill(shell)
    shell.ok("session", "hold", "draft-2", "--reason", "claim 4711")
    found = {key: shell.records("retention", "test", key)[0] for key in ("draft-1", "draft-2", "gold", "else", "own")}
    assert {key: (one["rule"], one["due"]) for key, one in found.items()} == {
        "draft-1": ("drafts", True), "draft-2": ("drafts", False), "gold": ("gold", False), "else": ("default", False),
        "own": ("own", True),
    }  # fmt: skip
    assert found["draft-1"]["reason"] == "removed by drafts: idle for 1d or beyond the 10 active last"
    assert found["draft-2"]["reason"].endswith(": claim 4711")
    assert found["gold"]["reason"] == "kept for ever by gold"
    assert found["own"]["reason"] == "removed by own: idle for 1d, which is its own time"
    assert "draft-1" in shell.ok("retention", "test", "draft-1")
    assert found["else"]["reason"] == "not yet; by default: idle for 30d, counted from its last activity"
    days = (datetime.fromisoformat(found["else"]["due_at"]) - datetime.now(UTC)) / timedelta(days=1)
    assert (round(days, 1), found["else"]["counts_from"]) == (28.0, "last_activity_at")
    assert (found["gold"]["due_at"], found["gold"]["counts_from"]) == (None, None)
    assert f"{datetime.fromisoformat(found['else']['due_at']).astimezone():%Y-%m-%d}" in shell.ok(
        "retention", "test", "else"
    )
    assert shell.run("retention", "test", "nobody").returncode == 4
    (record,) = shell.records("session", "show", "draft-2")
    assert (record["held"], record["hold_reason"]) == (True, "claim 4711")
    assert "@" in record["held_by"]


def test_a_schedule_keeps_its_session_and_a_paused_one_does_not(shell: Shell) -> None:
    fill(shell)
    shell.ok("schedule", "add", "draft-1", "hello", "--cron", "0 9 * * *", "--name", "daily")
    (found,) = shell.records("retention", "test", "draft-1")
    assert (found["due"], found["schedules"], found["paused_schedules"]) == (False, ["daily"], [])
    assert found["reason"].startswith("the schedule daily sends to it; otherwise by drafts: idle for 1d")
    shell.ok("schedule", "pause", "daily")
    (found,) = shell.records("retention", "test", "draft-1")
    assert (found["due"], found["schedules"], found["paused_schedules"]) == (True, [], ["daily"])
    assert found["reason"].startswith("removed by drafts: idle for 1d")
    assert found["reason"].endswith("; the schedule daily sends to it, but paused ones keep nothing")


def test_a_hold_is_not_overwritten_and_its_end_is_told(shell: Shell) -> None:
    fill(shell)
    shell.ok("session", "hold", "gold", "--reason", "claim 4711")
    refused = shell.run("session", "hold", "gold", "--reason", "claim 4712")
    assert (refused.returncode, "(claim 4711)" in refused.stderr, "--replace" in refused.stderr) == (1, True, True)
    shell.ok("session", "hold", "gold", "--reason", "claim 4712", "--replace")
    assert shell.records("session", "show", "gold")[0]["hold_reason"] == "claim 4712"
    shell.ok("session", "release", "gold")
    (record,) = shell.records("session", "show", "gold")
    assert [one["reason"] for one in record["past_holds"]] == ["claim 4712", "claim 4711"]
    assert {one["released_by"] for one in record["past_holds"]} == {caller()}
    assert f"claim 4711 (held by {caller()} since " in shell.ok("session", "show", "gold")
    assert shell.records("retention", "history", "gold") == record["past_holds"]
    assert "claim 4711" in shell.ok("retention", "history", "gold")
    shell.ok("session", "delete", "gold", "--yes")
    receipt, *past = shell.records("retention", "history", "gold")
    assert (receipt["rule"], [one["reason"] for one in past]) == ("erasure", [None, None])


def test_what_was_removed_has_receipts_and_comes_back_from_its_archive(shell: Shell) -> None:
    fill(shell)
    due = shell.records("cleanup", "--dry-run")
    assert shell.records("cleanup", "--yes") == due
    runs = {one["rule"]: one for one in shell.records("retention", "history")}
    assert {name: run["sessions"] for name, run in runs.items()} == {"own": 1, "drafts": 2}
    assert "drafts" in shell.ok("retention", "history")
    assert len(shell.records("retention", "history", "--limit", "1")) == 1
    (receipt,) = shell.records("retention", "history", "draft-1")
    assert (receipt["turns"], receipt["messages"], receipt["run"]) == (1, 2, runs["drafts"])
    assert receipt["bytes"] > len("hello")
    assert "draft-1 was removed" not in shell.run("retention", "history", "draft-1").stderr
    assert "no session else was removed by a rule" in shell.run("retention", "history", "else").stderr
    shell.ok("session", "import", runs["drafts"]["archive"])
    assert [one["session_id"] for one in shell.records("session", "list", "--prefix", "draft-")] == [
        "draft-1",
        "draft-2",
    ]


def test_an_archive_that_cannot_be_written_keeps_its_sessions(shell: Shell) -> None:
    fill(shell)
    Path("archives").rmdir()
    failed = shell.run("cleanup", "--yes")
    assert failed.returncode == 1
    assert "archives" in failed.stderr
    assert "drafts failed: " in shell.run("retention", "history").stderr
    assert [one["session_id"] for one in shell.records("session", "list")] == ["draft-1", "draft-2", "gold", "else"]


def test_one_that_is_deleted_by_hand_has_a_receipt(shell: Shell) -> None:
    fill(shell)
    shell.ok("session", "delete", "draft-1", "--yes")
    with Client(home=shell.home) as client:
        client.delete_session("draft-2")
        client.delete_session("draft-2", missing_ok=True)
    for key in ("draft-1", "draft-2"):
        (receipt,) = shell.records("retention", "history", key)
        assert (receipt["rule"], receipt["run"]["sessions"], receipt["run"]["asked_by"]) == ("erasure", 1, caller())
    assert [run["rule"] for run in shell.records("retention", "history")] == ["erasure"] * 2


def test_one_rule_for_once(shell: Shell) -> None:
    fill(shell)
    listed = shell.records("cleanup", "--older-than", "36h", "--dry-run")
    assert {one["session_id"] for one in listed} == {"draft-1", "draft-2", "gold", "else", "own"}
    assert shell.records("cleanup", "--older-than", "3d", "--dry-run") == []
    assert shell.run("cleanup", "--older-than", "long").returncode == 2
    removed = shell.run("cleanup", "--older-than", "36h", "--yes")
    assert removed.stdout.splitlines()[1].split("\t")[:3] == ["older-than", "5", "1"]
    assert removed.stderr.startswith("5 sessions (5 by older-than; ")
    assert shell.records("session", "list") == []


def test_what_was_said_goes_and_the_rest_stays(shell: Shell) -> None:
    fill(shell)
    Path("inturn.toml").write_text('[[retention]]\nname = "text"\nmatch = "d*"\nidle_days = 1\nkeep = "metadata"\n')
    used = shell.records("usage", "--by", "session")
    rule = next(one for one in shell.records("retention", "show") if one["name"] == "text")
    assert (rule["keep"], rule["due"]) == ("metadata", 2)
    assert shell.ok("retention", "show").splitlines()[2].split("\t")[-1] == "content"
    (told,) = shell.records("retention", "test", "draft-1")
    assert (told["due"], told["keep"], told["reason"]) == (
        True,
        "metadata",
        "what was said is removed by text: idle for 1d",
    )
    due = shell.records("cleanup", "--dry-run")
    assert {one["session_id"]: one["kept"] for one in due} == {
        "own": "nothing", "draft-1": "metadata", "draft-2": "metadata",
    }  # fmt: skip
    assert "of 2 only what was said" in shell.run("cleanup", "--dry-run").stderr
    assert shell.ok("cleanup", "--dry-run").splitlines()[2].split("\t")[-1] == "content"
    assert shell.records("cleanup", "--yes") == due
    assert shell.records("cleanup", "--dry-run") == []
    (record,) = shell.records("session", "show", "draft-1")
    (mark,) = record["history"]
    assert (mark["type"], record["content_removed_to"], record["turns"]) == ("session.content_removed", 1, 1)
    assert record["content_removed_at"] is not None
    assert "removed: what was said up to turn 1 was removed by retention on " in shell.ok("session", "show", "draft-1")
    assert "removed by retention" in shell.ok("session", "tail", "draft-1")
    assert shell.records("usage", "--by", "session") == used
    (turn,) = shell.records("turn", "list", "draft-1")
    assert (turn["prompt"], turn["state"], turn["content_removed_at"]) == (
        None,
        "completed",
        record["content_removed_at"],
    )
    assert "(removed)" in shell.ok("turn", "list", "draft-1")
    shown = shell.run("turn", "show", turn["id"])
    assert (shown.returncode, "is gone: retention removed it on" in shown.stderr) == (0, True)
    (told,) = shell.records("retention", "test", "draft-1")
    assert (told["due"], told["content_removed_at"]) == (False, record["content_removed_at"])
    assert told["reason"].startswith("what was said is removed already, and the rest stays")
    runs = {one["rule"]: one["kept"] for one in shell.records("retention", "history")}
    assert runs == {"own": "nothing", "text": "metadata"}
    assert shell.ok("retention", "history", "draft-1").splitlines()[1].split("\t")[-1] == "content"
    assert {one["session_id"] for one in shell.records("cleanup", "--older-than", "36h", "--yes")} == {
        "draft-1", "draft-2", "gold", "else",
    }  # fmt: skip


def test_the_sdk_says_the_same(shell: Shell) -> None:
    fill(shell)
    with Client(home=shell.home) as client:
        client.hold_session("gold", "claim 4711", by="the counsel")
        session = client.get_session_metadata("gold")
        assert session is not None
        assert (session.hold_reason, session.held_by) == ("claim 4711", "the counsel")
        assert [one.due for one in client.list_rules()] == [1, 0, 2, 0]
        assert {one.expiry.name: one.due for one in client.list_expiries()}["read batches"] == 0
        found = client.outlook("draft-1")
        assert (found.rule and found.rule.name, found.due) == ("drafts", True)
        seen: list[tuple[int, int]] = []
        removed = client.cleanup(on_progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert [(one.rule, one.sessions) for one in removed] == [("own", 1), ("drafts", 2)]
        assert [run.sessions for run in client.list_removal_runs()] == [2, 1]
        for wrong in (timedelta(0), timedelta(days=-1)):
            try:
                client.cleanup(older_than=wrong)
            except InvalidInputError:
                continue
            raise AssertionError(wrong)

    async def ask() -> tuple[int, int]:
        async with aio.Client(home=shell.home) as client:
            runs = [run async for run in client.list_removal_runs()]
            due = [removal async for removal in client.list_due(older_than=timedelta(hours=36))]
            found = [removal.session_id async for removal in client.list_matching(pattern="g*", held_too=True)]
            assert ([removal.session_id for removal in due], found) == (["else"], ["gold"])
            return len(runs), len(await client.list_receipts("own"))

    assert asyncio.run(ask()) == (2, 1)


def test_all_of_a_person_is_erased_and_nothing_else(shell: Shell) -> None:
    """The file holds the text nowhere afterwards, not even where nothing is. What is held stays, unless one asks."""
    shell.ok("db", "upgrade")
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        for key in ("ann-1", "ann-2", "ann-held", "bob"):
            who = key.partition("-")[0]
            shell.ok("session", "create", key, "--label", f"owner={who}", "--system", f"CANARY of {who}")
            store.answer(key, prompt=f"CANARY of {who}")
            store.send(key, f"CANARY of {who}")
    shell.ok("schedule", "add", "ann-1", "CANARY of ann", "--cron", "0 9 * * *", "--name", "daily")
    shell.ok("session", "hold", "ann-held")
    listed = shell.records("session", "delete", "--label", "owner=ann", "--dry-run")
    assert [(it["session_id"], it["turns"]) for it in listed] == [("ann-1", 2), ("ann-2", 2)]
    assert "1 session held: left alone" in shell.run("session", "delete", "--label", "owner=ann", "--dry-run").stderr
    assert shell.run("session", "delete", "--pattern", "ann-*").returncode == 2, "nobody can be asked"
    assert shell.records("session", "delete", "--pattern", "ann-*", "--label", "owner=ann", "--yes") == listed
    assert [one["session_id"] for one in shell.records("session", "list")] == ["ann-held", "bob"]
    (held,) = shell.records("session", "delete", "--pattern", "ann-*", "--held", "--yes")
    assert held["session_id"] == "ann-held"
    assert shell.run("session", "delete", "--pattern", "ann-*", "--yes").stderr == "there are no such sessions\n"
    assert shell.records("schedule", "list") == []
    runs = shell.records("retention", "history")
    assert [(run["rule"], run["sessions"], run["turns"]) for run in runs] == [("erasure", 1, 2), ("erasure", 2, 4)]
    (receipt,) = shell.records("retention", "history", "ann-1")
    assert (receipt["rule"], receipt["messages"]) == ("erasure", 4)
    with closing(sqlite3.connect(shell.home / "inturn.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    said = (shell.home / "inturn.db").read_bytes()
    assert b"CANARY of ann" not in said
    assert b"CANARY of bob" in said
    for wrong in ((), ("bob", "--pattern", "b*"), ("bob", "--label", "owner=bob")):
        assert shell.run("session", "delete", *wrong, "--yes").returncode == 2
    assert "bob would be deleted, with its 4 messages" in shell.run("session", "delete", "bob", "--dry-run").stderr
    shell.ok("session", "show", "bob")
