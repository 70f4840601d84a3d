"""What ping prints, as values."""

from __future__ import annotations

import pytest

from dsvpn.errors import HostError
from dsvpn.lab.measure import Echo, median_rtt, parse_pings

OUTPUT = """\
PATTERN: 0x647376706e20706c61696e2074657874
PING 172.16.2.10 (172.16.2.10) 1000(1028) bytes of data.
[1700000000.500000] 1008 bytes from 172.16.2.10: icmp_seq=1 ttl=60 time=400 ms
[1700000000.521000] 1008 bytes from 172.16.2.10: icmp_seq=2 ttl=62 time=1.00 ms
[1700000000.521500] 1008 bytes from 172.16.2.10: icmp_seq=2 ttl=62 time=1.50 ms (DUP!)

--- 172.16.2.10 ping statistics ---
3 packets transmitted, 2 received, +1 duplicates, 33.3333% packet loss, time 40ms
rtt min/avg/max/mdev = 0.500/0.625/0.750/0.125 ms
"""


def test_replies_losses_and_duplicates() -> None:
    pings = parse_pings(OUTPUT)
    assert (pings.transmitted, pings.received, pings.lost, pings.duplicates) == (3, 2, 1, 1)
    assert [(echo.sequence, echo.ttl, echo.rtt) for echo in pings.echoes] == [(1, 60, 0.4), (2, 62, 0.001)]
    assert pings.echoes[0].sent == pytest.approx(1_700_000_000.1)


def test_output_without_a_summary_is_an_error() -> None:
    with pytest.raises(HostError, match="Network is unreachable"):
        parse_pings("ping: connect: Network is unreachable")


def test_median_round_trip() -> None:
    echoes = [Echo(number, 0.0, rtt, 62) for number, rtt in enumerate((0.3, 0.1, 0.2))]
    assert median_rtt(echoes) == 0.2
    assert median_rtt([]) is None
