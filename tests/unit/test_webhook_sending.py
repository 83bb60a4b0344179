"""Where webhooks may go, and what becomes of a delivery."""

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from inturn.models.states import DeliveryState
from inturn.workers.webhooks.addresses import is_public, public_socket
from inturn.workers.webhooks.outcomes import HOUR, JITTER, WAITS, outcome_of, wished_seconds
from inturn.workers.webhooks.poster import Answer

PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8")
OTHERS = (
    "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.1.1.1", "192.0.2.1", "198.18.0.1", "203.0.113.9", "240.0.0.1",
    "::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::",
)  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address(address: str):
    assert is_public(address)


@pytest.mark.parametrize("address", OTHERS)
def test_an_address_that_is_not_public(address: str):
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(OSError, match="is not a public address, and allow_private is not set"):
        public_socket((family, socket.SOCK_STREAM, 0, "", (address, 443)))


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_what_is_taken_is_delivered(status: int):
    assert outcome_of(Answer(status), 1).state is DeliveryState.DELIVERED


def test_waits_grow_and_come_to_an_end():
    for attempt, seconds in enumerate(WAITS, 1):
        outcome = outcome_of(Answer(500, "it answered 500"), attempt)
        assert outcome.state is DeliveryState.PENDING
        assert seconds <= outcome.delay_seconds <= seconds * (1 + JITTER)
    last = outcome_of(Answer(None, "no connection"), len(WAITS) + 1)
    assert (last.state, last.status_code, last.error_message) == (DeliveryState.FAILED, None, "no connection")


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 408, 500, 502, 504])
def test_everything_else_is_tried_again(status: int):
    assert outcome_of(Answer(status, f"it answered {status}"), 1).state is DeliveryState.PENDING


def test_who_is_gone_is_not_asked_again():
    assert outcome_of(Answer(410, "it answered 410"), 1).state is DeliveryState.FAILED


@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_may_put_us_off(status: int):
    assert outcome_of(Answer(status, "later", "900"), 1).delay_seconds == 900
    assert outcome_of(Answer(status, "later", "1"), 1).delay_seconds >= 5
    assert outcome_of(Answer(status, "later", "99999999"), 1).delay_seconds == 24 * HOUR
    assert outcome_of(Answer(500, "broken", "900"), 1).delay_seconds < 900


@pytest.mark.parametrize("words", [None, "", "soon", "-5", "1.5", "²", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_a_wish_that_says_nothing(words: str | None):
    assert wished_seconds(words) == 0


def test_a_wish_may_be_a_date():
    assert 50 < wished_seconds(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)) <= 60
    assert wished_seconds(format_datetime(datetime.now(UTC) - timedelta(minutes=1), usegmt=True)) == 0
