"""strongSwan's own ESP in user space (kernel-libipsec) and us. It knows tunnel mode alone; up to 5.9.10 in UDP only."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.interop.pair import Connection, End, Pair, profile

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]

_KERNEL = "kernel-libipsec kernel-netlink"
#: ESP without UDP where there is no NAT, and GRE to a peer whose ESP and IKE have the same address: a route to the TUN
#: device, which packets with the mark of charon's own sockets do not look up.
_RAW_ESP = """
  routing_table = 50
  plugins {
    kernel-libipsec { raw_esp = yes
      allow_peer_ts = yes }
    kernel-netlink { fwmark = !0x42 }
    socket-default { fwmark = 0x42 }
  }"""


@pytest.mark.feature("Encapsulation", "ESP, tunnel mode, with strongSwan's own ESP (kernel-libipsec, raw_esp = yes)")
@pytest.mark.parametrize("lab", ["trixie"], indirect=True, scope="session")
@pytest.mark.parametrize("initiator", ["ours", "theirs"])
def test_raw_esp(pair: Pair, initiator: End) -> None:
    pair.theirs.restart(_RAW_ESP, kernel=_KERNEL)
    try:
        pair.connect(initiator, settings=profile(mode='"tunnel"'), connection=Connection(mode="tunnel"))
        assert not pair.theirs.guest.run("ip xfrm state")
        pair.check_traffic()
        pair.rekey_child()
        pair.check_traffic()
        pair.rekey_ike()
        pair.check_traffic()
    finally:
        pair.theirs.restart()


@pytest.mark.feature("Refused", "strongSwan's own ESP (kernel-libipsec: tunnel mode in UDP), our end in {mode} mode")
@pytest.mark.parametrize("mode", ["transport", "tunnel"])
@pytest.mark.parametrize("initiator", ["theirs"])
def test_kernel_libipsec(pair: Pair, mode: str, initiator: End, record_property: Callable[[str, object], None]) -> None:
    pair.theirs.restart(kernel=_KERNEL)
    try:
        pair.prepare(Connection(mode="tunnel", options={"encap": "yes"}), initiator)
        pair.start_ours(profile(mode=f'"{mode}"'))
        output = pair.theirs.swanctl_run("--initiate --child gre --timeout 10", check=False)
        assert "failed" in output
        assert not pair.sa_children()
        reason = {"transport": "peer asks for tunnel mode", "tunnel": "tunnel mode cannot pass NAT"}[mode]
        (line,) = {line.partition(reason)[2] for line in pair.gateway.last_lines(99) if reason in line}
        record_property("note", reason + line.partition(" name=")[0])
    finally:
        pair.theirs.restart()
