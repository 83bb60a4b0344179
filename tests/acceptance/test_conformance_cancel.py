"""The conformance list, lines 26 to 29: cancel and errors."""

import itertools
import time
from collections.abc import Callable

import pytest

from inturn import Client, InvalidInputError, Session, Turn, TurnCancelledError, TurnFailedError
from inturn.models.states import TurnState
from ops.chaos.model import Call, ModelServer
from tests.acceptance.deployment import KEY, MAX_ATTEMPTS, SLOTS, WORKERS, Deployment
from tests.stacks import wait_until

Calls = Callable[[str], list[Call]]

HANG = '!{"act": "hang"}'
CANCEL_SECONDS = 2
PERMANENT = {400: "key", 401: "masked_key", 403: "prompt", 404: "part_of_prompt", 422: "escapes"}


def attempts(deployment: Deployment, turn: Turn) -> list[str | None]:
    """How each attempt on record ended."""
    session, number = turn.id.split(".")
    rows = deployment.query(
        "SELECT outcome FROM attempts WHERE session_id = :session AND turn_number = :number ORDER BY number",
        session=int(session), number=int(number),
    )  # fmt: skip
    return [row.outcome for row in rows]


def kinds(session: Session) -> list[tuple[int, str]]:
    return [(message.turn, message.type) for message in session.get_messages()]


def test_26_a_cancelled_turn_waits_or_runs_no_longer(client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/model")
    running, waiting = session.send(f"{name} running {HANG}"), session.send(f"{name} waiting")
    wait_until(lambda: calls(f"{name} running"))

    assert waiting.cancel()
    assert (waiting.state, waiting.finished_at is None) == (TurnState.CANCELLED, False)
    began = time.time()
    assert running.cancel()
    running.cancel()
    with pytest.raises(TurnCancelledError, match=running.id):
        running.wait(30)
    wait_until(lambda: calls(f"{name} running")[0].end)
    (aborted,) = calls(f"{name} running")
    assert aborted.outcome == "client gone"
    assert aborted.end is not None
    assert aborted.end - began <= CANCEL_SECONDS

    assert session.send_and_wait(f"{name} next", timeout=30).turn == 3
    assert [call.prompt for call in calls(name)] == [f"{name} running {HANG}", f"{name} next"]
    assert calls(f"{name} next")[0].messages == [{"role": "user", "content": f"{name} next"}]
    for turn in (running, waiting):
        assert not turn.cancel(), "once more is harmless"
        assert turn.refresh().state is TurnState.CANCELLED
        with pytest.raises(TurnCancelledError) as cancelled:
            turn.wait()
        assert cancelled.value.turn_id == turn.id
    assert kinds(session) == [(1, "user.message"), (2, "user.message"), (3, "user.message"), (3, "assistant.message")]


def test_26_a_reply_that_is_stored_already_wins(client: Client, name: str):
    session = client.create_session(name)
    answered = session.send("hello")
    reply = answered.wait(30)
    assert not answered.cancel()
    assert answered.state is TurnState.COMPLETED
    assert answered.wait(0) == reply

    raced = []
    for number in range(20):
        turn = client.create_session(f"{name}-{number}").send("now or never", options={"latency": [0, 0.03]})
        turn.cancel()
        raced.append(turn)
    wait_until(lambda: all(turn.refresh().finished_at for turn in raced))
    for number, turn in enumerate(raced):
        said = [message.type for message in client.resume_session(f"{name}-{number}").get_messages()]
        completed = ["assistant.message"] if turn.state is TurnState.COMPLETED else []
        assert turn.state in (TurnState.COMPLETED, TurnState.CANCELLED)
        assert said == ["user.message", *completed]


@pytest.mark.parametrize(
    "directive",
    [
        '{"status": 429, "times": 2}',
        '{"status": 503, "times": 2}',
        '{"status": 500, "times": 1}',
        '{"status": 529, "times": 1}',
        '{"status": 429, "retry_after": 1, "times": 1}',
        '{"status": 503, "retry_after": 1, "times": 1}',
    ],
)
def test_27_what_may_pass_is_retried(deployment: Deployment, client: Client, name: str, calls: Calls, directive: str):
    session = client.create_session(name, model="server/model")
    turn = session.send(f"{name} !{directive}")
    later = session.send(f"{name} later")
    assert later.wait(30).turn == 2
    assert turn.refresh().state is TurnState.COMPLETED, "a later turn does not overtake"
    made = calls(f"{name} !")
    refused = 2 if '"times": 2' in directive else 1
    assert [call.outcome for call in made[refused:]] == ["200"]
    assert turn.attempts == len(made) == len(attempts(deployment, turn)) == refused + 1
    assert len({call.key for call in made}) == 1, "one idempotency key for all attempts"
    for before, after in itertools.pairwise(made):
        assert before.end is not None
        assert after.start - before.end >= (1 if "retry_after" in directive else 0)
    assert turn.error is None
    assert kinds(session) == [(turn, f"{who}.message") for turn in (1, 2) for who in ("user", "assistant")]


@pytest.mark.parametrize(
    ("directive", "status", "most"),
    [('{"status": 503}', 503, MAX_ATTEMPTS), ('{"status": 500}', 500, 2), ('{"act": "garbage"}', 200, 2)],
)
def test_27_what_does_not_pass_ends(
    deployment: Deployment, client: Client, name: str, calls: Calls, directive: str, status: int, most: int
):
    session = client.create_session(name, model="server/model")
    turn = session.send(f"{name} !{directive}")
    with pytest.raises(TurnFailedError) as failure:
        turn.wait(30)
    assert (failure.value.status_code, failure.value.retryable) == (status, True)
    session.send_and_wait("after it", timeout=30)
    assert len(calls(name)) == len(attempts(deployment, turn)) == turn.refresh().attempts == most


def test_27_a_refused_connection_is_retried(
    deployment: Deployment, client: Client, name: str, calls: Calls, providers: dict[str, dict[str, str]]
):
    session = client.create_session(name, model="nobody/model")
    turn = session.send("hello?")
    with pytest.raises(TurnFailedError, match="refused the connection") as failure:
        turn.wait(30)
    error = failure.value
    assert (error.error_type, error.status_code, error.retryable) == ("refused", None, True)
    assert attempts(deployment, turn) == ["safe"] * MAX_ATTEMPTS
    port = int(providers["nobody"]["base_url"].split(":")[2].removesuffix("/v1"))
    with ModelServer(port=port):
        assert turn.retry().wait(30).data.content.startswith("reply to: hello?")


def test_27_waiting_for_a_retry_holds_no_worker(deployment: Deployment, client: Client, name: str, calls: Calls):
    """More turns than there are slots wait for two minutes; another session does not."""
    patient = [
        # Each asks a model of its own: one that answers 429 is left alone by all.
        client.create_session(f"{name}-{number}", model=f"server/model-{number}").send(
            f'{name} {number} !{{"status": 429, "retry_after": 120}}'
        )
        for number in range(WORKERS * SLOTS + 2)
    ]
    wait_until(lambda: all(turn.refresh().error for turn in patient))
    for turn in patient:
        assert (turn.state, turn.attempts) == (TurnState.QUEUED, 1)
        assert deployment.worker_of(int(turn.id.partition(".")[0])) == 0
    assert client.create_session(name).send_and_wait("me", timeout=30).turn == 1
    for turn in patient:
        assert turn.cancel()
    assert len(calls(name)) == len(patient)


def test_27_a_deterministic_failure_fails_at_once(deployment: Deployment, client: Client, name: str, calls: Calls):
    secret = "my grandmother's maiden name is Zyxwvutsrqponmlkji"
    turns = {}
    for status, say in PERMANENT.items():
        session = client.create_session(f"{name}-{status}", model="server/model")
        turns[status] = session.send(f'{name} {status} {secret} !{{"status": {status}, "say": "{say}"}}')
    for status, turn in turns.items():
        with pytest.raises(TurnFailedError, match=f"answered {status}") as failure:
            turn.wait(30)
        error = failure.value
        assert (error.status_code, error.retryable, error.turn_id) == (status, False, turn.id)
        for text in (str(error), turn.error.message if turn.error else ""):
            assert KEY not in text
            assert "Zyxwvutsrqponmlkji" not in text
            assert text.isprintable()
        assert client.resume_session(f"{name}-{status}").send_and_wait(f"{name} good", timeout=30).turn == 2
        assert len(calls(f"{name} {status}")) == 1
        assert attempts(deployment, turn) == ["permanent"]


def test_28_a_failed_or_cancelled_turn_says_so_and_can_be_retried(deployment: Deployment, client: Client, name: str):
    session = client.create_session(name, model="server/model")
    failed = session.send('my prompt !{"status": 422}', options={"top_k": 5})
    hanging, cancelled = session.send(f"a long one {HANG}"), session.send("never mind")
    cancelled.cancel()
    with deployment.client() as other, pytest.raises(TurnFailedError, match=failed.id) as failure:
        other.get_turn(failed.id).wait(30)
    error = failure.value
    assert (error.turn_id, error.error_type, error.status_code, error.retryable) == (
        failed.id, "unprocessable", 422, False,
    )  # fmt: skip
    failed.refresh()
    assert (failed.state, failed.prompt) == (TurnState.FAILED, 'my prompt !{"status": 422}')
    assert failed.error is not None
    assert failed.error.message in str(error)
    assert (failed.error.error_type, failed.error.status_code, failed.error.retryable) == ("unprocessable", 422, False)
    with pytest.raises(InvalidInputError, match="only a failed or a cancelled turn"):
        hanging.retry()
    hanging.cancel()
    for turn in (hanging, cancelled):
        with pytest.raises(TurnCancelledError, match=turn.id):
            turn.wait(30)
    assert [turn.id for turn in session.get_turns(state="failed")] == [failed.id]
    assert [turn.id for turn in session.get_turns(state="cancelled")] == [hanging.id, cancelled.id]

    client.resume_session(name, model="echo/echo")
    with pytest.raises(TurnFailedError, match="top_k"):  # a retry is sent with the options of its turn
        failed.retry().wait(30)
    again = cancelled.retry()
    assert (again.number, again.retry_of, again.prompt) == (5, cancelled.id, "never mind")
    assert again.wait(30).data.content.startswith('You said: "never mind"')
    with pytest.raises(InvalidInputError, match="completed"):
        again.retry()


def test_29_a_worker_killed_in_mid_call(deployment: Deployment, client: Client, name: str, calls: Calls):
    session = client.create_session(name, model="server/model")
    turn = session.send(f'{name} !{{"act": "hang", "times": 1}}')
    later = session.send(f"{name} later")
    wait_until(lambda: calls(name))
    killed = deployment.worker_of(int(turn.id.partition(".")[0]))
    deployment.kill(killed)
    assert turn.wait(30).data.content.startswith(f"reply to: {name}")
    assert later.wait(30).turn == 2
    assert attempts(deployment, turn) == ["lost", "completed"]
    assert len(calls(f"{name} !")) == 2
    assert kinds(session) == [(turn, f"{who}.message") for turn in (1, 2) for who in ("user", "assistant")]
    assert all(message.data.content for message in session.get_messages())
    deployment.await_workers()
    assert killed not in [process.pid for process in client.list_workers() if process.alive]
