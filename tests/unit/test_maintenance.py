"""The crew's rounds: what went wrong as the database was away is done again as soon as it is back."""

import time

import pytest

from inturn.models.errors import StorageError
from inturn.workers import maintenance
from inturn.workers.maintenance import Round


@pytest.mark.parametrize(("error", "is_soon"), [(StorageError("away"), True), (ValueError("a mistake"), False)])
def test_a_round_is_repeated_soon_after_the_database_was_away(
    error: Exception, is_soon: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "AGAIN_SECONDS", 0.05)
    times: list[float] = []

    def do() -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise error

    sweep = Round("sweep", lambda: 60.0, do)
    sweep.start()
    try:
        over = time.monotonic() + (10 if is_soon else 0.5)
        while len(times) < 2 and time.monotonic() < over:
            time.sleep(0.01)
        assert (len(times) == 2) == is_soon
        time.sleep(0.3)
        assert len(times) == 1 + is_soon, "once it went well, the usual pause is kept"
    finally:
        sweep.end()
    assert not sweep.is_alive()
