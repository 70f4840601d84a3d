"""What crosses the underlay, packet by packet: the proof that nothing else than the VPN does.

Two witnesses. Counters in the kernel (nftables at the ingress of every internet port) see every frame of the whole run
and can lose none, at any speed. A packet capture of the quiet phases keeps whole packets, for times and for a search of
their payload. Every frame enters the internet namespace exactly once, so neither counts anything twice.
"""

from __future__ import annotations

import enum
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from dsvpn.errors import DecodeError, HostError
from dsvpn.lab.run import Run, wait_until
from dsvpn.lab.topology import HUB, SITES, Namespace

#: UDP port of the VPN that the lab compares with.
COMPARISON_PORT = 51820
_TABLE = "dsvpn_lab"


class Traffic(enum.StrEnum):
    """What an underlay packet is."""

    IKE = "ike"
    ESP = "esp"
    ESP_IN_UDP = "esp_in_udp"
    KEEPALIVE = "keepalive"
    NEIGHBOUR = "neighbour"  # ARP, IPv6 neighbour discovery
    GRE = "gre"  # only with ipsec = "none"
    COMPARISON = "comparison"
    OTHER = "other"


#: What may cross the underlay of a protected network.
PROTECTED = frozenset({Traffic.IKE, Traffic.ESP, Traffic.ESP_IN_UDP, Traffic.KEEPALIVE, Traffic.NEIGHBOUR})
#: What carries user packets.
DATA = frozenset({Traffic.ESP, Traffic.ESP_IN_UDP})

_ETHERTYPE_IPV4, _ETHERTYPE_ARP, _ETHERTYPE_IPV6 = 0x0800, 0x0806, 0x86DD
_ICMP6_NEIGHBOUR = range(133, 138)


@dataclass(frozen=True, slots=True)
class Packet:
    """A captured underlay packet. `time` is in seconds of the wall clock, `data` starts at the IP header."""

    time: float
    protocol: int  # EtherType
    data: bytes

    @property
    def addresses(self) -> tuple[IPv4Address, IPv4Address] | None:
        """Source and destination, if it is IPv4."""
        if self.protocol != _ETHERTYPE_IPV4 or len(self.data) < 20:
            return None
        return IPv4Address(self.data[12:16]), IPv4Address(self.data[16:20])

    @property
    def traffic(self) -> Traffic:
        """What it is."""
        return classify(self.protocol, self.data)


def classify(protocol: int, data: bytes) -> Traffic:
    """Tell what an underlay packet is by its content; ports alone prove nothing."""
    if protocol == _ETHERTYPE_ARP:
        return Traffic.NEIGHBOUR
    if protocol == _ETHERTYPE_IPV6:
        discovery = len(data) > 40 and data[6] == 58 and data[40] in _ICMP6_NEIGHBOUR
        return Traffic.NEIGHBOUR if discovery else Traffic.OTHER
    if protocol != _ETHERTYPE_IPV4 or len(data) < 20:
        return Traffic.OTHER
    header = (data[0] & 15) * 4
    if int.from_bytes(data[6:8], "big") & 0x1FFF:  # a later fragment has no transport header to judge by
        return Traffic.OTHER
    payload = data[header:]
    match data[9]:
        case 50:
            # RFC 4303 section 2.1: SPIs below 256 are reserved.
            return Traffic.ESP if len(payload) >= 8 and int.from_bytes(payload[:4], "big") >= 256 else Traffic.OTHER
        case 47:
            return Traffic.GRE
        case 17 if len(payload) > 8:
            return _classify_udp({*struct.unpack_from("!HH", payload)}, payload[8:])
    return Traffic.OTHER


def _classify_udp(ports: set[int], payload: bytes) -> Traffic:
    if 4500 in ports:
        # RFC 3948 section 2: a non-ESP marker, a single 0xff, or an SPI.
        if payload == b"\xff":
            return Traffic.KEEPALIVE
        if payload[:4] == bytes(4):
            return Traffic.IKE if _is_ike(payload[4:]) else Traffic.OTHER
        return Traffic.ESP_IN_UDP if len(payload) >= 8 and int.from_bytes(payload[:4], "big") >= 256 else Traffic.OTHER
    if 500 in ports:
        return Traffic.IKE if _is_ike(payload) else Traffic.OTHER
    return Traffic.COMPARISON if COMPARISON_PORT in ports else Traffic.OTHER


def _is_ike(message: bytes) -> bool:
    # RFC 7296 section 3.1: version 2.0 and the length of the whole message.
    return len(message) >= 28 and message[17] == 0x20 and int.from_bytes(message[24:28], "big") == len(message)


def count(packets: Iterable[Packet]) -> Counter[Traffic]:
    """How many packets of each kind."""
    return Counter(packet.traffic for packet in packets)


def describe(packet: Packet) -> str:
    """One line about a packet, for a report of what should not be there."""
    ends = packet.addresses
    where = f"{ends[0]} -> {ends[1]} protocol {packet.data[9]}" if ends else f"EtherType 0x{packet.protocol:04x}"
    return f"{where}, {len(packet.data)} octets: {packet.data[:48].hex()}"


def holds_plaintext(packets: Iterable[Packet], pattern: bytes) -> list[Packet]:
    """The packets whose octets contain a pattern that the user's packets were filled with."""
    return [packet for packet in packets if pattern in packet.data]


def read_pcap(file: Path) -> Iterator[Packet]:
    """The packets of a capture that `Capture` wrote (microseconds, link type LINUX_SLL2).

    DecodeError for another format or a truncated file.
    """
    content = file.read_bytes()
    if len(content) < 24 or content[:4] != b"\xd4\xc3\xb2\xa1" or int.from_bytes(content[20:24], "little") != 276:
        raise DecodeError("pcap file header (little endian, microseconds, LINUX_SLL2)", 0)
    offset = 24
    while offset < len(content):
        if offset + 16 > len(content):
            raise DecodeError("pcap record header", offset)
        seconds, micros, captured, _ = struct.unpack_from("<IIII", content, offset)
        start, offset = offset + 16, offset + 16 + captured
        if captured < 20 or offset > len(content):
            raise DecodeError("pcap record", start)
        protocol = int.from_bytes(content[start : start + 2], "big")
        yield Packet(seconds + micros / 1e6, protocol, content[start + 20 : offset])


#: What `FrameCounters` may count as other, as a filter: kept for the report, for counters cannot describe a packet.
STRANGERS = f"not arp and not esp and not udp port 500 and not udp port 4500 and not udp port {COMPARISON_PORT}"


class Capture:
    """tcpdump on every port of the internet namespace, whole packets, those of `expression` if it is given."""

    def __init__(self, run: Run, namespace: Namespace, file: Path, expression: str = "") -> None:
        self.file = file
        self._log = file.with_suffix(".log")
        self._run = run
        self._process = run.spawn(
            [
                *("tcpdump", "-i", "any", "-Q", "in", "-y", "LINUX_SLL2", "-n", "-s", "0", "-B", "16384", "-U"),
                *("--immediate-mode", "-Z", "root", "-w", str(file), expression),
            ],
            self._log,
            namespace=namespace.name,
        )
        # The file gets its header once the socket listens.
        wait_until(lambda: self._ended() or (file.exists() and file.stat().st_size >= 24), 10, "tcpdump")
        if self._ended():
            raise HostError(f"tcpdump ended: {self._log.read_text().strip()}")

    def _ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> int:
        """End the capture. Gives the number of packets that the kernel dropped for it (0: the capture is whole)."""
        self._run.end(self._process)
        dropped = re.search(r"(\d+) packets? dropped by kernel", self._log.read_text())
        return int(dropped[1]) if dropped else -1

    def packets(self) -> list[Packet]:
        """What was captured."""
        return list(read_pcap(self.file))


class FrameCounters:
    """Kernel counters of what enters the internet namespace, by kind, and of the data that the hub has part in."""

    def __init__(self, namespace: Namespace, ports: Iterable[str]) -> None:
        self._namespace = namespace
        kinds = "".join(f"  counter seen_{kind} {{\n  }}\n" for kind in Traffic)
        hub = HUB.public
        ike_direct = "@th,200,8 0x20"  # version octet behind 8 of UDP header and 17 of IKE header
        ike_marked = "@th,64,32 0 @th,232,8 0x20"
        spi = "@th,64,32 > 255"
        rules = [
            f"ip saddr {hub} meta l4proto esp counter name seen_hub_data",
            f"ip daddr {hub} meta l4proto esp counter name seen_hub_data",
            *(
                f"ip {end} {hub} udp {port} 4500 udp length > 9 {spi} counter name seen_hub_data"
                for end, port in (("saddr", "sport"), ("daddr", "dport"))
            ),
            "ether type arp counter name seen_neighbour accept",
            "icmpv6 type { 133, 134, 135, 136, 137 } counter name seen_neighbour accept",
            "ip frag-off & 0x1fff != 0 counter name seen_other accept",
            "meta l4proto esp @th,0,32 > 255 counter name seen_esp accept",
            "meta l4proto gre counter name seen_gre accept",
            *(
                rule
                for port in ("sport", "dport")
                for rule in (
                    f"udp {port} 4500 udp length 9 @th,64,8 0xff counter name seen_keepalive accept",
                    f"udp {port} 4500 {ike_marked} counter name seen_ike accept",
                    f"udp {port} 4500 udp length > 15 {spi} counter name seen_esp_in_udp accept",
                    f"udp {port} 500 {ike_direct} counter name seen_ike accept",
                    f"udp {port} {COMPARISON_PORT} counter name seen_comparison accept",
                )
            ),
            # A datagram of the comparison that was under way when its other end closed: behind 8 octets of ICMP and 20
            # of the quoted IP header stand the ports that it was between.
            *(
                f"icmp type destination-unreachable @th,136,8 17 @th,{port},16 {COMPARISON_PORT} "
                "counter name seen_comparison accept"
                for port in (224, 240)
            ),
            "counter name seen_other accept",
        ]
        body = "".join(f"   {rule}\n" for rule in rules)
        namespace.command(
            ["nft", "-f", "-"],
            stdin=f"""
table netdev {_TABLE} {{
{kinds}  counter seen_hub_data {{
  }}
  chain underlay {{
   type filter hook ingress devices = {{ {", ".join(ports)} }} priority 0; policy accept;
{body}  }}
}}
""",
        )

    def read(self) -> FrameCount:
        """The counts since the start."""
        listed = json.loads(self._namespace.command(["nft", "-j", "list", "counters", "table", "netdev", _TABLE]))
        values = {
            entry["counter"]["name"].removeprefix("seen_"): entry["counter"]["packets"]
            for entry in listed["nftables"]
            if "counter" in entry
        }
        return FrameCount({kind: values[kind] for kind in Traffic}, values["hub_data"])


@dataclass(frozen=True, slots=True)
class FrameCount:
    """Frames by kind, and the ESP frames (in UDP or not) that went to or came from the hub."""

    kinds: Mapping[Traffic, int]
    hub_data: int

    def strangers(self, allowed: frozenset[Traffic]) -> dict[Traffic, int]:
        """What was seen and is not allowed."""
        return {kind: number for kind, number in self.kinds.items() if number and kind not in allowed}


@dataclass(frozen=True, slots=True)
class Switch:
    """How user packets of one size moved from the way by the hub to the direct path. Times are of the wall clock."""

    by_hub: int
    direct: int
    first: float
    first_direct: Mapping[str, float]
    first_ike: float | None
    last_by_hub: float | None

    @property
    def seconds(self) -> float | None:
        """From the first packet until the direct path carries both directions; None if it never did."""
        if len(self.first_direct) < 2:
            return None
        return max(self.first_direct.values()) - self.first


def find_switch(packets: Iterable[Packet], since: float, at_least: int) -> Switch:
    """Follow the packets of at least `at_least` octets between two spokes and their hub from `since` on."""
    names = {site.public: site.name for site in SITES}
    by_hub = direct = 0
    first = last_by_hub = first_ike = None
    first_direct: dict[str, float] = {}
    for packet in packets:
        ends = packet.addresses
        if packet.time < since or ends is None or ends[0] not in names or ends[1] not in names:
            continue
        kind, spokes_only = packet.traffic, HUB.public not in ends
        if kind is Traffic.IKE and spokes_only and first_ike is None:
            first_ike = packet.time
        if kind not in DATA or len(packet.data) < at_least:
            continue
        first = first or packet.time
        if spokes_only:
            direct += 1
            first_direct.setdefault(names[ends[0]], packet.time)
        else:
            by_hub += 1
            last_by_hub = packet.time
    return Switch(by_hub, direct, first or since, first_direct, first_ike, last_by_hub)
