"""The working verbs on SQLite: a few set statements over ``json_each`` inside one ``BEGIN IMMEDIATE`` transaction, whose
lock stands in for PostgreSQL's row locks.
"""

from typing import Any

import orjson
from sqlalchemy import Connection, text

from inturn.models.clock import NOW, after
from inturn.models.states import Overflow
from inturn.models.store.dialects import TURNS_BY_TOKENS, Verdict
from inturn.models.tables import QUARANTINED, SUMMARY

SESSION_SETTINGS: tuple[str, ...] = ()

NOW_ = NOW["sqlite"]
LISTED = "(SELECT value FROM json_each(:sessions))"
CLAIMABLE = "halted_by IS NULL AND NOT EXISTS (SELECT 1 FROM lane_pauses WHERE lane = :lane)"
LOWEST = "FROM turns WHERE session_id = leases.session_id AND state = 'queued' ORDER BY number LIMIT 1"

# The plus signs keep the index of what is ready out of it: there may be a hundred thousand of those, and few are named.
NAMED = text(f"""
SELECT session_id FROM leases
WHERE session_id IN {LISTED} AND +lane = :lane AND owner IS NULL AND +ready_at <= {NOW_} AND {CLAIMABLE}
""")

LANED = text(f"""
SELECT session_id FROM leases
WHERE lane = :lane AND owner IS NULL AND ready_at IS NOT NULL AND ready_at <= {NOW_} AND session_id NOT IN {LISTED}
  AND {CLAIMABLE}
ORDER BY ready_at LIMIT :slots
""")

LEASE = text(f"""
UPDATE leases SET owner = :owner, token = token + 1, ready_at = NULL, expires_at = {after("sqlite", ":lease_seconds")}
WHERE session_id IN {LISTED}
""")

START = text(f"""
UPDATE turns SET state = 'running', attempts = attempts + 1, started_at = coalesce(started_at, {NOW_})
WHERE (session_id, number) IN (
    SELECT session_id, min(number) FROM turns WHERE session_id IN {LISTED} AND state = 'queued' GROUP BY session_id)
RETURNING session_id
""")

TRY = text(f"""
INSERT INTO attempts (session_id, turn_number, number, token, model, started_at)
SELECT t.session_id, t.number, t.attempts, l.token, t.model, {NOW_}
FROM turns AS t JOIN leases AS l ON l.session_id = t.session_id
WHERE t.session_id IN {LISTED} AND t.state = 'running'
""")

LOAD = text(f"""
SELECT t.session_id, l.token, :lane AS lane, s.key, s.options AS session_options,
    t.number, t.attempts, t.ambiguous, t.rescues, t.model, t.options, t.streams,
    t.fallbacks, t.rounds, t.steps, t.room, t.cuts, t.trace, t.not_after <= {NOW_} AS is_late,
    (julianday('now') - julianday(t.ready_at)) * 86400 AS waited,
    (julianday('now') - julianday(t.created_at)) * 86400 AS age,
    s.context_tokens, s.overflow, s.tools, s.labels,
    (SELECT json_group_array(json_array(m.position, m.role, m.content, json(m.data))) FROM messages AS m
     WHERE m.session_id = t.session_id AND m.turn_number = t.number AND m.position BETWEEN 1 AND t.steps + 1) AS said,
    (SELECT m.content FROM messages AS m
     WHERE m.session_id = t.session_id AND m.turn_number = t.system_turn AND m.position = 0) AS system,
    (SELECT json_array(m.turn_number, m.content) FROM messages AS m
     WHERE s.overflow = 'summarise' AND m.session_id = t.session_id AND m.position = {SUMMARY}
     ORDER BY m.turn_number DESC LIMIT 1) AS summed_up,
    coalesce(s.context_turns, iif(s.context_tokens IS NULL, :context_turns, {TURNS_BY_TOKENS})) AS shown
FROM turns AS t JOIN leases AS l ON l.session_id = t.session_id JOIN sessions AS s ON s.id = t.session_id
WHERE t.session_id IN {LISTED} AND t.state = 'running'
""")

# A statement of its own for each number of turns to read, nearly always one: LIMIT sees no column from outside here.
HISTORY = text(f"""
SELECT t.session_id,
    (SELECT json_group_array(json_array(m.turn_number, m.position, m.role, m.content, json(m.data)))
     FROM (SELECT e.number FROM turns AS e
           WHERE e.session_id = t.session_id AND e.number < t.number AND e.state = 'completed' AND e.number > i.value ->> 1
           ORDER BY e.number DESC LIMIT :read) AS shown
     JOIN messages AS m ON m.session_id = t.session_id AND m.turn_number = shown.number
         AND m.position > 0 AND m.position < {SUMMARY}) AS history
FROM json_each(:listed) AS i CROSS JOIN turns AS t ON t.session_id = i.value ->> 0 AND t.state = 'running'
""")

FREE = text(f"""
UPDATE leases SET owner = NULL, expires_at = NULL, ready_at = (SELECT ready_at {LOWEST})
WHERE session_id IN {LISTED} AND owner = :owner
""")

# CROSS JOIN keeps the order: SQLite would rather find all leases of the owner, and read the list again for each.
HELD = text("""
SELECT l.session_id, i.value ->> 'token' AS token FROM json_each(:items) AS i
CROSS JOIN leases AS l ON l.session_id = i.value ->> 'session_id'
WHERE l.token = i.value ->> 'token' AND l.owner = :owner
""")

TURN = text(f"""
UPDATE turns
SET state = i.value ->> 'state',
    finished_at = CASE WHEN i.value ->> 'state' = 'queued' THEN NULL ELSE {NOW_} END,
    ready_at = CASE WHEN i.value ->> 'state' = 'queued'
                    THEN {after("sqlite", "i.value ->> 'delay_seconds'")} ELSE ready_at END,
    attempts = attempts - (i.value ->> 'outcome' IS NULL),
    started_at = CASE WHEN i.value ->> 'outcome' IS NULL AND attempts = 1 THEN NULL ELSE started_at END,
    ambiguous = ambiguous + coalesce(i.value ->> 'outcome' = 'ambiguous', 0),
    rounds = rounds + (i.value ->> 'outcome' IS 'completed' AND i.value ->> 'state' <> 'completed'),
    steps = steps + (i.value ->> 'added'),
    room = coalesce(i.value ->> 'room', room), cuts = cuts OR (i.value ->> 'cuts'),
    model = coalesce(i.value ->> 'model', model), fallbacks = coalesce(i.value ->> 'fallbacks', fallbacks),
    error_type = CASE WHEN i.value ->> 'state' = 'failed' THEN i.value ->> 'error_type' END,
    error_message = CASE WHEN i.value ->> 'outcome' IS NULL AND i.value ->> 'state' = 'queued' THEN error_message
                         WHEN i.value ->> 'state' <> 'completed' THEN i.value ->> 'error_message' END,
    error_status = CASE WHEN i.value ->> 'outcome' IS NULL AND i.value ->> 'state' = 'queued' THEN error_status
                        WHEN i.value ->> 'state' <> 'completed' THEN i.value ->> 'status_code' END,
    error_retryable = CASE WHEN i.value ->> 'state' = 'failed' THEN i.value ->> 'retryable' END,
    input_tokens = coalesce(input_tokens + (i.value ->> 'input_tokens'), i.value ->> 'input_tokens', input_tokens),
    output_tokens = coalesce(output_tokens + (i.value ->> 'output_tokens'), i.value ->> 'output_tokens', output_tokens),
    price = coalesce(price + (i.value ->> 'price'), i.value ->> 'price', price),
    waits_for = i.value ->> 'waits_for', finish_reason = i.value ->> 'finish_reason',
    partial = CASE WHEN i.value ->> 'state' <> 'completed' THEN coalesce(i.value ->> 'partial', partial) END
FROM json_each(:items) AS i
WHERE turns.session_id = i.value ->> 'session_id' AND turns.number = i.value ->> 'number'
""")

TRIED = text(f"""
UPDATE attempts
SET ended_at = {NOW_}, outcome = i.value ->> 'outcome', error_type = i.value ->> 'error_type',
    status_code = i.value ->> 'status_code', request_id = i.value ->> 'request_id',
    input_tokens = i.value ->> 'input_tokens', output_tokens = i.value ->> 'output_tokens',
    estimated = i.value ->> 'estimated', price = i.value ->> 'price', price_table = i.value ->> 'price_table'
FROM json_each(:items) AS i
WHERE attempts.session_id = i.value ->> 'session_id' AND attempts.turn_number = i.value ->> 'number'
  AND attempts.number = i.value ->> 'attempt' AND i.value ->> 'outcome' IS NOT NULL
""")

WITHDRAW = text("""
DELETE FROM attempts WHERE (session_id, turn_number, number) IN (
    SELECT i.value ->> 'session_id', i.value ->> 'number', i.value ->> 'attempt'
    FROM json_each(:items) AS i WHERE i.value ->> 'outcome' IS NULL)
""")

SAY = text(f"""
INSERT INTO messages (session_id, turn_number, position, role, content, data, created_at)
SELECT i.value ->> 'session_id', i.value ->> 'number', i.value ->> 'place', 'assistant', i.value ->> 'reply',
    i.value ->> 'reply_data', {NOW_}
FROM json_each(:items) AS i WHERE i.value ->> 'state' = 'completed'
""")

# What is named and ready stays in hand; of all others the session is let go.
KEEP = text(f"""
UPDATE leases SET token = token + 1, expires_at = {after("sqlite", ":lease_seconds")}, lane = i.value ->> 'claimed'
FROM json_each(:items) AS i
WHERE session_id = i.value ->> 'session_id' AND i.value ->> 'claimed' = (SELECT lane {LOWEST})
  AND (SELECT ready_at {LOWEST}) <= {NOW_} AND halted_by IS NULL
  AND NOT EXISTS (SELECT 1 FROM lane_pauses AS p WHERE p.lane = i.value ->> 'claimed')
RETURNING session_id
""")

RELEASE = text(f"""
UPDATE leases
SET owner = NULL, expires_at = NULL, ready_at = (SELECT ready_at {LOWEST}), lane = coalesce((SELECT lane {LOWEST}), lane)
WHERE session_id IN {LISTED}
""")


TAKEN_BACK = text("""
SELECT t.session_id FROM json_each(:items) AS i
CROSS JOIN turns AS t ON t.session_id = i.value ->> 'session_id' AND t.number = i.value ->> 'number'
WHERE i.value ->> 'state' = 'queued' AND t.cancel_requested_at IS NOT NULL
""")

HALT = text(f"""
UPDATE leases SET halted_by = i.value ->> 'number'
FROM json_each(:items) AS i JOIN sessions AS s ON s.id = i.value ->> 'session_id'
WHERE leases.session_id = s.id AND s.halts AND i.value ->> 'state' = 'failed'
  AND i.value ->> {QUARANTINED.replace("error_type", "'error_type'", 1)}
""")


def claim(
    db: Connection,
    owner: str,
    lease_seconds: float,
    context_turns: int,
    lane: str,
    going_on: list[int],
    named: list[int],
    slots: int,
) -> list[dict[str, Any]]:
    asked: dict[str, Any] = {"lane": str(lane), "sessions": orjson.dumps(named).decode()}
    taken = [row.session_id for row in db.execute(NAMED, asked)] if named else []
    if len(taken) < slots:
        taken += [row.session_id for row in db.execute(LANED, asked | {"slots": slots - len(taken)})]
    if taken:
        leased = {"sessions": orjson.dumps(taken).decode(), "owner": owner, "lease_seconds": lease_seconds}
        db.execute(LEASE, leased)
    if not (picked := going_on + taken):
        return []
    listed: dict[str, Any] = {"sessions": orjson.dumps(picked).decode()}
    started = {row.session_id for row in db.execute(START, listed)}
    # Ready for nothing: its waiting turn was cancelled while an owner held it.
    if len(started) < len(picked):
        idle = [session for session in picked if session not in started]
        db.execute(FREE, {"sessions": orjson.dumps(idle).decode(), "owner": owner})
    db.execute(TRY, listed)
    loaded = db.execute(LOAD, listed | {"lane": str(lane), "context_turns": context_turns})
    return with_history(db, [dict(row) for row in loaded.mappings()])


def with_history(db: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_length: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        upto, row["summary"] = orjson.loads(row.pop("summed_up") or "[0, null]")
        read = row["shown"] * (2 if row["overflow"] == Overflow.SUMMARISE else 1)
        by_length.setdefault(read, []).append((row["session_id"], upto))
    histories: dict[int, str] = {}
    for read, listed in by_length.items():
        found = db.execute(HISTORY, {"listed": orjson.dumps(listed).decode(), "read": read})
        histories |= {row.session_id: row.history for row in found}
    return [row | {"history": histories[row["session_id"]]} for row in rows]


def settle(db: Connection, owner: str, lease_seconds: float, items: str) -> dict[tuple[int, int], Verdict]:
    # By token, too: of one session a slot that lost it and the one that has it now may come at once.
    held = {(row.session_id, row.token) for row in db.execute(HELD, {"items": items, "owner": owner})}
    if not held:
        return {}
    kept = [item for item in orjson.loads(items) if (item["session_id"], item["token"]) in held]
    taken_back = _take_back(db, kept)
    listed = {"items": orjson.dumps(kept).decode()}
    statements = [TURN, TRIED, SAY]
    if any(item["outcome"] is None for item in kept):
        statements.append(WITHDRAW)
    if any(item["state"] == "failed" for item in kept):
        statements.append(HALT)
    for statement in statements:
        db.execute(statement, listed)
    going_on = _keep(db, lease_seconds, [item for item in kept if item["claimed"] and _goes_on(item)])
    if over := sorted({session for session, _ in held} - going_on):
        db.execute(RELEASE, {"sessions": orjson.dumps(over).decode()})
    return {(session, token): Verdict(session in going_on, session in taken_back) for session, token in held}


def _keep(db: Connection, lease_seconds: float, items: list[dict[str, Any]]) -> set[int]:
    listed = {"items": orjson.dumps(items).decode(), "lease_seconds": lease_seconds}
    return {row.session_id for row in db.execute(KEEP, listed)} if items else set()


def _goes_on(item: dict[str, Any]) -> bool:
    return bool(item["state"] != "queued" or item["outcome"] == "completed")


def _take_back(db: Connection, items: list[dict[str, Any]]) -> set[int]:
    """A turn that would wait again while its user wants it back is cancelled. Returns the sessions of those that are."""
    taken = set[int]()
    if any(item["state"] == "queued" for item in items):
        taken |= {row.session_id for row in db.execute(TAKEN_BACK, {"items": orjson.dumps(items).decode()})}
        for item in items:
            if item["session_id"] in taken:
                item["state"] = "cancelled"
    return taken
