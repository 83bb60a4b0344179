"""Budgets: what may be spent, and what was. Both of it inside the ledger's transaction, after everything else in it.

The row of an account is locked from ``spend`` to the commit, and all workers share it. So nothing that waits for a lease
comes behind it (a circle), and the rows are taken in one order. What is counted begins with the first worker that has
the budget in its settings: nobody looks back.

A day is one in UTC, by the database's clock.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import Connection, bindparam, text

from inturn.models.clock import NOW
from inturn.models.database import Database
from inturn.models.money import dollars

ALL, SESSION, LABEL = "all", "session", "label"
SENTENCE = "budget "
"""How it begins that one is used up."""
LONGEST_KEY = 500
"""The column's length. A label's value may be longer, and is then told from others by its digest."""

TODAY = {
    "sqlite": f"substr({NOW['sqlite']}, 1, 10)",
    "postgresql": f"to_char({NOW['postgresql']} AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
LEFT_OF_SLOT = {
    "sqlite": f"(julianday(nullif(slot, ''), '+1 day') - julianday({NOW['sqlite']})) * 86400.0",
    "postgresql": f"""extract(epoch FROM
    (CAST(nullif(slot, '') AS timestamp) + interval '1 day') AT TIME ZONE 'UTC' - {NOW["postgresql"]})""",
}
"""Seconds until the day of a row ends; null where it is for good."""

STANDS = {
    dialect: f"""
SELECT scope, slot <> '' AS daily, usd, tokens, {LEFT_OF_SLOT[dialect]} AS seconds FROM spending
WHERE slot IN ('', (SELECT {today}))"""
    for dialect, today in TODAY.items()
}
OF_SCOPES = {
    dialect: text(f"{stands} AND scope IN :scopes").bindparams(bindparam("scopes", expanding=True))
    for dialect, stands in STANDS.items()
}
ITEMS = {
    "sqlite": """
SELECT value ->> 'scope' AS scope, value ->> 'daily' AS daily, value ->> 'usd' AS usd, value ->> 'tokens' AS tokens
FROM json_each(:items)""",
    "postgresql": """
SELECT * FROM jsonb_to_recordset(CAST(:items AS jsonb))
    AS item (scope text, daily boolean, usd double precision, tokens bigint)""",
}
SPEND = {
    dialect: text(f"""
INSERT INTO spending (scope, slot, usd, tokens)
SELECT scope, CASE WHEN daily THEN {today} ELSE '' END, usd, tokens FROM ({ITEMS[dialect]}) AS spent
WHERE true ORDER BY scope, daily
ON CONFLICT (scope, slot) DO UPDATE SET usd = spending.usd + excluded.usd, tokens = spending.tokens + excluded.tokens""")
    for dialect, today in TODAY.items()
}
"""One statement for all rows: with one for each, PostgreSQL took five times as long. In one order, whoever spends."""
EVERYTHING = {
    dialect: text(f"{stands} ORDER BY usd DESC, tokens DESC, scope, slot") for dialect, stands in STANDS.items()
}
NAMES = text(
    "SELECT key, id FROM sessions WHERE state = 'active' AND id IN :ids",
).bindparams(bindparam("ids", expanding=True))
PAST = {dialect: text(f"DELETE FROM spending WHERE slot <> '' AND slot < {today}") for dialect, today in TODAY.items()}
SHOWN = 20
"""Of a budget that each session or each value of a label has by itself: those that have spent most."""

Account = tuple[str, bool]
"""Where something is spent from: whose (``spending.scope``), and whether by the day."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent, of dollars, of tokens, or of both: whichever is used up first.

    Attributes:
        scope: ``all``; ``session``, each by itself; ``label:team``, each of its values by itself; ``label:team=legal``.
        daily: anew each day; else once and for all.
        waits: turns wait for the next day; else they fail.
    """

    name: str
    scope: str
    daily: bool
    usd: float | None
    tokens: int | None
    waits: bool

    def account(self, session_id: int, labels: Mapping[str, str]) -> Account | None:
        """Whose money a session spends by this budget; None: the budget is not for it."""
        kind, _, label = self.scope.partition(":")
        if kind == SESSION:
            return session_key(session_id), self.daily
        if kind != LABEL:
            return ALL, self.daily
        name, is_one, value = label.partition("=")
        found = labels.get(name)
        if found is None or (is_one and found != value):
            return None
        return label_key(name, found), self.daily

    def covers(self, key: str) -> bool:
        """Whether an account is one of this budget's."""
        kind, _, label = self.scope.partition(":")
        if kind != LABEL:
            return key.partition(":")[0] == kind
        name, is_one, value = label.partition("=")
        return key == label_key(name, value) if is_one else key.startswith(f"{LABEL}:{name}=")

    def is_used_up(self, usd: float, tokens: int) -> bool:
        return (self.usd is not None and usd >= self.usd) or (self.tokens is not None and tokens >= self.tokens)


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A budget that is used up, and by whom. ``seconds``: until its day ends; None: it is for good."""

    budget: Budget
    key: str
    spent_usd: float
    spent_tokens: int
    seconds: float | None

    @property
    def sentence(self) -> str:
        budget = self.budget
        if budget.usd is not None and self.spent_usd >= budget.usd:
            limit, spent = f"{dollars(budget.usd)} US dollars", dollars(self.spent_usd)
        else:
            limit, spent = f"{budget.tokens or 0:,} tokens", f"{self.spent_tokens:,}"
        period = "a day" if budget.daily else "in all"
        return f"{SENTENCE}{budget.name!r} of {limit} {period}{self._whose()} is used up ({spent} spent)"

    def _whose(self) -> str:
        kind, _, label = self.key.partition(":")
        return f" for {label}" if kind == LABEL else " for this session" if kind == SESSION else ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What was spent of a budget, by one of those who spend it.

    Attributes:
        whose: a session's ID, a label, or empty: everybody.
        unlisted: how many others have spent of the same budget, each by itself, and less than those that are listed.
    """

    budget: Budget
    whose: str
    usd: float
    tokens: int
    unlisted: int = 0


def session_key(session_id: int) -> str:
    return f"{SESSION}:{session_id}"


def label_key(name: str, value: str) -> str:
    key = f"{LABEL}:{name}={value}"
    if len(key) <= LONGEST_KEY:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()
    return f"{key[: LONGEST_KEY - len(digest) - 1]}#{digest}"


def accounts(budgets: Iterable[Budget], session_id: int, labels: Mapping[str, str]) -> tuple[Account, ...]:
    """Where a session's spending is counted, each once."""
    found = (budget.account(session_id, labels) for budget in budgets)
    return tuple(dict.fromkeys(account for account in found if account is not None))


def reached(db: Connection, budgets: Sequence[Budget], asked: Mapping[int, Mapping[str, str]]) -> dict[int, Exceeded]:
    """Which of these sessions may not spend any more: one query for all of them.

    Args:
        asked: the labels of each session, by its surrogate id.

    Returns:
        By session, a budget of its that is used up: rather one that makes turns fail, and of those that let them wait, the
        one that does so for longest.
    """
    theirs = {
        session: [(budget, account) for budget in budgets if (account := budget.account(session, labels))]
        for session, labels in asked.items()
    }
    scopes = sorted({key for pairs in theirs.values() for _, (key, _) in pairs})
    if not scopes:
        return {}
    rows = db.execute(OF_SCOPES[db.dialect.name], {"scopes": scopes})
    spent = {(row.scope, bool(row.daily)): row for row in rows}
    found: dict[int, list[Exceeded]] = defaultdict(list)
    for session, pairs in theirs.items():
        for budget, account in pairs:
            row = spent.get(account)
            if row is not None and budget.is_used_up(row.usd, row.tokens):
                left = None if row.seconds is None else max(0.0, float(row.seconds))
                found[session].append(Exceeded(budget, account[0], row.usd, row.tokens, left))
    return {session: max(each, key=_weight) for session, each in found.items()}


def _weight(exceeded: Exceeded) -> tuple[bool, bool, float]:
    return not exceeded.budget.waits, exceeded.seconds is None, exceeded.seconds or 0.0


def spend(db: Connection, spent: Iterable[tuple[Account, float, int]]) -> None:
    """Count what was spent: account, US dollars, tokens. Last in its transaction, with nothing behind it that waits."""
    dollars_of, tokens_of = defaultdict[Account, float](float), defaultdict[Account, int](int)
    for account, usd, tokens in spent:
        dollars_of[account] += usd
        tokens_of[account] += tokens
    rows = [
        {"scope": account[0], "daily": account[1], "usd": dollars_of[account], "tokens": tokens_of[account]}
        for account in dollars_of
    ]
    if rows:
        db.execute(SPEND[db.dialect.name], {"items": orjson.dumps(rows).decode()})


def forget_past(db: Connection) -> None:
    """What was spent on days that are over, by sessions and values of labels that may be gone. Nobody looks back."""
    db.execute(PAST[db.dialect.name])


def standings(database: Database, budgets: Sequence[Budget]) -> list[Standing]:
    """What is spent of each budget, today or in all. One that is for each session, or for each value of a label, has a
    standing for each of those that spent most; one of which nothing is spent has one all the same.
    """
    if not budgets:
        return []
    with database.reading() as db:
        rows = [(row.scope, bool(row.daily), row.usd, row.tokens) for row in db.execute(EVERYTHING[database.dialect])]
        spent = [(budget, _of(budget, rows)) for budget in budgets]
        shown = [(budget, mine[:SHOWN], len(mine[SHOWN:])) for budget, mine in spent]
        ids = [int(key.partition(":")[2]) for _, mine, _ in shown for key, *_ in mine if key.startswith(f"{SESSION}:")]
        names = {row.id: row.key for row in db.execute(NAMES, {"ids": ids})} if ids else {}
    return [
        Standing(budget, _named(key, names), usd, tokens, unlisted)
        for budget, mine, unlisted in shown
        for key, usd, tokens in mine
    ]


def _of(budget: Budget, rows: Iterable[tuple[str, bool, float, int]]) -> list[tuple[str, float, int]]:
    mine = [(key, usd, tokens) for key, daily, usd, tokens in rows if daily == budget.daily and budget.covers(key)]
    return mine or [(budget.scope if "=" in budget.scope else ALL, 0.0, 0)]


def _named(key: str, names: Mapping[int, str]) -> str:
    kind, _, who = key.partition(":")
    return names.get(int(who), "(removed)") if kind == SESSION else who
