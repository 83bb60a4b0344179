"""The timetable: Celery beat asks for the cleanup; beside it, it sweeps, and fires schedules."""

from celery.beat import Scheduler

from inturn.models import migrations
from inturn.models.database import Database
from inturn.models.states import ProcessKind
from inturn.models.store import presence
from inturn.workers.app import broker_url, make_app
from inturn.workers.children import refusals
from inturn.workers.home import LOG_SECONDS, OwnLog
from inturn.workers.live import heard
from inturn.workers.maintenance import LOOK_SECONDS, Round, Sweep, describe_process
from inturn.workers.meter import Sources
from inturn.workers.metering import make_meter
from inturn.workers.moments import EXPIRES_SECONDS, Reminder
from inturn.workers.queues import CARRY_OUT_RULES, SWEEPER_SECONDS, Hints, connect, queued
from inturn.workers.schedules import Firing
from inturn.workers.tracing import make_tracer
from inturn.workers.webhooks.courier import Courier, couriers


class Timetable(Scheduler):  # type: ignore[misc]
    """Celery's scheduler, in memory: the ``ticks`` table says what has fired, so no file has to.

    While beat runs it also sweeps, and fires schedules: not through the queue, since a sweep is needed most when Redis has
    lost its hints.
    """

    def setup_schedule(self) -> None:
        self.install_default_entries(self.schedule)
        self.merge_inplace(self.app.conf.beat_schedule)
        settings = self.app.settings
        self.database = Database(settings.effective_database_url)
        with refusals():
            migrations.prepare(self.database)
        self.tracer = make_tracer(settings, ProcessKind.BEAT)
        self.process, self.meter = describe_process(settings, ProcessKind.BEAT, [], 0), make_meter(settings)
        hints, self._broker = Hints(make_app(settings, producer=True), SWEEPER_SECONDS), connect(broker_url(settings))
        sweep = Sweep(
            self.database,
            settings,
            lambda ready: hints.publish(ready, ready.key),
            lambda lane: queued(self._broker, lane),
            lambda turns: heard(self._broker, turns),
            self.meter,
        )
        firing = Firing(self.database, lambda sent: hints.publish(sent, sent.turn.key), self.tracer)
        reminder = Reminder(self.database, settings.crons(), lambda: hints.ask(CARRY_OUT_RULES, EXPIRES_SECONDS))
        pulse = Round("pulse", lambda: settings.heartbeat_seconds, self._appear)
        self._rounds: list[Round | Courier] = [
            pulse,
            Round("sweep", sweep.pause_seconds, sweep.run),
            Round("batches", sweep.pause_seconds, sweep.tend_batches),
            Round("schedules", lambda: LOOK_SECONDS, firing.run),
            Round("moments", lambda: LOOK_SECONDS, reminder.run),
            Round("log", lambda: LOG_SECONDS, OwnLog(settings.home).keep_short),
            *couriers(self.database, settings.webhooks),
        ]
        for member in self._rounds:
            member.start()
        self.meter.serve(Sources(self.process, [self.database], hints, lambda: pulse.age))

    def close(self) -> None:
        self.meter.stop()
        for member in self._rounds:
            member.end()
        self.tracer.stop()
        self.database.transact(lambda db: presence.disappear(db, [self.process.id]))
        self.database.close()
        super().close()

    def _appear(self) -> None:
        self.database.transact(lambda db: presence.appear(db, self.process))
