"""The octets of a probe."""

from __future__ import annotations

from dsvpn.io.probe import echo_request


def test_an_echo_request_is_what_rfc_792_says() -> None:
    request = echo_request(4, 0x0102)
    assert request[:2] == b"\x08\x00"
    assert request[6:8] == b"\x01\x02"
    total = sum(int.from_bytes((request + b"\0")[at : at + 2], "big") for at in range(0, len(request), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF  # with its checksum, the sum of all words is all ones (RFC 1071)


def test_the_kernel_sums_icmpv6() -> None:
    assert echo_request(6, 7)[:8] == bytes.fromhex("8000000064760007")
