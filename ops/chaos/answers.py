"""2. and 3.: one reply per turn, in the order of the turns, to a prompt with the right history."""

from collections import defaultdict
from collections.abc import Iterator

from inturn.models.states import TurnState
from ops.chaos import rounds
from ops.chaos.entries import Entries
from ops.chaos.fates import shown

CLOCK_SECONDS = 0.1
"""By how much the clocks of the producers, the database and the model may differ."""
NOT_ECHOED = ("nul", "surrogate")
"""Acts whose replies are texts of their own."""


def doubled(books: Entries) -> Iterator[str]:
    """2. One reply per completed turn and none for others, and it answers that turn's prompt."""
    yield from books.missing_guards
    for turn, row in books.turns.items():
        if books.is_stripped(turn):
            continue
        prompts, replies = books.said(turn, "user"), books.said(turn, "assistant")
        wanted = int(row.state == TurnState.COMPLETED)
        if len(prompts) != 1 or len(replies) != wanted:
            yield f"turn {shown(turn)} is {row.state}, with {len(prompts)} prompts and {len(replies)} replies"
        elif replies and not is_reply_to(prompts[0], replies[0]):
            yield f"turn {shown(turn)} has the reply of another"


def is_reply_to(prompt: str, reply: str) -> bool:
    return reply.startswith(f"reply to: {prompt} (seen") or any(f'"{act}"' in prompt for act in NOT_ECHOED)


def disordered(books: Entries) -> Iterator[str]:
    """2. Turns are worked on and replies stored in the order of sending; numbers have no gaps."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for session, number in sorted(books.turns):
        numbers[session].append(number)
    for session, mine in numbers.items():
        if mine != list(range(1, len(mine) + 1)):
            yield f"session {session} has gaps in {mine}"
        said = [
            row.created_at
            for each in mine
            for row in books.messages.get((session, each), ())
            if row.role == "assistant"
        ]
        if said != sorted(said):
            yield f"session {session} stored its replies out of order"
        worked = [books.turns[session, each] for each in mine if books.tries.get((session, each))]
        ends = [row.finished_at for row in worked if row.finished_at is not None]
        if ends != sorted(ends):
            yield f"session {session} finished its turns out of order"
        yield from overtaking(books, session, mine)


def overtaking(books: Entries, session: int, numbers: list[int]) -> Iterator[str]:
    """A turn is begun once all earlier ones are final."""
    latest = None
    for number in numbers:
        row, tries = books.turns[session, number], books.tries.get((session, number))
        if tries and latest is not None and tries[0].started_at < latest:
            yield f"turn {session}.{number} was begun before an earlier one was final"
        if row.finished_at is not None:
            latest = max(latest or row.finished_at, row.finished_at)


def early(books: Entries) -> Iterator[str]:
    """A model is asked no sooner than the sender wanted."""
    calls_of = books.calls_of()
    for one in books.log.accepted:
        if (calls := calls_of.get(one.turn)) and calls[0].start < one.not_before - CLOCK_SECONDS:
            yield f"turn {shown(one.turn)} was called {one.not_before - calls[0].start:.2f} s too early"


def misinformed(books: Entries) -> Iterator[str]:
    """3. The model was shown exactly the completed turns with smaller numbers, as many as the window holds, and what was
    asked of tools in this one together with what they said.
    """
    for (session, number), calls in books.calls_of().items():
        if session in books.gone or books.stripped_to.get(session):  # of the latter, see ``strippings``
            continue
        earlier = (each for each in range(number - 1, 0, -1) if is_completed(books, session, each))
        window = [each for each, _ in zip(earlier, range(books.caps.context_turns), strict=False)]
        history = [row.content for each in reversed(window) for row in books.messages.get((session, each), ())]
        own = books.asked((session, number))
        for call in calls:
            known = [message["content"] or "" for message in call.messages]
            rest = known[len(history) :]
            if known[: len(history)] != history or rest != (own or [call.prompt])[: len(rest)] or not rest:
                yield f"call {call.number} of turn {session}.{number} was shown {len(call.messages)} other messages"
            if fault := rounds.fault({"messages": call.messages}):
                yield f"call {call.number} of turn {session}.{number} has a call of a tool that dangles: {fault}"


def is_completed(books: Entries, session: int, number: int) -> bool:
    row = books.turns.get((session, number))
    return row is not None and row.state == TurnState.COMPLETED
