"""Cisco's plaintext authentication: a word in extension 7, hop by hop, on every packet but Error Indications."""

from __future__ import annotations

import hmac

from dsvpn.wire.nhrp_extensions import (
    Extension,
    ExtensionType,
    RawExtension,
    cisco_authentication,
    cisco_authentication_word,
)


def sign(extensions: list[Extension], word: bytes | None) -> list[Extension]:
    """The extensions with this hop's authentication: in place of the one that is there, else at the end."""
    if word is None:
        return extensions
    own = cisco_authentication(word)
    signed: list[Extension] = []
    placed = False
    for extension in extensions:
        if extension.type != ExtensionType.AUTHENTICATION:
            signed.append(extension)
        elif not placed:
            signed.append(own)
            placed = True
    if not placed:
        signed.append(own)
    return signed


def check(extensions: list[Extension], word: bytes | None) -> str | None:
    """Why a packet is not authentic, None when it is. Without a word of our own, everything is."""
    if word is None:
        return None
    for extension in extensions:
        if extension.type != ExtensionType.AUTHENTICATION or not isinstance(extension, RawExtension):
            continue
        claimed = cisco_authentication_word(extension)
        if claimed is None:
            return "the authentication extension is not of Cisco's plaintext form"
        if not hmac.compare_digest(claimed, word):
            return "the authentication word differs"
        return None
    return "the authentication extension is missing"
