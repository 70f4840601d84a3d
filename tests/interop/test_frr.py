"""FRR's nhrpd (Debian 12: 8.4) as our hub and as our spoke, over plain GRE."""

from __future__ import annotations

import pytest

from dsvpn.lab.run import wait_until
from dsvpn.lab.status import path_to, peers, registrations
from dsvpn.lab.topology import HUB, SPOKE1, SPOKE2, Site
from tests.interop.guest import FrrGuest
from tests.interop.strongswan import Connection
from tests.netns.network import DEADLINE, QUICK, Network

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]

#: FRR 8.4 has no NHRP authentication.
PLAIN = QUICK.but(ipsec=False, authentication=None)


def check_both_ways(network: Network, ours: Site, guest: FrrGuest, *, encapsulation: str = "gre") -> None:
    """The guest is the only peer of our gateway, encapsulated in this, and hosts of both LANs answer each other."""
    (peer,) = peers(network.gateways[ours.name])
    assert peer["encapsulation"] == encapsulation
    assert encapsulation == "gre" or peer["identity"] == guest.site.name
    network.wait_ping(ours.name, guest.site.host)
    assert network.ping(ours.name, guest.site.host, 20, wait=5.0).lost == 0
    assert guest.answers(ours.host, source=guest.site.host) == 3


@pytest.mark.feature("NHRP over plain GRE", "our spoke registers with its hub")
def test_our_spoke_registers_with_an_frr_hub() -> None:
    with Network(every=PLAIN) as network:
        guest = FrrGuest(network.topology, HUB, key=42)
        guest.start()
        network.start("spoke2")
        wait_until(lambda: SPOKE2.tunnel in guest.cache(), DEADLINE, "FRR to list our spoke", interval=0.3)
        assert guest.cache()[SPOKE2.tunnel] == SPOKE2.public
        check_both_ways(network, SPOKE2, guest)


@pytest.mark.feature("NHRP over plain GRE", "its spoke registers with our hub")
def test_an_frr_spoke_registers_with_our_hub() -> None:
    with Network(every=PLAIN) as network:
        network.start("hub")
        guest = FrrGuest(network.topology, SPOKE2, key=42)
        guest.start()
        hub = network.gateways["hub"]
        wait_until(lambda: SPOKE2.tunnel in registrations(hub), DEADLINE, "the FRR spoke to register", interval=0.3)
        assert registrations(hub)[SPOKE2.tunnel] == SPOKE2.public
        check_both_ways(network, HUB, guest)


#: strongSwan under nhrpd: GRE between the two outer addresses, in transport mode.
PROTECTED = QUICK.but(
    authentication=None, profile={**QUICK.profile, "ike": '["aes256gcm16-prfsha384-x25519"]', "esp": '["aes128gcm16"]'}
)


@pytest.mark.feature("NHRP over GRE in ESP, strongSwan underneath", "its spoke registers with our hub")
def test_a_protected_frr_spoke_registers_with_our_hub() -> None:
    with Network(every=PROTECTED) as network:
        network.start("hub")
        # The first packet of nhrpd makes strongSwan call.
        connection = Connection(
            identity="spoke2",
            remote_identity="hub",
            options={"local_addrs": str(SPOKE2.public)},
            child={"start_action": "trap"},
        )
        guest = FrrGuest(network.topology, SPOKE2, key=42, ipsec=connection)
        guest.start()
        hub = network.gateways["hub"]
        wait_until(lambda: SPOKE2.tunnel in registrations(hub), DEADLINE, "the FRR spoke to register", interval=0.3)
        assert registrations(hub)[SPOKE2.tunnel] == SPOKE2.public
        check_both_ways(network, HUB, guest, encapsulation="esp")


@pytest.mark.feature("NHRP over GRE in ESP, strongSwan underneath", "our spoke registers with its hub")
def test_our_spoke_registers_with_a_protected_frr_hub() -> None:
    with Network(every=PROTECTED) as network:
        connection = Connection(
            identity="hub",
            remote_identity="spoke2",
            options={"local_addrs": str(HUB.public), "remote_addrs": "%any"},
        )
        guest = FrrGuest(network.topology, HUB, key=42, ipsec=connection)
        guest.start()
        network.start("spoke2")
        wait_until(lambda: SPOKE2.tunnel in guest.cache(), DEADLINE, "FRR to list our spoke", interval=0.3)
        check_both_ways(network, SPOKE2, guest, encapsulation="esp")


@pytest.mark.feature("NHRP over plain GRE", "our spokes, one behind NAT, find each other through its hub")
def test_our_spokes_find_each_other_through_an_frr_hub() -> None:
    with Network(every=PLAIN) as network:
        guest = FrrGuest(network.topology, HUB, key=42)
        guest.start()
        network.start("spoke1", "spoke2")
        wait_until(
            lambda: {SPOKE1.tunnel, SPOKE2.tunnel} <= guest.cache().keys(),
            DEADLINE,
            "FRR to list both spokes",
            interval=0.3,
        )
        # The NAT extension tells FRR what the NAT box made of spoke1's address.
        assert guest.cache()[SPOKE1.tunnel] == SPOKE1.public
        spoke1 = network.gateways["spoke1"]

        def direct() -> bool:
            network.ping("spoke1", SPOKE2.host, 5, wait=0.3)
            return path_to(spoke1, str(SPOKE2.lan)) == "direct"

        wait_until(direct, DEADLINE, "the direct path", interval=0.3)
        assert network.ping("spoke1", SPOKE2.host, 20).lost == 0
