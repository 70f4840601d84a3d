"""strongSwan and two gateways of ours behind one NAT address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from dsvpn.lab.gateways import GatewayProcess
from dsvpn.lab.measure import ping
from dsvpn.lab.topology import Namespace
from tests.interop import losses
from tests.interop.pair import LATE, PLAIN, Connection, End, Pair
from tests.interop.strongswan import INNER_OURS, INNER_THEIRS, KEY
from tests.interop.underlay import GUEST, RIGHT

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]

#: Key of the GRE tunnel with the second gateway, which is the mark of its packets too; both ends' addresses in it.
SECOND_KEY = 43
SECOND_OURS, SECOND_THEIRS = IPv4Address("10.1.0.1"), IPv4Address("10.1.0.2")
#: To the Linux kernel both gateways are GRE between the same two addresses. Marks tell it which SA is whose.
_DEVICES = f"""
ip link delete gre1 2>/dev/null
set -e
for key in {KEY} {SECOND_KEY}; do
  ip link add gre-$key type gre key $key fwmark $key local {GUEST.ip} remote {RIGHT} ttl 64
  ip link set gre-$key mtu 1400 up
done
ip address add {INNER_THEIRS} peer {INNER_OURS} dev gre-{KEY}
ip address add {SECOND_THEIRS} peer {SECOND_OURS} dev gre-{SECOND_KEY}
"""


def marked(key: int, remote_identity: str) -> Connection:
    """A connection whose child has marks of its own."""
    marks = {"mark_in": str(key), "mark_out": str(key), "set_mark_in": str(key)}
    return Connection(remote_identity=remote_identity, child=marks)


@contextmanager
def neighbour(pair: Pair) -> Iterator[tuple[GatewayProcess, Namespace]]:
    """A second gateway of ours behind the box, running."""
    namespace, site = pair.underlay.add_neighbour()
    gateway = GatewayProcess(pair.run, site, namespace, pair.mapped(PLAIN.but(key=SECOND_KEY), SECOND_THEIRS))
    try:
        gateway.start()
        yield gateway, namespace
        assert gateway.stop() == 0, gateway.last_lines(20)
    finally:
        pair.underlay.remove_neighbour()


@pytest.mark.feature("NAT", "two gateways of ours behind one NAT address, their SAs told apart by marks")
@pytest.mark.parametrize("initiator", ["ours"])
def test_two_gateways_behind_one_address(pair: Pair, initiator: End) -> None:
    pair.underlay.arrange(ours_nat=True, calls=initiator)
    pair.theirs.configure(
        marked(KEY, "ours"), pair.underlay.ours_seen, further={"neighbour": marked(SECOND_KEY, "neighbour")}
    )
    try:
        pair.theirs.guest.run(_DEVICES, check=True)
        pair.start_ours()
        pair.wait_up(initiator)
        pair.check_traffic(by="natt")
        with neighbour(pair) as (gateway, namespace):
            pair.wait(lambda: [sa for sa in gateway.show("sa") if sa["children"]], "the second gateway's SAs")
            pair.wait(lambda: ping(namespace, SECOND_THEIRS, 1).received, "the second gateway's first ping")
            drops = losses.count(pair)
            series = {
                "ours": [ping(pair.underlay.ours, INNER_THEIRS, 10, wait=LATE)],
                "the second of ours": [ping(namespace, SECOND_THEIRS, 10, wait=LATE)],
                "theirs": [pair.theirs.guest.ping(inner, 10, wait=LATE)[0] for inner in (INNER_OURS, SECOND_OURS)],
            }
            pair.check_pings(drops, series)
            assert pair.theirs.swanctl_run("--list-sas").count("INSTALLED") == 2
            pair.rekey_child()
            pair.check_traffic(by="natt")
            assert ping(namespace, SECOND_THEIRS, 10, wait=LATE).lost == 0
    finally:
        pair.theirs.swanctl_run("--terminate --ike neighbour --force", check=False)
        pair.theirs.guest.run(f"ip link delete gre-{KEY}; ip link delete gre-{SECOND_KEY}")
        pair.theirs.forget_gre()
