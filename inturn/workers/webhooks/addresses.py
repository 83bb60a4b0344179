"""To which addresses a webhook may be sent. It is looked at when a socket is made, by the address that it will be connected
to: what a name resolves to at another moment, or what a URL looks like, says nothing.
"""

import errno
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

NAT64 = IPv6Network("64:ff9b::/96")
WITHIN_IPV6 = (
    NAT64,
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("2002::/16"),
    IPv6Network("fec0::/10"),
    IPv6Network("::/96"),
)
"""Ranges that lead to IPv4 addresses or were once a site's own, which older Pythons call global, all of them or some."""

SocketFactory = Callable[[Any], socket.socket]


def is_public(host: str) -> bool:
    """Whether an address (not a name) belongs to the whole Internet, and to one machine in it."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address in NAT64:
            return is_public(str(IPv4Address(address.packed[-4:])))
        if any(address in network for network in WITHIN_IPV6):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def public_socket(info: Any) -> socket.socket:
    """A socket for an address as ``getaddrinfo`` describes it.

    Raises:
        OSError: it is not public.
    """
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise OSError(errno.EACCES, f"{address[0]} is not a public address, and allow_private is not set")
    return socket.socket(family, kind, protocol)


def any_socket(info: Any) -> socket.socket:
    family, kind, protocol, *_ = info
    return socket.socket(family, kind, protocol)
