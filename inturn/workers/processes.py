"""Who a process is: a PID alone names nobody, as PIDs are reused and every container has a PID 1.

A process is known by the boot of its host, its PID namespace, its PID and the moment it started. Equal identities are
one process, and one that is not alive stays dead for ever.
"""

import errno
import os
import signal
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

HAS_PROC = sys.platform.startswith("linux")
DEAD_STATES = "ZX"  # a zombie only waits for its parent to read the exit code: it holds nothing any more


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for ever.

    Attributes:
        boot_id: The boot of the host's kernel; containers of one host share it.
        pid_namespace: Where the PID counts; "0" where the system has no namespaces.
        pid: The process ID.
        started: When it started: clock ticks since boot (Linux), else milliseconds since 1970.
    """

    boot_id: str
    pid_namespace: str
    pid: int
    started: int

    @classmethod
    def mine(cls) -> Self:
        """The process that asks (never cached: a fork is another process)."""
        identity = cls.of(os.getpid())
        assert identity is not None, "this process runs"
        return identity

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this PID now; None when there is none, or it is a zombie.

        Raises:
            PermissionError: There is one that this user may not look at.
        """
        started = _started(pid)
        return None if started is None else cls(_boot_id(), _pid_namespace(), pid, started)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` wrote.

        Raises:
            ValueError: The text is no identity.
        """
        parts = text.split("/")
        if len(parts) != 4 or not all(parts):
            raise ValueError(f"{text!r:.200} is no process identity: it is written BOOT/NAMESPACE/PID/START")
        return cls(parts[0], parts[1], int(parts[2]), int(parts[3]))

    def __str__(self) -> str:
        return f"{self.boot_id}/{self.pid_namespace}/{self.pid}/{self.started}"

    def is_near(self) -> bool:
        """Whether it ran under this boot and in this PID namespace, so that it can be looked at from here."""
        return self.boot_id == _boot_id() and self.pid_namespace == _pid_namespace()

    def is_alive(self) -> bool | None:
        """Whether it runs; None when that cannot be known from here."""
        if not self.is_near():
            return None
        try:
            return _started(self.pid) == self.started
        except PermissionError:
            return None

    def signal(self, number: int) -> bool:
        """Send a signal to this very process, never to another one that got its PID.

        Returns:
            False when the process is gone, or cannot be known from here.

        Raises:
            PermissionError: It belongs to another user.
        """
        handle = _handle(self.pid)  # taken before the look, so that the process looked at is the one that is hit
        try:
            if not self.is_alive():
                return False
            if handle is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True


def _handle(pid: int) -> int | None:
    """A file descriptor that stays with the process; None on systems without them, or when it is gone."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return None


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return f"boot-{int(psutil.boot_time())}"


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink()).removeprefix("pid:").strip("[]")
    except OSError:
        return "0"


def _started(pid: int) -> int | None:
    """When the process with this PID started; None when there is none.

    Raises:
        PermissionError: There is one that this user may not look at.
    """
    return _started_by_proc(pid) if HAS_PROC else _started_by_psutil(pid)


def _started_by_proc(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except ProcessLookupError:
        return None
    except FileNotFoundError:
        _refuse_hidden(pid)
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the program's name, in parentheses, may contain anything
    return None if state in DEAD_STATES else int(fields[18])


def _refuse_hidden(pid: int) -> None:
    """A process that is not in /proc may run all the same: the option hidepid hides those of other users.

    Raises:
        PermissionError: It runs.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    except OSError as error:
        raise PermissionError(errno.EPERM, f"process {pid} is hidden from this user") from error


def _started_by_psutil(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 1000)
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied as error:
        raise PermissionError(errno.EPERM, f"process {pid} is hidden from this user") from error
