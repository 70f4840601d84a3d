"""What the identity that a peer has proved gives it in a tunnel."""

from __future__ import annotations

from functools import lru_cache

from dsvpn.addresses import Prefix
from dsvpn.config.authorize import Grant
from dsvpn.config.model import TunnelConfig
from dsvpn.errors import MisuseError
from dsvpn.ike.identity import Identity, RemoteIdentity, parse_remote_identity
from dsvpn.nhrp.authorization import Claim


class Authorizer:
    """The rules of one tunnel. An identity stands before a pattern, a longer pattern before a shorter one."""

    def __init__(self, config: TunnelConfig) -> None:
        self._networks = tuple(interface.network for interface in config.addresses)
        self._exact: dict[tuple[int, bytes], Grant] = {}
        self._patterns: list[tuple[RemoteIdentity, Grant]] = []
        for text, grant in sorted(config.authorize.items(), key=lambda entry: -len(entry[0])):
            identity = parse_remote_identity(text)
            # A distinguished name has several encodings: only comparing finds the right one.
            if isinstance(identity, Identity) and identity.is_octets:
                self._exact[identity.key] = grant
            else:
                self._patterns.append((identity, grant))
        self._configured = bool(config.authorize)

    def claim(
        self,
        identity: Identity | None,
        certified: tuple[Prefix, ...],
        delegated: tuple[Prefix, ...] | None = None,
    ) -> Claim | None:
        """What a peer may claim. `certified`: the addresses in its certificate; `delegated`: the prefixes that this
        holds by RFC 3779, None if it does not say. None without an identity: plain GRE."""
        if identity is None:
            return None
        name = _name(identity)
        if not self._configured:
            own = tuple(prefix for prefix in certified if any(_inside(prefix, network) for network in self._networks))
            # Addresses in the certificate that are none of this tunnel say nothing about it: the NBMA address is one.
            if delegated is not None:
                # An authority that delegates addresses says which: all of them.
                return Claim(name, own + delegated, own + delegated)
            return Claim(name, own or None)
        grant = self._grant(identity)
        if grant is None:
            return Claim(name, (), ())
        prefixes = grant.prefixes + (certified + (delegated or ()) if grant.certificate else ())
        return Claim(name, prefixes, prefixes)

    def _grant(self, identity: Identity) -> Grant | None:
        found = self._exact.get(identity.key)
        if found is not None:
            return found
        fitting = [(entry.exact is None, grant) for entry, grant in self._patterns if entry.matches(identity)]
        # The longest is first, and sorting keeps the order of equals.
        return min(fitting, key=lambda found: found[0])[1] if fitting else None


def _inside(prefix: Prefix, network: Prefix) -> bool:
    return (
        prefix.version == network.version
        and network.prefixlen <= prefix.prefixlen
        and (prefix.network_address in network)
    )


# A handshake asks three times.
@lru_cache(maxsize=256)
def _name(identity: Identity) -> str:
    """The identity as text that no identity of another type has."""
    text = str(Identity(identity.kind, identity.key[1]))
    try:
        unambiguous = Identity.parse(text).matches(identity)
    except MisuseError:
        unambiguous = False
    return text if unambiguous else f"{text} (ID type {identity.kind})"
