"""Revocation, and certificates that are replaced while IKE SAs live (RFC 5280 section 5)."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509

from dsvpn.errors import MisuseError, PeerError
from dsvpn.ike import events
from dsvpn.ike.authentication.revocation import parse_crl
from tests.ike.authority import DAY, NOW, Holder, certified, make_key, root, trust
from tests.ike.certified import A_NAME, B_NAME, answered, chain_refused, gateway, refused
from tests.ike.harness import make_profile, make_wire

# -- revocation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_a_revoked_certificate(role: str) -> None:
    bad, good = gateway(A_NAME), gateway(B_NAME)
    watchful = certified(B_NAME, good, trust=trust(crls=[root().crl(bad)]))
    mine = certified(A_NAME, bad)
    reason = refused(make_wire(mine, watchful)) if role == "initiator" else answered(make_wire(watchful, mine))
    assert reason == f"certificate CN={A_NAME},O=Test (serial {bad.certificate.serial:x}) is revoked"


def test_revoked_intermediate() -> None:
    middle = root().authority("Middle")
    assert "CN=Middle,O=Test (serial" in chain_refused(gateway(A_NAME, by=middle), middle, crls=[root().crl(middle)])


def test_revocation_by_an_intermediate() -> None:
    middle = root().authority("Middle")
    holder = gateway(A_NAME, by=middle)
    assert "is revoked" in chain_refused(holder, middle, crls=[middle.crl(holder)])


@pytest.mark.parametrize(
    ("crls", "if_present", "required"),
    [
        ([], "", "there is no CRL of CN=Root,O=Test"),
        ([{}], "", ""),
        ([{"issued": NOW - 3 * DAY, "due": NOW - DAY}], "", "only an outdated CRL"),
        ([{"issued": NOW + DAY, "due": NOW + 2 * DAY}], "", "only an outdated CRL"),
        ([{"issued": NOW - 3 * DAY, "due": NOW - DAY}, {}], "", ""),
        ([{"by": make_key("ecdsa256", "nobody")}], "", "there is no CRL"),
        ([{"issued": NOW - 3 * DAY, "due": NOW - DAY, "revoked": True}], "is revoked", "is revoked"),
        ([{"by": make_key("ecdsa256", "nobody"), "revoked": True}], "", "there is no CRL"),
    ],
)
def test_policies_about_revocation_lists(crls: list[dict[str, Any]], if_present: str, required: str) -> None:
    holder = gateway(A_NAME)
    lists = []
    for options in crls:
        given = dict(options)
        revoked = [holder] if given.pop("revoked", False) else []
        lists.append(root().crl(*revoked, **given))
    for require, says in ((False, if_present), (True, required)):
        if says:
            assert says in chain_refused(holder, crls=lists, require_crl=require)
        else:
            assert trust(crls=lists, require_crl=require).validate([holder.certificate.der], NOW)


# -- new files while it runs -------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_from_then_on_and_established_sas_stay() -> None:
    net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, gateway(B_NAME)))
    net.connect()
    renewed = certified(B_NAME, gateway(B_NAME, kind="ed25519"))
    net.b.engine.replace_credentials([renewed], net.now)
    net.settle()
    assert net.a.established
    net.check_agreement()
    first = net.a.handle
    net.a.engine.rekey_ike(first, net.now)
    net.settle()
    net.check_agreement()
    net.a.engine.initiate("default", net.a.path_to(net.b), net.now)
    net.settle()
    assert [status.authentication for status in net.a.snapshot(net.now)] == ["ECDSA with SHA2-256", "Ed25519"]


def test_a_new_certificate_is_taken_while_the_old_one_is_revoked() -> None:
    """Of the same name and with the same key; even when its owner sends the old one along."""
    old, new = gateway(A_NAME), gateway(A_NAME)
    assert old.certificate.serial != new.certificate.serial
    watchful = certified(B_NAME, gateway(B_NAME), trust=trust(crls=[root().crl(old)]))
    make_wire(certified(A_NAME, new), watchful).connect()
    make_wire(certified(A_NAME, new, chain=[old]), watchful).connect()
    assert "is revoked" in refused(make_wire(certified(A_NAME, old, chain=[new]), watchful))


def test_a_revoked_peer_is_closed_when_the_list_comes() -> None:
    bad, good = gateway(A_NAME), gateway(B_NAME)
    net = make_wire(certified(A_NAME, bad), certified(B_NAME, good))
    net.connect()
    net.b.engine.replace_credentials([certified(B_NAME, good, trust=trust(crls=[root().crl()]))], net.now)
    net.settle()
    assert net.b.established
    net.b.engine.replace_credentials([certified(B_NAME, good, trust=trust(crls=[root().crl(bad)]))], net.now)
    net.settle()
    (deleted,) = net.b.of(events.IkeSaDeleted)
    assert "is revoked" in deleted.reason
    assert not net.a.established
    assert not net.b.established
    net.sleep(100)
    net.a.check_spis()
    net.b.check_spis()


def test_a_peer_whose_authority_is_not_trusted_any_more_is_closed() -> None:
    good = gateway(B_NAME)
    net = make_wire(certified(A_NAME, gateway(A_NAME)), certified(B_NAME, good))
    net.connect()
    net.b.engine.replace_credentials([certified(B_NAME, good, trust=trust(root("Other")))], net.now)
    net.settle()
    assert "not trusted any more" in net.b.of(events.IkeSaDeleted)[0].reason


def test_replacing_what_is_not_there() -> None:
    net = make_wire()
    with pytest.raises(MisuseError, match="no profile is called 'other'"):
        net.a.engine.replace_credentials([make_profile("a", name="other")], net.now)


# -- what a configuration may not say ----------------------------------------------------------------------


def test_profiles_that_make_no_sense() -> None:
    holder = gateway(A_NAME)
    with pytest.raises(MisuseError, match=r"does not carry the identity c\.example\.net; it carries"):
        certified("c.example.net", holder)
    with pytest.raises(MisuseError, match="without the other"):
        certified(A_NAME, holder, trust=None)
    with pytest.raises(MisuseError, match="private key is not that of the certificate"):
        Holder(holder.certificate, make_key("ecdsa256", "nobody")).credentials()
    with pytest.raises(MisuseError, match="is not of a CA"):
        trust(holder)


def test_a_list_whose_signature_has_unused_bits_is_refused() -> None:
    """As with certificates, the library overlooks them where they are zero."""
    while (data := root().crl_octets())[-1] & 1:
        pass
    at = len(data) - len(x509.load_der_x509_crl(data).signature) - 1
    with pytest.raises(MisuseError, match="whole octets"):
        parse_crl(data[:at] + b"\x01" + data[at + 1 :], "list")


def test_a_remembered_path_still_expires_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsvpn.ike.authentication.trust.MAX_REMEMBERED", 2)
    store = trust()
    holders = [root().issue(f"g{number}.example.net") for number in range(3)]
    paths = [store.validate([holder.certificate.der], NOW) for holder in holders]
    assert len(store._remembered) == 2
    assert store.validate([holders[2].certificate.der], NOW)[0] is paths[2][0]
    with pytest.raises(PeerError, match="expired"):
        store.validate([holders[2].certificate.der], NOW + 2 * DAY)
    # What was not good is not remembered.
    assert len(store._remembered) == 1


def test_a_remembered_path_needs_a_current_list() -> None:
    store = trust(crls=[root().crl(due=NOW + DAY / 4)], require_crl=True)
    holder = root().issue("g.example.net")
    assert store.validate([holder.certificate.der], NOW)
    with pytest.raises(PeerError, match="only an outdated CRL"):
        store.validate([holder.certificate.der], NOW + DAY / 2)
