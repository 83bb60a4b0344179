"""``inturn webhook``, and what the check-up says of webhooks; and the SDK's way to the same."""

import asyncio
import re
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import update

from inturn import Client, DeliveryNotFoundError, InvalidInputError, aio
from inturn.models.clock import now
from inturn.models.states import DeliveryState
from inturn.models.store import webhooks
from inturn.models.store.webhooks import Hook, Outcome
from inturn.models.tables import WEBHOOK_DELIVERIES
from tests.integration.receiver import SECRET, Receiver
from tests.integration.stores import Store
from tests.integration.test_cli_commands import Shell, shell

__all__ = ["shell"]

HOOK = Hook("jobs", frozenset({"batch.completed", "turn.failed"}))


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def configure(url: str = "https://example.com/hook", **how: bool) -> None:
    more = "".join(f"{name} = true\n" for name in how)
    Path("inturn.toml").write_text(f'[[webhooks]]\nname = "jobs"\nurl = "{url}"\nsecret_env = "HOOK_SECRET"\n{more}')


def logged(shell: Shell, *, late: bool = False) -> None:
    """A delivery of each state: 1 failed, 2 delivered, 3 is pending."""
    shell.ok("db", "upgrade")
    with closing(Store(f"sqlite:///{shell.home}/inturn.db")) as store:
        for number, event in enumerate(("turn.failed", "batch.completed", "batch.completed"), 1):
            store.write(webhooks.announce, [HOOK], event, f"1.{number}", '{"type":"x"}')
        failed, delivered = store.write(webhooks.take, "jobs", 60.0, 2)
        store.write(webhooks.settle, failed, Outcome(DeliveryState.FAILED, 500, "it answered 500"))
        store.write(webhooks.settle, delivered, Outcome(DeliveryState.DELIVERED, 200))
        if late:
            store.write(lambda db: db.execute(update(WEBHOOK_DELIVERIES).values(created_at=now(-7200))))


def test_the_log_is_listed_and_filtered(shell: Shell) -> None:
    configure()
    logged(shell)
    heading, *lines = [line.split("\t") for line in shell.ok("webhook", "list").splitlines()]
    assert heading == ["ID", "EVENT", "OF", "WEBHOOK", "STATE", "ATTEMPTS", "STORED", "NEXT", "ANSWER"]
    assert [line[:6] for line in lines] == [
        ["3", "batch.completed", "1.3", "jobs", "pending", "0"],
        ["2", "batch.completed", "1.2", "jobs", "delivered", "1"],
        ["1", "turn.failed", "1.1", "jobs", "failed", "1"],
    ]
    assert [line[8] for line in lines] == ["-", "200", "it answered 500"]
    assert [one["id"] for one in shell.records("webhook", "list", "--limit", "2")] == [3, 2]
    (record,) = shell.records("webhook", "list", "--state", "failed", "--event", "turn.failed")
    assert (record["webhook"], record["status_code"], record["body"]) == ("jobs", 500, '{"type":"x"}')
    assert re.fullmatch(r"evt_[0-9a-f]{24}", record["event_id"])
    assert shell.run("webhook", "list", "--event", "nothing").stderr == "there are no such deliveries\n"
    assert shell.run("webhook", "list", "--state", "lost").returncode == 2


def test_deliveries_are_sent_anew(shell: Shell) -> None:
    configure()
    logged(shell)
    assert "1 delivery will be sent anew" in shell.run("webhook", "redeliver", "2").stderr
    assert "1 delivery will be sent anew" in shell.run("webhook", "redeliver", "--failed").stderr
    assert {one["state"] for one in shell.records("webhook", "list")} == {"pending"}
    unknown = shell.run("webhook", "redeliver", "99")
    assert (unknown.returncode, "no webhook delivery 99" in unknown.stderr) == (4, True)
    assert shell.run("webhook", "redeliver", str(2**70)).returncode == 4
    for wrong in ((), ("1", "--failed"), ("0",), ("x",)):
        assert shell.run("webhook", "redeliver", *wrong).returncode == 2


def test_where_none_is_configured_it_is_said_how(shell: Shell) -> None:
    for words, code in (("list",), 0), (("test", "jobs"), 2):
        done = shell.run("webhook", *words)
        assert done.returncode == code
        assert "no webhook is configured: add one to inturn.toml ([[webhooks]], see docs/webhooks.md)" in done.stderr


def test_a_webhook_is_tried_out(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver(200, 200, 500) as receiver:
        configure(receiver.url, allow_http=True, allow_private=True)
        assert "webhook 'jobs' took it: it answered 200" in shell.run("webhook", "test", "jobs").stderr
        assert receiver.told[0].verified()["type"] == "webhook.test"
        assert receiver.told[0].verified()["data"] == {"webhook": "jobs"}
        assert shell.records("webhook", "test", "jobs") == [
            {"webhook": "jobs", "status_code": 200, "error_message": None}
        ]
        refused = shell.run("webhook", "test", "jobs")
        assert (refused.returncode, "was not delivered: it answered 500" in refused.stderr) == (1, True)
        configure(receiver.url, allow_http=True)
        private = shell.run("webhook", "test", "jobs")
        assert (private.returncode, "is not a public address" in private.stderr) == (69, True)
    assert "there are jobs" in shell.run("webhook", "test", "job").stderr
    monkeypatch.delenv("HOOK_SECRET")
    missing = shell.run("webhook", "test", "jobs")
    assert (missing.returncode, "HOOK_SECRET is not set" in missing.stderr) == (2, True)


def test_the_settings_are_shown_without_the_secret(shell: Shell) -> None:
    configure()
    shown = shell.ok("config", "show")
    assert re.search(r"webhooks\.0\tname=jobs, url=https://example.com/hook, secret_env=HOOK_SECRET,", shown)
    assert SECRET not in shown + shell.ok("config", "show", "--json")


def test_the_check_up_warns_of_what_failed_and_what_is_late(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    logged(shell)
    findings = [one for one in shell.records("doctor", "--offline") if one["subject"] == "webhooks"]
    assert [(one["state"], "deliveries that failed: 1." in one["sentence"]) for one in findings] == [("warn", True)]


def test_the_check_up_names_who_is_not_configured(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(shell, late=True)
    monkeypatch.delenv("HOOK_SECRET")
    sentences = [one["sentence"] for one in shell.records("doctor", "--offline") if one["subject"] == "webhooks"]
    assert any("'jobs', which is not in the settings here" in sentence for sentence in sentences)
    configure()
    sentences = [one["sentence"] for one in shell.records("doctor", "--offline") if one["subject"] == "webhooks"]
    assert any("'jobs' that wait for more than an hour: 1." in sentence for sentence in sentences)
    assert any("HOOK_SECRET is not set" in sentence for sentence in sentences)


def test_the_sdk_lists_and_sends_anew(shell: Shell) -> None:
    logged(shell)
    with Client(home=shell.home) as client:
        assert [one.id for one in client.list_webhook_deliveries()] == [3, 2, 1]
        assert [one.id for one in client.list_webhook_deliveries(state="delivered")] == [2]
        assert [one.id for one in client.list_webhook_deliveries(subject="1.1", event="turn.failed")] == [1]
        assert [one.id for one in client.list_webhook_deliveries(limit=1)] == [3]
        with pytest.raises(InvalidInputError, match="state is 'lost'"):
            list(client.list_webhook_deliveries(state="lost"))
        for unknown in (99, 0, 2**70, "1"):
            with pytest.raises(DeliveryNotFoundError):
                client.redeliver_webhook(unknown)  # type: ignore[arg-type]
        client.redeliver_webhook(2)
        assert client.redeliver_failed_webhooks() == 1

    async def asked() -> list[int]:
        async with aio.Client(home=shell.home) as client:
            return [one.id async for one in client.list_webhook_deliveries(state="pending")]

    assert asyncio.run(asked()) == [3, 2, 1]
