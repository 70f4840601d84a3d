"""The verdicts on results."""

from __future__ import annotations

from typing import Any

import pytest

from bench.targets import Verdict, ratio, verdicts


def find(found: list[Verdict], *words: str) -> Verdict:
    (verdict,) = [verdict for verdict in found if all(word in verdict.figure for word in words)]
    return verdict


def netns(**samples: dict[str, list[float | None]]) -> dict[str, Any]:
    return {"netns": {"samples": samples}}


def test_nothing_is_met_without_results() -> None:
    found = verdicts({})
    assert len(found) > 40
    assert {verdict.met for verdict in found} == {None}
    assert {verdict.cells()[2:] == ["-", "not measured"] for verdict in found} == {True}


def test_ratio_is_the_median_of_the_rounds_that_have_both() -> None:
    result = netns(figure={"ours": [9.0, None, 4.0, 1.0], "theirs": [3.0, 1.0, 1.0, None]})["netns"]
    assert ratio(result, "figure", "ours", "theirs") == 3.5
    assert ratio(result, "figure", "ours", "nobody") is None
    assert ratio(result, "other", "ours", "theirs") is None


@pytest.mark.parametrize(("rate", "met"), [(3.0, True), (2.9, False)])
def test_more_is_better_for_goodput(rate: float, met: bool) -> None:
    found = verdicts(netns(tcp_1_bits_per_second={"dsvpn": [rate, rate], "wireguard-go": [1.0, 1.0]}))
    verdict = find(found, "TCP 1 stream, AES-128-GCM")
    assert (verdict.met, verdict.target, verdict.measured) == (met, "at least 3 x", f"{rate:.2f} x")
    assert find(found, "TCP 4 streams, AES-128-GCM").met is None


@pytest.mark.parametrize(("seconds", "met"), [(0.6, True), (0.61, False)])
def test_less_is_better_for_round_trips(seconds: float, met: bool) -> None:
    found = verdicts(netns(rtt_idle_p99_seconds={"dsvpn": [seconds], "wireguard-go": [1.0]}))
    assert find(found, "RTT idle, p99").met is met


def test_rounding_does_not_hide_a_miss() -> None:
    found = verdicts(netns(tcp_1_bits_per_second={"dsvpn": [2.9996], "wireguard-go": [1.0]}))
    assert find(found, "TCP 1 stream, AES-128-GCM").cells()[2:] == ["2.9996 x", "**missed**"]


def test_null_cipher_stands_against_both() -> None:
    found = verdicts(netns(tcp_4_bits_per_second={"dsvpn": [0.8], "dataplane": [0.9], "dataplane-null": [1.0]}))
    assert find(found, "TCP 4", "null cipher", "dsvpn /").met is False
    assert find(found, "TCP 4", "null cipher", "dataplane /").met is True


def row(group: str, case: str, seconds: float, **more: object) -> dict[str, Any]:
    """The fastest call took `seconds`, the median one twice that."""
    times = {"seconds": 2 * seconds, "fastest_seconds": seconds}
    return {"group": group, "case": case, "packets": 256, "octets": 1424, **times, **more}


def test_memory_to_memory() -> None:
    rows = [
        row("encap", "64 B", 256 / 9e6),
        row("decap", "1424 B", 256 * 1424 * 8 / 35e9),
        row("seal, aes128gcm16", "1424 B", 128e-7, raw_seconds=0.96e-7),
        row("open, aes128gcm16", "64 B", 128e-7, raw_seconds=0.74e-7),
        row("encap by table size, IMIX", "1000000 routes, 100000 peers", 0.6, against_seconds=1.0),
        row("encap by table size, 64 B", "1000 routes, 1000 peers", 0.6, against_seconds=1.0),
        {**row("encap", "IMIX", 1e-9), "packets": 1},
    ]
    found = verdicts({"micro": {"rows": rows}})
    assert find(found, "whole encap, one core, 64 B").measured == "9.00 Mpps (median 4.50)"
    assert find(found, "whole encap, one core, 64 B").met is True
    assert find(found, "whole decap, one core, 1424 B").cells()[2:] == ["35.00 Gb/s (median 17.50)", "**missed**"]
    assert find(found, "seal", "aes128gcm16, 1424 B").met is True
    assert find(found, "open", "aes128gcm16, 64 B").met is False
    assert find(found, "whole encap, IMIX: time with 1 M").met is True
    # Smaller tables and smaller vectors are not what the target is about.
    assert find(found, "whole encap, 64 B: time with 1 M").met is None
    assert find(found, "whole encap, one core, IMIX").met is None


def updates(**totals: float) -> dict[str, Any]:
    by_kind = {name: {"updates": value, "rekeys": value, "in peace": 0.0} for name, value in totals.items()}
    samples = {"tcp_bits_per_second": {"in peace": [10.0, 10.0], "updates": [9.1, 9.3], "rekeys": [9.1, 9.3]}}
    samples["tcp_bits_per_second"]["updates by hundreds"] = [8.1, 8.3]
    return {"updates": {"samples": samples, "totals": {"udp_sent": {"in peace": 5.0}, **by_kind}}}


def test_updates_and_rekeys() -> None:
    found = verdicts(updates(udp_lost=0, udp_reordered=0))
    assert find(found, "updates per second: TCP", "there").met is True
    assert find(found, "100 to a commit: TCP", "there").met is False
    assert find(found, "rekeys", "there").met is False
    for figure in ("updates per second: packets lost", "rekeys in each run: packets lost", "rekeys", "reordered"):
        assert all(v.met for v in found if figure in v.figure and "packets" in v.figure)


@pytest.mark.parametrize("name", ["udp_lost", "tcp_dropped", "udp_dropped", "tcp_underlay_lost"])
def test_one_lost_packet_is_a_miss(name: str) -> None:
    found = verdicts(updates(**{name: 1.0}))
    verdict = find(found, "rekeys in each run: packets lost")
    assert (verdict.measured, verdict.met) == ("1 (0 in peace)", False)
    assert find(found, "rekeys in each run: packets reordered").met is True


def test_what_the_data_plane_dropped_of_the_numbered_stream_counts_once() -> None:
    verdict = find(verdicts(updates(udp_lost=5, udp_dropped=3)), "rekeys in each run: packets lost")
    assert verdict.measured == "5 (0 in peace)"


@pytest.mark.parametrize(("count", "met"), [(0, True), (1, False)])
def test_one_allocation_is_a_miss(count: int, met: bool) -> None:
    packets = 10**6
    result = {"allocations": count, "packets": packets, "allocations_per_packet": count / packets}
    verdict = find(verdicts({"allocations": result}), "heap allocations")
    assert verdict.met is met
    assert f"({count} in 1000000 packets)" in verdict.measured
