"""Times the codecs of the `dsvpn` that PYTHONPATH names and prints JSON: `wire_worker.py DIRECTORY`.

DIRECTORY holds the test vectors, which are real packets.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

import dsvpn.wire.cursor
from dsvpn.wire import nhrp
from dsvpn.wire.ikev2 import Message

_REPEAT = 7
#: Octets of Ethernet, IPv4 and UDP; of Ethernet, IPv4 and GRE with a key.
_UDP, _GRE = 14 + 20 + 8, 14 + 20 + 8
_PCAP_HEADER, _RECORD_HEADER = 24, 16
_NAT_PORT = 4500


def frames(file: Path) -> list[bytes]:
    """The frames of a classic little-endian pcap file."""
    data = file.read_bytes()
    found, at = [], _PCAP_HEADER
    while at < len(data):
        length = int.from_bytes(data[at + 8 : at + 12], "little")
        found.append(data[at + _RECORD_HEADER : at + _RECORD_HEADER + length])
        at += _RECORD_HEADER + length
    return found


def ike_datagrams(directory: Path) -> list[bytes]:
    """The recorded IKE messages, without the non-ESP marker."""
    found = []
    for file in sorted((directory / "ikev2").glob("*.pcap")):
        for frame in frames(file):
            # IPv4, UDP; ESP in UDP begins with an SPI, IKE on 4500 with four zeros.
            if frame[12:14] != b"\x08\x00" or frame[14 + 9] != 17:
                continue
            ports = {int.from_bytes(frame[at : at + 2], "big") for at in (34, 36)}
            if 500 in ports:
                found.append(frame[_UDP:])
            elif _NAT_PORT in ports and frame[_UDP : _UDP + 4] == bytes(4):
                found.append(frame[_UDP + 4 :])
    return found


def nhrp_packets(directory: Path) -> list[bytes]:
    """The recorded NHRP packets."""
    return [frame[_GRE:] for file in sorted((directory / "nhrp").glob("*.pcap")) for frame in frames(file)]


def seconds(work: Callable[[], object]) -> float:
    """Best time of one call: what disturbs can only add."""
    timer = timeit.Timer(work)
    number, _ = timer.autorange()
    return min(timer.repeat(_REPEAT, number)) / number


def main(directory: Path) -> None:
    """Time every case, per packet."""
    ike, packets = ike_datagrams(directory), nhrp_packets(directory)
    if not ike or not packets:
        raise SystemExit(f"{directory} has no recorded packets")
    messages, decoded = [Message.decode(data) for data in ike], [nhrp.decode(data) for data in packets]
    cases: dict[str, tuple[Callable[[], object], int]] = {
        "IKE decode": (lambda: [Message.decode(data) for data in ike], len(ike)),
        "IKE encode": (lambda: [message.encode() for message in messages], len(ike)),
        "NHRP decode": (lambda: [nhrp.decode(data) for data in packets], len(packets)),
        "NHRP encode": (lambda: [nhrp.encode(packet) for packet in decoded], len(packets)),
    }
    loaded = str(dsvpn.wire.cursor.__file__)
    times = {case: seconds(work) / count for case, (work, count) in cases.items()}
    print(json.dumps({"compiled": not loaded.endswith(".py"), "file": loaded, "seconds": times}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
