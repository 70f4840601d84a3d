"""strongSwan and us: rekeying under traffic, reauthentication, death and restart, NAT boxes, strangers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest

from dsvpn.io.control import ask
from dsvpn.lab.measure import ping
from tests.interop import losses
from tests.interop.pair import LATE, PLAIN, Connection, End, Pair, profile
from tests.interop.strongswan import INNER_OURS, INNER_THEIRS
from tests.interop.underlay import GUEST, GUEST_GATEWAY, OURS

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]

both_directions = pytest.mark.parametrize("initiator", ["ours", "theirs"])


@contextmanager
def traffic(pair: Pair, seconds: float) -> Iterator[None]:
    """Pings from both ends while something is done, 50 a second. None may be lost."""
    count = int(seconds * 50)
    assert ping(pair.underlay.ours, INNER_THEIRS, 5, interval=0.01).received
    drops = losses.count(pair)
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(ping, pair.underlay.ours, INNER_THEIRS, count, wait=LATE)
        theirs = pair.theirs.guest.begin_ping(INNER_OURS, count, wait=LATE)
        yield
        pair.wait(theirs.with_suffix(".status").exists, "the guest's pings", seconds * 4 + 30)
        series = {"ours": [ours.result()], "theirs": pair.theirs.guest.pings(theirs)}
    assert all(pings.transmitted == count for of in series.values() for pings in of)
    pair.check_pings(drops, series)


@pytest.mark.feature("Rekeying under traffic, no packet lost", "CHILD_SA, by strongSwan")
@both_directions
def test_rekey_child_by_strongswan(pair: Pair, initiator: End) -> None:
    pair.connect(initiator)
    with traffic(pair, 4.0):
        for _ in range(3):
            pair.rekey_child()


@pytest.mark.feature("Rekeying under traffic, no packet lost", "IKE SA, by strongSwan")
@both_directions
def test_rekey_ike_by_strongswan(pair: Pair, initiator: End) -> None:
    pair.connect(initiator)
    with traffic(pair, 4.0):
        for _ in range(3):
            pair.rekey_ike()
        pair.rekey_child()


@pytest.mark.feature("Rekeying under traffic, no packet lost", "CHILD_SA and IKE SA, by us")
@both_directions
def test_rekey_by_us(pair: Pair, initiator: End) -> None:
    sa = pair.connect(initiator, settings=profile(child_lifetime='"10s"', ike_lifetime='"13s"'))
    first = {child["inbound_spi"] for child in sa["children"]}
    spis = {sa["initiator_spi"], sa["responder_spi"]}
    with traffic(pair, 14.0):
        pair.wait(lambda: not first & {child["inbound_spi"] for child in pair.sa_children()}, "a rekeyed CHILD_SA")
        pair.wait(lambda: not spis & {one["initiator_spi"] for one in pair.established()}, "a rekeyed IKE SA")
    pair.check_traffic()


#: make_before_break of strongswan.conf -> what may become of traffic meanwhile.
_REAUTHENTICATIONS = {"yes": "make before break: no packet lost", "no": "break before make: traffic goes on"}


@pytest.mark.feature("Reauthentication", "by strongSwan, {outcome}")
@pytest.mark.parametrize(
    ("first", "outcome"), _REAUTHENTICATIONS.items(), ids=["make-before-break", "break-before-make"]
)
@both_directions
def test_reauthentication(pair: Pair, first: str, outcome: str, initiator: End) -> None:
    pair.theirs.restart(f"make_before_break = {first}")
    try:
        theirs = Connection(options={"reauth_time": "6s", "over_time": "3s", "rekey_time": "0s", "rand_time": "0s"})
        before = pair.connect(initiator, connection=theirs)
        pair.underlay.arrange(calls="both")
        with traffic(pair, 10.0) if first == "yes" else nullcontext():
            pair.wait(lambda: before["initiator_spi"] not in pair.established_spis(), "the first IKE SA to be replaced")
            pair.wait(lambda: len(pair.established()) == 1, "one IKE SA")
        pair.check_traffic()
    finally:
        pair.theirs.restart()


@pytest.mark.feature("Liveness", "strongSwan's DPD is answered")
@both_directions
def test_their_dpd(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, connection=Connection(options={"dpd_delay": "1s"}))
    pair.wait(lambda: pair.theirs.log().count("sending DPD request") >= 3, "three DPD requests")
    assert len(pair.established()) == 1
    pair.check_traffic()


@pytest.mark.feature("Liveness", "our DPD is answered")
@both_directions
def test_our_dpd(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, settings=profile(dpd='"1s"'))
    pair.wait(lambda: pair.theirs.log().count("parsed INFORMATIONAL request") >= 3, "three DPD requests")
    assert len(pair.established()) == 1
    pair.check_traffic()


@pytest.mark.feature("Liveness", "we crash and start again: strongSwan takes the new SAs for the old")
@both_directions
def test_we_restart(pair: Pair, initiator: End) -> None:
    pair.connect(initiator)
    pair.gateway.kill()
    pair.ours = None
    pair.underlay.arrange(calls="both")
    pair.start_ours()
    pair.wait_up("ours")
    pair.check_traffic()
    pair.wait(lambda: pair.theirs.swanctl_run("--list-sas").count("ESTABLISHED") == 1, "strongSwan to drop the old")


@pytest.mark.feature("Liveness", "we crash: strongSwan notices by DPD")
@both_directions
def test_we_die(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, connection=Connection(options={"dpd_delay": "1s"}))
    pair.gateway.kill()
    pair.ours = None
    pair.wait(lambda: "ESTABLISHED" not in pair.theirs.swanctl_run("--list-sas"), "strongSwan to notice")


@pytest.mark.feature("Liveness", "strongSwan crashes and starts again: we notice by DPD and call")
@both_directions
def test_strongswan_restarts(pair: Pair, initiator: End) -> None:
    settings = profile(dpd='"1s"')
    before = pair.connect(initiator, settings=settings)
    pair.theirs.stop_charon("KILL")
    pair.wait(lambda: before["initiator_spi"] not in pair.established_spis(), "us to notice")
    pair.theirs.start_charon()
    pair.underlay.arrange(calls="both")
    pair.theirs.configure(Connection(), pair.underlay.ours_seen)
    pair.wait_up("ours")
    pair.check_traffic()


@pytest.mark.feature("Liveness", "strongSwan crashes and calls again: we take its new SAs for the old at once")
@both_directions
def test_strongswan_calls_again(pair: Pair, initiator: End) -> None:
    before = pair.connect(initiator, settings=profile(dpd='"0s"'))
    pair.theirs.stop_charon("KILL")
    pair.theirs.start_charon()
    pair.underlay.arrange(calls="theirs")
    pair.theirs.configure(Connection(), pair.underlay.ours_seen)
    pair.theirs.initiate()
    pair.wait(lambda: len(pair.established()) == 1, "one IKE SA")
    assert before["initiator_spi"] not in pair.established_spis()
    pair.check_traffic()


@pytest.mark.feature("Liveness", "crash tokens (RFC 6290): strongSwan has none, and takes no offence at ours")
@both_directions
def test_crash_tokens(pair: Pair, initiator: End) -> None:
    pair.connect(initiator)
    lines = [line for line in pair.theirs.log().splitlines() if "IKE_AUTH re" in line]
    assert any("parsed" in line and "N(CRASH_DET)" in line for line in lines)
    assert not any("generating" in line and "N(CRASH_DET)" in line for line in lines)
    pair.check_traffic()


@pytest.mark.feature("Liveness", "strongSwan deletes the SAs: we call again")
@both_directions
def test_strongswan_deletes(pair: Pair, initiator: End) -> None:
    before = pair.connect(initiator)
    pair.underlay.arrange(calls="ours")
    pair.theirs.swanctl_run("--terminate --ike ours")
    pair.wait(lambda: before["initiator_spi"] not in pair.established_spis(), "the IKE SA to go")
    pair.wait_up("ours")
    pair.check_traffic()


@pytest.mark.feature("NAT", "behind NAT: {behind}")
@pytest.mark.parametrize("behind", ["us", "them", "both ends"])
@both_directions
def test_nat(pair: Pair, behind: str, initiator: End) -> None:
    sa = pair.connect(initiator, ours_nat=behind != "them", guest_nat=behind != "us")
    assert (sa["local_nat"], sa["remote_nat"]) == (behind != "them", behind != "us")
    pair.check_traffic(by="natt")
    pair.rekey_child()
    pair.rekey_ike()
    pair.check_traffic(by="natt")


@pytest.mark.feature("NAT", "rekeying of CHILD_SA and IKE SA by us, both ends behind NAT")
@both_directions
def test_rekey_by_us_behind_nat(pair: Pair, initiator: End) -> None:
    settings = profile(child_lifetime='"10s"', ike_lifetime='"11s"')
    sa = pair.connect(initiator, settings=settings, ours_nat=True, guest_nat=True)
    with traffic(pair, 12.0):
        pair.wait(lambda: sa["initiator_spi"] not in pair.established_spis(), "a rekeyed IKE SA")
    pair.check_traffic(by="natt")


@pytest.mark.feature("Robustness", "COOKIE asked for by us")
@pytest.mark.parametrize("initiator", ["theirs"])
def test_our_cookie(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, settings=PLAIN.but(gateway={"half_open": "{ cookie_threshold = 0 }"}))
    assert pair.counters()["cookies_accepted"] == 1
    pair.check_traffic()


#: An IKE_SA_INIT request from a port of its own, that nobody goes on with: a half-open IKE SA at strongSwan.
_STRANGER = f"""
import socket
from ipaddress import ip_address
from dsvpn.addresses import Endpoint, Path
from tests.ike.harness import End, make_profile
end = End("stranger", ip_address("{OURS.ip}"), [make_profile(ike=("aes256gcm16-prfsha384-x25519",))], 1)
end.engine.initiate("default", Path(Endpoint(end.address, 500), Endpoint(ip_address("{GUEST.ip}"), 500)), 0.0)
((message, _),) = end.engine.datagrams_to_send(0.0)
stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stranger.settimeout(10)
stranger.sendto(message, ("{GUEST.ip}", 500))
assert stranger.recv(4096)
"""


@pytest.mark.feature("Robustness", "COOKIE asked for by strongSwan")
@pytest.mark.parametrize("initiator", ["ours"])
def test_their_cookie(pair: Pair, initiator: End) -> None:
    pair.theirs.restart("cookie_threshold = 1")
    try:
        pair.prepare(Connection(), "ours")
        pair.underlay.ours.command([sys.executable, "-c", _STRANGER])
        pair.start_ours()
        pair.wait_up(initiator)
        assert "N(COOKIE)" in pair.theirs.log()
        pair.check_traffic()
    finally:
        pair.theirs.restart()


@pytest.mark.feature("MOBIKE (RFC 4555)", "our address changes")
@both_directions
def test_we_move(pair: Pair, initiator: End) -> None:
    before = pair.connect(initiator, connection=Connection(options={"mobike": "yes"}))
    pair.check_traffic()
    pair.underlay.arrange(calls="neither")
    fresh = pair.underlay.move_ours()
    try:
        pair.wait(
            lambda: f"{fresh}[4500]" in pair.theirs.swanctl_run("--list-sas"), "strongSwan to see the new address"
        )
        pair.theirs.guest.run(f"ip tunnel change gre1 remote {fresh}", check=True)
        pair.check_traffic()
        assert before["initiator_spi"] in pair.established_spis()
    finally:
        pair.underlay.move_back()
        pair.theirs.forget_gre()


@pytest.mark.feature("MOBIKE (RFC 4555)", "strongSwan's address changes")
@both_directions
def test_strongswan_moves(pair: Pair, initiator: End) -> None:
    before = pair.connect(initiator, connection=Connection(options={"mobike": "yes", "local_addrs": "%any"}))
    pair.check_traffic()
    pair.underlay.arrange(calls="neither")
    fresh = GUEST.ip + 1
    try:
        pair.theirs.guest.run(
            f"set -e; ip address add {fresh}/29 dev vec0; ip address del {GUEST} dev vec0\n"
            f"ip address add {fresh}/29 dev vec0 2>/dev/null || true; ip route replace default via {GUEST_GATEWAY}\n"
            f"ip tunnel change gre1 local {fresh}",
            check=True,
        )
        pair.wait(lambda: pair.peer()["nbma"] == str(fresh), "us to see the new address")
        pair.check_traffic()
        assert before["initiator_spi"] in pair.established_spis()
    finally:
        pair.theirs.guest.run(
            f"ip address add {GUEST} dev vec0; ip address del {fresh}/29 dev vec0; ip address add {GUEST} dev vec0\n"
            f"ip route replace default via {GUEST_GATEWAY}",
        )
        pair.theirs.forget_gre()


@pytest.mark.feature("Redirect (RFC 5685)", "we hand strongSwan on to another address of ours")
@pytest.mark.parametrize("initiator", ["theirs"])
def test_we_redirect(pair: Pair, initiator: End) -> None:
    before = pair.connect(initiator)
    fresh = OURS.ip + 1
    pair.underlay.ours.ip("address", "add", f"{fresh}/29", "dev", "eth0")
    try:
        assert ask(pair.gateway.socket, {"redirect": str(fresh)}) == {"asked": 1}
        pair.wait(
            lambda: len(pair.established()) == 1 and before["initiator_spi"] not in pair.established_spis(),
            "strongSwan to call the other address",
        )
        assert f"redirected to {fresh}" in pair.theirs.log()
        pair.theirs.guest.run(f"ip tunnel change gre1 remote {fresh}", check=True)
        pair.check_traffic()
        assert pair.counters()["redirects_sent"] == 1
    finally:
        pair.underlay.ours.ip("address", "del", f"{fresh}/29", "dev", "eth0")
        pair.theirs.forget_gre()


@pytest.mark.feature("Redirect (RFC 5685)", "strongSwan hands us on to another address of its own")
@pytest.mark.parametrize("initiator", ["ours"])
def test_strongswan_redirects(pair: Pair, initiator: End) -> None:
    fresh = GUEST.ip + 1
    settings = profile(follow_redirects=f'["{fresh}"]')
    before = pair.connect(initiator, settings=settings, connection=Connection(options={"local_addrs": "%any"}))
    try:
        pair.theirs.guest.run(f"ip address add {fresh}/29 dev vec0", check=True)
        pair.theirs.swanctl_run(f"--redirect --ike ours --gateway {fresh}")
        pair.wait(
            lambda: len(pair.established()) == 1 and before["initiator_spi"] not in pair.established_spis(),
            "us to go there",
        )
        pair.theirs.guest.run(f"ip tunnel change gre1 local {fresh}", check=True)
        pair.check_traffic()
        assert pair.counters()["redirects_followed"] == 1
    finally:
        pair.theirs.guest.run(f"ip address del {fresh}/29 dev vec0")
        pair.theirs.forget_gre()


@pytest.mark.feature("Refused", "tunnel mode asked for by strongSwan")
@pytest.mark.parametrize("initiator", ["theirs"])
def test_tunnel_mode(pair: Pair, initiator: End) -> None:
    pair.prepare(Connection(mode="tunnel"), initiator)
    pair.start_ours()
    output = pair.theirs.swanctl_run("--initiate --child gre --timeout 10", check=False)
    assert "failed" in output
    assert not pair.sa_children()
