"""The way to sessions, for asyncio."""

from types import TracebackType
from typing import Any, Self

from inturn import client as sync
from inturn.aio.batch import Batch
from inturn.aio.session import Session
from inturn.aio.staff import Staff
from inturn.aio.turn import Turn
from inturn.aio.wrapping import like, paged, wrapped
from inturn.settings import Settings


class Client:
    """The way to sessions. Use it in ``async with``, or between ``start`` and ``stop``; tasks of one event loop may share
    one.

    Args:
        settings: default: read from flags, environment and files as the command line does.
        home, database_url, broker_url: ahead of what is set elsewhere.

    Raises:
        SettingsError: a setting is wrong, or contradicts another.
    """

    @like(sync.Client.__init__)
    def __init__(self, *settings: Any, **flags: Any) -> None:
        self._handle = sync.Client(*settings, **flags)
        self._staff = Staff(self._handle)

    @property
    def settings(self) -> Settings:
        return self._handle.settings

    @property
    def failed_hints(self) -> int:
        """As of the synchronous one."""
        return self._handle.failed_hints

    @like(sync.Client.start)
    async def start(self) -> Self:
        await self._staff.call(self._handle.start)
        return self

    @like(sync.Client.stop)
    async def stop(self) -> None:
        await self._staff.stop()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @like(sync.Client.get_or_create_session)  # type: ignore[arg-type]  # a ``**how`` might be a ``self``, to mypy
    async def get_or_create_session(self, session_id: str, **how: Any) -> Session:
        return Session(self._staff, await self._staff.call(self._handle.get_or_create_session, session_id, **how))

    create_session = wrapped(sync.Client.create_session, Session)
    resume_session = wrapped(sync.Client.resume_session, Session)
    get_session = wrapped(sync.Client.get_session, Session)
    import_session = wrapped(sync.Client.import_session, Session)
    import_archive = wrapped(sync.Client.import_archive)
    list_sessions = paged(sync.Client.list_sessions)
    get_session_metadata = wrapped(sync.Client.get_session_metadata)
    get_last_session_id = wrapped(sync.Client.get_last_session_id)
    delete_session = wrapped(sync.Client.delete_session)
    delete_sessions = wrapped(sync.Client.delete_sessions)
    list_matching = paged(sync.Client.list_matching)
    hold_session = wrapped(sync.Client.hold_session)
    release_session = wrapped(sync.Client.release_session)
    continue_session = wrapped(sync.Client.continue_session)
    get_turn = wrapped(sync.Client.get_turn, Turn)
    submit_batch = wrapped(sync.Client.submit_batch, Batch)
    get_batch = wrapped(sync.Client.get_batch, Batch)
    list_batches = paged(sync.Client.list_batches, Batch)
    send_many = wrapped(sync.Client.send_many, lambda staff, turns: [Turn(staff, turn) for turn in turns])
    add_schedule = wrapped(sync.Client.add_schedule)
    list_schedules = wrapped(sync.Client.list_schedules)
    get_schedule = wrapped(sync.Client.get_schedule)
    pause_schedule = wrapped(sync.Client.pause_schedule)
    resume_schedule = wrapped(sync.Client.resume_schedule)
    remove_schedule = wrapped(sync.Client.remove_schedule)
    list_quarantined = paged(sync.Client.list_quarantined, Turn)
    why = wrapped(sync.Client.why)
    usage = wrapped(sync.Client.usage)
    budgets = wrapped(sync.Client.budgets)
    list_lanes = wrapped(sync.Client.list_lanes)
    pause_lane = wrapped(sync.Client.pause_lane)
    resume_lane = wrapped(sync.Client.resume_lane)
    cleanup = wrapped(sync.Client.cleanup)
    list_due = paged(sync.Client.list_due)
    list_rules = wrapped(sync.Client.list_rules)
    outlook = wrapped(sync.Client.outlook)
    list_expiries = wrapped(sync.Client.list_expiries)
    list_removal_runs = paged(sync.Client.list_removal_runs)
    list_receipts = wrapped(sync.Client.list_receipts)
    list_past_holds = wrapped(sync.Client.list_past_holds)
    list_workers = wrapped(sync.Client.list_workers)
    activity = wrapped(sync.Client.activity)
    spent_today = wrapped(sync.Client.spent_today)
    list_webhook_deliveries = paged(sync.Client.list_webhook_deliveries)
    redeliver_webhook = wrapped(sync.Client.redeliver_webhook)
    redeliver_failed_webhooks = wrapped(sync.Client.redeliver_failed_webhooks)
