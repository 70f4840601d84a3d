"""What the lab reads from a gateway's status, which is what `dsvpn show --json` prints."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

from dsvpn.lab.gateways import TUNNEL, GatewayProcess


def registrations(hub: GatewayProcess) -> dict[IPv4Address, IPv4Address]:
    """Tunnel address -> public address of every gateway that is registered at this hub."""
    return {
        IPv4Address(mapping["protocol"]): IPv4Address(mapping["nbma"])
        for mapping in hub.show("nhrp")[TUNNEL]["mappings"]
        if mapping["kind"] == "registered"
    }


def registered(spoke: GatewayProcess) -> bool:
    """Whether every NHS of a spoke has accepted its registration."""
    servers = spoke.show("nhrp")[TUNNEL]["nhs"]
    return bool(servers) and all(nhs["state"] == "up" for nhs in servers)


def peers(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """The IPsec peers of a gateway."""
    listed: list[dict[str, Any]] = gateway.show("peers")["peers"]
    return listed


def data_packets(gateway: GatewayProcess) -> int:
    """User packets that a gateway has taken from and given to its peers. NHRP does not count."""
    traffic = [peer["traffic"].get(TUNNEL, {}) for peer in peers(gateway)]
    return sum(counters.get("packets_in", 0) + counters.get("packets_out", 0) for counters in traffic)


def nhrp_received(gateway: GatewayProcess, kind: str) -> int:
    """NHRP packets of a kind that a gateway has received."""
    return int(gateway.show("counters")["nhrp"][TUNNEL].get(f"rx.{kind}", 0))


def shortcuts(gateway: GatewayProcess) -> dict[str, str]:
    """Prefix -> next hop of every shortcut of a gateway."""
    return {entry["prefix"]: entry["next_hop"] for entry in gateway.show("nhrp")[TUNNEL]["shortcuts"]}


def path_to(gateway: GatewayProcess, prefix: str) -> str | None:
    """ "direct", "hub" or "none" for a route of the gateway, None if it has no such route."""
    for route in gateway.show("routes"):
        if route["prefix"] == prefix:
            return str(route["path"])
    return None
