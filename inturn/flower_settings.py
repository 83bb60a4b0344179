"""Who may look at Flower: its logins, and where it may be reached without one."""

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator

from inturn.models.errors import SettingsError

SHORTEST = 8
"""Characters of a password: whoever can reach Flower may try as many as they like."""
FEWEST = 4
"""Different characters among them."""
PLACEHOLDER = "change-me"
"""The password of ``ops/env.example``, which everybody knows."""
LOGIN = re.compile(r"[^\s:,\x00-\x1f\x7f]+:[^,\x00-\x1f\x7f]*")


def logins(text: str) -> list[str]:
    """Each ``USER:PASSWORD`` of several with commas between; none of an empty text."""
    return [each.strip() for each in text.split(",")] if text else []


def _checked(text: str) -> str:
    """Raises: ValueError, which tells no password."""
    for number, login in enumerate(logins(text), start=1):
        which = f"login {number}" if "," in text else "it"
        if not LOGIN.fullmatch(login):
            raise ValueError(
                f"{which} is not written USER:PASSWORD. Several have commas between, so no password has one, and neither "
                "has a name; a name has no colon and no space"
            )
        user, _, password = login.partition(":")
        if len(password) < SHORTEST or len(set(password)) < FEWEST:
            raise ValueError(
                f"the password of {which} is too weak: it needs {SHORTEST} characters, {FEWEST} different ones among them "
                "(`openssl rand -base64 18` makes a good one)"
            )
        if user.casefold() in (password.casefold(), password.casefold()[::-1]):
            raise ValueError(f"the password of {which} is its name")
    return text


Logins = Annotated[str, AfterValidator(_checked)]


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it. A name other than ``localhost`` may lead anywhere."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address == "localhost"


def about_open_door(address: str, known: Sequence[str]) -> str | None:
    """Why Flower must not listen there, and what to do about it; None: it may."""
    if is_loopback(address):
        return None
    where = f"on {address}" if address else "on all addresses"
    if any(login.partition(":")[2] == PLACEHOLDER for login in known):
        return (
            f"Flower is to listen {where} with the password of ops/env.example ({PLACEHOLDER}), which everybody knows: put "
            "another one into INTURN_FLOWER_BASIC_AUTH (`openssl rand -base64 18` makes a good one), or leave the address "
            "at 127.0.0.1"
        )
    if known:
        return None
    return (
        f"Flower is to listen {where} without a login, so whoever reaches this machine could look at every session: set "
        "INTURN_FLOWER_BASIC_AUTH to USER:PASSWORD, or leave the address at 127.0.0.1"
    )


def check_door(address: str, known: Sequence[str], *, control: bool = False) -> None:
    """Raises: SettingsError: it must not listen there, or not like this."""
    if refusal := about_open_door(address, known):
        raise SettingsError(refusal)
    if control and not known:
        raise SettingsError(
            "--control lets whoever reaches Flower stop workers, so it needs a login: set INTURN_FLOWER_BASIC_AUTH to "
            "USER:PASSWORD"
        )


def url_of(address: str, port: int) -> str:
    """Where it is to be seen; where it listens on all addresses, this machine's own stands for them."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def about_port(address: str, port: int, reason: str | None) -> str:
    """What to say where it cannot listen."""
    return (
        f"Flower cannot listen on {address or 'all addresses'} port {port} ({reason}): name another one "
        "(INTURN_FLOWER_PORT, or `inturn flower --port`), or stop who is there"
    )
