"""The initiators of all handshakes: many gateways in one process, each with an address of its own.

`python -m bench.control.initiator SETTINGS` takes one request per line of standard input, JSON, and answers with one:

    {"do": "connect", "count": N, "in_flight": M}   N more peers do their handshake, at most M of them at once
    {"do": "rekey_children"} / {"do": "rekey_ike_sas"}     every peer that is up, M at once
    {"do": "disconnect"}                            every IKE SA is deleted, M at once
    {"do": "listen", "seconds": S}                  answer what the responder asks: its DPD, its rekeys

SETTINGS (JSON) names the responder's address, the first address of the initiators, suites and how they prove
themselves. All addresses belong to the loopback of this network namespace: the source of each datagram is chosen by
IP_PKTINFO. ESP goes nowhere: CHILD_SAs are made, and not used.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from itertools import count
from pathlib import Path as FilePath
from typing import Any

from dsvpn.addresses import Endpoint, Path
from dsvpn.config.load import load_config
from dsvpn.ike import events
from dsvpn.ike.engine import IkeEngine
from dsvpn.ike.profile import IkeProfile
from dsvpn.io.kem import native_kems
from dsvpn.policy import ike_profile

#: Not named by Python's socket module.
_IP_PKTINFO, _SO_RCVBUFFORCE = 8, 33
_NON_ESP_MARKER = bytes(4)
_DATAGRAM = 65536
#: What the kernel keeps while this process computes.
_BUFFER = 8 << 20
#: Seconds without any progress after which a step is given up.
_PATIENCE = 20.0
#: A responder that answers but lets nobody in for so long is given up, seconds.
_STALLED = 30.0
#: An unanswered request is sent again within so many seconds.
_RETRANSMISSIONS = 10.0


@dataclass(slots=True)
class _Peer:
    """One initiator: when its step began."""

    started: float
    address: IPv4Address


class Initiators:
    """An engine with as many local addresses as peers, and its two sockets."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._remote = IPv4Address(settings["remote"])
        self._addresses = map(IPv4Address, count(int(IPv4Address(settings["first_address"]))))
        profiles = _profiles(settings)
        self._names = [profile.name for profile in profiles]
        spis = count(0x1000)
        self._engine = IkeEngine(
            profiles,
            random=os.urandom,
            allocate_spi=lambda _: next(spis),
            release_spi=lambda _: None,
            wall_clock=time.time,
            kems=native_kems(),
        )
        self._sockets = {port: _socket(port) for port in (500, 4500)}
        self._connecting: dict[int, _Peer] = {}
        self._up: dict[int, dict[int, None]] = {}
        self._busy: dict[int, float] = {}
        self._made = 0
        self._latencies: list[float] = []
        self._failures: dict[str, int] = {}
        self._noted: dict[str, int] = {}

    # -- steps -------------------------------------------------------------------------------------------------

    def connect(self, count: int, in_flight: int) -> dict[str, Any]:
        """Handshakes of `count` new peers. Latencies in seconds, first datagram to CHILD_SA."""
        self._latencies.clear()
        self._failures.clear()
        left, up = count, len(self._up)
        began = progress = time.monotonic()
        while left or self._connecting:
            now = time.monotonic()
            if len(self._up) > up:
                up, progress = len(self._up), now
            elif now - progress > _STALLED:
                raise SystemExit(
                    f"no handshake came to its end in {_STALLED:.0f} s; {len(self._connecting)} are under way"
                )
            while left and len(self._connecting) < in_flight:
                left -= 1
                address = next(self._addresses)
                path = Path(Endpoint(address, 500), Endpoint(self._remote, 500))
                profile = self._names[self._made % len(self._names)]
                self._made += 1
                self._connecting[self._engine.initiate(profile, path, now)] = _Peer(time.monotonic(), address)
            self._turn(now, _PATIENCE)
        seconds = time.monotonic() - began
        return {"seconds": seconds, "latencies": list(self._latencies), "failures": dict(self._failures),
                "up": len(self._up)}  # fmt: skip

    def each(self, work: Callable[[int, float], None], done: str, in_flight: int, most: int | None) -> dict[str, Any]:
        """Something with every peer that is up (at most `most`), until the event `done` has come from each."""
        self._busy.clear()
        self._latencies.clear()
        waiting = list(self._up)[:most]
        began = time.monotonic()
        total = len(waiting)
        while waiting or self._busy:
            now = time.monotonic()
            while waiting and len(self._busy) < in_flight:
                handle = waiting.pop()
                self._busy[handle] = time.monotonic()
                work(handle, now)
            self._turn(now, _PATIENCE, done)
        return {"seconds": time.monotonic() - began, "count": total, "latencies": list(self._latencies),
                "up": len(self._up)}  # fmt: skip

    def disconnect(self, in_flight: int) -> dict[str, Any]:
        """Delete every IKE SA. An answer of the responder makes room for the next."""
        began = time.monotonic()
        waiting = list(self._up)
        while waiting:
            now = time.monotonic()
            for handle in waiting[-in_flight:]:
                self._engine.delete(handle, now, "the step is over")
            del waiting[-in_flight:]
            self._turn(now, 0.0, patient=True)
            # Nothing but retransmissions is due so soon.
            while (timer := self._engine.get_timer()) is not None and timer < time.monotonic() + _RETRANSMISSIONS:
                self._turn(time.monotonic(), _PATIENCE)
        return {"seconds": time.monotonic() - began, "up": len(self._up)}

    def listen(self, seconds: float) -> dict[str, Any]:
        """Answer the responder for so long; what happened, by event."""
        self._noted.clear()
        end = time.monotonic() + seconds
        received = 0
        while (now := time.monotonic()) < end:
            received += self._turn(now, end - now, patient=True)
        return {"received": received, "events": dict(self._noted), "up": len(self._up)}

    def rekey_children(self, in_flight: int, most: int | None = None) -> dict[str, Any]:
        """A new CHILD_SA for each that there is; the old one goes when the new one is there."""

        def rekey(handle: int, now: float) -> None:
            (inbound_spi, *_) = self._up[handle]
            self._engine.rekey_child(handle, inbound_spi, now)

        return self.each(rekey, "ChildSaEstablished", in_flight, most)

    def rekey_ike_sas(self, in_flight: int, most: int | None = None) -> dict[str, Any]:
        """New IKE SAs for all."""
        return self.each(self._engine.rekey_ike, "IkeSaRekeyed", in_flight, most)

    # -- a turn ------------------------------------------------------------------------------------------------

    def _turn(self, now: float, patience: float, done: str = "", *, patient: bool = False) -> int:
        """Send what is due, wait for a datagram or a timer, take what came. Gives how many datagrams that was."""
        self._send(now)
        deadline = self._engine.get_timer()
        wait = patience if deadline is None else min(patience, max(0.0, deadline - time.monotonic()))
        ready, _, _ = select.select(list(self._sockets.values()), [], [], wait)
        now = time.monotonic()
        taken = 0
        for one in ready:
            port = 500 if one is self._sockets[500] else 4500
            # A bounded burst, so that answers leave in between.
            for _ in range(16):
                try:
                    data, ancillary, _, (address, source) = one.recvmsg(_DATAGRAM, 64)
                except BlockingIOError:
                    break
                taken += 1
                if port == 4500:
                    if data[:4] != _NON_ESP_MARKER:
                        continue
                    data = data[4:]
                local = IPv4Address(ancillary[0][2][8:12])
                path = Path(Endpoint(local, port), Endpoint(ip_address(address), source))
                self._engine.receive_datagram(data, path, now)
        if not ready and deadline is None and not patient:
            raise SystemExit(f"the responder is silent: {len(self._connecting)} handshakes and {len(self._busy)} wait")
        self._engine.handle_timer(now)
        while (event := self._engine.next_event()) is not None:
            self._note(event, done)
        self._send(now)
        return taken

    def _send(self, now: float) -> None:
        for data, (local, remote) in self._engine.datagrams_to_send(now):
            if local.port == 4500:
                data = _NON_ESP_MARKER + data  # noqa: PLW2901
            info = struct.pack("@I4s4s", 0, local.address.packed, bytes(4))
            self._sockets[local.port].sendmsg(
                [data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, (str(remote.address), remote.port)
            )

    def _note(self, event: events.Event, done: str) -> None:
        kind = type(event).__name__
        self._noted[kind] = self._noted.get(kind, 0) + 1
        match event:
            case events.IkeSaEstablished(handle):
                self._up[handle] = {}
            case events.ChildSaEstablished():
                self._up[event.ike_sa][event.inbound_spi] = None
                peer = self._connecting.pop(event.ike_sa, None)
                if peer is not None:
                    self._latencies.append(time.monotonic() - peer.started)
            case events.ChildSaDeleted(handle, inbound_spi):
                self._up[handle].pop(inbound_spi, None)
            case events.IkeSaDeleted(handle):
                self._up.pop(handle, None)
                self._busy.pop(handle, None)
                self._connecting.pop(handle, None)
            case events.IkeSaFailed(handle):
                self._failures[event.reason] = self._failures.get(event.reason, 0) + 1
                self._connecting.pop(handle, None)
        if kind == done and (started := self._busy.pop(event.ike_sa, None)) is not None:  # type: ignore[union-attr]
            self._latencies.append(time.monotonic() - started)


def _socket(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    made.bind(("0.0.0.0", port))
    made.setblocking(False)
    return made


def _profiles(settings: dict[str, Any]) -> list[IkeProfile]:
    """One profile for each configuration file of a gateway that the settings name."""
    configs = [load_config(FilePath(file)) for file in settings["gateways"]]
    return [
        ike_profile(config.gateway.name, config.ipsec["default"], config.materials["default"]) for config in configs
    ]


def main(argv: list[str]) -> None:
    """Serve requests until standard input ends."""
    initiators = Initiators(json.loads(argv[0]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        work = getattr(initiators, request.pop("do"))
        print(json.dumps(work(**request)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
