"""The conformance list, lines 5 to 9: resume."""

from collections.abc import Callable

import pytest

from inturn import Client, SessionNotFoundError, TurnFailedError
from ops.chaos.model import Call, ModelServer
from tests.acceptance.deployment import KEY, KEY_VARIABLE, Deployment

Calls = Callable[[str], list[Call]]

RESUME = """
with Client() as client:
    session = client.resume_session(sys.argv[1])
    answer(session.send_and_wait("What were we discussing?", timeout=30).data.content)
"""


def shown(call: Call) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in call.messages]


def test_05_a_resumed_session_remembers(deployment: Deployment, client: Client, name: str):
    with client.create_session(name) as session:
        session.send_and_wait("Let us discuss tulips", timeout=30)
    with client.resume_session(name) as same_client:
        same_client.send_and_wait("Let us discuss roses", timeout=30)
        assert "tulips" in same_client.send_and_wait("What were we discussing?", timeout=30).data.content
    with deployment.client() as new_client:
        remembered = new_client.resume_session(name).send_and_wait("What did I say?", timeout=30).data.content
    assert "tulips" in remembered
    assert "roses" in remembered
    new_process = deployment.python(RESUME, name)
    assert "tulips" in new_process
    assert "roses" in new_process
    assert client.resume_session(name).metadata().turns == 5


def test_06_an_unknown_or_deleted_id_is_not_found_and_not_created(client: Client, name: str):
    client.create_session(f"{name}-deleted").send_and_wait("hello", timeout=30)
    client.delete_session(f"{name}-deleted")
    for session_id in (f"{name}-unknown", f"{name}-deleted"):
        for how in ({}, {"model": "echo/other"}, {"system_message": "be brief"}):
            with pytest.raises(SessionNotFoundError, match=session_id) as refusal:
                client.resume_session(session_id, **how)
            assert refusal.value.session_id == session_id
            assert isinstance(refusal.value, LookupError)
    assert list(client.list_sessions(prefix=name)) == []


def test_07_a_session_without_messages_resumes_like_any_other(deployment: Deployment, client: Client, name: str):
    client.create_session(name).disconnect()
    with deployment.client() as other:
        session = other.resume_session(name)
        assert list(session.get_messages()) == []
        assert session.send_and_wait("hello", timeout=30).turn == 1
        assert [message.type for message in session.get_messages()] == ["user.message", "assistant.message"]


def test_08_model_and_system_message_change_for_later_turns_only(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/first", system_message="be brief")
    session.send_and_wait(f"{name} one", timeout=30)
    before = list(session.get_messages())

    changed = client.resume_session(name, model="server/second", system_message="be long")
    changed.send_and_wait(f"{name} two", timeout=30)
    session.send_and_wait(f"{name} three", timeout=30)
    silent = client.resume_session(name, system_message="")
    silent.send_and_wait(f"{name} four", timeout=30)

    history = list(session.get_messages())
    assert history[: len(before)] == before
    system = [(message.turn, message.data.content) for message in history if message.type == "system.message"]
    assert system == [(1, "be brief"), (2, "be long")]
    assert [call.model for call in calls(name)] == ["first", "second", "second", "second"]
    said = [(role, content) for call in calls(name)[:1] for role, content in shown(call)]
    assert said == [("system", "be brief"), ("user", f"{name} one")]
    assert [shown(call)[0] for call in calls(name)[1:3]] == [("system", "be long")] * 2
    assert [role for role, _ in shown(calls(name)[3])] == ["user", "assistant"] * 3 + ["user"]
    assert (silent.metadata().model, silent.metadata().system_message) == ("server/second", None)
    assert [turn.model for turn in session.get_turns()] == ["server/first"] + ["server/second"] * 3


def test_08_a_turn_that_waits_keeps_what_it_was_sent_with(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/first", system_message="be brief")
    ahead = session.send(f'{name} one !{{"act": "hang"}}')
    waiting = session.send(f"{name} two")
    client.resume_session(name, model="server/second", system_message="be long")
    ahead.cancel()
    waiting.wait(30)
    session.send_and_wait(f"{name} three", timeout=30)
    assert [(call.model, shown(call)[0][1]) for call in calls(f"{name} t")] == [
        ("first", "be brief"),
        ("second", "be long"),
    ]


def test_09_keys_and_base_urls_are_in_no_stored_row(
    deployment: Deployment, client: Client, name: str, model: ModelServer
):
    session = client.create_session(name, model="server/some-model", options={"temperature": 0.5})
    session.send_and_wait("hello", timeout=30)
    for directive in ('{"status": 400, "say": "key"}', '{"status": 401, "say": "key", "form": "ollama"}'):
        with pytest.raises(TurnFailedError) as refusal:
            session.send_and_wait(f"repeat it !{directive}", timeout=30)
        assert KEY not in str(refusal.value)
    with pytest.raises(TurnFailedError):
        client.create_session(f"{name}-nobody", model="nobody/home").send_and_wait("hello", timeout=30)
    rows = [f"{table}: {row}" for table, row in deployment.dump()]
    assert any(name in row for row in rows)
    for secret in (KEY, KEY_VARIABLE, *(provider["base_url"] for provider in deployment.providers.values())):
        # The variable's name is told to people who have to set it; here nobody has to.
        leaks = [row for row in rows if secret in row and "Check" not in row]
        assert leaks == []


def test_09_a_provider_that_is_not_configured_any_more_fails_by_name(
    deserted: Deployment, name: str, model: ModelServer
):
    configured = {"leaving": {"type": "openai", "base_url": model.base_url}}
    deserted.configure(configured)
    with deserted.client() as client:
        client.create_session(name, model="leaving/model")
    deserted.configure({})
    deserted.start(workers=1, beat=False)
    with deserted.client() as client:
        session = client.resume_session(name)
        with pytest.raises(TurnFailedError, match="'leaving' is not configured") as refusal:
            session.send_and_wait("hello", timeout=30)
        assert (refusal.value.error_type, refusal.value.retryable) == ("provider_not_configured", False)
        deserted.stop()
        deserted.configure(configured)
        deserted.start(workers=1, beat=False)
        assert session.send_and_wait("hello again", timeout=30).data.content.startswith("reply to: hello again")
