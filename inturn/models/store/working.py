"""What the working side changes. Each verb takes a list, and works inside the transaction that the ledger opened: many
turns, one commit.

Everything starts with the fence: the lease row, under its lock, has to name this owner and token. Who is not in its answer
has lost the lease, and none of the rest is done for them. The token is checked, not the time: a late reply that
nobody superseded was paid for and is kept.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from sqlalchemy import Connection, select

from inturn.models.clock import now
from inturn.models.content import storable, storable_json
from inturn.models.states import AttemptOutcome, Lane, Overflow, Role, TurnState
from inturn.models.store import budgets
from inturn.models.store.budgets import Account, Budget, Exceeded
from inturn.models.store.dialects import Verdict, postgresql, sqlite
from inturn.models.store.opening import REPLY, UPSERT
from inturn.models.tables import ATTEMPTS, MESSAGES, SUMMARY

ENGINES = {"postgresql": postgresql, "sqlite": sqlite}
SUMMED_UP = "What was said before, in short:"
Held = tuple[int, int]
"""A session's surrogate id, and a token of its lease."""
Said = dict[str, Any]
"""A message as models are shown it: ``role``, ``content``, and what belongs to calls of tools."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot that wants work: the named session if that is ready, else any ready session of the lane."""

    lane: Lane
    session_id: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A turn whose attempt is on record: the call may be made.

    Attributes:
        prompt: the turn's own messages: what its user said, and, behind that, what tools were asked and said.
        fallbacks: models that may be asked when this one fails; None: those of its provider's settings.
        rounds: how many of the attempts were answered, and the turn went on.
        steps: how many messages are stored behind what the user said.
        cuts: older turns are left out although the session sums them up, as no summary could be had.
        room: how many tokens may be shown, since a model said that it was shown too much; None: none did.
        history: the messages of earlier turns, turn by turn, oldest first, by number. Where history is summarised there
            are up to twice as many as ``window``.
        window: how many of them the model is shown at most.
        summary: of everything before them.
        tools: names of those that the model may call.
        streams: somebody may listen: the reply is told while it arrives.
        accounts: what its spend counts for.
        exceeded: a budget of those that is used up: no call may be made.
        is_late: nor may one if its batch's completion window is over.
        trace: that it was sent in; None: in none.
        waited_seconds: since it was due, by the database's clock.
        sent_at: when it was sent, by this process's monotonic clock.
    """

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
    prompt: list[Said]
    streams: bool = False
    fallbacks: list[str] | None = None
    rounds: int = 0
    steps: int = 0
    room: int | None = None
    cuts: bool = False
    system: str | None = None
    summary: str | None = None
    history: Sequence[tuple[int, list[Said]]] = ()
    window: int = 0
    context_tokens: int | None = None
    overflow: Overflow = Overflow.TRUNCATE
    tools: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    accounts: tuple[Account, ...] = ()
    exceeded: Exceeded | None = None
    is_late: bool = False
    trace: Mapping[str, str] | None = None
    waited_seconds: float = field(default=0.0, compare=False)
    sent_at: float = field(default=0.0, compare=False)

    @property
    def turn_id(self) -> str:
        return f"{self.session_id}.{self.number}"

    @property
    def preamble(self) -> list[Said]:
        """What stands before the history: the system message in force, and what was said before, in short."""
        summary = None if self.summary is None else f"{SUMMED_UP}\n\n{self.summary}"
        return [{"role": str(Role.SYSTEM), "content": said} for said in (self.system, summary) if said is not None]

    @property
    def messages(self) -> list[Said]:
        """All that there is to show, in order."""
        return [*self.preamble, *(said for _, turn in self.history for said in turn), *self.prompt]

    @property
    def tries(self) -> int:
        """The attempts that may not be too many: those that were answered are none of them."""
        return self.attempts - self.rounds


@dataclass(frozen=True, slots=True)
class Step:
    """A message of a turn between its prompt and its reply."""

    role: Role
    content: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said up to a turn, and in it, in short."""

    upto: int
    text: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """How an attempt ended, and what becomes of its turn: final, or ``queued`` again after ``delay_seconds``.

    ``outcome`` None withdraws the attempt: no call was made, so none is counted. A turn that would be queued again while
    its user wants it back is cancelled. One that is queued again although its attempt was answered goes on with what
    was answered: a round.
    """

    session_id: int
    token: int
    number: int
    attempt: int
    state: TurnState
    outcome: AttemptOutcome | None
    reply: str | None = None
    reply_data: dict[str, Any] | None = None
    """What of it is no text: calls of tools that whoever asked for it does."""
    place: int = REPLY
    """The reply's position."""
    delay_seconds: float = 0.0
    error_type: str | None = None
    error_message: str | None = None
    status_code: int | None = None
    retryable: bool | None = None
    request_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    estimated: bool = False
    """Whether we guessed the tokens."""
    price: float | None = None
    price_table: str | None = None
    partial: str | None = None
    """What was heard of a reply that was cut off; None: nothing, and what an earlier attempt left is kept."""
    finish_reason: str | None = None
    waits_for: str | None = None
    """Of a withdrawn attempt: why no call was made."""
    model: str | None = None
    """Who is asked next; None: the same again."""
    fallbacks: list[str] | None = None
    """Who is asked after that; None: nothing changes."""
    room: int | None = None
    """How many tokens the next attempts show at most; None: nothing changes."""
    cuts: bool = False
    """Whether the next attempts leave older turns out, and no longer try to sum them up."""
    steps: tuple[Step, ...] = ()
    """Of a round: what is to be stored behind what is there."""
    summary: Summary | None = None
    """Of a round."""
    accounts: tuple[Account, ...] = ()

    @property
    def held(self) -> Held:
        """The lease that it was made under."""
        return self.session_id, self.token

    @property
    def is_round(self) -> bool:
        return self.state is TurnState.QUEUED and self.outcome is AttemptOutcome.COMPLETED


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
    turns: dict[int, list[Said]] = {}
    for number, _, role, content, data in sorted(orjson.loads(row["history"] or "[]")):
        turns.setdefault(number, []).append(_said(role, content, data))
    prompt = [_said(role, content, data) for _, role, content, data in sorted(orjson.loads(row["said"]))]
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
        prompt=prompt,
        streams=bool(row["streams"]),
        fallbacks=orjson.loads(row["fallbacks"] or "null"),
        rounds=row["rounds"],
        steps=row["steps"],
        room=row["room"],
        cuts=bool(row["cuts"]),
        system=row["system"],
        summary=row["summary"],
        history=[(number, _closed(turn)) for number, turn in turns.items()],
        window=row["shown"],
        context_tokens=row["context_tokens"],
        overflow=Overflow(row["overflow"]),
        tools=tuple(orjson.loads(row["tools"] or "[]")),
        labels=orjson.loads(row["labels"]),
        is_late=bool(row["is_late"]),
        trace=orjson.loads(row["trace"] or "null"),
        waited_seconds=row["waited"],
        sent_at=time.monotonic() - row["age"],
    )


def _said(role: str, content: str, data: dict[str, Any] | None) -> Said:
    """Parts are the content in full; what else there is stands beside it."""
    beside = dict(data or {})
    return {"role": role, "content": beside.pop("parts", content), **beside}


def _closed(turn: list[Said]) -> list[Said]:
    """A turn that ends with calls of tools ended there, as far as we know: no model takes a call without its result."""
    calls = turn[-1].get("tool_calls")
    if not calls:
        return turn
    wished = ", ".join(f"{call['function']['name']}({call['function']['arguments']})" for call in calls)
    return [*turn[:-1], {"role": turn[-1]["role"], "content": turn[-1]["content"] or f"[called {wished}]"}]


def settle(
    db: Connection, owner: str, lease_seconds: float, settlements: Sequence[Settlement], claims: Sequence[Claim] = ()
) -> tuple[set[Held], set[Claim], set[Held]]:
    """Store how attempts ended and let go of their sessions: each becomes ready again by its lowest unfinished turn. Those
    that the claims name are kept in hand, under a new token, if they would be ready at once.

    Args:
        claims: what ``claim`` will be asked for next, in the same transaction.

    Returns:
        The leases under which something was stored, the claims whose sessions go on, and those of the leases whose turns
        were cancelled instead of waiting again; under a lease that was not held any more nothing was changed.
    """
    claimed = {claim.session_id: claim for claim in claims if claim.session_id is not None}
    items = [
        _item(settlement, claimed.get(settlement.session_id))
        for settlement in sorted(settlements, key=lambda each: each.session_id)
    ]
    kept: dict[Held, Verdict] = ENGINES[db.dialect.name].settle(db, owner, lease_seconds, orjson.dumps(items).decode())
    for each in settlements:
        if each.is_round and each.held in kept:
            _go_round(db, each)
    going_on = {claimed[session] for (session, _), verdict in kept.items() if verdict.goes_on}
    return set(kept), going_on, {held for held, verdict in kept.items() if verdict.taken_back}


def _go_round(db: Connection, each: Settlement) -> None:
    """Store what the turn goes on with: what tools were asked together with what they said, or a summary."""
    rows: list[dict[str, Any]] = [
        {"turn_number": each.number, "position": each.place + place, "role": step.role, "content": step.content}
        | {"data": storable_json(step.data)}
        for place, step in enumerate(each.steps)
    ]
    if each.summary is not None:
        rows.append({"turn_number": each.summary.upto, "position": SUMMARY, "role": Role.SYSTEM, "data": None})
        rows[-1]["content"] = each.summary.text
    for row in rows:
        stored = UPSERT[db.dialect.name](MESSAGES).values(created_at=now()).on_conflict_do_nothing()
        db.execute(stored, row | {"session_id": each.session_id, "content": storable(row["content"])})


def spent_by(settlements: Iterable[Settlement]) -> Iterator[tuple[Account, float, int]]:
    """What is to be counted for budgets."""
    for each in settlements:
        usd, tokens = each.price or 0.0, (each.input_tokens or 0) + (each.output_tokens or 0)
        if usd or tokens:
            yield from ((account, usd, tokens) for account in each.accounts)


def within_budgets(db: Connection, known: Sequence[Budget], started: Sequence[Started | None]) -> list[Started | None]:
    """What was started, with the accounts that its spend counts for, and with the budget that forbids its call, if one does.

    In the transaction that starts them: an attempt is never begun on a budget that was seen to be used up.
    """
    asked = {each.session_id: each.labels for each in started if each is not None}
    used_up = budgets.reached(db, known, asked) if asked else {}
    return [
        None
        if each is None
        else replace(
            each,
            accounts=budgets.accounts(known, each.session_id, each.labels),
            exceeded=used_up.get(each.session_id),
        )
        for each in started
    ]


def settled_before(db: Connection, settlements: Sequence[Settlement]) -> set[Held]:
    """After a commit whose outcome nobody knows: the leases under which the settlement is in the database already."""
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
            found.add(each.held)
    return found


COLUMNS = tuple(name for name in Settlement.__slots__ if name not in ("steps", "summary", "accounts"))


def _item(settlement: Settlement, claim: Claim | None = None) -> dict[str, Any]:
    item: dict[str, Any] = {name: getattr(settlement, name) for name in COLUMNS}
    item["added"] = len(settlement.steps)
    item["claimed"] = claim.lane if claim is not None else None
    for name in ("reply", "partial", "error_message", "request_id", "finish_reason"):
        if item[name] is not None:
            item[name] = storable(item[name])
    for name, most in (("request_id", 200), ("finish_reason", 60)):
        if item[name] is not None:
            item[name] = item[name][:most]
    return item
