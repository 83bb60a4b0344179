"""The tables. SQL is the queue of record: everything that matters is in here, and Redis may be wiped at any moment.

Rows are named ``...Row`` so that ``SessionRow`` and SQLModel's own ``Session`` never meet. Rules that must hold whatever
the code does are constraints and triggers, not conventions:

* one running turn per session (a unique partial index), one number per turn, one message per position;
* a final turn has ``finished_at`` and is never left (CHECK and trigger);
* session ids are never reused, so a stale worker cannot write into a session that was created again.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    String,
    Text,
    UniqueConstraint,
    event,
    false,
    text,
)
from sqlmodel import Field

import inturn.models.bookkeeping  # noqa: F401 (the metadata is to have its tables as well)
from inturn.models.rows import (
    KEY,
    Row,
    choice,
    count_from_zero,
    index_where,
    json_object,
    json_value,
    one_of,
    owned_by_session,
    serial,
)
from inturn.models.states import (
    POISONED,
    AttemptOutcome,
    Lane,
    Overflow,
    Retention,
    Role,
    SessionState,
    TurnState,
)

SUMMARY = 999_999_999
"""Position of a summary: behind everything that is said in the last turn that it covers."""

CONTENT_IS_LEFT = "content_removed_at IS NULL OR next_turn > content_removed_to + 1 OR system_turn IS NOT NULL"
"""Of a session: its content was never removed, or something was said since."""

QUARANTINED = "error_type IN ({})".format(", ".join(f"'{name}'" for name in POISONED))


class SessionRow(Row, table=True):
    """A conversation, under the ID that its user chose (``key``)."""

    __tablename__ = "sessions"
    __table_args__ = (
        one_of("state", SessionState),
        one_of("retention", Retention),
        one_of("overflow", Overflow),
        CheckConstraint("(retention = 'idle') = (retention_seconds IS NOT NULL)", name="retention_has_its_time"),
        CheckConstraint("next_turn >= 1", name="next_turn_counts_up"),
        CheckConstraint(
            "content_removed_to = 0 OR content_removed_at IS NOT NULL", name="content_removed_has_its_time"
        ),
        Index(None, "last_activity_at"),
        Index(None, "created_at"),
        Index(
            "ix_sessions_own_retention",
            "last_activity_at",
            postgresql_where=text("retention = 'idle'"),
            sqlite_where=text("retention = 'idle'"),
        ),
        # Rules that keep metadata find what is due in these: sessions that have been dealt with would stand first otherwise.
        *(
            Index(name, column, postgresql_where=text(CONTENT_IS_LEFT), sqlite_where=text(CONTENT_IS_LEFT))
            for name, column in (
                ("ix_sessions_content_active", "last_activity_at"),
                ("ix_sessions_content_created", "created_at"),
            )
        ),
        # The sweep asks for these all the time, and nearly always there are none.
        Index(
            "ix_sessions_deleting",
            "id",
            postgresql_where=text("state = 'deleting'"),
            sqlite_where=text("state = 'deleting'"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: int = serial()
    key: str = Field(sa_column=Column(KEY, unique=True, nullable=False))
    model: str = Field(max_length=200)
    fallbacks: list[str] | None = json_value()
    """Models that are asked when the one before fails; null: as the provider's settings say."""
    system_turn: int | None = None
    """The turn whose message at position 0 is the system message in force; null: none."""
    options: dict[str, Any] = json_object()
    labels: dict[str, Any] = json_object()
    context_turns: int | None = None
    """Context policy: how many completed turns a model is shown; null: as configured."""
    context_tokens: int | None = None
    """How many tokens a model is shown at most; null: as many as it takes."""
    overflow: Overflow = Field(
        default=Overflow.TRUNCATE,
        sa_type=String(20),
        nullable=False,
        sa_column_kwargs={"server_default": Overflow.TRUNCATE},
    )
    tools: list[str] | None = json_value()
    """Names of the tools that its model may call; null: none."""
    held: bool = False
    hold_reason: str | None = Field(default=None, sa_type=Text)
    held_by: str | None = Field(default=None, max_length=200)
    held_at: datetime | None = None
    retention: Retention = choice(Retention.POLICY)
    retention_seconds: float | None = None
    halts: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Whether the session stops behind a quarantined turn, until somebody looks into it."""
    state: SessionState = choice(SessionState.ACTIVE)
    next_turn: int = 1
    """The next turn's number, counted under this row's lock (``max() + 1`` gives one number to two senders)."""
    batch_id: int | None = Field(default=None, sa_type=BigInteger)
    """The batch that made it; null: somebody else did."""
    content_removed_at: datetime | None = None
    """When retention last removed what was said in it, and kept the rest; null: it never did."""
    content_removed_to: int = count_from_zero()
    """The last turn of which nothing is left that was said."""
    created_at: datetime
    imported_at: datetime | None = None
    """When it was made here of a transcript, whose ``created_at`` it has; null: it was not."""
    last_activity_at: datetime
    """Moves with create, resume and send only; the ledger never touches this row."""


class LeaseRow(Row, table=True):
    """A worker's time-bounded hold on a session. A narrow row of its own, so that heartbeats never contend with sends."""

    __tablename__ = "leases"
    __table_args__ = (
        one_of("lane", Lane),
        CheckConstraint("(owner IS NULL) = (expires_at IS NULL)", name="owner_has_until"),
        Index(
            "ix_leases_ready",
            "lane",
            "ready_at",
            postgresql_where=text("owner IS NULL AND ready_at IS NOT NULL"),
            sqlite_where=text("owner IS NULL AND ready_at IS NOT NULL"),
        ),
        Index(
            "ix_leases_owner",
            "owner",
            postgresql_where=text("owner IS NOT NULL"),
            sqlite_where=text("owner IS NOT NULL"),
        ),
    )

    session_id: int = owned_by_session(autoincrement=False)
    owner: str | None = Field(default=None, max_length=200)
    """The worker process that holds it; null: nobody."""
    token: int = Field(default=0, sa_type=BigInteger)
    """Fencing token: grows with every change of hands. Who comes back with an older one changes nothing."""
    expires_at: datetime | None = None
    ready_at: datetime | None = None
    """When the session's lowest unfinished turn may run; null: nothing to do, or its owner sees to it."""
    lane: Lane = choice(Lane.CHAT)
    hinted_at: datetime | None = None
    halted_by: int | None = None
    """The quarantined turn behind which the session stands still: nothing of it is claimed; null: it goes on."""


class TurnRow(Row, table=True):
    """One send: a user message, and the work of answering it."""

    __tablename__ = "turns"
    __table_args__ = (
        UniqueConstraint("session_id", "idempotency_key"),
        one_of("state", TurnState),
        one_of("lane", Lane),
        CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="final_is_finished"
        ),
        CheckConstraint("(state = 'failed') = (error_type IS NOT NULL)", name="failed_has_a_reason"),
        Index(
            "uq_turns_running",
            "session_id",
            unique=True,
            postgresql_where=text("state = 'running'"),
            sqlite_where=text("state = 'running'"),
        ),
        Index(
            "ix_turns_queued",
            "session_id",
            "number",
            postgresql_where=text("state = 'queued'"),
            sqlite_where=text("state = 'queued'"),
        ),
        Index(
            "ix_turns_quarantined",
            "finished_at",
            postgresql_where=text(QUARANTINED),
            sqlite_where=text(QUARANTINED),
        ),
        Index(
            "ix_turns_cancel_requested",
            "cancel_requested_at",
            postgresql_where=text("cancel_requested_at IS NOT NULL AND finished_at IS NULL"),
            sqlite_where=text("cancel_requested_at IS NOT NULL AND finished_at IS NULL"),
        ),
        index_where("ix_turns_failed", "finished_at", condition="state = 'failed'"),  # for who looks at what fails now
        # A batch's lines in the order in which they ended, and those that have not.
        Index(
            "ix_turns_batch",
            "batch_id",
            "finished_at",
            "line",
            postgresql_where=text("batch_id IS NOT NULL"),
            sqlite_where=text("batch_id IS NOT NULL"),
        ),
    )

    session_id: int = owned_by_session(autoincrement=False)
    number: int = Field(primary_key=True)
    state: TurnState = choice(TurnState.QUEUED)
    lane: Lane = choice(Lane.CHAT)
    model: str = Field(max_length=200)
    """Who is asked; in the end, who answered, or failed last."""
    fallbacks: list[str] | None = json_value()
    """Who is asked next if that fails; null: as the provider's settings say."""
    system_turn: int | None = None
    options: dict[str, Any] = json_object()
    idempotency_key: str | None = Field(default=None, max_length=200)
    batch_id: int | None = Field(default=None, sa_type=BigInteger)
    """The batch that it was sent by."""
    line: int | None = None
    """The line of the batch that it is, from 1; a line that is sent again takes this, and the next one, to its new turn."""
    custom_id: str | None = Field(default=None, max_length=512)
    ready_at: datetime
    not_after: datetime | None = None
    """No call is begun for it after this; null: whenever."""
    attempts: int = 0
    ambiguous: int = 0
    """Attempts after which nobody knows whether the provider worked: capped by themselves."""
    rounds: int = count_from_zero()
    """Those of the attempts that were answered, and the turn goes on: with results of tools, or under a summary."""
    steps: int = count_from_zero()
    """Messages between prompt and reply: calls of tools, and their results."""
    cuts: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Whether it leaves older turns out although its session sums them up: no summary could be had."""
    room: int | None = None
    """How many tokens it shows at most, by our estimate, since a model said that it was shown too much; null: none did."""
    rescues: int = 0
    """How often a worker died over it: capped by themselves, since such a turn may be what kills them."""
    retry_of: int | None = None
    merged_into: int | None = None
    """The later turn that this one's prompt was joined into; it is answered there."""
    streams: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Its sender asked to hear the reply while it is written: its worker tells Redis, too."""
    partial: str | None = Field(default=None, sa_type=Text)
    """What was heard of a reply that was cut off, the last time that anything was. No model is ever shown it."""
    waits_for: str | None = Field(default=None, sa_type=Text)
    """Why its last claim ended without a call, as with its provider's limit; gone with whatever becomes of it next."""
    trace: dict[str, str] | None = json_value()
    """The trace that it was sent in, as W3C writes it: ``traceparent``, and ``tracestate`` if there is one; or the ``link``
    to it, where many were sent at once. Null: who sent it is not traced.
    """
    cancel_requested_at: datetime | None = None
    error_type: str | None = Field(default=None, max_length=60)
    error_message: str | None = Field(default=None, sa_type=Text)
    error_status: int | None = None
    error_retryable: bool | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    price: float | None = None
    """Of all attempts together, as are the tokens; null: nothing was priced."""
    finish_reason: str | None = Field(default=None, max_length=60)
    """Why its model stopped, in the provider's word: ``stop``, ``length``; null: it did not say."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class MessageRow(Row, table=True):
    """One utterance. Position 0 is a system message that begins to apply here, 1 the prompt; then what tools were asked
    and said (``turns.steps`` messages), and the reply. A summary of everything up to here stands at ``SUMMARY``.
    """

    __tablename__ = "messages"
    __table_args__ = (
        one_of("role", Role),
        Index(
            "ix_messages_summary",
            "session_id",
            "turn_number",
            postgresql_where=text(f"position = {SUMMARY}"),
            sqlite_where=text(f"position = {SUMMARY}"),
        ),
    )

    session_id: int = owned_by_session(autoincrement=False)
    turn_number: int = Field(primary_key=True)
    position: int = Field(primary_key=True)
    role: Role = Field(sa_type=String(20))
    content: str = Field(sa_type=Text)
    data: dict[str, Any] | None = json_value()
    """What is no text: ``parts`` of a prompt with images, ``tool_calls``, ``tool_call_id`` of a result."""
    created_at: datetime


class AttemptRow(Row, table=True):
    """One try at a turn, one POST to a model: committed before the call is made, so that it counts also if nobody lives to
    tell. The spend ledger.
    """

    __tablename__ = "attempts"
    __table_args__ = (
        one_of("outcome", AttemptOutcome),
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended_has_an_outcome"),
        # What is spent today: rows come by time, so on PostgreSQL a few bytes for many pages of them are enough.
        Index("ix_attempts_started", "started_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    session_id: int = owned_by_session(autoincrement=False)
    turn_number: int = Field(primary_key=True)
    number: int = Field(primary_key=True)
    token: int = Field(sa_type=BigInteger)
    model: str | None = Field(default=None, max_length=200)
    """Who was asked; null: it was recorded before this was."""
    started_at: datetime
    ended_at: datetime | None = None
    outcome: AttemptOutcome | None = Field(default=None, sa_type=String(20))
    error_type: str | None = Field(default=None, max_length=60)
    status_code: int | None = None
    request_id: str | None = Field(default=None, max_length=200)
    input_tokens: int | None = None
    output_tokens: int | None = None
    estimated: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Whether the tokens are our guess, as the provider did not say."""
    price: float | None = None
    """In US dollars; null: not priced."""
    price_table: str | None = Field(default=None, max_length=60)


SESSIONS = Row.metadata.tables["sessions"]
LEASES = Row.metadata.tables["leases"]
TURNS = Row.metadata.tables["turns"]
MESSAGES = Row.metadata.tables["messages"]
ATTEMPTS = Row.metadata.tables["attempts"]
BATCHES = Row.metadata.tables["batches"]
BATCH_LINES = Row.metadata.tables["batch_lines"]
WEBHOOK_DELIVERIES = Row.metadata.tables["webhook_deliveries"]
SCHEDULES = Row.metadata.tables["schedules"]
SPENDING = Row.metadata.tables["spending"]
PAST_USAGE = Row.metadata.tables["past_usage"]
LANE_PAUSES = Row.metadata.tables["lane_pauses"]
TICKS = Row.metadata.tables["ticks"]
WORKER_PROCESSES = Row.metadata.tables["worker_processes"]
REMOVAL_RUNS = Row.metadata.tables["removal_runs"]
REMOVALS = Row.metadata.tables["removals"]
PAST_HOLDS = Row.metadata.tables["past_holds"]

FINAL_IS_FINAL = {
    "sqlite": (
        """
CREATE TRIGGER turns_final_is_final BEFORE UPDATE OF state ON turns
WHEN OLD.finished_at IS NOT NULL AND NEW.state <> OLD.state
BEGIN SELECT RAISE(ABORT, 'a final turn is never left'); END""",
    ),
    "postgresql": (
        """
CREATE FUNCTION inturn_final_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'a final turn is never left' USING ERRCODE = 'check_violation'; END $$""",
        """
CREATE TRIGGER turns_final_is_final BEFORE UPDATE OF state ON turns FOR EACH ROW
WHEN (OLD.finished_at IS NOT NULL AND NEW.state <> OLD.state) EXECUTE FUNCTION inturn_final_is_final()""",
    ),
}
"""The trigger that forbids leaving a final state. The WHEN clause costs nothing on the way into one."""

for _dialect, _statements in FINAL_IS_FINAL.items():
    for _statement in _statements:
        event.listen(
            TURNS,
            "after_create",
            DDL(_statement.replace("%", "%%")).execute_if(dialect=_dialect),
        )
