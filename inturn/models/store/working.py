"""What the working side changes. Each verb takes a list, and works inside the transaction that the ledger opened: many
turns, one commit.

Everything starts with the fence: the lease row, under its lock, has to name this owner and token. Who is not in its answer
has lost the lease, and none of the rest is done for them. The token is checked, not the time: a late reply that
nobody superseded was paid for and is kept.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, select

from inturn.models.content import storable
from inturn.models.states import AttemptOutcome, Lane, Role, TurnState
from inturn.models.store.dialects import postgresql, sqlite
from inturn.models.tables import ATTEMPTS

ENGINES = {"postgresql": postgresql, "sqlite": sqlite}


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot that wants work: the named session if that is ready, else any ready session of the lane."""

    lane: Lane
    session_id: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A turn whose attempt is on record: the call may be made."""

    session_id: int
    key: str
    token: int
    number: int
    attempts: int
    ambiguous: int
    rescues: int
    lane: Lane
    model: str
    options: dict[str, Any]
    messages: list[dict[str, str]]
    streams: bool = False
    """Somebody may listen: the reply is told while it arrives."""

    @property
    def turn_id(self) -> str:
        return f"{self.session_id}.{self.number}"


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ended, and what becomes of its turn: final, or ``queued`` again after ``delay_seconds``.

    ``outcome`` None withdraws the attempt: no call was made, so none is counted. A turn that would be queued again while
    its user wants it back is cancelled.
    """

    session_id: int
    token: int
    number: int
    attempt: int
    state: TurnState
    outcome: AttemptOutcome | None
    reply: str | None = None
    delay_seconds: float = 0.0
    error_type: str | None = None
    error_message: str | None = None
    status_code: int | None = None
    retryable: bool | None = None
    request_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    partial: str | None = None
    """What was heard of a reply that was cut off; None: nothing, and what an earlier attempt left is kept."""
    waits_for: str | None = None
    """Of a withdrawn attempt: why no call was made."""


def claim(
    db: Connection,
    owner: str,
    lease_seconds: float,
    context_turns: int,
    claims: Sequence[Claim],
    going_on: Set[Claim] = frozenset(),
) -> list[Started | None]:
    """Take ready sessions, put the lowest waiting turn of each to running, and record the attempt: one transition, since
    a worker that dies in the call must have spent one.

    Args:
        owner: this process, as in ``worker_processes``.
        lease_seconds: how long the hold lasts without a heartbeat.
        context_turns: how many completed turns a model is shown where the session does not say.
        going_on: those of the claims for which ``settle`` has just kept the session in hand.

    Returns:
        For each claim, in order, what was started, or None where nothing was ready.
    """
    answers: list[Started | None] = [None] * len(claims)
    for lane in dict.fromkeys(claim.lane for claim in claims):
        asking = [place for place, claim in enumerate(claims) if claim.lane == lane]
        named = {session for place in asking if (session := claims[place].session_id) is not None}
        kept = {claim.session_id for claim in going_on if claim.lane == lane and claim.session_id is not None}
        engine, free = ENGINES[db.dialect.name], len(asking) - len(kept)
        rows = engine.claim(db, owner, lease_seconds, context_turns, lane, sorted(kept), sorted(named - kept), free)
        started = {row["session_id"]: _started(row) for row in rows}
        _hand_out(started, claims, asking, answers)
    return answers


def _hand_out(
    started: dict[int, Started], claims: Sequence[Claim], asking: list[int], answers: list[Started | None]
) -> None:
    """First to whoever named the session, the rest in the order of asking."""
    for place in asking:
        named = claims[place].session_id
        if named is not None:
            answers[place] = started.pop(named, None)
    rest = iter(started.values())
    for place in asking:
        answers[place] = answers[place] or next(rest, None)


def _started(row: dict[str, Any]) -> Started:
    system = [{"role": str(Role.SYSTEM), "content": row["system"]}] if row["system"] is not None else []
    history = sorted(orjson.loads(row["history"] or "[]"))
    messages = [{"role": role, "content": content} for _, _, role, content in history]
    return Started(
        session_id=row["session_id"],
        key=row["key"],
        token=row["token"],
        number=row["number"],
        attempts=row["attempts"],
        ambiguous=row["ambiguous"],
        rescues=row["rescues"],
        lane=Lane(row["lane"]),
        model=row["model"],
        options=orjson.loads(row["session_options"]) | orjson.loads(row["options"]),
        messages=[*system, *messages, {"role": str(Role.USER), "content": row["prompt"]}],
        streams=bool(row["streams"]),
    )


def settle(
    db: Connection, owner: str, lease_seconds: float, settlements: Sequence[Settlement], claims: Sequence[Claim] = ()
) -> tuple[set[int], set[Claim]]:
    """Store how attempts ended and let go of their sessions: each becomes ready again by its lowest unfinished turn. Those
    that the claims name are kept in hand, under a new token, if they would be ready at once.

    Args:
        claims: what ``claim`` will be asked for next, in the same transaction.

    Returns:
        The surrogate ids of the sessions that were still held, and the claims whose sessions go on; for sessions that
        were not held nothing was changed.
    """
    claimed = {claim.session_id: claim for claim in claims if claim.session_id is not None}
    items = [
        _item(settlement, claimed.get(settlement.session_id))
        for settlement in sorted(settlements, key=lambda each: each.session_id)
    ]
    kept: dict[int, bool] = ENGINES[db.dialect.name].settle(db, owner, lease_seconds, orjson.dumps(items).decode())
    return set(kept), {claimed[session] for session, goes_on in kept.items() if goes_on}


def settled_before(db: Connection, settlements: Sequence[Settlement]) -> set[int]:
    """After a commit whose outcome nobody knows: the sessions whose settlement is in the database already."""
    found = set()
    for each in settlements:
        row = db.execute(
            select(ATTEMPTS.c.outcome).where(
                ATTEMPTS.c.session_id == each.session_id,
                ATTEMPTS.c.turn_number == each.number,
                ATTEMPTS.c.number == each.attempt,
                ATTEMPTS.c.token == each.token,
            )
        ).one_or_none()
        if row is None if each.outcome is None else row is not None and row.outcome == each.outcome:
            found.add(each.session_id)
    return found


def _item(settlement: Settlement, claim: Claim | None = None) -> dict[str, Any]:
    item: dict[str, Any] = {name: getattr(settlement, name) for name in Settlement.__slots__}
    item["claimed"] = claim.lane if claim is not None else None
    for name in ("reply", "partial", "error_message", "request_id"):
        if item[name] is not None:
            item[name] = storable(item[name])
    if item["request_id"] is not None:
        item["request_id"] = item["request_id"][:200]
    return item
