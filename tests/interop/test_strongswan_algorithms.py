"""strongSwan and us: every key exchange, every cipher for IKE, every cipher for ESP."""

from __future__ import annotations

import pytest

from dsvpn.errors import DsvpnError
from dsvpn.ike.suites import parse_esp_suite
from tests.interop.pair import PLAIN, Connection, End, Pair, profile

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.interop, pytest.mark.slow]

both_directions = pytest.mark.parametrize("initiator", ["ours", "theirs"])


@pytest.mark.feature("Encapsulation", "ESP, transport mode (IP protocol 50)")
@both_directions
def test_raw_esp(pair: Pair, initiator: End) -> None:
    pair.connect(initiator)
    pair.check_traffic()
    pair.check_streams()


@pytest.mark.feature("Encapsulation", "ESP, tunnel mode (IP protocol 50)")
@both_directions
def test_tunnel_mode(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, settings=profile(mode='"tunnel"'), connection=Connection(mode="tunnel"))
    pair.check_traffic()
    pair.check_streams()


@pytest.mark.feature("Encapsulation", "ESP in UDP by our wish, without NAT")
@both_directions
def test_forced_encapsulation(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, settings=PLAIN.but(encapsulation="udp"))
    pair.check_traffic(by="natt")
    pair.check_streams()


@pytest.mark.feature("Encapsulation", "ESP in UDP by their wish (encap = yes), without NAT")
@both_directions
def test_encapsulation_forced_by_strongswan(pair: Pair, initiator: End) -> None:
    pair.connect(initiator, connection=Connection(options={"encap": "yes"}))
    pair.check_traffic(by="natt")


@pytest.mark.feature("Key exchange", "{group}, also for a rekeyed CHILD_SA")
@pytest.mark.parametrize("group", ["x25519", "x448", "ecp256", "ecp384", "ecp521", "modp2048", "modp3072", "modp4096"])
@both_directions
def test_key_exchange(pair: Pair, group: str, initiator: End) -> None:
    ike, esp = f"aes256gcm16-prfsha384-{group}", f"aes128gcm16-{group}"
    sa = pair.connect(
        initiator, settings=profile(ike=f'["{ike}"]', esp=f'["{esp}"]'), connection=Connection(ike=ike, esp=esp)
    )
    assert group in sa["suite"]
    pair.rekey_child()
    pair.check_traffic()


@pytest.mark.feature("IKE cipher", "{suite}")
@pytest.mark.parametrize(
    "suite",
    [
        "aes128gcm16-prfsha256-x25519",
        "aes256gcm16-prfsha512-x25519",
        "chacha20poly1305-prfsha256-x25519",
        "aes128-sha256-x25519",
        "aes256-sha384-x25519",
        "aes256-sha512-x25519",
    ],
)
@both_directions
def test_ike_cipher(pair: Pair, suite: str, initiator: End) -> None:
    pair.connect(initiator, settings=profile(ike=f'["{suite}"]'), connection=Connection(ike=suite))
    pair.check_traffic()


def _offered(suite: str) -> bool:
    try:
        parse_esp_suite(suite)
    except DsvpnError:
        return False
    return True


@pytest.mark.feature("ESP cipher", "{suite}")
@pytest.mark.parametrize(
    "suite",
    [
        "aes128gcm16",
        "aes256gcm16",
        "chacha20poly1305",
        "aes128-sha256",
        "aes256-sha384",
        "aes256-sha512",
        "aes128ctr-sha256",
        "aes256ctr-sha512",
    ],
)
@both_directions
def test_esp_cipher(pair: Pair, suite: str, initiator: End) -> None:
    if not _offered(suite):
        pytest.skip(f"dsvpn has no {suite} for ESP")
    sa = pair.connect(initiator, settings=profile(esp=f'["{suite}"]'), connection=Connection(esp=suite))
    assert sa["children"][0]["suite"].startswith(suite.partition("-")[0])
    pair.check_traffic()


@pytest.mark.feature("ESP cipher", "aes128gcm16, extended sequence numbers")
@both_directions
def test_extended_sequence_numbers(pair: Pair, initiator: End) -> None:
    sa = pair.connect(initiator, connection=Connection(esp="aes128gcm16-esn", child={"replay_window": "128"}))
    assert sa["children"][0]["esn"]
    pair.check_traffic()


@pytest.mark.feature("Key exchange", "{group} after x25519 (IKE_INTERMEDIATE), also for rekeyed SAs")
@pytest.mark.parametrize("lab", ["forky"], indirect=True, scope="session")
@pytest.mark.parametrize("group", ["mlkem512", "mlkem768", "mlkem1024"])
@both_directions
def test_ml_kem(pair: Pair, group: str, initiator: End) -> None:
    ike, esp = f"aes256gcm16-prfsha384-x25519-ke1_{group}", f"aes256gcm16-x25519-ke1_{group}"
    sa = pair.connect(
        initiator, settings=profile(ike=f'["{ike}"]', esp=f'["{esp}"]'), connection=Connection(ike=ike, esp=esp)
    )
    assert group in sa["suite"]
    pair.rekey_child()
    pair.check_traffic()
    pair.rekey_ike()
    pair.check_traffic()


@pytest.mark.feature("Key exchange", "x25519 and mlkem768 by our default configuration")
@pytest.mark.parametrize("lab", ["forky"], indirect=True, scope="session")
@both_directions
def test_ml_kem_by_default(pair: Pair, initiator: End) -> None:
    ike = "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
    sa = pair.connect(initiator, settings=PLAIN.but(profile={}), connection=Connection(ike=ike))
    assert "mlkem768" in sa["suite"]
    pair.check_traffic()


@pytest.mark.feature("Key exchange", "our default configuration with a peer that has no ML-KEM")
@both_directions
def test_default_configuration(pair: Pair, initiator: End) -> None:
    sa = pair.connect(
        initiator, settings=PLAIN.but(profile={}), connection=Connection(ike="aes128gcm16-prfsha256-x25519")
    )
    assert "mlkem" not in sa["suite"]
    pair.check_traffic()


@pytest.mark.feature("Robustness", "INVALID_KE_PAYLOAD: the first group offered is not the one that both have")
@both_directions
def test_invalid_ke_payload(pair: Pair, initiator: End) -> None:
    two = ["aes256gcm16-prfsha384-x25519", "aes256gcm16-prfsha384-ecp384"]
    ours, theirs = (two, two[1:]) if initiator == "ours" else (two[1:], two)
    listed = ", ".join(f'"{suite}"' for suite in ours)
    sa = pair.connect(initiator, settings=profile(ike=f"[{listed}]"), connection=Connection(ike=", ".join(theirs)))
    assert "ecp384" in sa["suite"]
    assert "INVAL_KE" in pair.theirs.log()
    pair.check_traffic()
