"""The UDP ports at which NAT boxes show stations: told by an NHS beside the NAT Address extension."""

from __future__ import annotations

from dsvpn.addresses import Address
from dsvpn.wire.nhrp_extensions import Extension
from dsvpn.wire.nhrp_nat_port import MAX_NAT_PORTS, nat_port_extension, read_nat_ports


def nat_port(extensions: list[Extension], protocol: Address) -> int | None:
    """The public UDP port of a station, None when nothing is said of it."""
    for extension in extensions:
        ports = read_nat_ports(extension)
        if ports is not None:
            return ports.get(protocol)
    return None


def set_nat_port(extensions: list[Extension], protocol: Address, port: int | None) -> None:
    """Say, in place, that a station is at a public UDP port; None takes back what was said of it."""
    for place, extension in enumerate(extensions):
        ports = read_nat_ports(extension)
        if ports is None:
            continue
        ports.pop(protocol, None)
        # A client that fills the extension up does not keep out what is told here.
        while port is not None and len(ports) >= MAX_NAT_PORTS:
            ports.popitem()
        if port is not None:
            ports[protocol] = port
        if ports:
            extensions[place] = nat_port_extension(ports)
        else:
            del extensions[place]
        return
    if port is not None:
        extensions.append(nat_port_extension({protocol: port}))
