"""Copying the state of associations out, for people."""

from __future__ import annotations

from math import inf, isinf

from dsvpn.ike.association import Association
from dsvpn.ike.child_sa import ChildSa, ChildState
from dsvpn.ike.ike_sa import IkeSa
from dsvpn.ike.status import ChildSaStatus, IkeSaStatus


def association_status(association: Association, now: float) -> IkeSaStatus:
    """The status of one association under its current IKE SA."""
    sa = association.current
    profile = association.profile
    assert sa is not None
    assert profile is not None
    return IkeSaStatus(
        ike_sa=association.handle,
        profile=profile.name,
        state=_state(association, sa),
        initiator=association.initiator,
        path=association.path,
        local_identity=str(association.local_identity or profile.local_identity),
        remote_identity=str(association.remote_identity or ""),
        initiator_spi=int.from_bytes(sa.initiator_spi, "big"),
        responder_spi=int.from_bytes(sa.responder_spi, "big"),
        suite="" if sa.suite is None else sa.suite.name,
        age=now - sa.created,
        rekey_in=_until(sa.rekey_at, now),
        expires_in=_until(sa.expires_at, now),
        last_heard=now - association.last_heard,
        local_nat=association.local_nat,
        remote_nat=association.remote_nat,
        udp_encapsulation=association.udp_encapsulation,
        next_request_id=sa.requests.next_id,
        expected_request_id=sa.responses.expected_id,
        reauthentication_in=_left(association.reauthentication.begins_at, now),
        authenticated_for=_left(association.reauthentication.ends_at, now),
        ppk="" if sa.ppk is None else sa.ppk[:64].decode("ascii", "backslashreplace"),
        crash_token=bool(sa.peer_token),
        mobike=association.mobike is not None,
        peer_addresses=() if association.mobike is None else association.mobike.peer_addresses,
        authentication="" if association.proved is None else association.proved.method,
        children=tuple(_child_status(child, profile.tunnel_mode, now) for child in association.children),
    )


def _child_status(child: ChildSa, tunnel_mode: bool, now: float) -> ChildSaStatus:
    rekeyed = child.state in (ChildState.REKEYED, ChildState.LINGERING)
    return ChildSaStatus(
        inbound_spi=child.inbound_spi,
        outbound_spi=child.outbound_spi,
        suite=child.suite.name,
        esn=child.esn,
        state="rekeyed" if rekeyed else child.state.value,
        age=now - child.created,
        rekey_in=_until(child.rekey_at, now),
        expires_in=child.expires_at - now,
        outbound_ready=child.outbound_ready,
        udp_encapsulation=child.udp_encapsulation,
        packets_in=child.volume.packets_in,
        bytes_in=child.volume.bytes_in,
        packets_out=child.volume.packets_out,
        bytes_out=child.volume.bytes_out,
        used=child.volume.used,
        mode="tunnel" if tunnel_mode else "transport",
        resource=child.resource,
    )


def _state(association: Association, sa: IkeSa) -> str:
    if sa.rekey_task is not None:
        return "rekeying"
    if association.reauthentication.delete_at != inf:
        return "superseded"
    if association.reauthentication.successor is not None:
        return "reauthenticating"
    return sa.state.value


def _left(time: float, now: float) -> float | None:
    return None if isinf(time) else time - now


def _until(time: float, now: float) -> float:
    """Seconds until `time`; 0 for what is under way or has no time yet."""
    return 0.0 if isinf(time) else time - now
