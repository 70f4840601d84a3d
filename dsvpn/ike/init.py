"""IKE_SA_INIT as initiator (RFC 7296 section 1.2).

HDR, [N(COOKIE)], SAi1, KEi, Ni, N(NAT_DETECTION_SOURCE_IP), N(NAT_DETECTION_DESTINATION_IP)  -->
                                          <--  HDR, SAr1, KEr, Nr, N(NAT_DETECTION_*)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from dsvpn.addresses import Path
from dsvpn.errors import PeerError
from dsvpn.ike import childless, fragmentation, mobike, nat, redirect
from dsvpn.ike.authentication import proof as proofs
from dsvpn.ike.ike_auth import IkeAuth
from dsvpn.ike.intermediate import IkeIntermediate
from dsvpn.ike.key_exchange import KeyExchange, make_key_exchange
from dsvpn.ike.keymat import derive_ike_keys
from dsvpn.ike.mode import refuse_nat
from dsvpn.ike.ppk import is_required
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.proposals import check_ike_answer, offer_ike
from dsvpn.ike.suites import Group
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa

#: Seconds that an error which anybody could have sent is given to be contradicted by a good answer (RFC 7296
#: section 2.21.1).
GRACE: Final = 2.0
#: Fresh starts that a peer may ask for, with cookies or other groups.
MAX_RESTARTS: Final = 5


class IkeSaInit(Task):
    """Negotiate suite and keys, unauthenticated."""

    exchange = ExchangeType.IKE_SA_INIT

    def __init__(self, profile: IkeProfile, forced: bool) -> None:
        self.profile = profile
        self.forced = forced
        self.group: Group = profile.ike[0].group
        self.key_exchange: KeyExchange | None = None
        self.cookie: wire.Notify | None = None
        self.restarts = 0
        self.reason = ""
        self.grace_at: float | None = None

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """The first message."""
        association = sa.association
        if self.key_exchange is None or self.key_exchange.group != self.group:
            self.key_exchange = make_key_exchange(self.group, sa.context.random, sa.context.kems)
        if not sa.nonce_i:
            sa.nonce_i = sa.context.new_nonce()
        payloads: list[wire.Payload] = [] if self.cookie is None else [self.cookie]
        payloads += (
            offer_ike(self.profile.ike),
            wire.KeyExchange(self.group.key_exchange_id, self.key_exchange.public),
            wire.Nonce(sa.nonce_i),
        )
        if self.profile.ppks:
            payloads.append(wire.Notify(NotifyType.USE_PPK))
        if any(suite.additional for suite in self.profile.ike):
            payloads.append(wire.Notify(NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED))
        payloads.append(fragmentation.supported())
        payloads += redirect.announce(self.profile, association.redirected_from)
        payloads += mobike.prohibition(self.profile, association.path)
        payloads += proofs.announce([self.profile], with_request=False)
        return payloads + nat.detection_payloads(
            sa.initiator_spi, wire.ZERO_SPI, association.path, self.forced, sa.context.random
        )

    def receive(self, sa: IkeSa, message: wire.Message, data: bytes, path: Path, now: float) -> None:
        """An answer, which anybody may have made."""
        payloads = message.payloads
        try:
            if self._restart(sa, payloads, now):
                return
            error = first_error(payloads)
            if error is not None:
                raise PeerError(f"peer answers {error.name}")
            elsewhere = redirect.find(payloads)
            if elsewhere is not None:
                sa.association.collapse(redirect.follow(sa, elsewhere, sa.nonce_i, established=False), now)
                return
            self._accept(sa, message, data, path, now)
        except PeerError as problem:
            self.doubt(problem.reason, now)

    def doubt(self, reason: str, now: float) -> None:
        """Something says that this will fail. Nothing proves it: keep asking for a while, then believe it."""
        if self.grace_at is None:
            self.grace_at = now + GRACE
        self.reason = reason

    def deadlines(self) -> Iterator[float]:
        """The end of the grace for an error."""
        if self.grace_at is not None:
            yield self.grace_at

    def handle_timer(self, sa: IkeSa, now: float) -> bool:
        """Whether the grace is over and the IKE SA with it."""
        if self.grace_at is None or self.grace_at > now:
            return False
        sa.association.collapse(self.reason, now)
        return True

    def _restart(self, sa: IkeSa, payloads: Payloads, now: float) -> bool:
        """Ask again as the peer wants it: with its cookie, or in its group."""
        cookie = wire.find_notify(payloads, NotifyType.COOKIE)
        invalid = wire.find_notify(payloads, NotifyType.INVALID_KE_PAYLOAD)
        if (cookie is None and invalid is None) or wire.find(payloads, wire.SecurityAssociation) is not None:
            return False
        if self.restarts == MAX_RESTARTS:
            raise PeerError(f"peer made us start {MAX_RESTARTS} times")
        if cookie is not None:
            if not 1 <= len(cookie.data) <= 64:
                raise PeerError(f"peer sent a cookie of {len(cookie.data)} octets")
            self.cookie = wire.Notify(NotifyType.COOKIE, cookie.data)
        elif invalid is not None:
            wanted = int.from_bytes(invalid.data, "big") if len(invalid.data) == 2 else 0
            groups = {suite.group.key_exchange_id: suite.group for suite in self.profile.ike}
            if wanted not in groups or wanted == self.group.key_exchange_id:
                # A group that is not ours would be a downgrade by whoever forged this (RFC 7296 section 2.7).
                name = wire.name_of(wire.KeyExchangeId, wanted)
                raise PeerError(f"peer wants key exchange {name}, which is not ours")
            self.group = groups[wanted]
        self.restarts += 1
        sa.restart_init(self, now)
        return True

    def _accept(self, sa: IkeSa, message: wire.Message, data: bytes, path: Path, now: float) -> None:
        payloads = message.payloads
        answer = wire.find(payloads, wire.SecurityAssociation)
        public = wire.find(payloads, wire.KeyExchange)
        nonce = wire.find(payloads, wire.Nonce)
        responder_spi = message.header.responder_spi
        if answer is None or public is None or nonce is None or responder_spi == wire.ZERO_SPI:
            raise PeerError("peer's IKE_SA_INIT answer lacks SA, KE, nonce or SPI")
        choice = check_ike_answer(self.profile.ike, answer, 0)
        assert self.key_exchange is not None
        if choice is None or choice.suite.group != self.group or public.group != self.group.key_exchange_id:
            raise PeerError("peer chose a proposal that was not offered")
        if choice.suite.additional and wire.find_notify(payloads, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED) is None:
            # RFC 9370 section 2.2.1: who chooses additional key exchanges can carry them.
            raise PeerError("peer chose additional key exchanges and does not support IKE_INTERMEDIATE")
        use_ppk = bool(self.profile.ppks) and wire.find_notify(payloads, NotifyType.USE_PPK) is not None
        if is_required(self.profile.ppks) and not use_ppk:
            raise PeerError("peer has no PPK, which is required")
        secret = self.key_exchange.shared_secret(public.data)

        association = sa.association
        findings = nat.detect(payloads, sa.initiator_spi, responder_spi, Path(path.local, association.path.remote))
        refuse_nat(self.profile, local_nat=findings.local_nat, remote_nat=findings.remote_nat)
        sa.responder_spi = responder_spi
        sa.nonce_r = nonce.data
        sa.init_response = data
        keys = derive_ike_keys(choice.suite, secret, sa.nonce_i, sa.nonce_r, sa.initiator_spi, sa.responder_spi)
        sa.set_keys(choice.suite, keys)
        sa.expect_additional(choice.suite)
        sa.use_ppk = use_ppk
        if association.path.local.address.is_unspecified:
            association.path = Path(path.local, association.path.remote)
        association.fragmentation = fragmentation.is_supported(payloads)
        proofs.note_hashes(sa, payloads)
        association.local_nat, association.remote_nat = findings.local_nat, findings.remote_nat
        if findings.supported and (findings.local_nat or findings.remote_nat or self.forced):
            association.udp_encapsulation = True
        if association.udp_encapsulation or (findings.supported and self.profile.mobike):
            # With MOBIKE also where there is no NAT yet: there may be one on a later path (RFC 4555 section 3.3).
            association.path = nat.move_to_nat_traversal_port(association.path)
        sa.requests.close()
        auth = IkeAuth(self.profile, childless.is_wanted(self.profile, payloads))
        sa.tasks.appendleft(IkeIntermediate(auth) if choice.suite.additional else auth)
