"""IKE_INTERMEDIATE: additional key exchanges between IKE_SA_INIT and IKE_AUTH (RFC 9242, RFC 9370 section 2.2.2).

    HDR, SK {KEi(n)}  -->
                                    <--  HDR, SK {KEr(n)}

One exchange for each of ADDKE1 to ADDKE7 that was negotiated. Either message is sealed with the keys from before it;
both ends then go over to keys that depend on its secret too. IKE_AUTH proves every octet of it (dsvpn/ike/int_auth.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsvpn.errors import PeerError
from dsvpn.ike.key_exchange import KeyExchange, answer_key_exchange, make_key_exchange
from dsvpn.ike.keymat import IkeKeys, derive_intermediate_ike_keys
from dsvpn.ike.suites import Group
from dsvpn.ike.task import Payloads, Task, first_error
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import ExchangeType, NotifyType

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


class IkeIntermediate(Task):
    """The next additional key exchange of a new IKE SA; `last` is what follows the last of them."""

    exchange = ExchangeType.IKE_INTERMEDIATE

    def __init__(self, last: Task) -> None:
        self.last = last
        self.key_exchange: KeyExchange | None = None

    def build(self, sa: IkeSa, now: float) -> list[wire.Payload] | None:
        """Our public value."""
        group = sa.additional[0][1]
        self.key_exchange = make_key_exchange(group, sa.context.random, sa.context.kems)
        return [wire.KeyExchange(group.key_exchange_id, self.key_exchange.public)]

    def process(self, sa: IkeSa, payloads: Payloads, now: float) -> None:
        """The peer's public value: the keys change, and the next exchange begins."""
        assert self.key_exchange is not None
        error = first_error(payloads)
        try:
            if error is not None:
                raise PeerError(f"peer ends the additional key exchange: {error.name}")
            public = _public_value(payloads, self.key_exchange.group)
            secret = self.key_exchange.shared_secret(public)
        except PeerError as problem:
            # The peer is not authenticated yet, and an IKE SA without its keys is none: nobody to say goodbye to.
            sa.association.collapse(problem.reason, now)
            return
        sa.set_additional_keys(derive_next_keys(sa, secret))
        sa.tasks.appendleft(IkeIntermediate(self.last) if sa.additional else self.last)


def respond_intermediate(sa: IkeSa, payloads: Payloads) -> tuple[list[wire.Payload], IkeKeys]:
    """The payloads of the answer, and the keys to go over to when it is sealed."""
    group = sa.additional[0][1]
    try:
        public, secret = answer_key_exchange(group, _public_value(payloads, group), sa.context.random, sa.context.kems)
    except PeerError as error:
        raise PeerError(error.reason, NotifyType.INVALID_SYNTAX) from None
    return [wire.KeyExchange(group.key_exchange_id, public)], derive_next_keys(sa, secret)


def derive_next_keys(sa: IkeSa, secret: bytes) -> IkeKeys:
    """The keys of `sa` when one more additional key exchange gave `secret`."""
    assert sa.suite is not None
    return derive_intermediate_ike_keys(
        sa.suite, sa.sk_d, secret, sa.nonce_i, sa.nonce_r, sa.initiator_spi, sa.responder_spi
    )


def _public_value(payloads: Payloads, group: Group) -> bytes:
    public = wire.find(payloads, wire.KeyExchange)
    if public is None or public.group != group.key_exchange_id:
        raise PeerError(f"peer's additional key exchange is not the {group.name} of its proposal")
    return public.data
