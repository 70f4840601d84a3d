"""`nbma` of an NHS: an address or a name."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from dsvpn.config.fields import parse_host


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("192.0.2.1", ip_address("192.0.2.1")),
        ("2001:db8::1", ip_address("2001:db8::1")),
        ("hub.example.net", "hub.example.net"),
        ("Hub.Example.NET.", "hub.example.net"),
        ("hub1", "hub1"),
        ("hub", "hub"),
        ("192.0.2.256", None),
        ("-hub.example.net", None),
        ("hub example", None),
        ("192.0.2.0/24", None),
        ("", None),
        (7, None),
        ("a" * 64 + ".net", None),
    ],
)
def test_hosts(text: object, value: object) -> None:
    if value is None:
        with pytest.raises(ValueError, match="neither an IP address nor a DNS name"):
            parse_host(text)
    else:
        assert parse_host(text) == value
