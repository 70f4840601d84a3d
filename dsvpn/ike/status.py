"""What `dsvpn show sa` shows of the engine: values copied out, free of key material."""

from __future__ import annotations

from dataclasses import dataclass

from dsvpn.addresses import Address, Path


@dataclass(frozen=True, slots=True)
class ChildSaStatus:
    """One CHILD_SA. Times are seconds from the snapshot, 0 for what is under way.

    `state` is "installed", "rekeyed" (the old SA of a rekey that
    still lingers) or "deleting". `outbound_ready` False: the older SA still seals. `mode` is "transport" or "tunnel".
    """

    inbound_spi: int
    outbound_spi: int
    suite: str
    esn: bool
    state: str
    age: float
    rekey_in: float
    expires_in: float
    outbound_ready: bool
    udp_encapsulation: bool
    #: As last reported by the data plane.
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    #: The part of the nearest limit by octets, packets or sequence numbers that is used, 0 to 1; 0 without a limit.
    used: float = 0.0
    mode: str = "transport"
    #: Its place among those that stand side by side for several workers (RFC 9611); 0 is the fallback.
    resource: int = 0


@dataclass(frozen=True, slots=True)
class IkeSaStatus:
    """One IKE SA. `state` is "connecting", "established", "rekeying", "reauthenticating", "superseded" (by a
    new IKE SA with the same peer) or "deleting". Message ids are the next to use
    for our requests and the next expected of the peer's."""

    ike_sa: int
    profile: str
    state: str
    initiator: bool
    path: Path
    local_identity: str
    remote_identity: str
    initiator_spi: int
    responder_spi: int
    suite: str
    age: float
    rekey_in: float
    expires_in: float
    last_heard: float
    local_nat: bool
    remote_nat: bool
    udp_encapsulation: bool
    next_request_id: int
    expected_request_id: int
    children: tuple[ChildSaStatus, ...]
    #: Seconds until the peer is authenticated anew, and until the IKE SA ends if it is not; None without such an end.
    reauthentication_in: float | None = None
    authenticated_for: float | None = None
    #: The identity of the post-quantum preshared key in the keys, empty without.
    ppk: str = ""
    #: Both ends can move to other addresses (RFC 4555), and the addresses that the peer has besides.
    mobike: bool = False
    peer_addresses: tuple[Address, ...] = ()
    #: Whether the peer gave a crash token (RFC 6290): its restart is noticed at once.
    crash_token: bool = False
    #: How the peer proved itself, such as "pre-shared key" or "ECDSA with SHA2-256".
    authentication: str = ""
