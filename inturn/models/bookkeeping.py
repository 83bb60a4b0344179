"""The tables that belong to no session: batches, webhooks, schedules, who is alive, what fired, was removed, was spent."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, String, Text, text
from sqlmodel import Field

from inturn.models.rows import BIG, KEY, Row, choice, count_from_zero, json_object, json_value, one_of, serial
from inturn.models.states import BATCH_FINAL, BatchState, DeliveryState, Kept, Lane, Misfire, ProcessKind


def kept() -> Any:
    """What is left of a session that was removed."""
    default = {"server_default": Kept.NOTHING}
    return Field(default=Kept.NOTHING, sa_type=String(20), nullable=False, sa_column_kwargs=default)


DISCARDING = "discards AND read_at IS NOT NULL AND discarded_at IS NULL"


class BatchRow(Row, table=True):
    """A submitted file of prompts. Its lines are turns (``turns.batch_id``); those that have none are in ``batch_lines``."""

    __tablename__ = "batches"
    __table_args__ = (
        one_of("state", BatchState),
        CheckConstraint(
            "(state IN ({})) = (finished_at IS NOT NULL)".format(", ".join(f"'{state}'" for state in BATCH_FINAL)),
            name="final_is_finished",
        ),
        Index(
            "ix_batches_unfinished",
            "id",
            postgresql_where=text("finished_at IS NULL"),
            sqlite_where=text("finished_at IS NULL"),
        ),
        Index("ix_batches_discarding", "id", postgresql_where=text(DISCARDING), sqlite_where=text(DISCARDING)),
        {"sqlite_autoincrement": True},
    )

    id: int = serial()
    key: str = Field(max_length=60, unique=True)
    """Its public ID."""
    name: str | None = Field(default=None, max_length=200)
    fingerprint: str = Field(max_length=200, unique=True)
    """Of the content and the name: what is submitted twice is one batch."""
    how: dict[str, Any] = json_object()
    """What it was submitted with, as far as that says what becomes of its lines."""
    state: BatchState = choice(BatchState.VALIDATING)
    total: int
    """Lines, those among them that are only for the error file."""
    stored: int = count_from_zero()
    """How many of them are stored."""
    completed: int = count_from_zero()
    """Of the lines, as are the next ones; counted when it becomes final."""
    failed: int = count_from_zero()
    cancelled: int = count_from_zero()
    expired: int = count_from_zero()
    input_tokens: int = Field(default=0, sa_type=BigInteger)
    output_tokens: int = Field(default=0, sa_type=BigInteger)
    price: float | None = None
    discards: bool = False
    """Whether the sessions that it made are removed once its results were read."""
    aborts: bool = False
    """Whether its running lines are broken off when it is cancelled."""
    created_at: datetime
    stored_at: datetime
    """When a line of it was last stored."""
    expires_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    finished_at: datetime | None = None
    read_at: datetime | None = None
    """When all results of the final batch had been read."""
    discarded_at: datetime | None = None
    """When the sessions that it made were removed."""
    retry_at: datetime | None = None
    """Its lines without a reply that were final by then are being sent again; null: all of them are."""


class BatchLineRow(Row, table=True):
    """A line that has no turn: it was not valid, or the session of its turn was removed."""

    __tablename__ = "batch_lines"

    batch_id: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    line: int = Field(primary_key=True)
    custom_id: str = Field(max_length=512)
    error_type: str = Field(max_length=60)
    error_message: str = Field(sa_type=Text)


class WebhookDeliveryRow(Row, table=True):
    """One event on its way to one URL. Its body holds IDs and counts, never text that was said."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        one_of("state", DeliveryState),
        CheckConstraint("(state = 'pending') = (finished_at IS NULL)", name="final_is_finished"),
        Index(
            "ix_webhook_deliveries_pending",
            "hook",
            "ready_at",
            postgresql_where=text("state = 'pending'"),
            sqlite_where=text("state = 'pending'"),
        ),
        Index(
            "ix_webhook_deliveries_failed",
            "id",
            postgresql_where=text("state = 'failed'"),
            sqlite_where=text("state = 'failed'"),
        ),
        Index(
            "ix_webhook_deliveries_finished",
            "finished_at",
            postgresql_where=text("finished_at IS NOT NULL"),
            sqlite_where=text("finished_at IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: int = serial()
    event_id: str = Field(max_length=60)
    """The header ``webhook-id``: the same for every attempt, so that a receiver knows a repetition."""
    event: str = Field(max_length=60)
    subject: str = Field(max_length=200)
    """The turn or the batch that it is about."""
    hook: str = Field(max_length=60)
    """The name of the webhook in the settings, which hold its URL and its secret."""
    body: str = Field(sa_type=Text)
    state: DeliveryState = choice(DeliveryState.PENDING)
    attempts: int = count_from_zero()
    """Those that have begun: a sender may have died in the last one."""
    ready_at: datetime
    """When the next attempt may begin; while one is under way, when it counts as given up."""
    status_code: int | None = None
    """Of the last attempt, as is ``error_message``."""
    error_message: str | None = Field(default=None, sa_type=Text)
    created_at: datetime
    finished_at: datetime | None = None


class ScheduleRow(Row, table=True):
    """A prompt that is sent by the clock: to a session, or to a new one each time. It is named by the sessions' IDs, and
    outlives them.
    """

    __tablename__ = "schedules"
    __table_args__ = (
        one_of("misfire", Misfire),
        CheckConstraint("(paused_at IS NULL) = (next_at IS NOT NULL)", name="paused_has_no_next"),
        Index(
            "ix_schedules_next",
            "next_at",
            postgresql_where=text("next_at IS NOT NULL"),
            sqlite_where=text("next_at IS NOT NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: int = serial()
    name: str = Field(sa_column=Column(KEY, unique=True, nullable=False))
    session_key: str = Field(sa_column=Column(KEY, nullable=False))
    """The session's ID, or what the IDs of new ones begin with."""
    new_session: bool
    """Whether each run is sent to a session of its own."""
    prompt: str = Field(sa_type=Text)
    cron: str = Field(max_length=200)
    timezone: str = Field(max_length=200)
    misfire: Misfire = choice(Misfire.ONCE)
    model: str | None = Field(default=None, max_length=200)
    """Of new sessions, as are the next two."""
    fallbacks: list[str] | None = json_value()
    system_message: str | None = Field(default=None, sa_type=Text)
    created_at: datetime
    next_at: datetime | None = None
    """The run that is due then, by the database's clock; null: it is paused."""
    last_at: datetime | None = None
    """The run that was fired last."""
    last_turn: str | None = Field(default=None, max_length=60)
    """The ID of the turn that it became."""
    paused_at: datetime | None = None
    paused_because: str | None = Field(default=None, sa_type=Text)
    """What kept it from being fired; null: somebody paused it."""


class SpendingRow(Row, table=True):
    """What was spent of a budget, counted with the attempts that spend it."""

    __tablename__ = "spending"

    scope: str = Field(primary_key=True, max_length=500)
    """Whose: ``all``, ``session:<surrogate>``, ``label:<name>=<value>``."""
    slot: str = Field(primary_key=True, max_length=10)
    """The day, in UTC (``2026-11-29``); empty: for good."""
    usd: float
    tokens: int = Field(sa_type=BigInteger)


class PastUsageRow(Row, table=True):
    """What the attempts of removed sessions had used, by day and model: so that nothing is missing from the sums."""

    __tablename__ = "past_usage"

    day: str = Field(primary_key=True, max_length=10)
    model: str = Field(primary_key=True, max_length=200)
    attempts: int = Field(sa_type=BigInteger)
    completed: int = Field(sa_type=BigInteger)
    unpriced: int = Field(sa_type=BigInteger)
    estimated: int = Field(sa_type=BigInteger)
    uncounted: int = Field(sa_type=BigInteger)
    input_tokens: int = Field(sa_type=BigInteger)
    output_tokens: int = Field(sa_type=BigInteger)
    price: float


class LanePauseRow(Row, table=True):
    """A lane of which nothing is claimed. Its row goes when the lane is resumed."""

    __tablename__ = "lane_pauses"
    __table_args__ = (one_of("lane", Lane),)

    lane: Lane = Field(sa_type=String(20), primary_key=True)
    paused_at: datetime


class TickRow(Row, table=True):
    """One firing of the timetable. Its key is unique, so that two beats fire once."""

    __tablename__ = "ticks"

    name: str = Field(primary_key=True, max_length=60)
    slot: int = Field(primary_key=True, sa_type=BigInteger)
    """Whole periods since 1970, by the database's clock; of a rule with a cron, the minute of its moment."""
    fired_at: datetime


class WorkerProcessRow(Row, table=True):
    """Who is alive: written by each process's heartbeat, taken away when it stops or is found dead."""

    __tablename__ = "worker_processes"
    __table_args__ = (one_of("kind", ProcessKind),)

    id: str = Field(primary_key=True, max_length=200)
    """The lease owner's name: boot ID, PID namespace, PID, start time."""
    kind: ProcessKind = choice(ProcessKind.WORKER)
    host: str = Field(max_length=200)
    pid: int
    lanes: str = Field(max_length=200)
    concurrency: int
    version: str = Field(max_length=40)
    started_at: datetime
    heartbeat_at: datetime
    recent: dict[str, Any] | None = json_value()
    """What it did in the last seconds before its heartbeat (``presence.Recent``); null: it has not said so yet."""
    settings: dict[str, Any] | None = json_value()
    """Digests of those that it was started with, by what they are about (``inturn.fingerprints``); null: nobody said."""


class RemovalRunRow(Row, table=True):
    """One rule's part of a cleanup, or one kind's of what expires: for whom it was, and what it removed."""

    __tablename__ = "removal_runs"
    __table_args__ = (one_of("kept", Kept), {"sqlite_autoincrement": True})

    id: int = serial()
    rule: str = Field(max_length=200)
    asked_by: str = Field(max_length=200)
    """``beat``, or who called for it: ``user@host``."""
    kept: Kept = kept()
    began_at: datetime
    ended_at: datetime | None = None
    """Null: it is under way, or its process died."""
    sessions: int = count_from_zero()
    turns: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    messages: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    bytes: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    rows: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """What it removed that are no sessions; ``rule`` says what."""
    archive: str | None = Field(default=None, sa_type=Text)
    """Where what it removed was written to before; null: nowhere, or it did not get to its end."""
    checksum: str | None = Field(default=None, max_length=64)
    """SHA-256 of that file."""
    error: str | None = Field(default=None, sa_type=Text)
    """Why it ended early; null: it did not."""


class RemovalRow(Row, table=True):
    """A session that was removed, or its content was: when, and under which rule. IDs and counts, never text."""

    __tablename__ = "removals"
    __table_args__ = (
        one_of("kept", Kept),
        Index(None, "removed_at"),
        Index(None, "session_key"),
        {"sqlite_autoincrement": True},
    )

    id: int = serial()
    session_key: str = Field(max_length=200)
    rule: str = Field(max_length=200)
    run_id: int | None = Field(default=None, sa_type=BigInteger)
    """Null: its batch was to be discarded once it was read, or it is older than runs are."""
    turns: int
    messages: int
    bytes: int = Field(default=0, sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    """Of its messages, as UTF-8."""
    kept: Kept = kept()
    last_activity_at: datetime
    removed_at: datetime


class PastHoldRow(Row, table=True):
    """A hold that is over: who held which session, and who released it."""

    __tablename__ = "past_holds"
    __table_args__ = (Index(None, "session_id"), Index(None, "session_key"), {"sqlite_autoincrement": True})

    id: int = serial()
    session_id: int = Field(sa_type=BigInteger)
    session_key: str = Field(max_length=200)
    """What the session is called now, or was when it was removed."""
    reason: str | None = Field(default=None, sa_type=Text)
    """Null: none was given, or the session is removed."""
    held_by: str | None = Field(default=None, max_length=200)
    held_at: datetime | None = None
    released_by: str = Field(max_length=200)
    released_at: datetime
