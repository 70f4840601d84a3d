"""The configuration: what is taken, and the one line that says what is wrong."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from dsvpn.config import load_config
from dsvpn.config.model import IpsecConfig, RouteSection
from dsvpn.errors import ConfigurationError, HostError
from dsvpn.ike.half_open import HalfOpenLimits
from dsvpn.ike.ppk import Ppk
from dsvpn.policy import half_open_limits, ike_profile

SPOKE = """
[gateway]
name = "spoke1"

[tunnel.dsvpn0]
address = ["10.0.0.11/24"]
source = "eth0"
key = 42
ipsec = "default"

[tunnel.dsvpn0.nhrp]
authentication = "s3cret"
holding_time = "2h"
shortcut = true
nhs = [{ protocol = "10.0.0.1", nbma = "192.0.2.1", priority = 0 }]

[ipsec.default]
mode = "transport"
encapsulation = "auto"
ike = ["aes128gcm16-prfsha256-x25519"]
esp = ["aes128gcm16", "chacha20poly1305"]

[ipsec.default.auth]
psk = { file = "psk" }
"""

HUB = """
[gateway]
name = "hub"
[tunnel.dsvpn0]
address = "10.0.0.1/24"
source = "192.0.2.1"
[tunnel.dsvpn0.nhrp]
redirect = true
multicast = "dynamic"
[ipsec.default.auth]
psk = "inline"
"""


def write(tmp_path: Path, text: str, psk: bytes | None = b"correct horse\n") -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    if psk is not None:
        (tmp_path / "psk").write_bytes(psk)
    return path


def test_spoke_of_the_design(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SPOKE))
    tunnel = config.tunnels["dsvpn0"]
    assert config.gateway.name == "spoke1"
    assert tunnel.addresses == (ip_interface("10.0.0.11/24"),)
    assert (tunnel.key, tunnel.protected, tunnel.source_address) == (42, True, None)
    assert tunnel.nhrp.holding_time == 7200
    assert tunnel.nhrp.nhs[0].nbma == ip_address("192.0.2.1")
    assert config.psks == {"default": b"correct horse"}
    assert str(config.gateway.control_socket_path) == "/run/dsvpn/spoke1.sock"


def test_hub_needs_next_to_nothing(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, HUB, None))
    tunnel = config.tunnels["dsvpn0"]
    assert tunnel.source_address == ip_address("192.0.2.1")
    assert tunnel.nhrp.redirect
    assert tunnel.nhrp.multicast == "dynamic"
    assert config.psks == {"default": b"inline"}


def test_routes_and_maps(tmp_path: Path) -> None:
    text = SPOKE.replace(
        'ipsec = "default"', 'ipsec = "default"\nroutes = [{ prefix = "172.16.0.0/12", via = "10.0.0.1" }]'
    )
    route = load_config(write(tmp_path, text)).tunnels["dsvpn0"].routes[0]
    assert (route.prefix, route.via) == (ip_network("172.16.0.0/12"), ip_address("10.0.0.1"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "eth0"', "", "tunnel.dsvpn0.source: this key is missing"),
        ("shortcut = true", "shortcutt = true", "tunnel.dsvpn0.nhrp.shortcutt: there is no such key; write shortcut"),
        ("key = 42", "kee = 42", "tunnel.dsvpn0.kee: there is no such key; write key"),
        ("key = 42", "key = 4294967296", "tunnel.dsvpn0.key: input should be less than or equal to 4294967295"),
        ('"10.0.0.11/24"', '"10.0.0.11"', "'10.0.0.11' is no address with a prefix length; write one like"),
        ('"2h"', '"2 fortnights"', "'2 fortnights' is no duration; write \"90s\""),
        ('nbma = "192.0.2.1"', 'nbma = "192.0.2.256"', "nhs.0.nbma: '192.0.2.256' is neither an IP address nor"),
        ('"s3cret"', '"longer than eight"', "Cisco's form takes 1 to 8 octets; write a shorter word"),
        (
            'mode = "transport"\nencapsulation = "auto"',
            'mode = "tunnel"\nencapsulation = "udp"',
            "tunnel mode cannot pass NAT, because NHRP does not learn post-NAT addresses in it, and "
            'encapsulation = "udp" pretends that there is one; write mode = "transport", or encapsulation = "auto"',
        ),
        ('mode = "transport"', 'mode = "bridge"', "ipsec.default.mode: input should be 'transport' or 'tunnel'"),
        ('mode = "transport"', "replay_window = 8193", "less than or equal to 8192, not 8193"),
        (
            'mode = "transport"',
            "replay_window = 0\nesn = true",
            "esn needs a replay window; write replay_window = 1024",
        ),
        ('mode = "transport"', 'keepalive = "500ms"', 'a keepalive every 0.5 s is a flood; write "1s" or more'),
        ('"aes128gcm16", "chacha', '"des", "chacha', "ipsec.default.esp: "),
        ('ipsec = "default"', 'ipsec = "other"', 'the profile "other", which is not in the file ("default")'),
        ('protocol = "10.0.0.1"', 'protocol = "10.0.0.11"', "10.0.0.11 is this gateway's own tunnel address"),
        (
            'mode = "transport"',
            "child_lifetime_bytes = 1000",
            "1000 would be over before a rekey is; write at least 1000000, or 0 for no limit",
        ),
        ('mode = "transport"', "child_lifetime_packets = 999", "write at least 1000, or 0 for no limit"),
        ('mode = "transport"', 'reauthentication = "30s"', "30 s is too short; write at least 60 s, or 0 for never"),
        (
            'mode = "transport"',
            "per_resource_sas = 16",
            'ipsec.default.per_resource_sas: 16 is no number of CHILD_SAs; write "auto", or a number from 0 to 15',
        ),
        ('mode = "transport"', "per_resource_sas = true", "True is no number of CHILD_SAs"),
        ('mode = "transport"', 'per_resource_sas = "all"', "'all' is no number of CHILD_SAs; write \"auto\""),
        ('mode = "transport"', "per_resource_limit = 17", "less than or equal to 16, not 17"),
        (
            'mode = "transport"',
            "per_resource_sas = 3\nper_resource_limit = 3",
            "per_resource_sas 3 and the first are more than per_resource_limit 3; write per_resource_limit = 4, or",
        ),
        ('mode = "transport"', 'childless = "perhaps"', "ipsec.default.childless: "),
        ("[gateway]", "[gateway", "the file is not TOML"),
        ("psk = {", "pks = {", "ipsec.default.auth.pks: there is no such key; write psk"),
        ("tunnel.dsvpn0", "tunnel.a-device-name-too-long", "cannot name a device"),
        ('name = "spoke1"', 'name = "../x"', "gateway.name: '../x' is no gateway name"),
    ],
)
def test_errors_name_key_reason_and_cure(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SPOKE
    path = write(tmp_path, SPOKE.replace(old, new))
    with pytest.raises(ConfigurationError) as raised:
        load_config(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text
    assert raised.value.exit_code == 78


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ('"s1" = "10.0.0.300"', "tunnel.dsvpn0.authorize.s1: '10.0.0.300' is neither an address nor a prefix; write"),
        (
            '"s1" = ["172.16.1.1/24"]',
            "tunnel.dsvpn0.authorize.s1: '172.16.1.1/24' has host bits set; write \"172.16.1.0/24\"",
        ),
        ('"s1" = 5', "tunnel.dsvpn0.authorize.s1: 5 is no prefix"),
        ('"a b" = "10.0.0.11"', "tunnel.dsvpn0.authorize: identity 'a b' is neither an address nor a name; write"),
    ],
)
def test_errors_in_authorize(tmp_path: Path, rules: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_config(write(tmp_path, f"{HUB}\n[tunnel.dsvpn0.authorize]\n{rules}\n", None))
    assert message in str(raised.value)


def test_authorize(tmp_path: Path) -> None:
    rules = '"s1" = ["10.0.0.11", "172.16.1.0/24"]\n"*.example.net" = "certificate"'
    tunnel = load_config(write(tmp_path, f"{HUB}\n[tunnel.dsvpn0.authorize]\n{rules}\n", None)).tunnels["dsvpn0"]
    assert tunnel.authorize["s1"].prefixes == (ip_network("10.0.0.11/32"), ip_network("172.16.1.0/24"))
    assert tunnel.authorize["*.example.net"].certificate
    plain = HUB.replace('source = "192.0.2.1"', 'source = "192.0.2.1"\nipsec = "none"')
    with pytest.raises(ConfigurationError, match="authorize goes by identity"):
        load_config(write(tmp_path, f"{plain}\n[tunnel.dsvpn0.authorize]\n{rules}\n", None))


def test_modes_windows_and_keepalives(tmp_path: Path) -> None:
    def profile(lines: str) -> IpsecConfig:
        return load_config(write(tmp_path, SPOKE.replace('mode = "transport"', lines))).ipsec["default"]

    assert profile('mode = "tunnel"').mode == "tunnel"
    assert profile("").replay_window == 1024
    assert [profile(f"replay_window = {size}").replay_window for size in (0, 1, 64, 8192)] == [0, 1, 64, 8192]
    # Without a window nobody could tell the high half of a sequence number (RFC 4303 section 3.3.3).
    assert profile("").extended_sequence_numbers
    assert not profile("replay_window = 0").extended_sequence_numbers
    assert not profile("esn = false").extended_sequence_numbers
    assert profile("esn = true").extended_sequence_numbers
    assert [profile(f"keepalive = {value}").keepalive for value in ('"0s"', '"5s"', "60")] == [0.0, 5.0, 60.0]


def test_nobody_forces_udp_where_another_profile_is_tunnel_mode(tmp_path: Path) -> None:
    second = '[ipsec.other]\nencapsulation = "udp"\n[ipsec.other.auth]\npsk = "x"\n'
    text = SPOKE.replace('mode = "transport"', 'mode = "tunnel"') + second
    with pytest.raises(
        ConfigurationError, match=r"ipsec\.other forces UDP encapsulation on every caller, and ipsec\.def"
    ):
        load_config(write(tmp_path, text))


def test_two_tunnels_need_keys_of_their_own(tmp_path: Path) -> None:
    second = SPOKE.split("[ipsec.default]", maxsplit=1)[0].split("[tunnel.dsvpn0]")[1]
    second = second.replace("tunnel.dsvpn0", "tunnel.dsvpn1")
    with pytest.raises(ConfigurationError, match=r"tunnel\.dsvpn0 and tunnel\.dsvpn1 have the same key"):
        load_config(write(tmp_path, SPOKE + "[tunnel.dsvpn1]" + second))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be read: No such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(HostError, match=r"psk: the key file .* cannot be read: No such file"):
        load_config(write(tmp_path, SPOKE, None))


def test_empty_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the pre-shared key is empty"):
        load_config(write(tmp_path, SPOKE, b"\n"))


PPK = 'ppk = {{ id = "our ppk", file = "ppk"{} }}\n\n[ipsec.default.auth]'


def test_post_quantum_preshared_keys(tmp_path: Path) -> None:
    (tmp_path / "ppk").write_bytes(b"32 octets of a quantum's despair\n")
    text = SPOKE.replace("[ipsec.default.auth]", PPK.format(", required = true"))
    config = load_config(write(tmp_path, text))
    profile = ike_profile("default", config.ipsec["default"], config.materials["default"], config.ppks["default"])
    assert profile.ppks == (Ppk(b"our ppk", b"32 octets of a quantum's despair", True),)
    two = 'ppk = [{ id = "a", file = "ppk" }, { id = "b", file = "psk" }]\n\n[ipsec.default.auth]'
    config = load_config(write(tmp_path, SPOKE.replace("[ipsec.default.auth]", two)))
    profile = ike_profile("default", config.ipsec["default"], config.materials["default"], config.ppks["default"])
    assert [(ppk.identity, ppk.required) for ppk in profile.ppks] == [(b"a", False), (b"b", False)]


def test_post_quantum_preshared_keys_that_are_missing(tmp_path: Path) -> None:
    text = SPOKE.replace("[ipsec.default.auth]", PPK.format(""))
    with pytest.raises(HostError, match=r"ipsec\.default\.ppk\.0\.file: the key file .*ppk cannot be read: No such"):
        load_config(write(tmp_path, text))
    (tmp_path / "ppk").write_bytes(b"\n")
    with pytest.raises(ConfigurationError, match="the post-quantum preshared key is empty"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("ppk", "message"),
    [
        ('{ id = "", file = "psk" }', "ipsec.default.ppk.0.id: "),
        ('{ id = "a" }', "ipsec.default.ppk.0.file: this key is missing"),
        ('{ id = "a", file = "psk", needed = true }', "ipsec.default.ppk.0.needed: there is no such key"),
        ('[{ id = "a", file = "psk" }, { id = "a", file = "psk" }]', "two of the keys have one id; write each id once"),
    ],
)
def test_errors_of_post_quantum_preshared_keys(tmp_path: Path, ppk: str, message: str) -> None:
    text = SPOKE.replace("[ipsec.default.auth]", f"ppk = {ppk}\n\n[ipsec.default.auth]")
    with pytest.raises(ConfigurationError) as raised:
        load_config(write(tmp_path, text))
    assert message in str(raised.value)


def test_half_open_limits(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, HUB))
    assert half_open_limits(config.gateway) == HalfOpenLimits()
    limits = "half_open = { total = 50, per_address = 7, cookie_threshold = 0, cookie_threshold_per_address = 3 }"
    config = load_config(write(tmp_path, HUB.replace('name = "hub"', f'name = "hub"\n{limits}')))
    assert half_open_limits(config.gateway) == HalfOpenLimits(50, 7, 0, 3)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("total = 10, cookie_threshold = 5", "per_address 100 is beyond total 10; write at most 10"),
        ("total = 99", "per_address 100 is beyond total 99; write at most 99"),
        ("total = 100, cookie_threshold = 101", "cookie_threshold 101 is beyond total 100; write at most 100"),
        ("per_address = 5", "cookie_threshold_per_address 10 is beyond per_address 5; write at most 5"),
        ("totl = 5", "gateway.half_open.totl: there is no such key; write total"),
        ("total = 0", "gateway.half_open.total: "),
    ],
)
def test_half_open_limits_that_are_refused(tmp_path: Path, limits: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_config(write(tmp_path, HUB.replace('name = "hub"', f'name = "hub"\nhalf_open = {{ {limits} }}')))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("3des-sha1-modp1024", "3DES is broken and refused (RFC 8247, RFC 9395); write aes128gcm16-prfsha256-x25519"),
        ("aes128-sha1-modp2048", "SHA-1 is broken and refused"),
        ("aes128-sha256-modp1024", "MODP-1024 is broken and refused"),
        ("aes128-md5-modp2048", "MD5 is broken and refused"),
    ],
)
def test_broken_algorithms_are_refused_by_name(tmp_path: Path, suite: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load_config(write(tmp_path, SPOKE.replace("aes128gcm16-prfsha256-x25519", suite)))
    assert message in str(raised.value)
    assert "ipsec.default.ike" in str(raised.value)


@pytest.mark.parametrize("kem", ["mlkem512", "mlkem768", "mlkem1024"])
def test_every_ml_kem_may_be_named(tmp_path: Path, kem: str) -> None:
    suite = f"aes128gcm16-prfsha256-x25519-ke1_{kem}"
    config = load_config(write(tmp_path, SPOKE.replace("aes128gcm16-prfsha256-x25519", suite)))
    assert config.ipsec["default"].ike == (suite,)


def test_post_quantum_key_exchange_comes_first(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, HUB))
    assert config.ipsec["default"].ike[0] == "aes256gcm16-prfsha384-x25519-ke1_mlkem768"
    assert not any("ke1" in suite for suite in config.ipsec["default"].ike[1:])


def test_a_route_may_have_several_gateways(tmp_path: Path) -> None:
    def routed(via: str) -> str:
        routes = f'routes = [{{ prefix = "172.16.0.0/12", via = {via} }}]'
        return SPOKE.replace('ipsec = "default"', f'ipsec = "default"\n{routes}')

    def load(via: str) -> RouteSection:
        return load_config(write(tmp_path, routed(via))).tunnels["dsvpn0"].routes[0]

    assert load('["10.0.0.1", "10.0.0.2", "10.0.0.1"]').via == (ip_address("10.0.0.1"), ip_address("10.0.0.2"))
    assert load('["10.0.0.1"]').via == ip_address("10.0.0.1")
    with pytest.raises(ConfigurationError, match="write 1 to 8"):
        load("[]")
    with pytest.raises(ConfigurationError, match="different families"):
        load('["10.0.0.1", "fd00::1"]')
