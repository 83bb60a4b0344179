"""The Celery tasks: doors into the crew of the process that runs them."""

from typing import TypedDict

from celery import Task, shared_task

from inturn.models.states import Lane
from inturn.workers import maintenance
from inturn.workers.crew import on_duty
from inturn.workers.pool import run_coroutine
from inturn.workers.queues import CARRY_OUT_RULES, REMOVE_EXPIRED_SESSIONS, SEND_MESSAGE
from inturn.workers.shares import shares


class Hint(TypedDict):
    """Says that a session has work: lossy, may come twice, carries no text."""

    v: int
    session: int


@shared_task(name=SEND_MESSAGE, bind=True, ignore_result=True)  # type: ignore[untyped-decorator]
def send_message(self: Task, hint: Hint) -> None:
    """Work off the session's waiting turns, then others of the lane."""
    lane = Lane((self.request.delivery_info or {}).get("routing_key") or Lane.CHAT)
    with shares.slot(lane):
        run_coroutine(on_duty().turns.work(lane, hint["session"]))


@shared_task(name=REMOVE_EXPIRED_SESSIONS, ignore_result=True)  # type: ignore[untyped-decorator]
def remove_expired_sessions() -> None:
    """Remove what the retention policy says, once per period however many beats there are."""
    crew = on_duty()
    run_coroutine(crew.in_thread(maintenance.scheduled_cleanup, crew.database, crew.settings, crew.meter))


@shared_task(name=CARRY_OUT_RULES, ignore_result=True)  # type: ignore[untyped-decorator]
def carry_out_rules() -> None:
    """Carry out the rules of retention whose moment has come, once however many beats there are."""
    crew = on_duty()
    run_coroutine(crew.in_thread(maintenance.timed_cleanup, crew.database, crew.settings, crew.meter))
