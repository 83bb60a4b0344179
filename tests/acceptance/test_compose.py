"""The services of ``docker-compose.yml`` at work: their own commands, variables, health checks and signals, as processes."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from inturn.models.states import Lane
from ops.chaos.fleet import freeze
from tests.acceptance.scrapes import scrape
from tests.composition import Composition, Container
from tests.monitoring import Prometheus, alerts, program
from tests.stacks import wait_until

T = TypeVar("T")
pytestmark = pytest.mark.timeout(300)

START_SECONDS = 90
NOTHING_TO_SHOW = {"Provider errors per second", "Removed sessions per hour"}
"""Panels that are empty where no call failed and no session was removed."""
SEND = """
from inturn import Client
with Client() as client:
    for lane in ("chat", "batch"):
        session = client.get_or_create_session(f"composed-{lane}")
        print(session.send_and_wait("Hello?", lane=lane, timeout=60).data.content)
"""


@pytest.fixture
def composition(tmp_path: Path) -> Iterator[Composition]:
    composition = Composition(tmp_path)
    yield composition
    composition.clean_up()


def await_health(container: Container) -> None:
    wait_until(container.is_healthy, START_SECONDS)


def test_the_whole_stack_answers_a_prompt(composition: Composition, subtests: pytest.Subtests) -> None:
    """From nothing to a reply, in the order that the file gives; then every process stops as it is told to.

    Prometheus, where it is here, has watched all of it.
    """
    postgres, redis, migrate = (composition.container(name) for name in ("postgres", "redis", "migrate"))
    redis.start()
    await_health(postgres)
    await_health(redis)
    assert redis.check(REDISCLI_AUTH="somebody else's").returncode != 0, "the check can fail, and there is a password"

    migrate.start()
    assert migrate.process is not None
    assert migrate.process.wait(START_SECONDS) == 0, migrate.said()

    workers = [composition.container(f"worker-{lane}") for lane in Lane]
    beat, flower = composition.container("beat"), composition.container("flower")
    assert workers[0].check().returncode == 1, "nobody is there yet"
    running, prometheus = [*workers, beat, flower], composition.container("prometheus")
    with subtests.test("Prometheus"):
        for needed in "prometheus", "wget":  # the latter for its health check
            program(needed)
        running.append(prometheus)
    for each in running:
        each.start()
    for each in running:
        await_health(each)

    assert sent(workers[0]) == ['You said: "Hello?"'] * 2
    for lane, worker in zip(Lane, workers, strict=True):
        metrics = scrape(f"http://127.0.0.1:{worker.env['INTURN_METRICS_PORT']}/metrics")
        turns = {other: metrics.total("inturn_turns_total", lane=other) for other in Lane}
        assert turns == {other: other == lane != Lane.MAINTENANCE for other in Lane}, "a worker serves its lane"

    hung = workers[0]
    assert hung.process is not None
    freeze(hung.process.pid)
    assert not hung.is_healthy()
    hung.process.send_signal(signal.SIGCONT)
    await_health(hung)

    with database_away(composition):
        for each in (workers[0], beat):
            wait_until(lambda each=each: not each.is_healthy(), START_SECONDS)  # type: ignore[misc]
            assert each.run("inturn", "ping", "--live").returncode == 0, "no reason to start it anew"
    for each in (workers[0], beat):
        await_health(each)

    if prometheus in running:
        await_eyes(Prometheus(composition.ports["prometheus"]), [*workers, beat])

    assert status_of(f"http://127.0.0.1:{composition.ports['flower']}/") == 401, "it has a login"
    for each in running:
        assert each.stop() == 0, each.said()
        assert each.check().returncode != 0
    assert redis.stop() == 0, redis.said()
    assert written_by(migrate, *running) == set(), "their root file systems are read-only"
    assert {name for name in composition.services if name not in composition.containers} == {"grafana"}


def await_eyes(prometheus: Prometheus, watched: list[Container]) -> None:
    """It asks all of these and itself, takes every expression of every panel, and rules on the alerts: nothing is wrong."""
    targets = {f"127.0.0.1:{each.env['INTURN_METRICS_PORT']}" for each in watched} | {prometheus.address}
    await_equal(prometheus.up, dict.fromkeys(targets, True))
    await_equal(prometheus.empty_panels, NOTHING_TO_SHOW)
    await_equal(prometheus.rulings, {alert["alert"]: ("ok", "quiet") for alert in alerts()})


def await_equal(look: Callable[[], T], wanted: T) -> None:
    with suppress(AssertionError):
        wait_until(lambda: look() == wanted, START_SECONDS)
    assert look() == wanted


@contextmanager
def database_away(composition: Composition) -> Iterator[None]:
    """For as long as this lasts, nobody is let into the stack's database."""
    name = composition.services["postgres"]["environment"]["POSTGRES_DB"]
    with composition.postgres.connect() as db:
        db.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        yield
        db.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def status_of(url: str) -> int:
    try:
        with urlopen(url, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def sent(place: Container) -> list[str]:
    """What a program is answered that has a container's variables, in both lanes; the first line of each."""
    done = subprocess.run(
        [sys.executable, "-c", SEND], env=place.env, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("You said")]


def written_by(*containers: Container) -> set[str]:
    """Files that containers left anywhere but where the file lets them."""
    return {
        str(path)
        for container in containers
        for path in container.directory.rglob("*")
        if path.relative_to(container.directory).parts[0] not in ("tmp", "said", *volumes(container))
    }


def volumes(container: Container) -> set[str]:
    """The directories at the root of a container in which it has volumes."""
    return {Path(each["target"]).parts[1] for each in container.what.get("volumes", [])}
