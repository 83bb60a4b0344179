"""Chains of models, on both kinds of deployment: who is asked, who answers, and what is recorded of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from inturn import Client, InvalidInputError, Session, Turn, TurnFailedError, UnknownModelError
from ops.chaos.model import Call
from tests.acceptance.deployment import MAX_ATTEMPTS

REPLY_SECONDS = 30

Calls = Callable[[str], list[Call]]


def failing(what: dict[str, Any], only: str = "first") -> str:
    """A directive by which one model fails."""
    return f"!{json.dumps(what | {'only': only})}"


def asked(turn: Turn) -> list[tuple[str | None, str | None, str | None]]:
    """Of each attempt: who was asked, how it ended, and what went wrong."""
    return [(each.model, each.outcome, each.error_type) for each in turn.get_attempts()]


@pytest.mark.parametrize(
    ("what", "outcome", "error_type"),
    [
        ({"status": 401}, "permanent", "unauthorized"),
        ({"status": 404}, "permanent", "not_found"),
        ({"status": 500}, "ambiguous", "http_500"),
        ({"status": 503}, "safe", "unavailable"),
        ({"act": "declined"}, "permanent", "refusal"),
    ],
    ids=lambda value: f"{value!s:.30}",
)
def test_the_second_model_answers_where_the_first_one_fails(
    client: Client, name: str, calls: Calls, what: dict[str, Any], outcome: str, error_type: str
):
    session = client.create_session(name, model=["server/first", "server/second", "server/third"])
    prompt = f"{name} {failing(what)}"
    turn = session.send(prompt)
    assert turn.wait(REPLY_SECONDS).data.content == f"reply to: {prompt} (seen 1 messages)"
    assert (turn.refresh().model, turn.fallbacks, turn.error, turn.attempts) == (
        "server/second", ["server/third"], None, 2,
    )  # fmt: skip
    assert asked(turn) == [("server/first", outcome, error_type), ("server/second", "completed", None)]
    first, second = calls(name)
    assert (first.model, second.model) == ("first", "second")
    assert None not in (first.key, second.key)
    assert first.key != second.key, "the second one is asked something else than what the first one was"

    later = session.send(f"{name} later")
    later.wait(REPLY_SECONDS)
    assert asked(later) == [("server/first", "completed", None)], "the next turn begins at the top"
    assert (later.refresh().model, later.fallbacks) == ("server/first", ["server/second", "server/third"])
    assert (session.metadata().model, session.metadata().fallbacks) == (
        "server/first", ["server/second", "server/third"],
    )  # fmt: skip


def test_where_nobody_listens_the_next_provider_is_asked(client: Client, name: str, calls: Calls):
    turn = client.create_session(name, model=["nobody/x", "echo/echo", "server/third"]).send(name)
    assert turn.wait(REPLY_SECONDS).data.content.startswith("You said:")
    assert asked(turn) == [("nobody/x", "safe", "refused"), ("echo/echo", "completed", None)]
    assert calls(name) == []


def test_a_reply_that_breaks_off_is_begun_anew_by_the_next_model(client: Client, name: str):
    session = client.create_session(name, model=["server/first", "server/second"])
    turn = session.send(f"{name} {failing({'act': 'cut_stream'})}", stream=True)
    events = list(turn.stream(REPLY_SECONDS))
    kinds = [event.type.partition(".")[2] for event in events]
    # Who listens too late for the first one hears the second only.
    begun_anew = kinds.index("message_discarded") + 1 if "message_discarded" in kinds else 0
    assert kinds[begun_anew:] == ["message_delta"] * (len(kinds) - begun_anew - 1) + ["message"]
    heard = "".join(event.data.delta_content for event in events[begun_anew:-1])
    assert heard == events[-1].data.content
    assert [model for model, *_ in asked(turn)] == ["server/first", "server/second"]
    assert turn.refresh().partial is None


def test_a_model_that_is_busy_is_left_alone_by_those_who_have_another(client: Client, name: str, calls: Calls):
    model = f"busy-{name}"
    how: dict[str, Any] = {"model": [f"server/{model}", "server/second"]}
    first = client.create_session(name, **how).send(f"{name} {failing({'status': 429, 'retry_after': 60}, model)}")
    first.wait(REPLY_SECONDS)
    assert asked(first) == [(f"server/{model}", "safe", "rate_limited"), ("server/second", "completed", None)]
    others = [client.create_session(f"{name}-{number}", **how).send(f"{name} {number}") for number in range(6)]
    for other in others:
        other.wait(REPLY_SECONDS)
    # Who had not heard yet of the pause may have asked.
    passed_over = [turn for turn in others if turn.refresh().model == "server/second"]
    assert passed_over
    assert {tuple(asked(turn)) for turn in passed_over} == {(("server/second", "completed", None),)}
    assert {turn.attempts for turn in others} == {1}


def test_the_key_is_the_same_for_all_attempts_at_one_model(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model=["server/first", "server/second"])
    turn = session.send(f'{name} !{{"status": 503, "times": 2}}')
    turn.wait(REPLY_SECONDS)
    assert [each.model for each in calls(name)] == ["first", "second", "second", "second"]
    first, *others = [each.key for each in calls(name)]
    assert len(set(others)) == 1
    assert first not in others
    assert [model for model, *_ in asked(turn)] == ["server/first", *["server/second"] * 3]


def test_a_chain_that_fails_wholly_fails_with_the_last_error(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model=["server/first", "server/second", "server/third"])
    turn = session.send(f'{name} !{{"status": 404}}')
    with pytest.raises(TurnFailedError, match="server/third") as caught:
        turn.wait(REPLY_SECONDS)
    assert (caught.value.error_type, caught.value.status_code, caught.value.retryable) == ("not_found", 404, False)
    assert [model for model, *_ in asked(turn)] == ["server/first", "server/second", "server/third"]
    assert (turn.refresh().model, turn.fallbacks) == ("server/third", [])
    assert len({call.key for call in calls(name)}) == 3


def test_calls_that_may_have_been_paid_for_end_a_chain_early(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model=["server/first", "server/second", "server/third"])
    turn = session.send(f'{name} !{{"status": 500}}')
    with pytest.raises(TurnFailedError, match="http_500"):
        turn.wait(REPLY_SECONDS)
    assert [call.model for call in calls(name)] == ["first", "second"]


def test_a_provider_has_a_chain_for_sessions_that_name_none(client: Client, name: str):
    prompt = f"{name} {failing({'status': 401})}"
    turn = client.create_session(name, model="leaning/first").send(prompt)
    assert turn.fallbacks is None
    turn.wait(REPLY_SECONDS)
    assert asked(turn)[1:] == [("server/crutch", "completed", None)]
    other = client.create_session(f"{name}-own", model=["leaning/first", "server/second"]).send(prompt)
    other.wait(REPLY_SECONDS)
    assert asked(other)[1:] == [("server/second", "completed", None)]
    alone = client.create_session(f"{name}-alone", model=["leaning/first"]).send(prompt)
    assert alone.fallbacks == []
    with pytest.raises(TurnFailedError, match="unauthorized"):
        alone.wait(REPLY_SECONDS)
    assert asked(alone) == [("leaning/first", "permanent", "unauthorized")]


def test_resuming_with_a_chain_is_for_turns_sent_from_now_on(client: Client, name: str):
    prompt = f"{name} {failing({'status': 404})}"
    before = client.create_session(name, model="server/first").send(prompt)
    session = client.resume_session(name, model=["server/first", "server/second"])
    assert (session.metadata().model, session.metadata().fallbacks) == ("server/first", ["server/second"])
    after = session.send(prompt)
    with pytest.raises(TurnFailedError, match="not_found"):
        before.wait(REPLY_SECONDS)
    after.wait(REPLY_SECONDS)
    assert asked(after)[1:] == [("server/second", "completed", None)]
    assert client.resume_session(name).metadata().fallbacks == ["server/second"], "nothing was said about it"
    assert client.resume_session(name, model="server/first").metadata().fallbacks is None
    assert client.resume_session(name, model=["echo/echo"]).metadata().fallbacks == []


LONG = [f"server/m{number}" for number in range(MAX_ATTEMPTS)]


@pytest.mark.parametrize("make", [Client.create_session, Client.resume_session], ids=["create", "resume"])
def test_a_chain_that_cannot_be_is_refused(client: Client, name: str, make: Callable[..., Session]):
    there = f"{name}-there"
    client.create_session(there, model="echo/echo")
    key = name if make is Client.create_session else there
    bad: list[tuple[Any, type[Exception]]] = [
        (["server/a", "server/a"], InvalidInputError),
        ([*LONG, "server/more"], InvalidInputError),
        (["server/a", "stranger/b"], UnknownModelError),
        (["server/a", "b"], UnknownModelError),
        (["server/a", None], UnknownModelError),
        (["server/a", ["server/b"]], UnknownModelError),
        ([], InvalidInputError),
    ]
    for chain, error in bad:
        with pytest.raises(error):
            make(client, key, model=chain)
    assert client.get_session_metadata(name) is None
    assert client.get_session(there).metadata().model == "echo/echo"
    assert make(client, key, model=tuple(LONG)).metadata().fallbacks == LONG[1:]
