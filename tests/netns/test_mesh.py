"""Every spoke talks to every other one: a full mesh of direct paths, a process and a namespace for each gateway."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from dsvpn.lab.run import wait_until
from tests.netns.network import DEADLINE
from tests.netns.star import Gateway, Star

pytestmark = [pytest.mark.root, pytest.mark.netns]

#: Resident memory that no gateway of such a mesh may exceed, octets. Most of it is Python and its libraries.
MEMORY = 150_000_000


def ping_all(source: Gateway, targets: list[IPv4Address]) -> None:
    """One ping to each at once, from the LAN; fails if one of them gets no answer."""
    lines = [f'ping -q -c 1 -W 5 -I {source.lan_host} {target} & jobs="$jobs $!"' for target in targets]
    source.namespace.command(["sh", "-e", "-c", "\n".join([*lines, "for job in $jobs; do wait $job; done"])])


def direct(gateway: Gateway) -> set[str]:
    """The tunnel addresses that a gateway shows a direct path to."""
    return {
        mapping["protocol"]
        for peer in gateway.show("peers")["peers"]
        if (peer["state"], peer["path"]) == ("up", "direct")
        for mapping in peer["mappings"]
    }


@pytest.mark.parametrize("count", [8, pytest.param(30, marks=pytest.mark.mesh)])
def test_every_pair_of_spokes_gets_a_direct_path(count: int, record_property: Callable[[str, object], None]) -> None:
    with Star() as star:
        hub = star.add("hub", 1, lan_host=False)
        spokes = [star.add(f"s{number}", number, lan_host=False) for number in range(2, 2 + count)]
        lans = ", ".join(f'{{ prefix = "{spoke.lan}", via = "{spoke.tunnel}" }}' for spoke in spokes)
        star.launch("hub", nhrp="redirect = true", tunnel=f"routes = [{lans}]")
        for spoke in spokes:
            star.launch(
                spoke.name,
                nhrp=f'shortcut = true\nnhs = [{{ protocol = "{hub.tunnel}", nbma = "{hub.wan.ip}" }}]',
                tunnel=f'routes = [{{ prefix = "172.16.0.0/12", via = "{hub.tunnel}" }}]',
            )
        for name in star.gateways:
            star.wait_listening(name, 4 * DEADLINE)
        for spoke in spokes:
            star.wait_standing(spoke.name, "hub")

        tunnels = {str(gateway.tunnel) for gateway in star.gateways.values()}
        for index, spoke in enumerate(spokes):
            ping_all(spoke, [other.lan_host for other in spokes[index + 1 :]])
        for spoke in spokes:

            def is_meshed(spoke: Gateway = spoke) -> bool:
                missing = tunnels - direct(spoke) - {str(spoke.tunnel)}
                # Redirects are rate limited: what was left out the first time comes with the next packet.
                if missing:
                    ping_all(spoke, [other.lan_host for other in spokes if str(other.tunnel) in missing])
                return not missing

            wait_until(is_meshed, 4 * DEADLINE, f"direct paths of {spoke.name} to all others", interval=0.5)

        memory = {gateway.name: gateway.memory for gateway in star.gateways.values()}
        record_property("memory", memory)
        print(
            f"resident memory of {count + 1} gateways: {min(memory.values()) >> 20} to {max(memory.values()) >> 20} MiB"
        )
        assert max(memory.values()) < MEMORY

        # Without the hub all of it stands.
        hub.kill()
        for spoke in spokes:
            ping_all(spoke, [other.lan_host for other in spokes if other is not spoke])
