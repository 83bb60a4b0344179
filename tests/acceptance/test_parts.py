"""Prompts with images, on both kinds of deployment, and as both types of provider are shown them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inturn import Client, IdempotencyConflictError, InvalidPromptError, Session, TurnFailedError, image
from inturn.models.content import PARTS_LIMIT
from ops.chaos.model import Call, ModelServer
from tests.acceptance.deployment import Deployment
from tests.stacks import wait_until
from tests.unit.test_image import png

PATIENCE_SECONDS = 60
MODELS = ("server/model", "claude/model")
URL = "https://example.org/a.png"
INLINE = image(png())
DATA = INLINE["image_url"]["url"].partition(",")[2]


@pytest.fixture(params=MODELS)
def session(client: Client, name: str, request: pytest.FixtureRequest) -> Session:
    return client.create_session(name, model=request.param)


@pytest.fixture
def shown(model: ModelServer) -> Callable[[str], list[Call]]:
    """The calls to the model server whose conversation holds a text, in order."""
    return lambda words: [call for call in model.calls() if words in json.dumps(call.messages)]


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def written(session: Session, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts as the session's provider writes them."""
    if session.metadata().model.startswith("server"):
        return list(parts)
    images = {
        URL: {"type": "image", "source": {"type": "url", "url": URL}},
        INLINE["image_url"]["url"]: {
            "type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA},
        },
    }  # fmt: skip
    return [part if part["type"] == "text" else images[part["image_url"]["url"]] for part in parts]


def last_shown(call: Call) -> Any:
    return call.messages[-1]["content"]


@pytest.mark.parametrize("streamed", [False, True])
def test_images_are_shown_with_their_prompt_and_in_later_turns(
    session: Session, shown: Callable[[str], list[Call]], *, streamed: bool
) -> None:
    words = f"what is this, {session.session_id}?"
    parts = [text(words), image(URL), INLINE]
    turn = session.send(parts, stream=streamed)
    assert turn.wait(PATIENCE_SECONDS).data.content == f"reply to: {words} (seen 1 messages)"
    assert turn.prompt == f"{words}\n[image]\n[image]"
    assert turn.parts == parts
    asked, _ = session.get_messages()
    assert (asked.data.content, asked.data.parts) == (turn.prompt, parts)
    session.send_and_wait("and now?", timeout=PATIENCE_SECONDS)
    first, second = shown(session.session_id)
    assert last_shown(first) == written(session, *parts)
    assert second.messages[0]["content"] == written(session, *parts)
    assert second.messages[-1]["content"] == "and now?"


def test_a_retry_sends_the_images_again(session: Session, shown: Callable[[str], list[Call]]) -> None:
    words = f'what is this, {session.session_id}? !{{"status": 400}}'
    turn = session.send([text(words), INLINE])
    with pytest.raises(TurnFailedError):
        turn.wait(PATIENCE_SECONDS)
    again = turn.retry()
    with pytest.raises(TurnFailedError):
        again.wait(PATIENCE_SECONDS)
    assert (again.parts, again.prompt, again.retry_of) == (turn.parts, turn.prompt, turn.id)
    assert [last_shown(call) for call in shown(session.session_id)] == [written(session, text(words), INLINE)] * 2


def test_prompts_that_are_joined_keep_their_parts_in_order(
    session: Session, shown: Callable[[str], list[Call]]
) -> None:
    one = f"one, {session.session_id}"
    busy = session.send('wait !{"latency": 60}')
    wait_until(lambda: busy.refresh().state == "running")
    session.send(one)
    session.send([text("two"), image(URL)])
    joined = session.send([text("three"), INLINE], when_busy="coalesce", idempotency_key="k")
    busy.cancel()
    assert joined.wait(PATIENCE_SECONDS).data.content.startswith("reply to: ")
    parts = [text(one), text("two"), image(URL), text("three"), INLINE]
    assert joined.prompt == f"{one}\n\ntwo\n[image]\n\nthree\n[image]"
    assert joined.parts == parts
    assert last_shown(shown(session.session_id)[-1]) == written(session, *parts)
    assert session.send([text("three"), INLINE], idempotency_key="k").id == joined.id
    with pytest.raises(IdempotencyConflictError):
        session.send([text("three"), image(URL)], idempotency_key="k")


def test_the_same_key_and_parts_are_one_turn(client: Client, name: str) -> None:
    session = client.create_session(name)
    parts = [text("what is this?"), INLINE]
    turn = session.send(parts, idempotency_key="k")
    assert session.send(parts, idempotency_key="k").id == turn.id
    for other in ([text("what is this?"), image(URL)], "what is this?\n[image]", [text("what is this?\n[image]")]):
        with pytest.raises(IdempotencyConflictError):
            session.send(other, idempotency_key="k")
    assert len(list(session.get_turns())) == 1
    assert turn.wait(PATIENCE_SECONDS).data.content.startswith('You said: "what is this?"')


def test_what_is_too_large_is_refused_and_nothing_is_stored(client: Client, name: str) -> None:
    session = client.create_session(name)
    large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * PARTS_LIMIT}}
    for parts in [], [text("x"), large], [text("x" * 300_000)], [{"text": "no type"}]:
        with pytest.raises(InvalidPromptError):
            session.send(parts)
    assert list(session.get_turns()) == []
    most = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (PARTS_LIMIT - 200)}}
    assert session.send_and_wait([text("what is this?"), most], timeout=PATIENCE_SECONDS)


def test_what_a_provider_cannot_be_shown_fails_clearly_and_the_session_goes_on(session: Session) -> None:
    elsewhere = "image" if session.metadata().model.startswith("server") else "file"
    for part in ({"type": "image_url"}, {"type": "image_url", "image_url": {"url": 7}}, {"type": elsewhere}):
        with pytest.raises(TurnFailedError, match="cannot be shown") as failed:
            session.send_and_wait([text("what is this?"), part], timeout=PATIENCE_SECONDS)
        assert (failed.value.error_type, failed.value.retryable) == ("invalid_request", False)
    assert session.send_and_wait("and now?", timeout=PATIENCE_SECONDS).data.content.endswith("(seen 1 messages)")


def test_a_model_that_takes_no_images_says_so(client: Client, name: str) -> None:
    refusing = client.create_session(name, model="server/model")
    parts = [text('what is this? !{"status": 400, "say": "no_images"}'), INLINE]
    with pytest.raises(TurnFailedError, match="does not support image input") as failed:
        refusing.send_and_wait(parts, timeout=PATIENCE_SECONDS)
    assert failed.value.error_type == "invalid_request"


def test_the_command_line_sends_images(deployment: Deployment, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    done = deployment.command("send", session.session_id, "what?", "--image", str(path), "--image", URL, "--wait")
    assert (done.returncode, done.stdout) == (0, "reply to: what? (seen 1 messages)\n"), done.stderr
    [turn] = session.get_turns()
    assert turn.parts == [text("what?"), INLINE, image(URL)]
    shown = deployment.command("session", "show", session.session_id, "--json")
    assert json.loads(shown.stdout)["history"][0]["data"]["parts"] == turn.parts
    shown = deployment.command("session", "show", session.session_id)
    assert "you: what?\n[image]\n[image]\n" in shown.stdout
    assert DATA not in shown.stdout
    path.write_text("no image")
    refused = deployment.command("send", session.session_id, "what?", "--image", str(path))
    assert refused.returncode != 0
    assert "is no PNG, JPEG, GIF or WebP image" in refused.stderr
    assert len(list(session.get_turns())) == 1
