"""Celery's configuration: what of it is not Celery's own choice."""

import pytest

from inturn.settings import Settings
from inturn.workers.app import make_app
from ops.servers import free_port


class EnoughError(Exception):
    """Nobody has to wait for the rest."""


@pytest.mark.parametrize("broker_url", ["redis://127.0.0.1:{}/0", ""])
def test_a_worker_looks_for_a_lost_broker_every_second(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery's own waits grow to 30 s, and a broker that is back has workers that do not come."""
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda seconds: None)
    waits: list[float] = []

    def note(error: Exception, seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 40:
            raise EnoughError

    app = make_app(Settings(broker_url=broker_url.format(free_port())))
    with app.connection_for_read() as connection, pytest.raises(EnoughError):
        connection.ensure_connection(note, None, callback=lambda: None)
    assert set(waits) == {1.0}
