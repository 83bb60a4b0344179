"""``inturn up``: broker, migrations, workers and beat under one process that keeps them alive and stops them in order.

Life of a supervisor: enter the home (alone), stop what a killed predecessor left, start the broker, prepare the
database, start workers and beat, watch, stop workers and beat warmly, stop the broker, leave nothing behind.

Everything runs in the main thread: signal handlers only count, and one loop looks around ten times a second.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from types import FrameType

from inturn.models.errors import AlreadyRunningError, InturnError, SettingsError
from inturn.settings import Settings
from inturn.workers import embedded
from inturn.workers.children import Child, launch_program, stop_children, stop_orphans
from inturn.workers.home import (
    FileLock,
    OwnLog,
    lock_holders,
    log_file,
    private_directory,
    put_aside,
    storage_refusals,
)
from inturn.workers.processes import ProcessIdentity
from inturn.workers.stack import (
    BROKER,
    STOPPING_SECONDS,
    StackInfo,
    child_environment,
    inturn_command,
    running_stack,
    stack_lock,
    state_file,
    users_lock,
)
from inturn.workers.tool_modules import about_missing

COMMANDS = {"worker": ("worker",), "beat": ("beat",), "flower": ("flower", "--waits")}
TICK_SECONDS = 0.1
ENTER_SECONDS = 1.0  # others look at the lock by taking it for a moment, so that one refusal means nothing
ORPHAN_GRACE_SECONDS = 10.0
LINGER_SECONDS = 10.0  # a person who types one command after the other waits for one start only
LOOK_SECONDS = 2.0
MISSED_LOOKS = 6
"""In a row: far more than a fork or a slow disk takes. Counted, as a machine that was suspended has missed seconds only."""


class Supervisor:
    """The one process that runs the stack of a home.

    Args:
        settings: Where the home is, and which database and broker are used.
        prepare: Brings the database up to date; called when the broker runs and before any worker does.
        is_ready: Whether a worker has reported that it is at work; asked until it says so. An InturnError means no.
        report: Is told in sentences what happens.
        commands: The programs "worker", "beat" and "flower", where they are not the real ones.
        workers: How many worker processes.
        flower: Whether to run Flower as well.
        verbose: Children write where we write, instead of to their logs.
        linked: Whether to stop when the last user has gone (see stack.py).
        linger_seconds: How long a linked stack waits for another user.
        orphan_grace_seconds: How long what a killed predecessor left may take to stop.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        prepare: Callable[[], None],
        is_ready: Callable[[], bool],
        report: Callable[[str], None],
        commands: Mapping[str, Sequence[str]] | None = None,
        workers: int = 1,
        flower: bool = False,
        verbose: bool = False,
        linked: bool = False,
        linger_seconds: float = LINGER_SECONDS,
        orphan_grace_seconds: float = ORPHAN_GRACE_SECONDS,
    ) -> None:
        self._settings = settings
        self._home = settings.home
        self._log = OwnLog(settings.home)
        self._prepare = prepare
        self._worker_is_ready = is_ready
        self._tell = report
        self._commands = {name: inturn_command(*words) for name, words in COMMANDS.items()} | dict(commands or {})
        self._verbose = verbose
        self._linked = linked
        self._linger_seconds = linger_seconds
        self._orphan_grace_seconds = orphan_grace_seconds
        self._since = datetime.now(UTC)
        self._ready = self._was_ready = False
        self._stopping = False
        self._interrupts = 0
        self._unused_since: float | None = None
        self._next_look = 0.0
        self._missed_looks = 0
        self._orphans: dict[str, ProcessIdentity] = {}
        self._broker = (
            []
            if settings.broker_url
            else [Child(BROKER, self._launch_broker, log_file(settings.home, BROKER), self._report)]
        )
        numbered = ["worker"] if workers == 1 else [f"worker-{number}" for number in range(1, workers + 1)]
        self._crew = [self._child(name) for name in (*numbered, "beat", *(["flower"] if flower else []))]

    def run(self) -> None:
        """Run the stack until a signal, or until the last user of a linked one has gone. Only in the main thread.

        Raises:
            SettingsError: There is none of the modules that workers are to import, or a worker refuses its settings.
            AlreadyRunningError: A stack runs in this home.
            StorageError: The home or the database cannot be written.
            BrokerUnreachableError: The embedded broker does not start.
        """
        if missing := about_missing(self._settings):
            raise SettingsError(missing)
        os.umask(0o077)  # this process is ours alone
        private_directory(self._home)
        with FileLock(stack_lock(self._home)) as lock, FileLock(users_lock(self._home)) as users:
            self._enter(lock)
            with self._counted_signals():
                try:
                    self._stop_orphans()
                    self._start()
                    self._watch(users)
                finally:
                    self._stop()
                self._report("stopped")  # otherwise the error is the last word

    def _enter(self, lock: FileLock) -> None:
        """Become the only supervisor here. A linked stack makes room for a permanent one.

        Raises:
            AlreadyRunningError: There is one already.
        """
        began, patience = time.monotonic(), ENTER_SECONDS
        asked: ProcessIdentity | None = None
        while not lock.try_exclusive():
            stack = running_stack(self._home)
            if stack and stack.linked and not self._linked:
                if stack.supervisor and stack.supervisor != asked and _ask_to_stop(stack.supervisor):
                    asked = stack.supervisor
                    self._report(f"taking over from a stack that was started{self._for_whom()} ({stack})")
                    patience = self._settings.shutdown_grace_seconds + STOPPING_SECONDS
            else:
                patience = ENTER_SECONDS
            if time.monotonic() - began > patience:
                raise AlreadyRunningError(self._refusal(stack or StackInfo()))
            time.sleep(0.05)

    def _for_whom(self) -> str:
        users = ", ".join(str(pid) for pid in lock_holders(users_lock(self._home)))
        return f" for the processes {users}" if users else " for processes that have gone"

    def _refusal(self, stack: StackInfo) -> str:
        pid = stack.supervisor.pid if stack.supervisor else "PID"
        return (
            f"a stack runs in {self._home} already ({stack}): just use it, or stop it first (Ctrl-C in its terminal, "
            f"or `kill {pid}`). Another one needs another home: set INTURN_HOME"
        )

    def _stop_orphans(self) -> None:
        """Stop what a killed predecessor left, if it is still the same processes.

        Raises:
            StorageError: The home cannot be written.
        """
        left = StackInfo.read(self._home)
        self._orphans = {name: orphan for name, orphan in left.children.items() if orphan.is_alive()} if left else {}
        with storage_refusals(state_file(self._home)):
            self._write()  # with the orphans in it: should we be killed as well, the next one has to know them
        if left is None:
            return
        names = ", ".join(f"{name} (PID {orphan.pid})" for name, orphan in self._orphans.items())
        self._report(
            f"the stack before this one was killed ({left}); "
            + (f"stopping its {names}" if names else "nothing of it runs")
        )
        broker = {name: orphan for name, orphan in self._orphans.items() if name == BROKER}
        crew = {name: orphan for name, orphan in self._orphans.items() if name != BROKER}
        for orphans in (crew, broker):  # workers need the broker to the end
            if killed := stop_orphans(orphans, self._orphan_grace_seconds):
                self._report(f"killed {', '.join(killed)}, which did not stop within {self._orphan_grace_seconds:g} s")
        self._orphans = {}

    def _start(self) -> None:
        """Start everything, in the order in which one needs the other.

        Raises:
            InturnError: One of them cannot be started.
        """
        for child in self._broker:
            child.start()
            self._record()
        if not self._interrupts:
            self._prepare()
        for child in self._crew:
            if not self._interrupts:
                with storage_refusals(log_file(self._home, child.name)):
                    child.start()
                self._record()

    def _watch(self, users: FileLock) -> None:
        while not self._interrupts and not self._is_unused(users):
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + LOOK_SECONDS
                self._end_silent_broker()
                self._keep_logs_short()
            self._heed_refusals()
            changes = [child.tend() for child in (*self._broker, *self._crew)]
            if any(changes):
                self._ready = False
                self._record()
            if not self._ready and self._is_ready():
                self._ready = self._was_ready = True
                self._record()
                self._report("ready")
            time.sleep(TICK_SECONDS)

    def _heed_refusals(self) -> None:
        """Start nobody again for nothing. In a stack that was at work others go on, and settings may be mended meanwhile.

        Raises:
            SettingsError: A worker or beat has refused the settings.
        """
        refusals = [] if self._was_ready else [child.refusal() for child in self._crew]
        if refusal := next(filter(None, refusals), None):
            raise SettingsError(refusal)

    def _end_silent_broker(self) -> None:
        """Kill a broker that runs and has not answered for long: it is then started again as any that has died."""
        for child in self._broker:
            self._missed_looks = self._missed_looks + 1 if child.is_running() and self._broker_is_silent() else 0
            if self._missed_looks >= MISSED_LOOKS and child.identity:
                self._missed_looks = 0
                self._report(
                    f"{child.name} (PID {child.identity.pid}) has not answered for {MISSED_LOOKS * LOOK_SECONDS:g} s: "
                    "killing it. It holds only hints, and the sweep sends them again"
                )
                child.signal(signal.SIGKILL)

    def _keep_logs_short(self) -> None:
        """Our own, and the broker's, which opens it anew for each line. Workers, beat and Flower see to theirs."""
        self._log.keep_short()
        if self._broker:
            with suppress(OSError):
                put_aside(log_file(self._home, BROKER))

    def _broker_is_silent(self) -> bool:
        with suppress(InturnError):  # its socket's place became somebody else's, which is no reason to stop
            return embedded.broker_is_silent(self._home)
        return False

    def _is_ready(self) -> bool:
        if not all(child.is_running() for child in (*self._broker, *self._crew)):
            return False
        with suppress(InturnError):
            return self._worker_is_ready()
        return False

    def _is_unused(self, users: FileLock) -> bool:
        """Whether a linked stack has lost its users for long enough. If so, the lock is kept: who comes now waits."""
        if not self._linked or not users.try_exclusive():
            self._unused_since = None
            return False
        now = time.monotonic()
        self._unused_since = self._unused_since or now
        if now - self._unused_since > self._linger_seconds:
            return True
        users.release()
        return False

    def _stop(self) -> None:
        """Stop everything, the broker last: workers say through it what they finish."""
        self._stopping, self._ready = True, False
        self._record()
        if any(child.is_running() for child in self._crew):
            self._report("stopping: workers finish the replies in hand (Ctrl-C again ends them at once)")
        interrupts = max(self._interrupts, 1)
        grace = self._settings.shutdown_grace_seconds
        stop_children(self._crew, grace, hurry=lambda: self._interrupts > interrupts, report=self._report)
        stop_children(self._broker, embedded.STOP_SECONDS, hurry=lambda: False, report=self._report)
        if self._broker:
            with suppress(InturnError):
                embedded.remove_socket(self._home)
        if not self._orphans:  # otherwise the next one has to stop them
            with suppress(OSError):
                state_file(self._home).unlink(missing_ok=True)

    def _child(self, name: str) -> Child:
        log = None if self._verbose else log_file(self._home, name)
        command = self._commands[name.partition("-")[0]]
        environment = child_environment(self._settings)
        if log is not None and self._settings.log_format == "auto":
            environment["INTURN_LOG_FORMAT"] = "text"  # no terminal, but for people all the same
        launch = partial(launch_program, command, environment, log)
        return Child(name, launch, log, self._report)

    def _launch_broker(self) -> subprocess.Popen[bytes]:
        return embedded.start_broker(self._home, report=self._report, give_up=lambda: self._interrupts > 0)

    def _record(self) -> None:
        """Make known what runs. A disk that is full must not end a stack that works: it is only said."""
        try:
            self._write()
        except OSError as error:
            self._report(
                f"cannot write {state_file(self._home)} ({error.strerror}): an `inturn up` after a kill of this one "
                "will not know what it has to stop"
            )

    def _write(self) -> None:
        running = {child.name: child.identity for child in (*self._broker, *self._crew) if child.identity}
        StackInfo(
            supervisor=ProcessIdentity.mine(),
            since=self._since,
            linked=self._linked,
            ready=self._ready,
            stopping=self._stopping,
            children=self._orphans | running,
        ).write(self._home)

    def _report(self, sentence: str) -> None:
        with suppress(OSError):  # the terminal may have gone, which must not keep us from stopping
            self._tell(sentence)

    @contextmanager
    def _counted_signals(self) -> Iterator[None]:
        """Count requests to stop instead of dying from them. What we were started to ignore stays ignored (nohup)."""
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            if number != signal.SIGHUP or before[number] != signal.SIG_IGN:
                signal.signal(number, self._count)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1


def _ask_to_stop(supervisor: ProcessIdentity) -> bool:
    with suppress(PermissionError):
        return supervisor.signal(signal.SIGTERM)
    return False
