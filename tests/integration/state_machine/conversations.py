"""What must be true of the tables, whatever happened: read back after every step, and compared with what was accepted."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, select

from inturn.models.database import Database
from inturn.models.states import FINAL, POISONED, SessionState, TurnState
from inturn.models.tables import ATTEMPTS, LANE_PAUSES, LEASES, MESSAGES, SESSIONS, TURNS
from tests.integration.rounds import dangling

SYSTEM, PROMPT = 0, 1
SAME_MOMENT = timedelta(seconds=0.1)
"""Two looks at the clock within one transaction; whatever waits, waits for longer."""

STEPS = {
    TurnState.QUEUED: {TurnState.QUEUED, TurnState.RUNNING, TurnState.CANCELLED},
    TurnState.RUNNING: set(TurnState),
}
"""What one transaction can make of a turn. Final states are never left."""


@dataclass(slots=True)
class Conversation:
    """The rows of one session."""

    session: Row[Any]
    lease: Row[Any]
    turns: dict[int, Row[Any]] = field(default_factory=dict)
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    """By turn and position."""
    beside: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    """Who said it, and what belongs to calls of tools."""
    attempts: dict[tuple[int, int], Row[Any]] = field(default_factory=dict)

    @property
    def id(self) -> int:
        return int(self.session.id)

    @property
    def is_active(self) -> bool:
        return bool(self.session.state == SessionState.ACTIVE)

    @property
    def is_halted(self) -> bool:
        return self.lease.halted_by is not None

    def of(self, *states: TurnState) -> list[Row[Any]]:
        return [turn for turn in self.turns.values() if turn.state in states]

    def lowest(self) -> Row[Any] | None:
        """The turn that is next."""
        return next(iter(self.of(TurnState.QUEUED)), None)

    def shown(self, number: int, window: int) -> list[str]:
        """What a model must be shown for a turn."""
        limit = window if self.session.context_turns is None else self.session.context_turns
        earlier = [turn.number for turn in self.of(TurnState.COMPLETED) if turn.number < number]
        visible = earlier[max(0, len(earlier) - limit) :]
        instructed = self.turns[number].system_turn
        system = [] if instructed is None else [self.texts[instructed, SYSTEM]]
        said = [
            self.texts.get(place, f"nothing at {place}") for turn in (*visible, number) for place in self.places(turn)
        ]
        return [*system, *said]

    def places(self, number: int) -> list[tuple[int, int]]:
        """What was said in a turn, in order, of which nothing is missing."""
        turn = self.turns[number]
        last = PROMPT + turn.steps + (turn.state == TurnState.COMPLETED)
        return [(number, position) for position in range(PROMPT, last + 1)]

    def reply(self, number: int) -> str | None:
        """What stands where a turn's reply belongs."""
        return self.texts.get((number, PROMPT + self.turns[number].steps + 1))


@dataclass(slots=True)
class Tables:
    """All rows at one moment."""

    conversations: dict[int, Conversation]
    paused: set[str]

    def keys(self) -> dict[str, Conversation]:
        return {each.session.key: each for each in self.conversations.values()}


def read(database: Database) -> Tables:
    with database.reading() as db:
        leases = {row.session_id: row for row in db.execute(select(LEASES))}
        found = {
            row.id: Conversation(row, leases[row.id]) for row in db.execute(select(SESSIONS).order_by(SESSIONS.c.id))
        }
        for turn in db.execute(select(TURNS).order_by(TURNS.c.session_id, TURNS.c.number)):
            found[turn.session_id].turns[turn.number] = turn
        for text in db.execute(select(MESSAGES)):
            found[text.session_id].texts[text.turn_number, text.position] = text.content
            found[text.session_id].beside[text.turn_number, text.position] = {"role": text.role, **(text.data or {})}
        for attempt in db.execute(select(ATTEMPTS).order_by(ATTEMPTS.c.number)):
            found[attempt.session_id].attempts[attempt.turn_number, attempt.number] = attempt
        paused = {row.lane for row in db.execute(select(LANE_PAUSES))}
    return Tables(found, paused)


@dataclass(slots=True)
class Told:
    """What the outside was told, or told the store: prompts that were accepted, replies that models gave."""

    prompts: dict[tuple[int, int], str] = field(default_factory=dict)
    """By session and turn."""
    keys: dict[tuple[int, str], int] = field(default_factory=dict)
    """Turns by session and idempotency key."""
    replies: dict[tuple[int, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    steps: dict[tuple[int, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    """What models wanted done, and tools said."""
    calls: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    """How many calls were made for a turn."""
    answered: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Turns by session, in the order in which their replies were stored."""


@dataclass(frozen=True, slots=True)
class Caps:
    attempts: int
    ambiguous: int
    rescues: int


def broken_rules(before: Tables, now: Tables, told: Told, caps: Caps) -> Iterator[str]:
    """Everything that should not be so, in sentences."""
    for conversation in now.conversations.values():
        for said in (
            *one_turn_at_a_time(conversation),
            *numbered_without_gaps(conversation, told),
            *replied_once(conversation, told),
            *(rounds_are_whole(conversation, told) if conversation.is_active else ()),
            *counted_before_spent(conversation, told, caps),
            *(not_forgotten(conversation) if conversation.is_active else ()),
            *merged(conversation),
            *(
                moved_on(before.conversations[conversation.id], conversation, told)
                if conversation.id in before.conversations
                else ()
            ),
        ):
            yield f"session {conversation.id}: {said}"


def one_turn_at_a_time(it: Conversation) -> Iterator[str]:
    running = [turn.number for turn in it.of(TurnState.RUNNING)]
    if len(running) > 1:
        yield f"turns {running} run at once"
    if (it.lease.owner is not None) != bool(running) and it.is_active:
        yield f"its lease is owned by {it.lease.owner}, and its running turns are {running}"
    if it.lease.owner is not None and not it.is_active:
        yield f"it is being removed, and {it.lease.owner} holds it"
    if it.is_halted and it.lease.owner is not None:
        yield f"it is halted by turn {it.lease.halted_by}, and {it.lease.owner} holds it"
    for turn in it.turns.values():
        if (turn.state in FINAL) != (turn.finished_at is not None):
            yield f"turn {turn.number} is {turn.state}, finished at {turn.finished_at}"
        if (turn.started_at is not None) != (turn.attempts > 0):
            yield f"turn {turn.number} with {turn.attempts} attempts started at {turn.started_at}"


def numbered_without_gaps(it: Conversation, told: Told) -> Iterator[str]:
    numbers = list(it.turns)
    if it.is_active and numbers != list(range(1, it.session.next_turn)):
        yield f"its turns are {numbers}, and the next one gets {it.session.next_turn}"
    for (session, number), prompt in told.prompts.items():
        if session == it.id and it.is_active:
            joined = [it.texts[turn.number, PROMPT] for turn in it.turns.values() if turn.merged_into == number]
            if it.texts.get((number, PROMPT)) != "\n\n".join([*joined, prompt]):
                yield f"turn {number} was accepted with {prompt!r}, and has {it.texts.get((number, PROMPT))!r}"
    if unasked := set(numbers) - {number for session, number in told.prompts if session == it.id}:
        yield f"nobody sent its turns {sorted(unasked)}"


def replied_once(it: Conversation, told: Told) -> Iterator[str]:
    replies = {number: text for number in it.turns if (text := it.reply(number)) is not None}
    completed = {turn.number for turn in it.of(TurnState.COMPLETED)}
    if set(replies) != completed and it.is_active:
        yield f"turns {sorted(completed)} are completed, and {sorted(replies)} have a reply"
    for number, text in replies.items():
        if text not in told.replies[it.id, number]:
            yield f"turn {number} has the reply {text!r}, and a model gave {told.replies[it.id, number]}"
    order = told.answered[it.id]
    if order != sorted(set(order)):
        yield f"its replies were stored in the order {order}"


def rounds_are_whole(it: Conversation, told: Told) -> Iterator[str]:
    for turn in it.turns.values():
        places = sorted(place for place in it.texts if place[0] == turn.number and place[1] != SYSTEM)
        if places != it.places(turn.number):
            yield f"turn {turn.number} ({turn.state}) with {turn.steps} steps has messages at {places}"
        steps = places[1 : turn.steps + 1]
        if hanging := dangling([it.beside[place] for place in steps]):
            yield f"turn {turn.number} has calls and results that do not belong together: {hanging}"
        if unheard := {it.texts[place] for place in steps} - told.steps[it.id, turn.number]:
            yield f"nobody said {unheard} in turn {turn.number}"
        wanted = sum("tool_calls" in it.beside[place] for place in steps)
        mine = [row.outcome for (number, _), row in it.attempts.items() if number == turn.number]
        answered = mine.count("completed") - (turn.state == TurnState.COMPLETED)
        if not turn.rounds == wanted == answered:
            yield f"turn {turn.number} counts {turn.rounds} rounds, has {wanted}, and {answered} attempts came to that"


def counted_before_spent(it: Conversation, told: Told, caps: Caps) -> Iterator[str]:
    for turn in it.turns.values() if it.is_active else ():
        mine = [row for (number, _), row in it.attempts.items() if number == turn.number]
        if [row.number for row in mine] != list(range(1, turn.attempts + 1)):
            yield f"turn {turn.number} counts {turn.attempts} attempts, and on record are {[row.number for row in mine]}"
        tries = turn.attempts - turn.rounds
        if tries > caps.attempts or turn.ambiguous > caps.ambiguous or turn.rescues > caps.rescues:
            yield f"turn {turn.number} had {tries} tries ({turn.ambiguous} ambiguous) and {turn.rescues} rescues"
        if told.calls[it.id, turn.number] > turn.attempts:
            yield f"turn {turn.number}: {told.calls[it.id, turn.number]} calls were made, and {turn.attempts} are on record"
        under_way = [row.number for row in mine if row.outcome is None]
        if under_way != ([turn.attempts] if turn.state == TurnState.RUNNING else []):
            yield f"turn {turn.number} is {turn.state}, and its attempts {under_way} of {turn.attempts} are under way"
        if under_way and mine[-1].token != it.lease.token:
            yield f"turn {turn.number} runs under token {mine[-1].token}, and the lease has {it.lease.token}"


def not_forgotten(it: Conversation) -> Iterator[str]:
    """Who waits is ready when its lowest turn is, in that turn's lane: nobody else would wake it."""
    lowest = it.lowest()
    if it.lease.owner is not None or lowest is None:
        return
    if it.lease.ready_at is None or abs(it.lease.ready_at - lowest.ready_at) > SAME_MOMENT:
        yield f"turn {lowest.number} waits until {lowest.ready_at}, and its lease says {it.lease.ready_at}"
    if it.lease.lane != lowest.lane:
        yield f"turn {lowest.number} waits in {lowest.lane}, and its lease in {it.lease.lane}"


def merged(it: Conversation) -> Iterator[str]:
    for turn in it.turns.values():
        if turn.merged_into is not None:
            prompt, into = it.texts[turn.number, PROMPT], it.texts.get((turn.merged_into, PROMPT), "")
            if turn.merged_into <= turn.number or turn.state != TurnState.CANCELLED or prompt not in into:
                yield f"turn {turn.number} ({turn.state}, {prompt!r}) was joined into {turn.merged_into}, {into!r}"


def moved_on(before: Conversation, now: Conversation, told: Told) -> Iterator[str]:
    """What may have become of the rows in one step."""
    if now.lease.token < before.lease.token or now.session.next_turn < before.session.next_turn:
        yield "its token or its counter of turns went back"
    for place, text in before.texts.items():
        if place[1] != SYSTEM and now.texts.get(place) != text and now.is_active:
            yield f"the message {place} was {text!r}, and is {now.texts.get(place)!r}"
    for number, turn in now.turns.items():
        was = before.turns.get(number)
        if was is None:
            continue
        if was.state in FINAL and tuple(was) != tuple(turn):
            yield f"turn {number} was final, and was changed from {was} to {turn}"
        if was.state not in FINAL and turn.state not in STEPS[was.state]:
            yield f"turn {number} went from {was.state} to {turn.state}"
        if was.state == TurnState.RUNNING and was.cancel_requested_at and turn.state == TurnState.QUEUED:
            yield f"turn {number} waits again, and its user wants it back"
        if was.cancel_requested_at and turn.attempts > was.attempts:
            yield f"turn {number} goes on, and its user wants it back"
        poisoned = was.state not in FINAL and turn.state == TurnState.FAILED and turn.error_type in POISONED
        if poisoned and now.session.halts and now.lease.halted_by != number:
            yield f"turn {number} is quarantined ({turn.error_type}), and its session goes on"
    lost = {
        place for place in before.attempts
        if place not in now.attempts and now.is_active and now.turns[place[0]].attempts >= before.turns[place[0]].attempts
    }  # fmt: skip
    if lost:
        yield f"its attempts {lost} are off the record, and were not taken back"


def remember_replies(before: Tables, now: Tables, told: Told) -> None:
    """Keep the order in which replies came to be, which no clock tells that may be set back."""
    for it in now.conversations.values():
        old = before.conversations.get(it.id)
        for turn in it.of(TurnState.COMPLETED):
            if old is None or turn.number not in old.turns or old.turns[turn.number].state != TurnState.COMPLETED:
                told.answered[it.id].append(turn.number)
