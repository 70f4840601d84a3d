"""The routes of a dump that cover a destination, found by comparing octets: the same as by decoding each."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.addresses import Address, Prefix
from dsvpn.io import rtnetlink
from dsvpn.io.rtnetlink import NLM_F_DUMP_INTR, RTM_NEWROUTE, CoveringSearch, Message, decode_route, route_covers

RTA_DST, RTA_TABLE, RTA_PRIORITY = 1, 15, 6
NLMSG_DONE = 3


def route(prefix: Prefix, *, table_first: bool = True, flags: int = 0) -> bytes:
    """A message as the kernel writes it, or with the table behind the destination."""
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    packed = prefix.network_address.packed
    table = struct.pack("=HHI", 8, RTA_TABLE, 254)
    destination = struct.pack("=HH", 4 + len(packed), RTA_DST) + packed if prefix.prefixlen else b""
    body = struct.pack("=BBBBBBBBI", family, prefix.prefixlen, 0, 0, 254, 4, 0, 1, 0)
    body += table + destination if table_first else destination + table
    body += struct.pack("=HHI", 8, RTA_PRIORITY, 20)
    return struct.pack("=IHHII", 16 + len(body), RTM_NEWROUTE, flags, 7, 0) + body


def found(messages: Iterator[tuple[Message, int]], destination: Address) -> list[Prefix]:
    routes = [decode_route(message) for message, _ in messages if route_covers(message, destination)]
    return [one.prefix for one in routes if one is not None]


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    # Close to the destinations, so that many cover one.
    if draw(st.booleans()):
        return IPv4Network((draw(st.integers(0, 0xFFFF)) << 16, draw(st.integers(0, 32))), strict=False)
    return IPv6Network((draw(st.integers(0, 0xFF)) << 120, draw(st.integers(0, 128))), strict=False)


DESTINATIONS = st.one_of(
    st.integers(0, 0xFFFFFFFF).map(IPv4Address), st.integers(0, 0xFF).map(lambda top: IPv6Address(top << 120 | 1))
)


@given(st.lists(st.tuples(prefixes(), st.booleans()), max_size=40), DESTINATIONS)
def test_the_search_finds_what_decoding_all_finds(routes: list[tuple[Prefix, bool]], destination: Address) -> None:
    data = b"".join(route(prefix, table_first=table_first) for prefix, table_first in routes)
    expected = [prefix for prefix, _ in routes if prefix.version == destination.version and destination in prefix]
    assert found(CoveringSearch(destination).split(data), destination) == expected
    assert found(rtnetlink._split(data), destination) == expected


@pytest.mark.parametrize("destination", ["10.1.2.3", "fd00::1"])
def test_others_are_passed_over_and_what_is_no_route_is_not(destination: str) -> None:
    address = ip_address(destination)
    other = IPv4Network("11.0.0.0/8") if address.version == 4 else IPv6Network("fc00::/16")
    done = struct.pack("=IHHII", 16, NLMSG_DONE, 0, 7, 0)
    # A dump that was disturbed says so in any message, also in one that nobody wants.
    data = route(other) + route(other, flags=NLM_F_DUMP_INTR) + done
    parts = [message for message, _ in CoveringSearch(address).split(data)]
    assert [(part.kind, part.flags) for part in parts] == [(RTM_NEWROUTE, NLM_F_DUMP_INTR), (NLMSG_DONE, 0)]


def test_a_message_that_ends_early_ends_the_datagram() -> None:
    search = CoveringSearch(ip_address("10.1.2.3"))
    whole = route(IPv4Network("10.0.0.0/8"))
    for cut in range(len(whole)):
        assert len(list(search.split(whole[:cut]))) <= 1
    assert list(search.split(struct.pack("=IHHII", 8, RTM_NEWROUTE, 0, 7, 0))) == []
