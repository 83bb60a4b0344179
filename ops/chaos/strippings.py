"""12. Of a session that a rule keeps the metadata of, what was said goes, all of it; what was used stays. Of no other."""

from collections import Counter
from collections.abc import Iterator, Mapping

from inturn.models.states import TurnState
from ops.chaos.answers import CLOCK_SECONDS
from ops.chaos.entries import Entries, TurnId
from ops.chaos.fates import shown
from ops.chaos.model import Call
from ops.chaos.promises import Accepted, Population


def strippings(books: Entries) -> Mapping[TurnId, float]:
    """When what was said in a turn was removed, in Unix time, by the receipts: each goes on behind the last one."""
    ids, found, upto = {row.key: row.id for row in books.sessions}, dict[TurnId, float](), Counter[str]()
    for row in books.strippings:
        numbers = range(upto[row.session_key] + 1, upto[row.session_key] + row.turns + 1)
        upto[row.session_key] += row.turns
        if session := ids.get(row.session_key):
            found |= {(session, number): row.removed_at.timestamp() for number in numbers}
    return found


def stripped(books: Entries) -> Iterator[str]:
    """Only what a rule says loses what was said in it, with a receipt that counts its turns."""
    booked = Counter(session for session, _ in strippings(books))
    fates = {one.session: one.population for one in books.log.accepted}
    for session, upto in books.stripped_to.items():
        fate = fates.get(session, Population.STRIPPED)
        if upto and fate is not Population.STRIPPED:
            yield f"session {session} was {fate}, and what was said in it is gone"
        if booked[session] != upto:
            yield f"session {session} lost what was said in {upto} turns, and {booked[session]} are on record"


def unstripped(books: Entries) -> Iterator[str]:
    """What was said is nowhere then, and no model is shown it any more."""
    moments, by_prompt = strippings(books), {one.prompt: one.turn for one in books.log.accepted}
    for turn, said in books.messages.items():
        if said and books.is_stripped(turn):
            yield f"what was said in turn {shown(turn)} was removed, and is there"
    gone = [one for one in books.log.accepted if books.is_stripped(one.turn)]
    for trace in books.traces:
        if not trace.startswith("Redis: "):  # where it stays for a minute
            yield from (f"turn {shown(one.turn)} lost what was said in it, which is in {trace[:200]}"
                        for one in gone if one.prompt in trace)  # fmt: skip
    for calls in books.calls_of().values():
        for call in calls:
            for text in texts(call)[:-1]:
                if moments.get(by_prompt.get(text, (0, 0)), call.start) < call.start - CLOCK_SECONDS:
                    yield f"call {call.number} was shown what had been removed of turn {shown(by_prompt[text])}"


def diminished(books: Entries) -> Iterator[str]:
    """Nothing else goes: neither what was used, nor what a model is shown of what came after."""
    for turn, row in books.turns.items():
        if books.is_stripped(turn) and row.state == TurnState.COMPLETED:
            kept = [each.input_tokens for each in books.tries.get(turn, ()) if each.input_tokens is not None]
            if not kept or row.input_tokens != sum(kept):
                yield f"turn {shown(turn)} has lost its figures: {row.input_tokens} tokens, of attempts {kept}"
    sent, calls_of = {one.turn: one for one in books.log.accepted}, books.calls_of()
    for (session, number), calls in calls_of.items():
        if upto := books.stripped_to.get(session):
            window = [sent[session, each] for each in range(upto + 1, number) if is_shown(books, sent, session, each)]
            for call in calls:
                if not ends_with(texts(call)[:-1], window[-books.caps.context_turns :]):
                    yield f"call {call.number} of turn {session}.{number} was not shown what had been said before"


def is_shown(books: Entries, sent: Mapping[TurnId, Accepted], session: int, number: int) -> bool:
    return (session, number) in sent and books.turns[session, number].state == TurnState.COMPLETED


def ends_with(known: list[str], window: list[Accepted]) -> bool:
    """Whether these prompts with their replies are the last of what a model was shown."""
    pairs = list(zip(known[::2], known[1::2], strict=False))[len(known) // 2 - len(window) :]
    return len(pairs) == len(window) and all(
        prompt == one.prompt and reply.startswith(f"reply to: {one.prompt} (seen")
        for (prompt, reply), one in zip(pairs, window, strict=True)
    )


def texts(call: Call) -> list[str]:
    return [message["content"] or "" for message in call.messages]
