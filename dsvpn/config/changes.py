"""What has changed between two readings of a configuration file, and what of it a running gateway takes over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from dsvpn.config.model import Config

_Section = TypeVar("_Section", bound=BaseModel)

#: Keys that only say how things are done from here on.
_OF_GATEWAY = ("log_level", "log_format")
_OF_TUNNEL = ("authorize",)
_OF_PROFILE = (
    "auth",
    "ike_lifetime",
    "child_lifetime",
    "child_lifetime_bytes",
    "child_lifetime_packets",
    "reauthentication",
    "dpd",
    "retransmission",
)


class Changes(NamedTuple):
    """Keys that have changed: those `taken`, and those `waiting` for a restart. `running` is the old configuration with
    what is taken of the new one."""

    taken: list[str]
    waiting: list[str]
    running: Config


def compare(before: Config, after: Config) -> Changes:
    """What a gateway that runs by `before` makes of the file that says `after` by now."""
    running = before.model_copy(
        update={
            "gateway": _take(before.gateway, after.gateway, _OF_GATEWAY),
            "tunnel": {
                name: _take(tunnel, after.tunnel[name], _OF_TUNNEL) if name in after.tunnel else tunnel
                for name, tunnel in before.tunnel.items()
            },
            "ipsec": {
                name: _take(profile, after.ipsec[name], _OF_PROFILE) if name in after.ipsec else profile
                for name, profile in before.ipsec.items()
            },
        }
    )
    waiting = list(_differences(running, after))
    # A key that is in the file `ppk` names: the file may be another one, or say something else.
    secrets = [f"ipsec.{name}.ppk" for name, ppks in before.ppks.items() if after.ppks.get(name, ppks) != ppks]
    return Changes(list(_differences(before, running)), list(dict.fromkeys(waiting + secrets)), running)


def _take(before: _Section, after: _Section, keys: tuple[str, ...]) -> _Section:
    return before.model_copy(update={key: getattr(after, key) for key in keys})


def _differences(before: Config, after: Config) -> Iterator[str]:
    yield from _of_sections("gateway", before.gateway, after.gateway)
    for table in ("tunnel", "ipsec"):
        old, new = getattr(before, table), getattr(after, table)
        for name in dict.fromkeys([*old, *new]):
            if name in old and name in new:
                yield from _of_sections(f"{table}.{name}", old[name], new[name])
            else:
                yield f"{table}.{name}"


def _of_sections(place: str, before: BaseModel, after: BaseModel) -> Iterator[str]:
    for key in type(before).model_fields:
        old, new = getattr(before, key), getattr(after, key)
        if old == new:
            continue
        if isinstance(old, BaseModel) and type(old) is type(new):
            yield from _of_sections(f"{place}.{key}", old, new)
        else:
            yield f"{place}.{key}"
