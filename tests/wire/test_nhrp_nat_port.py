"""The vendor-private extension with the public UDP ports of stations behind NAT."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsvpn.errors import MisuseError
from dsvpn.wire.cursor import Reader
from dsvpn.wire.nhrp_extensions import RawExtension, decode_extensions, encode_extensions
from dsvpn.wire.nhrp_nat_port import MAX_NAT_PORTS, nat_port_extension, read_nat_ports

IPV4, IPV6 = ip_address("10.0.0.11"), ip_address("fd00::12")
#: Vendor identifier 02-44-53, kind 1.
HEAD = bytes.fromhex("02445301")

VECTORS = [
    ({IPV4: 40001}, "0008000b 02445301 9c41 04 0a00000b 80000000"),
    ({IPV6: 4500}, "00080017 02445301 1194 10 fd000000000000000000000000000012 80000000"),
    (
        {IPV4: 1, IPV6: 65535},
        "0008001e 02445301 0001 04 0a00000b ffff 10 fd000000000000000000000000000012 80000000",
    ),
]


@pytest.mark.parametrize(("ports", "octets"), VECTORS)
def test_vectors_of_the_whole_extensions_part(ports: dict[object, int], octets: str) -> None:
    data = bytes.fromhex(octets)
    assert encode_extensions([nat_port_extension(ports)], 1, 0x0800) == data  # type: ignore[arg-type]
    (extension,) = decode_extensions(Reader(data), 1, 0x0800)
    assert not extension.compulsory
    assert read_nat_ports(extension) == ports


@given(st.dictionaries(st.ip_addresses(), st.integers(1, 65535), max_size=MAX_NAT_PORTS))
def test_round_trip(ports: dict[object, int]) -> None:
    assert read_nat_ports(nat_port_extension(ports)) == ports  # type: ignore[arg-type]


@given(st.binary(max_size=120))
def test_what_strangers_write_is_read_within_bounds_or_not_at_all(value: bytes) -> None:
    for data in (value, HEAD + value):
        ports = read_nat_ports(RawExtension(8, False, data))
        assert ports is None or (len(ports) <= MAX_NAT_PORTS and all(0 < port <= 65535 for port in ports.values()))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "024453",  # no kind
        "02445302 9c41 04 0a00000b",  # another kind
        "00000901 9c41 04 0a00000b",  # another vendor
        "02445301 0000 04 0a00000b",  # port 0
        "02445301 9c41 05 0a00000b00",  # no address has 5 octets
        "02445301 9c41 04 0a0000",  # cut short in the address
        "02445301 9c41",  # and before it
        "02445301 9c41 04 0a00000b 00",  # and in the next entry
        "02445301" + "9c41040a00000b" * (MAX_NAT_PORTS + 1),
    ],
)
def test_another_vendor_s_and_malformed_ones_say_nothing(value: str) -> None:
    assert read_nat_ports(RawExtension(8, False, bytes.fromhex(value))) is None


def test_the_first_of_two_entries_counts_and_other_extensions_are_none() -> None:
    value = HEAD + bytes.fromhex("9c41040a00000b 9c42040a00000b")
    assert read_nat_ports(RawExtension(8, False, value)) == {IPV4: 40001}
    assert read_nat_ports(RawExtension(77, False, value)) is None


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_out_of_range_is_a_misuse(port: int) -> None:
    with pytest.raises(MisuseError, match="is not within 1 to 65535"):
        nat_port_extension({IPV4: port})


def test_more_entries_than_are_read_are_a_misuse() -> None:
    with pytest.raises(MisuseError, match="4 at most"):
        nat_port_extension({ip_address(number): 1 for number in range(MAX_NAT_PORTS + 1)})
