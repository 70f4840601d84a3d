"""What one IPsec profile of the configuration means to the engine."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Literal

from dsvpn.addresses import Address, Prefix
from dsvpn.errors import MisuseError
from dsvpn.ike.authentication.credentials import Credentials
from dsvpn.ike.authentication.trust import TrustStore
from dsvpn.ike.fragmentation import DEFAULT_FRAGMENT_SIZE, MIN_FRAGMENT_SIZE
from dsvpn.ike.identity import Identity, RemoteIdentity
from dsvpn.ike.ppk import Ppk
from dsvpn.ike.suites import EspSuite, IkeSuite


@dataclass(frozen=True, slots=True)
class RetransmissionSchedule:
    """When a request without an answer is sent again (RFC 7296 section 2.1).

    The first wait is `timeout` seconds, each further one `factor` times longer and at most `cap`. After `tries`
    datagrams in all and one last wait the peer counts as dead.
    """

    timeout: float = 0.5
    factor: float = 1.7
    cap: float = 8.0
    tries: int = 7

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and self.factor >= 1 and self.cap >= self.timeout and self.tries >= 1):
            raise MisuseError(f"retransmission schedule {self} has no meaning: timeout > 0, factor >= 1, tries >= 1")

    def wait(self, sent: int) -> float:
        """Seconds to wait after the `sent`-th datagram (1 is the first)."""
        return min(self.timeout * self.factor ** (sent - 1), self.cap)


@dataclass(frozen=True, slots=True)
class IkeProfile:
    """How to speak IKE with the peers of one profile. Suites come in order of preference. All times are seconds.

    `remote_identity` None takes any peer that proves itself. `psk` is the key for peers that `psks` has none for; both
    are empty where certificates alone are used: `credentials` prove us, `trust` decides about peers.
    `force_udp_encapsulation` makes both ends detect a NAT that is not there, so that ESP goes in UDP. A lifetime is
    hard: at its end the SA is deleted; the rekey starts earlier by `rekey_margin` of the lifetime plus up to as much
    again at random. `child_bytes` and `child_packets` are lifetimes of CHILD_SAs by what they carry in either
    direction, hard and soft in the same way; 0 is no limit.
    `reauthentication` is how long a proof of identity holds; 0 is as long as the certificates.
    `childless` is about IKE_AUTH without a CHILD_SA (RFC 6023): "prefer" does so where the peer takes it, "allow" takes
    it, "never" neither.
    `dpd_interval` is the silence after which the peer is asked for a sign of life; 0 never asks.
    `mobike`: either end may move to other addresses (RFC 4555); `additional_addresses` are ours beside the one that IKE
    uses, for peers to try. `prohibit_nat`: calls that pass a NAT are refused by peers that have MOBIKE.
    `tunnel_mode` makes CHILD_SAs in tunnel mode, and none where there is a NAT. `esn` False never uses extended
    sequence numbers.
    `redirect_to`: callers that can be redirected are sent there (RFC 5685), with `redirect_early` already in
    IKE_SA_INIT if all profiles agree; `follow_redirects` are the addresses that this end lets itself be sent to.
    `per_resource_sas` is how many CHILD_SAs this end wants beside the first for more workers to seal (RFC 9611), and
    `per_resource_limit` how many it takes in all; 1 takes no part in it.
    `ppks` are the post-quantum preshared keys: an initiator uses the first, a responder the one that the peer names.
    """

    name: str
    ike: tuple[IkeSuite, ...]
    esp: tuple[EspSuite, ...]
    psk: bytes = field(repr=False)
    local_identity: Identity
    remote_identity: RemoteIdentity | None = None
    force_udp_encapsulation: bool = False
    ike_lifetime: float = 14400.0
    child_lifetime: float = 3600.0
    child_bytes: int = 0
    child_packets: int = 0
    reauthentication: float = 0.0
    childless: Literal["never", "allow", "prefer"] = "allow"
    rekey_margin: float = 0.1
    dpd_interval: float = 20.0
    retransmission: RetransmissionSchedule = RetransmissionSchedule()
    replay_window: int = 1024
    ppks: tuple[Ppk, ...] = ()
    psks: tuple[tuple[RemoteIdentity, bytes], ...] = field(default=(), repr=False)
    credentials: Credentials | None = None
    trust: TrustStore | None = None
    fragment_size: int = DEFAULT_FRAGMENT_SIZE
    mobike: bool = False
    additional_addresses: tuple[Address, ...] = ()
    prohibit_nat: bool = False
    tunnel_mode: bool = False
    esn: bool = True
    redirect_to: Address | None = None
    redirect_early: bool = False
    follow_redirects: tuple[Prefix, ...] = ()
    per_resource_sas: int = 0
    per_resource_limit: int = 16

    def __post_init__(self) -> None:
        if not self.ike or not self.esp:
            kind = "esp" if self.ike else "ike"
            raise MisuseError(f"profile {self.name!r} has no {kind} suite; name at least one")
        if not self.psk and not self.psks and self.credentials is None:
            raise MisuseError(f"profile {self.name!r} has an empty pre-shared key and no certificate")
        if any(not psk for _, psk in self.psks):
            raise MisuseError(f"profile {self.name!r} has an empty pre-shared key")
        if (self.credentials is None) != (self.trust is None):
            raise MisuseError(f"profile {self.name!r} has a certificate or trusted authorities without the other")
        if self.credentials is not None:
            self.credentials.check_identity(self.local_identity)
        if self.fragment_size < MIN_FRAGMENT_SIZE:
            raise MisuseError(f"profile {self.name!r}: fragment_size {self.fragment_size} is below {MIN_FRAGMENT_SIZE}")
        if self.tunnel_mode and self.force_udp_encapsulation:
            raise MisuseError(f"profile {self.name!r} has tunnel mode and forces UDP encapsulation; choose one of them")
        if not 0.0 < self.rekey_margin < 0.5:
            raise MisuseError(f"profile {self.name!r}: rekey_margin {self.rekey_margin} is not between 0 and 0.5")
        for name in ("ike_lifetime", "child_lifetime"):
            if getattr(self, name) < 10.0:
                raise MisuseError(f"profile {self.name!r}: {name} {getattr(self, name)} s is shorter than 10 s")
        for name in ("child_bytes", "child_packets"):
            if getattr(self, name) < 0:
                raise MisuseError(f"profile {self.name!r}: {name} {getattr(self, name)} is negative; 0 is no limit")
        if self.reauthentication and self.reauthentication < 10.0:
            raise MisuseError(f"profile {self.name!r}: reauthentication {self.reauthentication} s is below 10 s")
        if not 0 <= self.per_resource_sas < 16 or not 1 <= self.per_resource_limit <= 16:
            raise MisuseError(
                f"profile {self.name!r}: per_resource_sas {self.per_resource_sas} is not within 0 and 15, or "
                f"per_resource_limit {self.per_resource_limit} not within 1 and 16"
            )
        if self.dpd_interval < 0:
            raise MisuseError(f"profile {self.name!r}: dpd_interval {self.dpd_interval} s is negative; 0 is never")

    def require(self, kems: Container[str]) -> None:
        """MisuseError when a suite names a key encapsulation mechanism that is none of `kems`."""
        suites: tuple[IkeSuite | EspSuite, ...] = (*self.ike, *self.esp)
        for suite in suites:
            for _, group in suite.additional:
                if group.is_kem and group.name not in kems:
                    raise MisuseError(
                        f"profile {self.name!r}: suite {suite} needs {group.name}, which the installed dsvpn_native "
                        "does not have; install the dsvpn-native of this version, or write mlkem768"
                    )
