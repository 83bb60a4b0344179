"""What who runs inturn asks and does: why something waits, what is quarantined, lanes, workers, rules, usage, webhooks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from inturn.connections import Connections
from inturn.models.content import checked_labels, checked_lane, checked_session_id, checked_text
from inturn.models.cron import Cron
from inturn.models.errors import DeliveryNotFoundError
from inturn.models.states import DeliveryState, ProcessKind
from inturn.models.store import (
    activity,
    budgets,
    expiry,
    holding,
    lanes,
    moments,
    reading,
    receipts,
    retention,
    usage,
    webhooks,
)
from inturn.models.store.activity import Activity, Spent
from inturn.models.store.budgets import Standing
from inturn.models.store.expiry import Expiry
from inturn.models.store.holding import PastHold
from inturn.models.store.lanes import LaneInfo
from inturn.models.store.outlook import Outlook, outlook
from inturn.models.store.presence import WorkerInfo
from inturn.models.store.reading import TurnRecord
from inturn.models.store.receipts import Receipt, Run
from inturn.models.store.rules import Rule
from inturn.models.store.situation import Reason
from inturn.models.store.usage import UsageBy, UsageRecord
from inturn.models.store.webhooks import WebhookDelivery
from inturn.reasons import why
from inturn.records import checked_limit, checked_moment
from inturn.settings import Settings
from inturn.turn import Turn, checked_choice
from inturn.waiting import alive_workers
from inturn.workers.queues import REMOVE_EXPIRED_SESSIONS

PAGE = 100


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """A rule of retention, and what it comes to now.

    Attributes:
        sessions: how many it covers.
        due: how many of them it removes as soon as it is carried out.
        cron: when that is; None: once in ``cleanup_interval_seconds``.
        next_at: when it is carried out next: the moment that its cron says (it is past, if no beat was there), or about when
            beat cleans up; None: it removes nothing, or has no cron, and no beat is alive.
    """

    rule: Rule
    sessions: int
    due: int
    cron: Cron | None
    next_at: datetime | None


@dataclass(frozen=True, slots=True)
class ExpiryInfo:
    """What expires besides sessions, and what it comes to now.

    Attributes:
        due: how many rows the next cleanup removes.
    """

    expiry: Expiry
    due: int


class Operations(ABC):
    """The part of a client that is not about one's own sessions."""

    settings: Settings

    @property
    @abstractmethod
    def connections(self) -> Connections:
        """What the client is connected with. Raises: ClosedError."""

    def why(self, waiting: str) -> Reason:
        """What a session waits for, or a turn: a code, a sentence, and the rows behind it.

        Args:
            waiting: a session's ID (its lowest unfinished turn is looked at), or a turn's (``"17.3"``).

        Raises:
            SessionNotFoundError, TurnNotFoundError: there is none of that ID.
        """
        return why(self.connections, self.settings, waiting)

    def list_quarantined(self, session_id: str | None = None, *, limit: int | None = None) -> Iterator[Turn]:
        """Quarantined turns, newest first, page by page: their replies kill workers, or cannot be stored.

        Args:
            session_id: of this session only.
            limit: how many at most; default: all.

        Raises:
            SessionNotFoundError: there is no session of that ID.
        """
        surrogate = None
        if session_id is not None:
            surrogate = reading.get_session(self.connections.database, checked_session_id(session_id)).id
        return self._quarantined(surrogate, checked_limit("limit", limit))

    def _quarantined(self, session: int | None, limit: int | None) -> Iterator[Turn]:
        left, last = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page: list[TurnRecord] = reading.list_quarantined(self.connections.database, session, last, size)
            yield from (Turn(self, row) for row in page)
            if len(page) < size:
                return
            last, left = page[-1], None if left is None else left - size

    def list_lanes(self) -> list[LaneInfo]:
        """The lanes: whether they are paused, how much waits and runs in each, and who serves them."""
        return lanes.list_lanes(self.connections.database, self.settings.silent_seconds)

    def pause_lane(self, lane: str) -> bool:
        """Begin no more turns of a lane: prompts are taken as ever, and calls under way end as ever.

        Returns: False, if it was paused already. Raises: InvalidInputError.
        """
        return lanes.pause(self.connections.database, checked_lane(lane))

    def resume_lane(self, lane: str) -> bool:
        """Let a paused lane go on, at once. Returns: False, if it was not paused. Raises: InvalidInputError."""
        connections = self.connections
        was_paused, ready = lanes.resume(connections.database, checked_lane(lane))
        for session in ready:
            connections.hints.publish(session, session.key)
        return was_paused

    def list_rules(self) -> list[RuleInfo]:
        """The rules of retention in their order, with how many sessions each covers, how many are due by it now, and when it
        is carried out next.
        """
        database, rules, crons = self.connections.database, self.settings.rules(), self.settings.crons()
        counts, times, others = retention.count_due(database, rules), self._moments(), self._next_cleanup()

        def described(rule: Rule) -> RuleInfo:
            sessions, due = retention.count_covered(database, rules, rule), counts.get(rule.name)
            next_at = None if due is None else times.get(rule.name, others)
            return RuleInfo(rule, sessions, due or 0, crons.get(rule.name), next_at)

        return [described(rule) for rule in rules]

    def list_expiries(self) -> list[ExpiryInfo]:
        """What expires besides sessions, each after a time of its own, with how many rows are due now: ``cleanup`` removes
        them as well, unless it is asked for ``older_than``.
        """
        database = self.connections.database
        return [ExpiryInfo(each, expiry.count_due(database, each)) for each in self.settings.expiries()]

    def _moments(self) -> dict[str, datetime]:
        with self.connections.database.reading() as db:
            return moments.upcoming(db, self.settings.crons())

    def _next_cleanup(self) -> datetime | None:
        database, settings = self.connections.database, self.settings
        beats = (
            one.started_at for one in alive_workers(database, settings) if one.alive and one.kind is ProcessKind.BEAT
        )
        with database.reading() as db:
            return moments.next_cleanup(db, REMOVE_EXPIRED_SESSIONS, settings.cleanup_interval_seconds, beats)

    def outlook(self, session_id: str) -> Outlook:
        """What becomes of a session by the rules of retention: which covers it, when it is due, and what keeps it.

        Raises:
            SessionNotFoundError: there is none of that ID.
        """
        return outlook(self.connections.database, self.settings.rules(), checked_session_id(session_id))

    def list_removal_runs(self, *, limit: int | None = None) -> Iterator[Run]:
        """What cleanups removed, rule by rule, newest first, page by page.

        Args:
            limit: how many at most; default: all.
        """
        return self._runs(checked_limit("limit", limit))

    def _runs(self, limit: int | None) -> Iterator[Run]:
        left, before = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = receipts.list_runs(self.connections.database, before, size)
            yield from page
            if len(page) < size:
                return
            before, left = page[-1].id, None if left is None else left - size

    def list_receipts(self, session_id: str) -> list[Receipt]:
        """The receipts of removed sessions that had this ID, newest first."""
        return receipts.list_receipts(self.connections.database, checked_session_id(session_id))

    def list_past_holds(self, session_id: str) -> list[PastHold]:
        """The holds that are over of the sessions that have or had this ID, newest first."""
        return holding.list_past(self.connections.database, checked_session_id(session_id))

    def list_workers(self) -> list[WorkerInfo]:
        """The processes that have shown themselves, workers and beats; ``alive`` says whether lately."""
        return alive_workers(self.connections.database, self.settings)

    def activity(self) -> Activity:
        """What the deployment does at this moment: lanes, processes, failures, who waits longest, what runs longest. Cheap,
        however much is stored: what ``inturn top`` shows.
        """
        next_cleanup = self._next_cleanup()
        with self.connections.database.reading() as db:
            return activity.look(db, REMOVE_EXPIRED_SESSIONS, self.settings.silent_seconds, next_cleanup)

    def spent_today(self) -> list[Spent]:
        """What was spent since midnight (UTC), by model, the dearest first. It reads all attempts of the day: not for every
        second.
        """
        with self.connections.database.reading() as db:
            return activity.spent_today(db)

    def usage(
        self,
        by: UsageBy = "model",
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        session_id: str | None = None,
        prefix: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[UsageRecord]:
        """What was used, and what it cost: days in order, all others by what they cost. Every attempt counts, whatever came
        of it; those of removed sessions as well, unless it is asked for some sessions only.

        Args:
            by: ``session``, ``model``, ``provider``, ``day`` (UTC) or ``lane``.
            since, until: of attempts that began from the one on, and before the other.
            session_id, prefix, labels: of these sessions only.

        Raises:
            SessionNotFoundError: there is no session of that ID.
            InvalidInputError: ``by`` is none of these, or a moment has no timezone.
        """
        database = self.connections.database
        if session_id is not None:
            session_id = reading.get_session(database, checked_session_id(session_id)).key
        return usage.usage(
            database,
            checked_choice("by", by, get_args(UsageBy)),
            since=checked_moment(since),
            until=checked_moment(until),
            session_id=session_id,
            prefix=checked_text("prefix", prefix) or None,
            labels=checked_labels(labels),
        )

    def budgets(self) -> list[Standing]:
        """What is spent of the budgets in the settings: today, or ever."""
        return budgets.standings(self.connections.database, [each.budget() for each in self.settings.budgets])

    def list_webhook_deliveries(
        self,
        *,
        state: str | None = None,
        event: str | None = None,
        subject: str | None = None,
        limit: int | None = None,
    ) -> Iterator[WebhookDelivery]:
        """The delivery log of webhooks, newest first, page by page.

        Args:
            state: ``pending``, ``delivered`` or ``failed`` only.
            event: of this kind only, such as ``batch.completed``.
            subject: about this turn or batch only.
            limit: how many at most; default: all.

        Raises:
            InvalidInputError: there is no such state.
        """
        chosen = None if state is None else DeliveryState(checked_choice("state", state, tuple(DeliveryState)))
        named = {"event": checked_text("event", event), "subject": checked_text("subject", subject)}
        return self._deliveries(chosen, named, checked_limit("limit", limit))

    def _deliveries(
        self, state: DeliveryState | None, named: Mapping[str, str | None], limit: int | None
    ) -> Iterator[WebhookDelivery]:
        left, before = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            database = self.connections.database
            page = webhooks.list_deliveries(database, state=state, before=before, limit=size, **named)
            yield from page
            if len(page) < size:
                return
            before, left = page[-1].id, None if left is None else left - size

    def redeliver_webhook(self, delivery_id: int) -> None:
        """Have a delivery sent anew, whatever came of it, under the ID that its event has (header ``webhook-id``).

        Raises:
            DeliveryNotFoundError: there is none of that ID.
        """
        if type(delivery_id) is not int or not 0 < delivery_id < 2**63:
            raise DeliveryNotFoundError(delivery_id)
        webhooks.redeliver(self.connections.database, delivery_id)

    def redeliver_failed_webhooks(self) -> int:
        """Have all deliveries sent anew that failed. Returns how many."""
        return webhooks.redeliver_failed(self.connections.database)
