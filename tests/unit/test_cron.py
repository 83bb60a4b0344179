"""When runs are: cron in time zones, when clocks are put forward and back, and after nobody was there."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest

from inturn.models.cron import LATE, MOST_MISSED, Cron, checked_cron, plan
from inturn.models.errors import InvalidInputError
from inturn.models.states import Misfire

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def runs(expression: str, timezone: str, after: str, count: int) -> list[str]:
    """Runs as UTC shows them."""
    found = islice(Cron(expression, timezone).runs(utc(after)), count)
    return [f"{run:%d %H:%M}" for run in found]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 9 * * 1", "2026-06-01T06:59:59", ["01 07:00", "08 07:00"]),  # a Monday, in summer
        ("0 9 * * 1", "2026-06-01T07:00:00", ["08 07:00", "15 07:00"]),
        ("0 9 * * MON", "2026-12-01T00:00:00", ["07 08:00", "14 08:00"]),
        ("59 23 31 12 *", "2026-12-31T22:00:00", ["31 22:59", "31 22:59"]),
        ("0 0 29 2 *", "2026-01-01T00:00:00", ["28 23:00", "28 23:00"]),  # leap years
        ("0 12 L * *", "2026-02-01T00:00:00", ["28 11:00", "31 10:00"]),
    ],
)
def test_a_cron_is_read_in_its_time_zone(expression: str, after: str, expected: list[str]) -> None:
    assert runs(expression, "Europe/Berlin", after, 2) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["28 01:30", "29 01:00", "30 00:30"]),  # 2:30 is left out: at 3:00, which is 1:00 in UTC
        ("0,30 2 * * *", ["28 01:00", "28 01:30", "29 01:00", "30 00:00", "30 00:30"]),  # once for both
        ("0 2,3 * * *", ["28 01:00", "28 02:00", "29 01:00", "30 00:00", "30 01:00"]),
        ("0 4 * * *", ["28 03:00", "29 02:00", "30 02:00"]),
        ("*/30 2 * * *", ["28 01:00", "28 01:30", "30 00:00", "30 00:30"]),  # real time: there is no such hour
    ],
)
def test_when_clocks_are_put_forward(expression: str, expected: list[str]) -> None:
    """On 29 March 2026, 2:00 in Berlin is 3:00."""
    assert runs(expression, "Europe/Berlin", "2026-03-27T20:00:00", len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["24 00:30", "25 00:30", "26 01:30"]),  # the first time only
        ("0,30 2 * * *", ["24 00:00", "24 00:30", "25 00:00", "25 00:30", "26 01:00"]),
        ("0 3 * * *", ["24 01:00", "25 02:00", "26 02:00"]),
        ("*/30 2 * * *", ["24 00:00", "24 00:30", "25 00:00", "25 00:30", "25 01:00", "25 01:30", "26 01:00"]),
    ],
)
def test_when_clocks_are_put_back(expression: str, expected: list[str]) -> None:
    """On 25 October 2026, 3:00 in Berlin is 2:00 again."""
    assert runs(expression, "Europe/Berlin", "2026-10-23T23:00:00", len(expected)) == expected


def test_within_the_hour_that_comes_twice_nothing_is_due_that_was_before() -> None:
    for minute in range(0, 60, 7):
        after = utc("2026-10-25T01:00:00") + timedelta(minutes=minute)  # 2:00 and later, the second time
        assert Cron("30 2 * * *", "Europe/Berlin").next(after) == utc("2026-10-26T01:30:00")


def test_every_hour_is_every_hour_whatever_clocks_do() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        found = list(islice(Cron("0 * * * *", "Europe/Berlin").runs(utc(f"{day}T00:00:00") - timedelta(hours=3)), 9))
        assert {later - sooner for sooner, later in pairwise(found)} == {timedelta(hours=1)}


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("0 0 30 2 *", "would never fire (there is no such day)"),
        ("0 0 31 4,6 *", "would never fire (there is no such day)"),
        ("* * */20 * 1L", "has no run in the 50 years after 2026-01-01"),
        ("61 * * * *", "bad minute"),
        ("0 9 * * 1#6", "bad day-of-week"),
        ("0 9 32 * *", "bad day-of-month"),
        ("0 9 * *", "cron is '0 9 * *'"),
        ("0 0 9 * * 1", "cron is '0 0 9 * * 1'"),  # seconds
        ("@daily", "cron is '@daily', which is written '0 0 * * *' here: "),
        ("@Hourly", "cron is '@Hourly', which is written '0 * * * *' here: "),
        (" @annually ", "which is written '0 0 1 1 *' here: "),
        ("@reboot", "cron is '@reboot': write five"),
        ("0 9 * * MONDAY", "cannot be read (for 'MONDAY' write MON)"),
        ("0 9 * * tues-thurs", "cannot be read (for 'tues' write TUE)"),
        ("0 9 1 JAN,SEPT *", "cannot be read (for 'SEPT' write SEP)"),
        ("0 9 * * DAILY", "cannot be read (bad day-of-week)"),
        ("*/70 * * * *", "cannot be read (a step of the minute is 1 to 59, not 70)"),
        ("0 2,*/24 * * *", "cannot be read (a step of the hour is 1 to 23, not 24)"),
        ("0 0 */32 * *", "cannot be read (a step of the day-of-month is 1 to 31, not 32)"),
        ("0 0 1 */13 *", "cannot be read (a step of the month is 1 to 12, not 13)"),
        ("0 0 * * 1-5/8", "cannot be read (a step of the day-of-week is 1 to 7, not 8)"),
        ("*/0 * * * *", "cannot be read (a step of the minute is 1 to 59, not 0)"),
        ("*/x * * * *", "cannot be read (bad minute)"),
        ("*/²0 * * * *", "cannot be read (bad minute)"),
        ("", "cron is ''"),
        ("* " * 200, "cron is '* * "),
        (None, "cron is None"),
    ],
)
def test_a_cron_that_cannot_be_is_refused_with_an_example(expression: str | None, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        checked_cron(expression, "UTC", NOON)
    assert reason in str(caught.value)
    assert "'0 9 * * 1' (Mondays at 9:00)" in str(caught.value)


@pytest.mark.parametrize(
    "timezone", ["Europe/Berln", "", "../etc/passwd", "/etc/localtime", "America", "\x00", 3, None]
)
def test_a_time_zone_that_is_none_is_refused(timezone: object) -> None:
    with pytest.raises(InvalidInputError, match="is not known here: ") as caught:
        checked_cron("0 9 * * 1", timezone, NOON)
    assert ("did you mean 'Europe/Berlin'?" in str(caught.value)) == (timezone == "Europe/Berln")


@pytest.mark.parametrize(
    "expression", ["*/59 */23 */31 */12 */7", "5/20 * 1-10/3 JAN-SEP MON#1", "0 0 L * *", "0 0 LW * 5L"]
)
def test_what_is_unusual_is_understood(expression: str) -> None:
    assert checked_cron(expression, "UTC", NOON).expression == expression


def test_space_means_nothing() -> None:
    assert checked_cron(" 0  9 * * mon ", "Europe/Berlin", NOON) == Cron("0 9 * * mon", "Europe/Berlin")


HOURLY = Cron("0 * * * *", "UTC")


@pytest.mark.parametrize(
    ("misfire", "late", "run", "following"),
    [
        # due at noon; hours later, which run is fired, and which is next
        (Misfire.SKIP, timedelta(seconds=1), 0, 1),
        (Misfire.SKIP, LATE, 0, 1),
        (Misfire.SKIP, LATE * 2, None, 1),
        (Misfire.SKIP, timedelta(hours=5, minutes=30), None, 6),
        (Misfire.SKIP, timedelta(hours=5, seconds=3), 5, 6),
        (Misfire.ONCE, timedelta(seconds=1), 0, 1),
        (Misfire.ONCE, timedelta(minutes=59), 0, 1),
        (Misfire.ONCE, timedelta(hours=5, minutes=30), 5, 6),
        (Misfire.ALL, timedelta(seconds=1), 0, 1),
        (Misfire.ALL, timedelta(hours=5, minutes=30), 0, 1),
        (Misfire.ALL, timedelta(hours=500, minutes=30), 500 - MOST_MISSED + 1, 500 - MOST_MISSED + 2),
    ],
)
def test_what_becomes_of_missed_runs(misfire: Misfire, late: timedelta, run: int | None, following: int) -> None:
    expected = None if run is None else NOON + timedelta(hours=run)
    assert plan(HOURLY, misfire, NOON, NOON + late) == (expected, NOON + timedelta(hours=following))


def test_after_a_year_of_minutes_the_latest_ones_are_found_without_counting_them_all() -> None:
    minutely, present = Cron("* * * * *", "Europe/Berlin"), NOON + timedelta(days=365, seconds=20)
    assert plan(minutely, Misfire.ONCE, NOON, present)[0] == NOON + timedelta(days=365)
    assert plan(minutely, Misfire.ALL, NOON, present)[0] == NOON + timedelta(days=365, minutes=1 - MOST_MISSED)


def test_rare_runs_are_found_however_far_back_they_are() -> None:
    yearly = Cron("0 12 1 1 *", "UTC")
    assert plan(yearly, Misfire.ONCE, NOON, NOON.replace(year=2029, month=7)) == (
        NOON.replace(year=2029),
        NOON.replace(year=2030),
    )
    assert plan(yearly, Misfire.ALL, NOON, NOON.replace(year=2029, month=7)) == (NOON, NOON.replace(year=2027))
