"""Answering INFORMATIONAL requests: deletes, refusals, and signs of life (RFC 7296 sections 1.4 and 2.25)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from dsvpn.ike.child_sa import ChildState
from dsvpn.ike.create_child import CreateChild
from dsvpn.ike.state import FAREWELL, IkeState
from dsvpn.ike.task import Payloads
from dsvpn.wire import ikev2 as wire
from dsvpn.wire.ikev2 import NotifyType, ProtocolId

if TYPE_CHECKING:
    from dsvpn.ike.ike_sa import IkeSa


#: Errors that end the IKE SA when a peer sends them in a request, and what they mean.
_FAILURES: Final = MappingProxyType(
    {
        NotifyType.AUTHENTICATION_FAILED: "the peer refused our proof of identity",
        NotifyType.INVALID_SYNTAX: "the peer could not read our answer: INVALID_SYNTAX",
    }
)


def respond_informational(sa: IkeSa, payloads: Payloads, now: float) -> list[wire.Payload]:
    """The payloads of the answer."""
    association = sa.association
    deletes = wire.find_all(payloads, wire.Delete)
    # Either ends the IKE SA without a Delete (RFC 7296 section 2.21.2): an answer of ours was no good.
    failures = [kind for kind in _FAILURES if wire.find_notify(payloads, kind) is not None]
    if failures or any(delete.protocol == ProtocolId.IKE for delete in deletes):
        if sa is association.current and sa.state is IkeState.ESTABLISHED:
            task = sa.rekey_task
            if task is not None and task.passive is not None and task.passive.state is IkeState.ESTABLISHED:
                # The peer made a new IKE SA and did not notice ours: its one stays (RFC 7296 section 2.8.2).
                association.promote(task.passive, now)
            else:
                association.end(_FAILURES[failures[0]] if failures else "the peer deleted it", now)
                for other in list(association.ike_sas):
                    if other is not sa:
                        association.remove_ike_sa(other, now)
        sa.abandon_tasks(now)
        sa.state = IkeState.DEAD
        sa.drop_at = now + FAREWELL
        return []
    association.reauthentication.note_lifetime(payloads, now, at_once=True)
    gone: list[bytes] = []
    for delete in deletes:
        if delete.protocol != ProtocolId.ESP:
            continue
        for spi in delete.spis:
            child = association.find_child(int.from_bytes(spi, "big"))
            if child is None:
                outstanding = sa.requests.outstanding
                if outstanding is not None and isinstance(outstanding.task, CreateChild):
                    outstanding.task.note_early_delete(int.from_bytes(spi, "big"))
                continue
            if child.state is not ChildState.DELETING:
                # Both ends deleting at once answer without a Delete payload (RFC 7296 section 1.4.1).
                gone.append(child.inbound_spi.to_bytes(4, "big"))
            association.child_deleted(child, now)
    return [wire.Delete(ProtocolId.ESP, tuple(gone))] if gone else []
