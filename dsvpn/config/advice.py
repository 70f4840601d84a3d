"""What a good configuration says that its writer may not have meant."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from dsvpn.addresses import Address, Prefix
from dsvpn.config.model import Config, TunnelConfig


def advice(config: Config) -> list[str]:
    """One line for each doubt: the key, what follows from it, and what to write instead."""
    found = [*_of_shared_profiles(config)]
    for name, tunnel in config.tunnels.items():
        found += _of_shortcuts(name, tunnel)
        found += _of_routes(name, tunnel, config.gateway.underlay_vrf)
        found += _of_identities(name, tunnel, config)
    return found


def _public(tunnel: TunnelConfig) -> dict[Address | str, None]:
    """The public addresses and names of the gateways that a tunnel names, in the order of the file."""
    return dict.fromkeys([entry.nbma for entry in tunnel.nhrp.nhs] + [entry.nbma for entry in tunnel.nhrp.map])


def _of_shared_profiles(config: Config) -> Iterator[str]:
    """An SA belongs to a peer and a profile. What comes by it may claim any of the profile's tunnels by the GRE key."""
    for (first, one), (second, other) in combinations(config.tunnels.items(), 2):
        if not one.protected or one.ipsec != other.ipsec:
            continue
        both = [nbma for nbma in _public(one) if nbma in _public(other)]
        if both:
            yield (
                f"tunnel.{first} and tunnel.{second} share the profile {one.ipsec} and both go to {both[0]}: one SA "
                "carries both, and only the GRE key, which is no secret, tells their packets apart; if their networks "
                f"must not trust each other, write a profile of its own, with credentials of its own, for each in ipsec"
            )


def _of_shortcuts(name: str, tunnel: TunnelConfig) -> Iterator[str]:
    """Both ends have to agree to direct paths, and neither does by default."""
    nhrp = tunnel.nhrp
    written = nhrp.model_fields_set
    if nhrp.nhs and not nhrp.redirect and "shortcut" not in written:
        yield (
            f"tunnel.{name}.nhrp.shortcut is not set: all traffic goes by the hub; write shortcut = true for direct "
            "paths, or shortcut = false if that is meant"
        )
    if not nhrp.nhs and not nhrp.map and "redirect" not in written:
        yield (
            f"tunnel.{name}.nhrp names no nhs, which makes this gateway a hub, and redirect is not set: it never tells "
            "its spokes of direct paths; write redirect = true for them, or redirect = false if that is meant"
        )


def _of_routes(name: str, tunnel: TunnelConfig, underlay_vrf: str | None) -> Iterator[str]:
    """A tunnel's own packets that are routed into it go nowhere."""
    if tunnel.vrf != underlay_vrf:
        return
    inside: dict[str, Prefix] = {f"address {one}": one.network for one in tunnel.addresses}
    inside |= {f"routes.{index}": route.prefix for index, route in enumerate(tunnel.routes)}
    for nbma in _public(tunnel):
        for key, prefix in inside.items():
            if not isinstance(nbma, str) and nbma.version == prefix.version and nbma in prefix:
                yield (
                    f"tunnel.{name}.{key}: {prefix} leads into the tunnel and has the public address {nbma} in it: "
                    "without a longer route to it on the underlay, the tunnel's packets go into the tunnel; write "
                    f"a prefix without {nbma}, or put the tunnel or the underlay into a VRF"
                )


def _of_identities(name: str, tunnel: TunnelConfig, config: Config) -> Iterator[str]:
    """Whoever knows the one key of a network can take any identity in it."""
    if not tunnel.protected or not tunnel.authorize:
        return
    auth = config.ipsec[tunnel.ipsec].auth
    if auth.psk is not None and not auth.psks and auth.certificate is None:
        yield (
            f"tunnel.{name}.authorize goes by identity, and ipsec.{tunnel.ipsec}.auth has one psk for all, with which "
            "each peer can take the identity of another; write psks (a key for each identity) or use certificates"
        )
