"""Reading a configuration file, and saying in one line what is wrong with it."""

from __future__ import annotations

import difflib
import time
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dsvpn.config.credentials import read_key_file, read_materials
from dsvpn.config.model import (
    AuthConfig,
    Config,
    GatewayConfig,
    HalfOpenSection,
    IpsecConfig,
    MapSection,
    NhrpSection,
    NhsSection,
    PpkSection,
    PskFile,
    RetransmissionSection,
    RouteSection,
    TunnelConfig,
)
from dsvpn.errors import ConfigurationError, HostError

#: Fields of `Config` that are no keys of the file.
_FILLED_IN = ("psks", "ppks", "materials", "file")

_SECTIONS: dict[str, type[BaseModel]] = {
    "gateway": GatewayConfig,
    "gateway.half_open": HalfOpenSection,
    "tunnel.*": TunnelConfig,
    "tunnel.*.nhrp": NhrpSection,
    "tunnel.*.nhrp.nhs.*": NhsSection,
    "tunnel.*.nhrp.map.*": MapSection,
    "tunnel.*.routes.*": RouteSection,
    "ipsec.*": IpsecConfig,
    "ipsec.*.auth": AuthConfig,
    "ipsec.*.auth.psk": PskFile,
    "ipsec.*.auth.psks.*": PskFile,
    "ipsec.*.ppk.*": PpkSection,
    "ipsec.*.retransmission": RetransmissionSection,
    "": Config,
}


def load_config(path: Path | str) -> Config:
    """The checked configuration of a file.

    Raises `ConfigurationError` for what the file says and `HostError` when it, or a key file it names, cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise HostError(f"{path}: the configuration cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(str(path), "", f"the file is not UTF-8 (octet {error.start})", "TOML text") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(str(path), "", f"the file is not TOML: {error}") from None
    return parse_config(data, path)


def parse_config(data: dict[str, Any], path: Path) -> Config:
    """The checked configuration of a parsed TOML document; `path` is for messages and relative key files."""
    if "psks" in data:
        raise ConfigurationError(str(path), "psks", "there is no such key", "psk in [ipsec.NAME.auth]")
    for name in ("materials", "file"):
        if name in data:
            raise ConfigurationError(str(path), name, "there is no such key", "gateway, tunnel or ipsec")
    if "ppks" in data:
        raise ConfigurationError(str(path), "ppks", "there is no such key", "ppk in [ipsec.NAME]")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _first_error(error, str(path)) from None
    materials = read_materials(config, path, time.time())
    psks = {name: material.psk for name, material in materials.items() if material.psk}
    ppks = {
        name: tuple(_read_ppk(ppk, f"ipsec.{name}.ppk.{index}", path) for index, ppk in enumerate(profile.ppk))
        for name, profile in config.ipsec.items()
    }
    return config.model_copy(update={"psks": psks, "ppks": ppks, "materials": materials, "file": path})


def _read_ppk(ppk: PpkSection, key: str, path: Path) -> bytes:
    secret = read_key_file(ppk.file, f"{key}.file", path)
    if not secret:
        raise ConfigurationError(str(path), key, "the post-quantum preshared key is empty", "32 random octets or more")
    return secret


def _first_error(error: ValidationError, file: str) -> ConfigurationError:
    detail = error.errors(include_url=False)[0]
    # A union reports the branch it tried as part of the place; the reader's file has no such key.
    place = [str(part) for part in detail["loc"] if str(part) not in {"PskFile", "str"} and "[" not in str(part)]
    key = ".".join(place)
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _known_keys(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1)
        return ConfigurationError(
            file, key, "there is no such key", close[0] if close else f"one of {', '.join(known)}"
        )
    if kind == "missing":
        return ConfigurationError(file, key, "this key is missing")
    message = detail["msg"].removeprefix("Value error, ")
    why, _, instead = message.partition("; write ")
    if kind == "value_error":
        return ConfigurationError(file, key, why, instead)
    return ConfigurationError(file, key, f"{_lower(message)}, not {detail['input']!r}")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _known_keys(place: list[str]) -> list[str]:
    pattern = ["*" if index % 2 == 1 and place[0] in {"tunnel", "ipsec"} else part for index, part in enumerate(place)]
    if len(pattern) == 5:
        pattern[4] = "*"
    if len(pattern) == 4 and pattern[2] == "routes":
        pattern[3] = "*"
    for name in (".".join(pattern), ".".join([*pattern[:2], *place[2:]])):
        section = _SECTIONS.get(name)
        if section is not None:
            return sorted(field for field in section.model_fields if field not in _FILLED_IN)
    return sorted(field for field in Config.model_fields if field not in _FILLED_IN)
