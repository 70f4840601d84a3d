"""The key log: Wireshark's own key tables, for debugging.

`ikev2_decryption_table` and `esp_sa` are the files of those names in a Wireshark configuration directory, so
`WIRESHARK_CONFIG_DIR=DIRECTORY tshark -o esp.enable_encryption_decode:TRUE -r capture.pcap` decrypts a capture.

SAs with ChaCha20-Poly1305 go into `esp_sa_chacha20poly1305`: Wireshark knows that cipher since 4.2 only, and an older
one refuses a table with a name that it does not know. Append that file to `esp_sa` for a Wireshark that has it.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from dsvpn.errors import HostError
from dsvpn.ike.suites import parse_esp_suite

_IKE_TABLE = "ikev2_decryption_table"
_ESP_TABLE = "esp_sa"
_ESP_CHACHA_TABLE = "esp_sa_chacha20poly1305"
#: Wireshark's names of the ciphers, by ours. It takes the salt at the end of the key, as the key material has it.
#: Its plain "AES-GCM [RFC4106]" is another thing: it does not cut off the ICV.
_CIPHERS = {
    "aes128gcm16": (_ESP_TABLE, "AES-GCM with 16 octet ICV [RFC4106]"),
    "aes256gcm16": (_ESP_TABLE, "AES-GCM with 16 octet ICV [RFC4106]"),
    "chacha20poly1305": (_ESP_CHACHA_TABLE, "ChaCha20 with Poly1305 [RFC7634]"),
}


#: The same of what is no AEAD, by mode and by HMAC. It takes AES-CTR's salt at the end of the key too.
_MODES = {False: "AES-CBC [RFC3602]", True: "AES-CTR [RFC3686]"}
_HMACS = {
    "sha256": "HMAC-SHA-256-128 [RFC4868]",
    "sha384": "HMAC-SHA-384-192 [RFC4868]",
    "sha512": "HMAC-SHA-512-256 [RFC4868]",
}


def _row(suite: str, keymat: bytes) -> tuple[str, str, str, str, str]:
    """Table, cipher, its key, integrity and its key."""
    if suite in _CIPHERS:
        return (*_CIPHERS[suite], f"0x{keymat.hex()}", "NULL", "")
    esp = parse_esp_suite(suite)
    assert esp.integrity is not None
    key, integrity_key = keymat[: esp.cipher.keymat_length], keymat[esp.cipher.keymat_length :]
    cipher = _MODES[esp.cipher.salt_length > 0]
    return _ESP_TABLE, cipher, f"0x{key.hex()}", _HMACS[esp.integrity.name], f"0x{integrity_key.hex()}"


class KeyLog:
    """Appends to the key tables in a directory. HostError if they cannot be written."""

    def __init__(self, directory: Path) -> None:
        self._tables: dict[str, int] = {}
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for table in (_IKE_TABLE, _ESP_TABLE, _ESP_CHACHA_TABLE):
                self._tables[table] = _open(directory / table)
        except OSError as error:
            self.close()
            raise HostError(f"gateway.key_log: cannot write to {error.filename}: {error.strerror}") from None
        self._seen: set[tuple[str | None, str, int]] = set()

    def close(self) -> None:
        """Close the tables."""
        for descriptor in self._tables.values():
            os.close(descriptor)
        self._tables.clear()

    def ike_sa(self, line: str) -> None:
        """Add an IKE SA: a line of `ikev2_decryption_table` as the IKE engine makes it."""
        os.write(self._tables[_IKE_TABLE], f"{line.rstrip()}\n".encode())

    def esp_sa(
        self, remote: str | None, direction: Literal["inbound", "outbound"], spi: int, suite: str, keymat: bytes
    ) -> None:
        """Add a CHILD_SA with one peer. `keymat` is the key followed by the salt and an HMAC's key.

        The own address is left open: a capture behind this end's NAT shows another one than a capture before it.
        """
        if (remote, direction, spi) in self._seen:
            return
        self._seen.add((remote, direction, spi))
        table, cipher, key, integrity, integrity_key = _row(suite, keymat)
        family = "IPv6" if remote is not None and ip_address(remote).version == 6 else "IPv4"
        peer = remote or "*"
        source, destination = (peer, "*") if direction == "inbound" else ("*", peer)
        fields = (family, source, destination, f"0x{spi:08x}", cipher, key, integrity, integrity_key)
        line = ",".join(f'"{field}"' for field in fields)
        os.write(self._tables[table], f"{line}\n".encode())


def _open(path: Path) -> int:
    # O_NOFOLLOW and the mode: keys go into a file that only its owner reads, not through somebody's link.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor
