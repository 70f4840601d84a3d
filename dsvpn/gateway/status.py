"""What `dsvpn show` shows of a gateway: its sections as values that JSON can carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any

from dsvpn.addresses import Address, Path
from dsvpn.gateway.nat import explain

if TYPE_CHECKING:
    from dsvpn.config.credentials import Material
    from dsvpn.gateway.core import Gateway
    from dsvpn.gateway.forwarding import NextHop
    from dsvpn.gateway.peers import Peer
    from dsvpn.gateway.tunnel import Tunnel


def sections(gateway: Gateway, now: float) -> dict[str, Any]:
    """The sections by name: "summary", "nhrp", "peers", "sa", "routes", "ike" (counters). Times are seconds relative to
    now."""
    return {
        "summary": _summary(gateway, now),
        "nhrp": {name: plain(tunnel.nhrp.snapshot(now)) for name, tunnel in gateway.tunnels.items()},
        "peers": {
            "peers": [_peer(gateway, peer, now) for peer in gateway.peers],
            "refused": [
                {
                    "ago": round(now - when, 1),
                    "profile": event.profile,
                    "remote": str(event.path.remote.address),
                    "port": event.path.remote.port,
                    "identity": event.remote_identity,
                    "reason": event.reason,
                }
                for when, event in gateway.peering.refused
            ],
        },
        "sa": plain(gateway.ike.snapshot(now)),
        "ike": gateway.ike.counters() | {"moved": gateway.peering.roaming.moved},
        "routes": [route for tunnel in gateway.tunnels.values() for route in _routes(tunnel)],
    }


def certificates(materials: Mapping[str, Material], wall: float) -> list[dict[str, Any]]:
    """The certificates and revocation lists of each profile that has them. Times are seconds from `wall`, the time of
    day."""
    listed = []
    for name, material in materials.items():
        if material.credentials is None or material.trust is None:
            continue
        own, trust = material.credentials, material.trust
        shown = [("own", own.certificate), *(("intermediate", entry) for entry in own.chain)]
        shown += [("CA", entry) for entry in trust.authorities]
        listed.append(
            {
                "profile": name,
                "identity": str(material.local_identity),
                "crl_policy": "require" if trust.require_crl else "if-present",
                "certificates": [
                    {
                        "role": role,
                        "subject": certificate.name,
                        "issuer": certificate.issuer_name,
                        "serial": f"{certificate.serial:x}",
                        "key": certificate.kind,
                        "expires_in": round(certificate.not_after.timestamp() - wall),
                    }
                    for role, certificate in shown
                ],
                "crls": [
                    {
                        "source": crl.source,
                        "issuer": crl.issuer_name,
                        "revoked": crl.revoked,
                        "next_update_in": None
                        if crl.next_update is None
                        else round(crl.next_update.timestamp() - wall),
                        "trusted": any(crl.is_of(authority) for authority in trust.authorities),
                    }
                    for crl in trust.crls
                ],
                "warnings": list(material.warnings),
            }
        )
    return listed


def plain(value: Any) -> Any:
    """Dataclasses, addresses and paths as dicts, lists, text and numbers."""
    if isinstance(value, Path):
        return {
            "local": str(value.local.address),
            "local_port": value.local.port,
            "remote": str(value.remote.address),
            "remote_port": value.remote.port,
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 3)
    return value


def _summary(gateway: Gateway, now: float) -> dict[str, Any]:
    tunnels = {}
    for name, tunnel in gateway.tunnels.items():
        snapshot = tunnel.nhrp.snapshot(now)
        tunnels[name] = {
            "addresses": [str(interface) for interface in tunnel.config.addresses],
            "source": None if tunnel.source is None else str(tunnel.source),
            "ipsec": tunnel.config.ipsec,
            "key": tunnel.config.key,
            "vrf": tunnel.config.vrf,
            "nhs": [
                {
                    "protocol": str(nhs.protocol),
                    "priority": nhs.priority,
                    "state": nhs.state,
                    "standing": tunnel.health.standing(nhs.protocol).name.lower(),
                    "name": _name_of(gateway, name, nhs.protocol),
                    "nbma": None if nhs.nbma is None else str(nhs.nbma),
                    "error": nhs.last_error or _name_error(gateway, name, nhs.protocol),
                }
                for nhs in snapshot.nhs
            ],
            "mappings": len(tunnel.mappings),
            "peers_up": sum(1 for peer in gateway.peers if peer.up and name in peer.adjacencies),
            "shortcuts": len(tunnel.shortcuts),
            "shortcuts_active": sum(1 for prefix in tunnel.shortcuts if tunnel.shortcut_active(prefix)),
        }
    return {
        "gateway": gateway.config.gateway.name,
        "underlay_vrf": gateway.config.gateway.underlay_vrf,
        "tunnels": tunnels,
    }


def _name_of(gateway: Gateway, tunnel: str, protocol: Address) -> str | None:
    server = gateway.names.get(tunnel, protocol)
    return None if server is None else server.name


def _name_error(gateway: Gateway, tunnel: str, protocol: Address) -> str:
    server = gateway.names.get(tunnel, protocol)
    return "" if server is None else server.error


def _peer(gateway: Gateway, peer: Peer, now: float) -> dict[str, Any]:
    if peer.up:
        state = "up"
    elif peer.attempt is not None or peer.ike_sas:
        state = "connecting"
    else:
        state = "waiting" if peer.calls else "down"
    child = peer.children.get(peer.current) if peer.current is not None else None
    path, why = explain(peer, gateway.peering.retry_in(peer, now))
    return {
        "state": state,
        "identity": peer.identity,
        "nbma": str(peer.nbma),
        "port": 0 if peer.path is None else peer.path.remote.port,
        "private_nbma": None if peer.private_nbma is None else str(peer.private_nbma),
        "redirected_to": str(gateway.peering.redirects.target(peer))
        if gateway.peering.redirects.is_away(peer)
        else None,
        "profile": peer.profile,
        "encapsulation": peer.encapsulation if peer.up else None,
        "suite": None if child is None else child.suite,
        "local_nat": peer.local_nat,
        "remote_nat": peer.remote_nat,
        "up_for": None if peer.since is None else round(now - peer.since, 1),
        "mappings": [
            {"tunnel": tunnel, "protocol": str(protocol), "kind": kind}
            for (tunnel, protocol), kind in peer.needs.items()
        ],
        "adjacencies": dict(peer.adjacencies),
        "child_sas": len(peer.children),
        "sealing": {
            str(resource): f"{peer.children[spi].outbound_spi:08x}"
            for resource, spi in ([] if peer.current is None else [(0, peer.current), *sorted(peer.workers.items())])
        },
        "last_error": peer.last_error,
        "path": path,
        "why": why,
    }


def _routes(tunnel: Tunnel) -> list[dict[str, Any]]:
    listed = []
    for prefix, source, next_hop in tunnel.forwarding.routes():
        ways = next_hop.members or (next_hop,)
        paths = {_path_of(tunnel, way) for way in ways}
        listed.append(
            {
                "tunnel": tunnel.name,
                "prefix": str(prefix),
                "source": source.name.lower(),
                "next_hop": ", ".join(str(way.address) for way in ways) if next_hop.address is not None else None,
                "adjacency": ways[0].target.adjacency,
                "path": paths.pop() if len(paths) == 1 else "hub",
            }
        )
    return listed


def _path_of(tunnel: Tunnel, next_hop: NextHop) -> str:
    address = next_hop.address
    mapping = None if address is None or isinstance(address, tuple) else tunnel.mappings.get(address)
    peer = None if mapping is None else mapping.peer
    if next_hop.target.adjacency is None:
        return "none"
    return "direct" if peer is not None and peer.adjacencies[tunnel.name] == next_hop.target.adjacency else "hub"
