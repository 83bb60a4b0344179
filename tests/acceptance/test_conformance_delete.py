"""The conformance list, lines 30 to 35: delete, retention, forks and transcripts."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from inturn import Client, SessionNotFoundError, TurnNotFoundError
from inturn.client import Removal
from ops.chaos.model import Call
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until

Calls = Callable[[str], list[Call]]

SHORT = timedelta(milliseconds=1)
SLOW = '!{"latency": 3}'
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def age(deployment: Deployment, name: str) -> None:
    """The sessions whose IDs begin with ``name`` have not been used for years."""
    moment = LONG_AGO.strftime("%Y-%m-%d %H:%M:%S.000000" if deployment.is_embedded else "%Y-%m-%d %H:%M:%S+00")
    deployment.change(f"UPDATE sessions SET last_activity_at = '{moment}' WHERE key LIKE :name", name=f"{name}%")


def test_30_delete_removes_everything(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name, model="server/model", system_message=f"{name} system")
    turn = session.send(f'{name} !{{"status": 503, "times": 1}}')
    turn.wait(30)
    surrogate = int(turn.id.partition(".")[0])
    assert set(deployment.rows_of(surrogate)) == {"sessions", "leases", "turns", "messages", "attempts"}
    client.delete_session(name)
    assert deployment.rows_of(surrogate) == []
    [(table, receipt)] = [(table, row) for table, row in deployment.dump() if name in str(row)]
    assert (table, receipt["rule"], receipt["session_key"]) == ("removals", "erasure", name)
    assert f"{name} " not in str(receipt), "it has no text"
    for use in (lambda: session.send("late"), session.metadata, lambda: client.hold_session(name)):
        with pytest.raises(SessionNotFoundError, match=name):
            use()
    for gone in (turn.refresh, turn.cancel, turn.retry, turn.wait, lambda: client.get_turn(turn.id)):
        with pytest.raises(TurnNotFoundError, match=turn.id):
            gone()
    for unknown in (name, f"{name}-unknown"):
        with pytest.raises(SessionNotFoundError, match=unknown) as refusal:
            client.delete_session(unknown)
        assert refusal.value.session_id == unknown
        client.delete_session(unknown, missing_ok=True)
    client.create_session(f"{name}-there")
    client.delete_session(f"{name}-there", missing_ok=True)
    assert list(client.list_sessions(prefix=name)) == []


def test_30_deleting_during_a_call_leaves_nothing_behind(
    deployment: Deployment, client: Client, name: str, calls: Calls
):
    session = client.create_session(name, model="server/model")
    running, waiting = session.send(f"{name} running {SLOW}"), session.send(f"{name} waiting")
    wait_until(lambda: calls(name))
    client.delete_session(name)
    with pytest.raises(TurnNotFoundError):
        running.wait(30)
    with pytest.raises(TurnNotFoundError):
        waiting.wait(30)
    wait_until(lambda: calls(name)[0].end)
    # Whoever made the call has had his turn at the ledger by then: it is served in the order of coming.
    for number in range(4):
        client.create_session(f"{name}-{number}").send_and_wait("hello", timeout=30)
    assert deployment.rows_of(int(running.id.partition(".")[0])) == []
    assert len(calls(name)) == 1


def test_31_a_session_created_again_starts_empty(deployment: Deployment, client: Client, name: str, calls: Calls):
    old = client.create_session(name, model="server/model", labels={"life": "first"}, system_message="be brief")
    old.send_and_wait(f"{name} one", timeout=30)
    turn = old.send(f"{name} two {SLOW}")
    wait_until(lambda: len(calls(name)) == 2)
    client.delete_session(name)
    new = client.create_session(name, model="server/model")
    assert (new.metadata().turns, new.metadata().messages, new.metadata().labels) == (0, 0, {})
    wait_until(lambda: calls(name)[1].end)
    reply = new.send_and_wait(f"{name} three", timeout=30)
    assert reply.data.content == f"reply to: {name} three (seen 1 messages)"
    assert [message.data.content for message in new.get_messages()] == [f"{name} three", reply.data.content]
    with pytest.raises(SessionNotFoundError, match=name):
        old.send("into the past")
    with pytest.raises(TurnNotFoundError):
        turn.refresh()
    assert turn.id not in [each.id for each in new.get_turns()]
    assert new.metadata().turns == 1


def test_32_a_dry_run_lists_what_the_real_run_removes(deployment: Deployment, client: Client, name: str):
    for number in range(5):
        session = client.create_session(f"{name}-old-{number}", retention=SHORT if number % 2 else "policy")
        for _ in range(number):
            session.send_and_wait("hello", timeout=30)
    client.create_session(f"{name}-old-kept", retention=None)
    age(deployment, f"{name}-old")
    client.create_session(f"{name}-new")
    everything = {one.session_id for one in client.list_sessions(prefix=name)}

    listed, sums = list(client.list_due()), client.cleanup(dry_run=True)
    assert {one.session_id for one in client.list_sessions(prefix=name)} == everything
    assert list(client.list_due()) == listed
    mine = [removal for removal in listed if removal.session_id.startswith(name)]
    assert [(one.session_id, one.rule, one.turns, one.messages, one.last_activity_at) for one in mine] == [
        (f"{name}-old-{number}", "own" if number % 2 else "default", number, number * 2, LONG_AGO)
        for number in (1, 3, 0, 2, 4)
    ]
    removed: list[Removal] = []
    assert client.cleanup(on_removal=removed.append) == sums
    assert removed == listed
    assert {one.rule: one.sessions for one in sums} == Counter(one.rule for one in listed)
    left = {one.session_id for one in client.list_sessions(prefix=name)}
    assert left == {f"{name}-old-kept", f"{name}-new"} == everything - {one.session_id for one in listed}
    recorded = deployment.query("SELECT session_key, turns FROM removals WHERE session_key LIKE :name", name=f"{name}%")
    assert sorted(tuple(row) for row in recorded) == [(f"{name}-old-{number}", number) for number in range(5)]
    assert list(client.list_due()) == []
    assert client.cleanup(dry_run=True) == client.cleanup() == []


def test_33_cleanup_never_removes_what_is_held_busy_or_used_since(
    deployment: Deployment, client: Client, name: str, calls: Calls
):
    for ending in ("gone", "held", "running", "resumed", "sent-to", "released"):
        client.create_session(f"{name}-{ending}", model="server/model", retention=SHORT)
    client.hold_session(f"{name}-held")
    client.hold_session(f"{name}-released")
    client.release_session(f"{name}-released")
    busy = client.resume_session(f"{name}-running")
    running = busy.send(f'{name} !{{"act": "hang"}}')
    waiting = client.create_session(f"{name}-waiting", model="server/busy", retention=SHORT).send(
        f'{name} !{{"status": 429, "retry_after": 60}}'
    )
    wait_until(lambda: len(calls(name)) == 2 and waiting.refresh().error)
    age(deployment, name)

    def listed() -> list[str]:
        return [removal.session_id.removeprefix(f"{name}-") for removal in client.list_due()]

    assert listed() == ["gone", "resumed", "sent-to", "released"]
    client.resume_session(f"{name}-resumed")
    client.resume_session(f"{name}-sent-to").send_and_wait("hello", timeout=30)
    deployment.change(  # a day's grace, so that "just now" is not already long ago
        "UPDATE sessions SET retention_seconds = 86400 WHERE key LIKE :name", name=f"{name}%"
    )
    removed: list[str] = []
    client.cleanup(on_removal=lambda removal: removed.append(removal.session_id.removeprefix(f"{name}-")))
    assert removed == ["gone", "released"]
    left = [one.session_id.removeprefix(f"{name}-") for one in client.list_sessions(prefix=name)]
    assert left == ["held", "running", "resumed", "sent-to", "waiting"]
    metadata = client.get_session_metadata(f"{name}-held")
    assert metadata is not None
    assert metadata.held
    for turn in (running, waiting):
        assert turn.cancel()


def test_34_a_fork_shares_the_history_and_nothing_later(client: Client, name: str):
    session = client.create_session(name, model="server/model", labels={"owner": name})
    for prompt in ("tulips", "roses", "daisies"):
        session.send_and_wait(f"{name} {prompt}", timeout=30)
    fork = session.fork(f"{name}-fork", to_turn=2)
    reply = fork.send_and_wait(f"{name} violets", timeout=30)
    session.send_and_wait(f"{name} lilies", timeout=30)
    assert reply.turn == 3
    prompts = [message.data.content for message in fork.get_messages() if message.type == "user.message"]
    assert prompts == [f"{name} {flower}" for flower in ("tulips", "roses", "violets")]
    assert not any("violets" in message.data.content for message in session.get_messages())
    assert fork.metadata().labels == {"owner": name}
    assert [turn.state for turn in fork.get_turns()] == ["completed"] * 3


def test_35_an_exported_session_goes_on_where_it_is_imported(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name, model="server/model", system_message="be brief")
    session.send_and_wait(f"{name} tulips", timeout=30)
    file = deployment.home / f"{name}.jsonl"
    with file.open("wb") as output:
        output.writelines(session.export())
    client.delete_session(name)
    there = client.import_session(file)
    assert there.session_id == name
    assert there.send_and_wait(f"{name} roses", timeout=30).turn == 2
    said = [(message.type, message.turn) for message in there.get_messages()]
    assert said == [
        ("system.message", 1), ("user.message", 1), ("assistant.message", 1), ("user.message", 2), ("assistant.message", 2),
    ]  # fmt: skip


def test_35_a_renamed_session_goes_on(client: Client, name: str):
    session = client.create_session(name)
    session.send_and_wait("Let us discuss tulips", timeout=30)
    session.rename(f"{name}-renamed")
    assert "tulips" in session.send_and_wait("What did I say?", timeout=30).data.content
    assert client.resume_session(f"{name}-renamed").send_and_wait("And now?", timeout=30).turn == 3
    with pytest.raises(SessionNotFoundError):
        client.resume_session(name)
