"""Rounds, as the store is given them: a turn whose model called tools, and what those said."""

from dataclasses import replace
from typing import Any

from inturn.models.states import AttemptOutcome, Lane, Role, TurnState
from inturn.models.store import reading, working
from inturn.models.store.opening import REPLY
from inturn.models.store.working import Claim, Settlement, Started, Step
from tests.integration.stores import WORKER, Store, settlement


def went_round(started: Started, *results: str, **how: Any) -> Settlement:
    """The model wanted so many calls made, and this is what they said."""
    idents = [f"call-{started.turn_id}-{started.rounds}-{place}" for place in range(len(results))]
    calls = [{"id": ident, "type": "function", "function": {"name": "note", "arguments": "{}"}} for ident in idents]
    said = (
        Step(Role.TOOL, text, {"tool_call_id": ident, "name": "note"})
        for ident, text in zip(idents, results, strict=True)
    )
    return replace(
        settlement(started, TurnState.QUEUED, outcome=AttemptOutcome.COMPLETED),
        place=REPLY + started.steps,
        steps=(Step(Role.ASSISTANT, f"round {started.rounds}", {"tool_calls": calls}), *said),
        **how,
    )


def answered(started: Started, text: str = "the reply") -> Settlement:
    """The reply, behind what tools said."""
    return replace(settlement(started), reply=text, place=REPLY + started.steps)


def settle(
    store: Store, settled: Settlement, claims: bool = False, owner: str = WORKER, lane: Lane = Lane.CHAT
) -> tuple[bool, Started | None]:
    """Whether it was held; and, if the same visit claims, what goes on."""
    asked = [Claim(lane, settled.session_id)] if claims else []
    with store.database.writing() as db:
        held, going_on, _ = working.settle(db, owner, 30, [settled], asked)
        found = working.claim(db, owner, 30, 20, asked, going_on)
    return settled.held in held, next(iter(found), None)


def go_round(store: Store, started: Started, *results: str) -> Started:
    """A round that goes on under the same lease."""
    held, again = settle(store, went_round(started, *results), claims=True)
    assert held
    assert again is not None
    return again


def begun(store: Store, prompt: str = "hello", **how: str) -> Started:
    """The first attempt at the first turn of a new session."""
    session = store.session(**how)
    store.send(prompt=prompt)
    return store.start(session)


def find_answer(store: Store, started: Started) -> tuple[reading.TurnRecord, str | None]:
    with store.database.reading() as db:
        turn, reply = reading.find_answer(db, started.session_id, started.number)
    return turn, None if reply is None else reply.content


def places(store: Store, session: int) -> list[tuple[int, int, str, str]]:
    """Every message: its turn, position, speaker and text."""
    found = reading.list_messages(store.database, session)
    return [(each.turn_number, each.position, str(each.role), each.content) for each in found]


def counts(store: Store, session: int, number: int = 1) -> tuple[int, int, int]:
    """A turn's attempts, rounds and steps."""
    columns = "attempts, rounds, steps"
    with store.database.reading() as db:
        sql = f"SELECT {columns} FROM turns WHERE session_id = {session} AND number = {number}"
        row = db.exec_driver_sql(sql).one()
        return row.attempts, row.rounds, row.steps


def speakers(started: Started) -> list[str]:
    return [message["role"] for message in started.messages]


def texts(started: Started) -> list[str]:
    return [message["content"] for message in started.messages]


def dangling(messages: list[dict[str, Any]]) -> list[str]:
    """Calls without their results behind them, and results without their call before them."""
    wanted: list[str] = []
    wrong: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in wanted:
                wrong.append(message["tool_call_id"])
            wanted = [ident for ident in wanted if ident != message["tool_call_id"]]
            continue
        wrong += wanted
        wanted = [call["id"] for call in message.get("tool_calls") or ()]
    return wrong + wanted
