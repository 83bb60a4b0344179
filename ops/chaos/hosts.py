"""Hosts with a network between them, on one machine: network namespaces of our own, whose links can be cut and healed.

One host has a switch (a bridge), and on its address the servers; each of the others has one cable to it. Nothing leads out
of there: no route, no other interface. A namespace is there for as long as a process is in it, so all of it goes with us,
however we end: each is held by a child that waits for the end of its standard input.

As root it takes ``CAP_SYS_ADMIN`` and ``CAP_NET_ADMIN``. Others get a user namespace, in which they are root.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inturn.workers.stack import inturn_command
from ops.chaos.fleet import Fleet, Process, on_another_host
from ops.server_process import ServerUnavailableError

SUBNET = "10.77.0"
STEP_SECONDS = 20
HOLD = ("sh", "-c", "echo there && exec cat")


class Host:
    """One of them.

    Attributes:
        address: in the network.
        within: the command that runs another one there.
        pid: of the process that holds it.
    """

    def __init__(self, number: int, pid: int, within: Sequence[str]) -> None:
        self.address, self.pid, self.within = f"{SUBNET}.{number}", pid, tuple(within)
        self.cable = f"cable{number}"

    def as_user(self, uid: int | None) -> tuple[str, ...]:
        """``within``, for a server that is not to be root: as that user; or, where we are root only in there, as another."""
        if uid is not None:
            return (*self.within[:-1], "--setuid", str(uid), "--setgid", str(uid), "--")
        if "--user" in self.within:
            return (*self.within, "unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
        return self.within


class Network:
    """The hosts, the first of which (``servers``) has the switch.

    Raises:
        ServerUnavailableError: this machine does not let us.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self._number = 0
        try:
            if shutil.which("ip") is None:
                raise ServerUnavailableError("no program `ip` here: install iproute2")
            if not (shutil.which("unshare") and shutil.which("nsenter")):
                raise ServerUnavailableError("no network namespaces here: they take Linux and util-linux")
            self._user: tuple[str, ...] = ()
            self.servers = self._begin()
            self._ip("link", "add", "switch", "type", "bridge")
            self._ip("address", "add", f"{self.servers.address}/24", "dev", "switch")
            self._ip("link", "set", "switch", "up")
        except BaseException:
            self._held.close()
            raise

    def add(self) -> Host:
        """Another host, with a cable to the switch."""
        host = self._enter((*self._user, "unshare", "--net"))
        self._ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._ip("link", "set", host.cable, "master", "switch")
        self.heal(host)
        self._ip("address", "add", f"{host.address}/24", "dev", "eth0", host=host)
        self._ip("link", "set", "eth0", "up", host=host)
        return host

    def cut(self, host: Host) -> None:
        """Pull its cable: what is on the way is lost, and nobody is told."""
        self._ip("link", "set", host.cable, "down")

    def heal(self, host: Host) -> None:
        self._ip("link", "set", host.cable, "up")

    def close(self) -> None:
        """The holders end; a namespace goes with the last process that is in it."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> Host:
        """The first host; if root may not make one, as in many containers, then as anybody else."""
        if os.geteuid() == 0:
            try:
                return self._enter(("unshare", "--net"))
            except ServerUnavailableError:
                self._number = 0
        first = self._enter(("unshare", "--user", "--map-root-user", "--net"), with_user=True)
        self._user = ("nsenter", "--target", str(first.pid), "--user", "--preserve-credentials", "--")
        return first

    def _enter(self, command: Sequence[str], *, with_user: bool = False) -> Host:
        holder = subprocess.Popen(
            [*command, *HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._held.callback(end, holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"there\n":
            raise ServerUnavailableError(f"no network namespace here: {holder.stderr.read().decode().strip()}")
        self._number += 1
        user = ("--user", "--preserve-credentials") if with_user or self._user else ()
        host = Host(self._number, holder.pid, ("nsenter", "--target", str(holder.pid), "--net", *user, "--"))
        self._ip("link", "set", "lo", "up", host=host)
        return host

    def _ip(self, *words: str, host: Host | None = None) -> None:
        within = (host or self.servers).within
        done = subprocess.run(
            [*within, "ip", *words], capture_output=True, text=True, timeout=STEP_SECONDS, check=False
        )
        if done.returncode:
            raise ServerUnavailableError(
                f"no network of our own here: `ip {' '.join(words)}` says {done.stderr.strip()}"
            )


def end(holder: subprocess.Popen[bytes]) -> None:
    for pipe in (holder.stdin, holder.stdout, holder.stderr):
        assert pipe is not None
        pipe.close()
    holder.wait(STEP_SECONDS)


class Spread(Fleet):
    """A fleet whose processes are on hosts: each of its ways has a ``host`` beside its settings."""

    def _run(self, word: str, way: Mapping[str, Any]) -> Process:
        return self.begin_on(way, on_another_host(self.home, inturn_command(word)))

    def begin_on(self, way: Mapping[str, Any], command: Sequence[str]) -> Process:
        """Start a command on the way's host, with its settings."""
        host: Host = way["host"]
        settings = {name: value for name, value in way.items() if name != "host"}
        return self._begin([*host.within, *command], self.environment(settings))

    def said_by(self, process: Process) -> Path:
        """The file that a process writes to."""
        return self._log(process)
