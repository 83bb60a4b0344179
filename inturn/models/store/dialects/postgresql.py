"""The working verbs on PostgreSQL: one statement or two each, whatever the number of turns.

They are planned for the worst: a database that nobody has analysed yet, with a hundred thousand sessions waiting.

* ``(SELECT clock_timestamp())`` rather than the bare function in comparisons: only so is it an index condition.
* ``|| ''``, ``coalesce(owner, '')``, ``+ interval '0'`` and ``OFFSET 0`` keep a plan out: rows that are named are found by
  their primary key, where the planner would rather read all that are ready, or all that the process owns, for each.
* No CTE is joined with another, as that is a loop within a loop.
* A history is one range of the index, less the turns in it that have no reply: to look each up takes thrice as long. It
  is read behind a LATERAL, or the planner may read all that its session ever said, and then leave out most of it.
"""

from typing import Any

import orjson
from sqlalchemy import Connection, text

from inturn.models.store.dialects import TURNS_BY_TOKENS, Verdict
from inturn.models.tables import QUARANTINED, SUMMARY

SESSION_SETTINGS = (
    # The claim's and the settle's plans must not depend on statistics that say "owner is always null" a moment after
    # thousands of leases were taken; custom plans and table scans are what the planner then chooses.
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_seqscan = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    # The newest turns of a session are read backwards from the index, not sorted out of all of its turns.
    "SET enable_bitmapscan = off",
    "SET enable_sort = off",
)

CLAIM = text(f"""
WITH named AS MATERIALIZED (
    SELECT session_id FROM leases
    WHERE session_id = ANY(CAST(:named AS bigint[])) AND lane || '' = :lane
      AND owner IS NULL AND ready_at + interval '0' <= (SELECT clock_timestamp())
      AND halted_by IS NULL AND NOT EXISTS (SELECT FROM lane_pauses WHERE lane = :lane)
    ORDER BY session_id FOR UPDATE
), laned AS MATERIALIZED (
    SELECT session_id FROM leases
    WHERE lane = :lane AND owner IS NULL AND ready_at <= (SELECT clock_timestamp())
      AND session_id <> ALL(CAST(:named AS bigint[]))
      AND halted_by IS NULL AND NOT EXISTS (SELECT FROM lane_pauses WHERE lane = :lane)
    ORDER BY ready_at LIMIT GREATEST(0, :slots - (SELECT count(*) FROM named)) FOR UPDATE SKIP LOCKED
), leased AS (
    UPDATE leases AS l
    SET owner = :owner, token = l.token + 1, ready_at = NULL,
        expires_at = clock_timestamp() + make_interval(secs => CAST(:lease_seconds AS double precision))
    FROM (SELECT session_id FROM named UNION ALL SELECT session_id FROM laned) AS picked
    WHERE l.session_id = picked.session_id
    RETURNING l.session_id, l.token
), next AS MATERIALIZED (
    SELECT taken.session_id, taken.token, lowest.number
    FROM (SELECT session_id, token FROM leased
          UNION ALL SELECT session_id, token FROM leases WHERE session_id = ANY(CAST(:going_on AS bigint[]))) AS taken
    LEFT JOIN LATERAL (
        SELECT t.number FROM turns AS t WHERE t.session_id = taken.session_id AND t.state = 'queued'
        ORDER BY t.number LIMIT 1
    ) AS lowest ON true
), started AS (
    UPDATE turns AS t
    SET state = 'running', attempts = t.attempts + 1, started_at = coalesce(t.started_at, clock_timestamp())
    FROM next WHERE t.session_id = next.session_id AND t.number = next.number AND t.state = 'queued'
    RETURNING t.session_id, t.number, t.attempts, t.ambiguous, t.rescues, t.model, t.options, t.system_turn,
        t.streams, t.fallbacks, t.rounds, t.steps, t.room, t.cuts, t.not_after, t.ready_at, t.created_at, t.trace,
        next.token
), tried AS (
    INSERT INTO attempts (session_id, turn_number, number, token, model, started_at)
    SELECT session_id, number, attempts, token, model, clock_timestamp() FROM started
)
SELECT started.session_id, started.token, :lane AS lane, s.key, CAST(s.options AS text) AS session_options,
    started.number, started.attempts, started.ambiguous, started.rescues, started.model, started.streams,
    CAST(started.options AS text) AS options, CAST(started.fallbacks AS text) AS fallbacks,
    started.rounds, started.steps, started.room, started.cuts, CAST(started.trace AS text) AS trace,
    started.not_after <= (SELECT clock_timestamp()) AS is_late,
    CAST(extract(epoch FROM clock_timestamp() - started.ready_at) AS double precision) AS waited,
    CAST(extract(epoch FROM clock_timestamp() - started.created_at) AS double precision) AS age,
    s.context_tokens, s.overflow, CAST(s.tools AS text) AS tools, CAST(s.labels AS text) AS labels, policy.most AS shown,
    (SELECT CAST(json_agg(json_build_array(m.position, m.role, m.content, m.data)) AS text) FROM messages AS m
     WHERE m.session_id = started.session_id AND m.turn_number = started.number
       AND m.position >= 1 AND m.position <= started.steps + 1) AS said,
    (SELECT m.content FROM messages AS m
     WHERE m.session_id = started.session_id AND m.turn_number = started.system_turn AND m.position = 0) AS system,
    summary.content AS summary,
    (SELECT CAST(json_agg(json_build_array(m.turn_number, m.position, m.role, m.content, m.data)) AS text)
     FROM (SELECT array_agg(number) AS numbers, min(number) AS first
           FROM (SELECT t.number FROM turns AS t
                 WHERE t.session_id = started.session_id AND t.number < started.number AND t.state = 'completed'
                   AND t.number > coalesce(summary.turn_number, 0)
                 ORDER BY t.number DESC LIMIT policy.read) AS newest) AS shown
     CROSS JOIN LATERAL (
         SELECT m.turn_number, m.position, m.role, m.content, m.data FROM messages AS m
         WHERE m.session_id = started.session_id AND m.position > 0 AND m.position < {SUMMARY}
           AND m.turn_number >= shown.first AND m.turn_number < started.number AND m.turn_number + 0 = ANY(shown.numbers)
         OFFSET 0
     ) AS m
    ) AS history
FROM started JOIN sessions AS s ON s.id = started.session_id
CROSS JOIN LATERAL (
    SELECT most, CASE WHEN s.overflow = 'summarise' THEN most * 2 ELSE most END AS read
    FROM (SELECT coalesce(s.context_turns, CASE WHEN s.context_tokens IS NULL THEN :context_turns ELSE {TURNS_BY_TOKENS} END)
          AS most) AS asked
) AS policy
LEFT JOIN LATERAL (
    SELECT m.turn_number, m.content FROM messages AS m
    WHERE s.overflow = 'summarise' AND m.session_id = s.id AND m.position = {SUMMARY}
    ORDER BY m.turn_number DESC LIMIT 1
) AS summary ON true
UNION ALL
SELECT session_id, token, :lane, {", ".join(["NULL"] * 27)}
FROM next
WHERE session_id NOT IN (SELECT session_id FROM started)
""")

FREE = text("""
UPDATE leases SET owner = NULL, expires_at = NULL, ready_at = (
    SELECT t.ready_at FROM turns AS t WHERE t.session_id = leases.session_id AND t.state = 'queued'
    ORDER BY t.number LIMIT 1)
WHERE session_id = ANY(CAST(:sessions AS bigint[])) AND coalesce(owner, '') = :owner
""")

# Before SETTLE, and not within it: a statement sees what was committed when it began, and a send or a cancel that it then
# waited for would be missed: the flag of a turn that goes back, or the turn that the session is ready by now. And the fence,
# which SETTLE looks at first (``held``), stays as it was found.
LOCK = text("""
SELECT session_id FROM leases WHERE session_id = ANY(CAST(:sessions AS bigint[])) AND coalesce(owner, '') = :owner
ORDER BY session_id FOR UPDATE
""")

# A lease whose next prompt waits already and is ``claimed`` in the same transaction changes its token, and no hands: one
# write to a row of which no index needs to know, where to let go and take again are two that all indexes must follow.
SETTLE = text(f"""
WITH item AS MATERIALIZED (
    SELECT i.*, lowest.ready_at, lowest.lane, verdict.becomes, verdict.halts,
        NOT verdict.halts AND held.halted_by IS NULL
            AND CASE WHEN verdict.becomes = 'queued' THEN i.outcome = 'completed' AND held.lane = i.claimed
                     ELSE lowest.lane = i.claimed AND lowest.ready_at <= (SELECT clock_timestamp()) END
            AND i.claimed NOT IN (SELECT p.lane FROM lane_pauses AS p) AS goes_on
    FROM json_to_recordset(CAST(:items AS json)) AS i (
        session_id bigint, token bigint, number int, attempt int, state text, outcome text, reply text,
        delay_seconds double precision, error_type text, error_message text, status_code int, retryable boolean,
        request_id text, input_tokens int, output_tokens int, partial text, waits_for text, claimed text,
        place int, added int, estimated boolean, price double precision, price_table text,
        model text, fallbacks json, room int, cuts boolean, finish_reason text, reply_data json)
    CROSS JOIN LATERAL (
        SELECT l.token, l.owner, l.lane, l.halted_by FROM leases AS l WHERE l.session_id = i.session_id OFFSET 0
    ) AS held
    CROSS JOIN LATERAL (
        SELECT CASE WHEN i.state = 'queued' AND (
                SELECT t.cancel_requested_at FROM turns AS t WHERE t.session_id = i.session_id AND t.number = i.number
            ) IS NOT NULL THEN 'cancelled' ELSE i.state END AS becomes,
            CASE WHEN i.state = 'failed' AND i.{QUARANTINED}
                THEN (SELECT s.halts FROM sessions AS s WHERE s.id = i.session_id) ELSE false END AS halts
        OFFSET 0
    ) AS verdict
    LEFT JOIN LATERAL (
        SELECT t.ready_at, t.lane FROM turns AS t WHERE t.session_id = i.session_id AND t.state = 'queued'
        ORDER BY t.number LIMIT 1
    ) AS lowest ON true
    WHERE held.token = i.token AND held.owner = :owner
), kept AS (
    UPDATE leases AS l
    SET owner = CASE WHEN item.goes_on THEN l.owner END,
        token = CASE WHEN item.goes_on THEN l.token + 1 ELSE l.token END,
        expires_at = CASE WHEN item.goes_on
            THEN clock_timestamp() + make_interval(secs => CAST(:lease_seconds AS double precision)) END,
        ready_at = CASE WHEN item.goes_on THEN NULL
                        WHEN item.becomes = 'queued' THEN clock_timestamp() + make_interval(secs => item.delay_seconds)
                        ELSE item.ready_at END,
        lane = CASE WHEN item.becomes = 'queued' THEN l.lane ELSE coalesce(item.lane, l.lane) END,
        halted_by = CASE WHEN item.halts THEN item.number ELSE l.halted_by END
    FROM item WHERE l.session_id = item.session_id
    RETURNING item.*
), turned AS (
    UPDATE turns AS t
    SET state = kept.becomes,
        finished_at = CASE WHEN kept.becomes = 'queued' THEN NULL ELSE clock_timestamp() END,
        ready_at = CASE WHEN kept.becomes = 'queued'
                        THEN clock_timestamp() + make_interval(secs => kept.delay_seconds) ELSE t.ready_at END,
        attempts = t.attempts - CASE WHEN kept.outcome IS NULL THEN 1 ELSE 0 END,
        started_at = CASE WHEN kept.outcome IS NULL AND t.attempts = 1 THEN NULL ELSE t.started_at END,
        ambiguous = t.ambiguous + CASE WHEN kept.outcome = 'ambiguous' THEN 1 ELSE 0 END,
        rounds = t.rounds + CASE WHEN kept.outcome = 'completed' AND kept.becomes <> 'completed' THEN 1 ELSE 0 END,
        steps = t.steps + kept.added, room = coalesce(kept.room, t.room),
        cuts = t.cuts OR coalesce(kept.cuts, false),
        model = coalesce(kept.model, t.model), fallbacks = coalesce(kept.fallbacks, t.fallbacks),
        error_type = CASE WHEN kept.becomes = 'failed' THEN kept.error_type END,
        error_message = CASE WHEN kept.outcome IS NULL AND kept.becomes = 'queued' THEN t.error_message
                             WHEN kept.becomes <> 'completed' THEN kept.error_message END,
        error_status = CASE WHEN kept.outcome IS NULL AND kept.becomes = 'queued' THEN t.error_status
                            WHEN kept.becomes <> 'completed' THEN kept.status_code END,
        error_retryable = CASE WHEN kept.becomes = 'failed' THEN kept.retryable END,
        input_tokens = coalesce(t.input_tokens + kept.input_tokens, kept.input_tokens, t.input_tokens),
        output_tokens = coalesce(t.output_tokens + kept.output_tokens, kept.output_tokens, t.output_tokens),
        price = coalesce(t.price + kept.price, kept.price, t.price), waits_for = kept.waits_for,
        finish_reason = kept.finish_reason,
        partial = CASE WHEN kept.becomes <> 'completed' THEN coalesce(kept.partial, t.partial) END
    FROM kept WHERE t.session_id = kept.session_id AND t.number = kept.number
), tried AS (
    UPDATE attempts AS a
    SET ended_at = clock_timestamp(), outcome = kept.outcome, error_type = kept.error_type,
        status_code = kept.status_code, request_id = kept.request_id,
        input_tokens = kept.input_tokens, output_tokens = kept.output_tokens,
        estimated = coalesce(kept.estimated, false), price = kept.price, price_table = kept.price_table
    FROM kept
    WHERE a.session_id = kept.session_id AND a.turn_number = kept.number AND a.number = kept.attempt
      AND kept.outcome IS NOT NULL
), withdrawn AS (
    DELETE FROM attempts AS a USING kept
    WHERE a.session_id = kept.session_id AND a.turn_number = kept.number AND a.number = kept.attempt
      AND kept.outcome IS NULL
), said AS (
    INSERT INTO messages (session_id, turn_number, position, role, content, data, created_at)
    SELECT session_id, number, place, 'assistant', reply, reply_data, clock_timestamp() FROM kept WHERE becomes = 'completed'
)
SELECT session_id, token, goes_on, becomes <> state AS taken_back FROM kept
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
    asked = {
        "owner": owner,
        "lease_seconds": lease_seconds,
        "context_turns": context_turns,
        "lane": str(lane),
        "going_on": going_on,
        "named": named,
        "slots": slots,
    }
    rows = [dict(row) for row in db.execute(CLAIM, asked).mappings()]
    # Ready for nothing: its waiting turn was cancelled while an owner held it, or while this statement waited for its lock.
    idle = [row["session_id"] for row in rows if row["number"] is None]
    if idle:
        db.execute(FREE, {"sessions": idle, "owner": owner})
    return [row for row in rows if row["number"] is not None]


def settle(db: Connection, owner: str, lease_seconds: float, items: str) -> dict[tuple[int, int], Verdict]:
    db.execute(LOCK, {"sessions": [item["session_id"] for item in orjson.loads(items)], "owner": owner})
    kept = db.execute(SETTLE, {"items": items, "owner": owner, "lease_seconds": lease_seconds})
    return {(row.session_id, row.token): Verdict(row.goes_on, row.taken_back) for row in kept}
