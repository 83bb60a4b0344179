"""What the acceptance tests run on: deployments, a model server that misbehaves on request, clients."""

import itertools
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import make_url

from inturn import Client
from ops.chaos.model import Call, ModelServer
from ops.servers import free_port
from tests.acceptance.deployment import KEY_VARIABLE, Deployment

KINDS = ("embedded", "postgresql")

broker_databases = itertools.count()


@pytest.fixture(scope="session")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="session")
def providers(model: ModelServer) -> dict[str, Any]:
    """``server`` misbehaves on request, ``claude`` is the same that speaks Messages; nobody listens where ``nobody`` is."""
    return {
        "server": {"type": "openai", "base_url": model.base_url, "api_key_env": KEY_VARIABLE},
        "claude": {"type": "anthropic", "base_url": model.base_url, "api_key_env": KEY_VARIABLE},
        "nobody": {"type": "openai", "base_url": f"http://127.0.0.1:{free_port()}/v1", "api_key_env": KEY_VARIABLE},
        # Who fails here leans on ``server``.
        "leaning": {
            "base_url": model.base_url,
            "api_key_env": KEY_VARIABLE,
            "fallbacks": ["server/crutch"],
            "models": {"tiny": {"context_tokens": 400}},
        },
    }


def make_deployment(
    request: pytest.FixtureRequest, factory: pytest.TempPathFactory, providers: dict[str, Any], **more: Any
) -> Iterator[Deployment]:
    home, urls = factory.mktemp("home") / "inturn", list[str]()
    if request.param == "postgresql":
        spares, redis = request.getfixturevalue("spares"), request.getfixturevalue("redis")
        # Each has a Redis database of its own: hints name sessions by numbers that count from 1 in every deployment.
        broker_url = make_url(redis.url).set(database=str(next(broker_databases) % 16)).render_as_string(False)
        urls = [spares.take(), broker_url]
    deployment = Deployment(home, providers, *urls, **more)
    yield deployment
    deployment.stop()
    if urls:
        spares.give_back(urls[0])


@pytest.fixture(scope="session", params=KINDS)
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, providers: dict[str, Any]
) -> Iterator[Deployment]:
    """The one that most tests share: two workers and a beat. They keep apart by their sessions' IDs."""
    for deployment in make_deployment(request, tmp_path_factory, providers):
        deployment.start()
        yield deployment


@pytest.fixture(params=KINDS)
def deserted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, providers: dict[str, Any]
) -> Iterator[Deployment]:
    """One of a test's own: nothing is stored, and nobody is at work."""
    yield from make_deployment(request, tmp_path_factory, providers)


@pytest.fixture
def client(deployment: Deployment) -> Iterator[Client]:
    with deployment.client() as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """What the IDs of this test's sessions begin with."""
    line = re.search(r"\d+", request.node.name)
    return f"line-{line.group() if line else 'x'}-{secrets.token_hex(4)}"


@pytest.fixture
def calls(model: ModelServer) -> Callable[[str], list[Call]]:
    """The calls to the model whose prompt holds a text, in the order of their beginning."""
    return lambda text: [call for call in model.calls() if text in call.prompt]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as executor:
        yield executor
