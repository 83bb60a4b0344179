"""How dollars are written."""

import pytest

from inturn.models.money import dollars


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (0, "0.00"),
        (20, "20.00"),
        (1234.5, "1,234.50"),
        (0.5, "0.50"),
        (0.0042, "0.0042"),
        (0.375, "0.375"),
        (2e-6, "<0.0001"),
    ],
)
def test_what_is_less_than_a_cent_is_told_as_well(usd: float, shown: str):
    assert dollars(usd) == shown
