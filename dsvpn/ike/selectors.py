"""Traffic selectors of a CHILD_SA in transport mode: GRE between the two outer addresses.

Behind a NAT each end knows another outer address, so selectors cannot agree; RFC 7296 section 2.23.1 has each end
replace the address it cannot know by the one it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dsvpn.addresses import Address, Path
from dsvpn.wire.ikev2 import ANY_PORTS, Selector, TrafficSelector

#: IP protocol number of GRE.
GRE: Final = 47


def propose(path: Path) -> tuple[TrafficSelector, TrafficSelector]:
    """TSi and TSr that the initiator of an exchange proposes."""
    local, remote = path.local.address, path.remote.address
    return TrafficSelector(local, local, GRE), TrafficSelector(remote, remote, GRE)


def narrow(
    initiator: Sequence[Selector],
    responder: Sequence[Selector],
    path: Path,
    *,
    local_nat: bool,
    remote_nat: bool,
) -> tuple[TrafficSelector, TrafficSelector] | None:
    """What the responder of an exchange answers to the proposed TSi and TSr, None when no GRE between the outer
    addresses fits."""
    answer_i = _narrow_side(initiator, path.remote.address, remote_nat)
    answer_r = _narrow_side(responder, path.local.address, local_nat)
    if answer_i is None or answer_r is None:
        return None
    return answer_i, answer_r


def acceptable(initiator: Sequence[Selector], responder: Sequence[Selector], path: Path, *, nat: bool) -> bool:
    """Whether an answer lies within what `propose` proposed; behind NAT the peer answers the addresses it sees."""
    return _within(initiator, path.local.address, nat) and _within(responder, path.remote.address, nat)


def _narrow_side(selectors: Sequence[Selector], address: Address, nat: bool) -> TrafficSelector | None:
    fitting = [
        selector
        for selector in selectors
        if isinstance(selector, TrafficSelector)
        and selector.protocol in (0, GRE)
        and selector.start.version == address.version
        and (_contains(selector, address) or (nat and selector.start == selector.end))
    ]
    if not fitting:
        return None
    # strongSwan's trap policies put the triggering packet in front, its GRE key as ports (RFC 7296 section 2.9):
    # the wide selector behind it holds every key.
    chosen = next((s for s in fitting if (s.start_port, s.end_port) == ANY_PORTS), fitting[0])
    return TrafficSelector(address, address, GRE, chosen.start_port, chosen.end_port)


def _contains(selector: TrafficSelector, address: Address) -> bool:
    return int(selector.start) <= int(address) <= int(selector.end)


def _within(selectors: Sequence[Selector], address: Address, nat: bool) -> bool:
    return any(
        isinstance(s, TrafficSelector)
        and s.protocol == GRE
        and s.start == s.end
        and s.start.version == address.version
        and (nat or s.start == address)
        for s in selectors
    )
