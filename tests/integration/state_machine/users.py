"""What users do: they make sessions, send, cancel, delete; and what an operator does."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from inturn.models.errors import (
    IdempotencyConflictError,
    InturnError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    TurnNotFoundError,
)
from inturn.models.states import FINAL, UNFINISHED, Lane, TurnState
from inturn.models.store import halting, holding, lanes, opening, retention, sending
from inturn.models.store.holding import Hold
from inturn.models.store.opening import NewSession
from inturn.models.store.receipts import Removal
from inturn.models.store.rules import default_rule
from inturn.models.store.sending import Sent, WhenBusy
from tests.integration.state_machine.conversations import Conversation
from tests.integration.state_machine.story import KEYS, LANES, LATER, PICKS, WHEN_BUSY, Story, Verb, act, chosen

FORBIDDEN = (
    ("two turns at once", "UPDATE turns SET state = 'running' WHERE session_id = :id AND state = 'queued'"),
    (
        "an end that is none",
        "UPDATE turns SET state = 'queued', finished_at = NULL, error_type = NULL WHERE session_id = :id",
    ),
    ("an owner for ever", "UPDATE leases SET expires_at = NULL WHERE session_id = :id"),
)


class Died(BaseException):
    """A process, in the middle of something."""


class Users(Story):
    @act(
        2,
        when=lambda self: len(self.seen.conversations) < 2,
        key=KEYS,
        context=st.sampled_from([None, 0, 1]),
        halts=st.booleans(),
    )
    def create(self, key: str, context: int | None, halts: bool) -> None:
        taken = self.active(key)
        try:
            new = NewSession(key, "echo/echo", context_turns=context, halts=halts)
            made = opening.create_session(self.house.database, new)
        except SessionExistsError:
            assert taken is not None
            self.nothing_changed()
            return
        assert taken is None
        assert all(made > earlier for earlier, _ in self.told.prompts), "ids are never used again"

    @act(1, key=KEYS, words=st.sampled_from(["be brief", "be verbose", ""]))
    def instruct(self, key: str, words: str) -> None:
        if self.active(key) is not None:
            opening.resume_session(self.house.database, key, system_message=words)

    def sending(self, key: str, prompt: str, idempotency_key: str | None = None, **how: Any) -> Verb:
        def act() -> Callable[[], Sent | InturnError]:
            try:
                sent = sending.send(self.house.database, key, prompt, idempotency_key=idempotency_key, **how)
            except (SessionNotFoundError, SessionBusyError, IdempotencyConflictError) as refusal:
                error = refusal
                return lambda: error
            return lambda: self.accepted(sent, prompt, idempotency_key)

        return act

    def accepted(self, sent: Sent, prompt: str, idempotency_key: str | None) -> Sent:
        place = (sent.session_id, sent.number)
        assert self.told.prompts.setdefault(place, prompt) == prompt
        if idempotency_key is not None:
            assert self.told.keys.setdefault((sent.session_id, idempotency_key), sent.number) == sent.number
        return sent

    @act(11, key=KEYS, idempotency_key=st.sampled_from([None, None, "k"]), lane=LANES, when_busy=WHEN_BUSY, later=LATER)
    def send(
        self, key: str, idempotency_key: str | None, lane: Lane, when_busy: WhenBusy, later: timedelta | None
    ) -> None:
        it, prompt = self.active(key), f"prompt {next(self.prompts)}"
        got = self.sending(key, prompt, idempotency_key, lane=lane, when_busy=when_busy, not_before=later)()()
        if it is None:
            assert isinstance(got, SessionNotFoundError)
        elif isinstance(got, IdempotencyConflictError):
            assert (it.id, idempotency_key) in self.told.keys
        elif when_busy == "reject" and it.of(*UNFINISHED):
            assert isinstance(got, SessionBusyError)
        else:
            assert (got.session_id, got.number) == (it.id, it.session.next_turn)
            self.check_overtaken(it, got, when_busy)
            waits = it.is_halted or it.lease.owner is not None or it.lease.ready_at is not None
            assert got.hint or later or waits, "nobody is told"
        self.nothing_changed(but=[it.id] if it and isinstance(got, Sent) else [])

    def check_overtaken(self, before: Conversation, sent: Sent, when_busy: WhenBusy) -> None:
        now = self.look().conversations[before.id]
        fates = {"interrupt": (TurnState.CANCELLED, None), "coalesce": (TurnState.CANCELLED, sent.number)}
        for turn in before.of(TurnState.QUEUED):
            mine = now.turns[turn.number]
            # Between two rounds it does not wait, but for a worker.
            fate = (TurnState.QUEUED, None) if when_busy == "coalesce" and turn.steps else fates.get(when_busy)
            assert (mine.state, mine.merged_into) == (fate or (TurnState.QUEUED, None))
        for turn in before.of(TurnState.RUNNING):
            asked = now.turns[turn.number].cancel_requested_at
            assert asked is not None if when_busy == "interrupt" else asked == turn.cancel_requested_at

    @act(2, when=lambda self: self.told.keys, pick=PICKS)
    def send_again(self, pick: int) -> None:
        """The first answer was lost on the way."""
        (session, key), number = chosen(list(self.told.keys.items()), pick)
        it = self.seen.conversations.get(session)
        if it is not None and it.is_active:
            got = self.sending(it.session.key, self.told.prompts[session, number], key)()()
            assert (got.number, got.hint) == (number, False)
            self.nothing_changed()

    def cancelling(self, session: int, number: int) -> Verb:
        def act() -> Callable[[], TurnState | None]:
            try:
                found, _ = sending.cancel(self.house.database, session, number)
            except TurnNotFoundError:
                return lambda: None
            return lambda: found

        return act

    @act(4, when=lambda self: self.turn_places(), pick=PICKS, last=st.booleans())
    def cancel(self, pick: int, last: bool) -> None:
        session, number = chosen(self.turn_places()[:: -1 if last else 1], pick)
        before = self.seen.conversations[session].turns[number]
        found = self.cancelling(session, number)()()
        now = self.look().conversations[session].turns[number]
        assert found == before.state
        if found == TurnState.QUEUED:
            assert now.state == TurnState.CANCELLED
        elif found == TurnState.RUNNING:
            assert now.state == TurnState.RUNNING
            assert now.cancel_requested_at is not None
        self.nothing_changed(but=[] if found in FINAL else [session])

    def removing(self, key: str) -> Verb:
        def act() -> Callable[[], None]:
            with suppress(SessionNotFoundError):
                retention.remove(self.house.database, key)
            return lambda: None

        return act

    @act(1, when=lambda self: self.seen.conversations, key=KEYS, dies=st.booleans())
    def delete(self, key: str, dies: bool) -> None:
        it = self.seen.keys().get(key)

        def die(*_: Any) -> None:
            raise Died

        with pytest.MonkeyPatch.context() as patches:
            if dies:
                patches.setattr(retention, "take_away", die)
            try:
                self.removing(key)()()
            except Died:
                note("the remover died")
                assert not self.look().keys()[key].is_active
                return
        assert key not in {it.session.key for it in self.look().conversations.values()}
        self.nothing_changed(but=[it.id] if it else [])

    @act(1, key=KEYS, held=st.booleans())
    def hold(self, key: str, held: bool) -> None:
        if self.active(key) is not None:
            if held:
                holding.hold(self.house.database, key, Hold(None, "somebody"))
            else:
                holding.release(self.house.database, key, "somebody")
            assert self.look().keys()[key].session.held == held

    @act(1, idle_seconds=st.sampled_from([0.0, 10.0]))
    def clean_up(self, idle_seconds: float) -> None:
        oldest = self.house.clock.now() - timedelta(seconds=idle_seconds)
        # Of the moment that it is now by the clock: the database asks one tick later, or more.
        idle = [
            it.id for it in self.seen.conversations.values()
            if it.is_active and not it.session.held and not it.of(*UNFINISHED) and it.session.last_activity_at <= oldest
        ]  # fmt: skip
        rule = default_rule(idle_seconds)
        which = retention.due_now(self.house.database, [rule], rule)
        assert which is not None
        removed = list[Removal]()
        while chunk := retention.remove_due(self.house.database, rule, which, 0):
            removed += chunk
        assert sorted(it.session_id for it in removed) == sorted(self.seen.conversations[it].session.key for it in idle)
        assert not set(idle) & self.look().conversations.keys()
        self.nothing_changed(but=idle)

    @act(1, lane=LANES)
    def pause_or_resume(self, lane: Lane) -> None:
        if lane in self.seen.paused:
            lanes.resume(self.house.database, lane)
        else:
            lanes.pause(self.house.database, lane)
        assert (lane in self.look().paused) != (lane in self.seen.paused)

    @act(3, when=lambda self: any(it.is_halted for it in self.seen.conversations.values()), key=KEYS)
    def continue_halted(self, key: str) -> None:
        if self.active(key) is not None:
            halting.resume_halted(self.house.database, key)
            assert not self.look().keys()[key].is_halted

    @act(1, when=lambda self: self.seen.conversations, pick=PICKS, what=st.sampled_from(FORBIDDEN))
    def somebody_meddles(self, pick: int, what: tuple[str, str]) -> None:
        """The tables refuse what must never be, whoever asks."""
        name, statement = what
        it = chosen(list(self.seen.conversations.values()), pick)
        applies = {
            "two turns at once": len(it.of(*UNFINISHED)) > 1,
            "an end that is none": it.of(*FINAL),
            "an owner for ever": it.lease.owner is not None,
        }
        if applies[name]:
            with self.house.database.engine.connect() as db:
                try:
                    db.execute(text(statement), {"id": it.id})
                except DBAPIError:
                    return
                raise AssertionError(f"the tables allow {name}")
