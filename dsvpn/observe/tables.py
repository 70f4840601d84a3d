"""The sections of `dsvpn show` as tables for people. Their values come as JSON from a running gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

_STYLES = {
    "up": "green",
    "established": "green",
    "installed": "green",
    "active": "green",
    "direct": "green",
    "reliable": "green",
    "lost": "red",
    "refused": "red",
    "silent": "red",
    "down": "red",
    "none": "red",
}


def render(section: str, value: Any) -> list[RenderableType]:
    """The tables of a section; one line of text where there is nothing to put in a table."""
    return _RENDERERS[section](value)


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: "2h 3m", "41s"; "-" for None."""
    if seconds is None:
        return "-"
    left = round(seconds)
    if left < 0:
        return f"-{duration(-left)}"
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def size(octets: int) -> str:
    """A number of octets with a decimal prefix: "1.4 GB"."""
    value = float(octets)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    # What peers say of themselves is text, not markup.
    text = escape(str(value))
    style = _STYLES.get(text)
    return f"[{style}]{text}[/{style}]" if style else text


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _driver(value: dict[str, Any]) -> str | None:
    driver, threads = value.get("driver"), value.get("worker_threads")
    return f"{driver} ({threads} thread{'s' * (threads != 1)})" if threads else driver


def _summary(value: dict[str, Any]) -> list[RenderableType]:
    gateway = _table(
        f"gateway {escape(value['gateway'])}",
        ("version", "pid", "uptime", "driver", "cipher backend", "build"),
        [
            (
                value.get("version"),
                value.get("pid"),
                duration(value.get("uptime")),
                _driver(value),
                value.get("aead"),
                value.get("build"),
            )
        ],
    )
    tunnels = _table(
        "tunnels",
        ("tunnel", "addresses", "source", "ipsec", "key", "mappings", "peers up", "shortcuts"),
        (
            (
                name,
                ", ".join(tunnel["addresses"]),
                tunnel["source"],
                tunnel["ipsec"],
                tunnel["key"],
                tunnel["mappings"],
                tunnel["peers_up"],
                f"{tunnel['shortcuts_active']} of {tunnel['shortcuts']} in use",
            )
            for name, tunnel in value["tunnels"].items()
        ),
    )
    servers = [
        (
            name,
            nhs["protocol"],
            nhs.get("name") or nhs.get("nbma"),
            nhs.get("priority"),
            nhs["state"],
            nhs.get("standing"),
            nhs["error"],
        )
        for name, tunnel in value["tunnels"].items()
        for nhs in tunnel["nhs"]
    ]
    tables: list[RenderableType] = [gateway, tunnels]
    if value.get("offloads"):
        tables.append(_table("data plane", ("offload", "state"), sorted(value["offloads"].items())))
    if value.get("worker_packets"):
        tables.append(_table("workers", ("worker", "packets taken in"), sorted(value["worker_packets"].items())))
    if servers:
        tables.append(
            _table("next hop servers", ("tunnel", "NHS", "at", "priority", "state", "standing", "last error"), servers)
        )
    return tables


def _nhrp(value: dict[str, Any]) -> list[RenderableType]:
    tables: list[RenderableType] = []
    for name, tunnel in value.items():
        if tunnel["nhs"]:
            tables.append(
                _table(
                    f"{name}: next hop servers",
                    ("NHS", "NBMA", "priority", "state", "registered for", "next in", "sees us as", "last error"),
                    (
                        (
                            nhs["protocol"],
                            nhs["nbma"],
                            nhs["priority"],
                            nhs["state"],
                            duration(nhs["registered_for"]),
                            duration(nhs["next_in"]),
                            nhs["nat_address"],
                            nhs["last_error"],
                        )
                        for nhs in tunnel["nhs"]
                    ),
                )
            )
        tables.append(
            _table(
                f"{name}: mappings",
                ("protocol", "NBMA", "private NBMA", "kind", "held by", "expires in"),
                (
                    (
                        mapping["protocol"],
                        mapping["nbma"],
                        mapping["private_nbma"] if mapping["private_nbma"] != mapping["nbma"] else None,
                        mapping["kind"],
                        mapping.get("holder"),
                        duration(mapping["expires_in"]),
                    )
                    for mapping in tunnel["mappings"]
                ),
            )
        )
        if tunnel["shortcuts"]:
            tables.append(
                _table(
                    f"{name}: shortcuts",
                    ("prefix", "next hop", "state", "expires in", "idle"),
                    (
                        (
                            shortcut["prefix"],
                            shortcut["next_hop"],
                            shortcut["state"],
                            duration(shortcut["expires_in"]),
                            duration(shortcut["idle"]),
                        )
                        for shortcut in tunnel["shortcuts"]
                    ),
                )
            )
        if tunnel["resolutions"]:
            tables.append(
                _table(
                    f"{name}: resolutions",
                    ("target", "state", "attempts", "until", "reason"),
                    (
                        (
                            resolution["target"],
                            resolution["state"],
                            resolution["attempts"],
                            duration(resolution["expires_in"]),
                            resolution["reason"],
                        )
                        for resolution in tunnel["resolutions"]
                    ),
                )
            )
        if tunnel.get("denials"):
            tables.append(
                _table(
                    f"{name}: denied claims",
                    ("peer", "tried to", "for", "why", "times", "last"),
                    (
                        (
                            denial["identity"],
                            denial["action"],
                            denial["protocol"],
                            denial["reason"],
                            denial["count"],
                            f"{duration(denial['ago'])} ago",
                        )
                        for denial in tunnel["denials"]
                    ),
                )
            )
    return tables


def _peers(value: dict[str, Any]) -> list[RenderableType]:
    def row(peer: dict[str, Any]) -> tuple[Any, ...]:
        traffic = peer.get("traffic", {}).values()
        octets_in = sum(counters.get("bytes_in", 0) for counters in traffic)
        octets_out = sum(counters.get("bytes_out", 0) for counters in traffic)
        nat = ", ".join(side for side, behind in (("us", peer["local_nat"]), ("peer", peer["remote_nat"])) if behind)
        return (
            peer["identity"],
            f"{peer['nbma']} → {peer['redirected_to']}" if peer.get("redirected_to") else peer["nbma"],
            ", ".join(mapping["protocol"] for mapping in peer["mappings"]),
            peer["state"],
            duration(peer["up_for"]),
            len(peer.get("sealing", ())) or None,
            peer["encapsulation"],
            peer["suite"],
            nat,
            size(octets_in),
            size(octets_out),
            peer.get("path"),
            peer.get("why", peer["last_error"]) or peer["last_error"],
        )

    columns = ("peer", "NBMA", "protocol", "state", "up for", "SAs", "by", "cipher", "NAT", "in", "out", "path", "why")
    tables: list[RenderableType] = [_table("peers", columns, map(row, value["peers"]))]
    if value["refused"]:
        tables.append(
            _table(
                "refused callers",
                ("ago", "from", "port", "identity", "profile", "reason"),
                (
                    (
                        duration(refused["ago"]),
                        refused["remote"],
                        refused["port"],
                        refused["identity"],
                        refused["profile"],
                        refused["reason"],
                    )
                    for refused in value["refused"]
                ),
            )
        )
    return tables


def _sa(value: list[dict[str, Any]]) -> list[RenderableType]:
    ike = _table(
        "IKE SAs",
        (
            "peer",
            "remote",
            "state",
            "role",
            "SPIs",
            "suite",
            "proof",
            "moves",
            "crash token",
            "age",
            "rekey in",
            "proof holds",
            "heard",
        ),
        (
            (
                sa["remote_identity"],
                _endpoint(sa["path"]),
                sa["state"],
                "initiator" if sa["initiator"] else "responder",
                f"{sa['initiator_spi']:016x} {sa['responder_spi']:016x}",
                f"{sa['suite']} with PPK {sa['ppk']}" if sa.get("ppk") else sa["suite"],
                sa.get("authentication"),
                sa.get("mobike"),
                sa.get("crash_token"),
                duration(sa["age"]),
                duration(sa["rekey_in"]),
                duration(sa.get("authenticated_for")),
                duration(sa["last_heard"]),
            )
            for sa in value
        ),
    )
    children = _table(
        "CHILD_SAs",
        (
            "peer",
            "SPI in",
            "SPI out",
            "resource",
            "state",
            "suite",
            "by",
            "age",
            "rekey in",
            "in",
            "out",
            "used",
            "replayed",
            "unauthentic",
        ),
        (
            (
                sa["remote_identity"],
                f"{child['inbound_spi']:08x}",
                f"{child['outbound_spi']:08x}",
                child.get("resource") or "any",
                child["state"],
                child["suite"],
                _way(child),
                duration(child["age"]),
                duration(child["rekey_in"]),
                size(child.get("counters", {}).get("bytes", 0)),
                size(child.get("bytes_out", 0)),
                f"{child.get('used', 0.0):.0%}",
                child.get("counters", {}).get("replayed"),
                child.get("counters", {}).get("unauthentic"),
            )
            for sa in value
            for child in sa["children"]
        ),
    )
    return [ike, children]


def _way(child: dict[str, Any]) -> str:
    if child.get("mode") == "tunnel":
        return "esp-tunnel"
    return "udp" if child["udp_encapsulation"] else "esp"


def _routes(value: list[dict[str, Any]]) -> list[RenderableType]:
    return [
        _table(
            "routes",
            ("tunnel", "prefix", "source", "next hop", "path"),
            (
                (route["tunnel"], route["prefix"], route["source"], route["next_hop"] or "on-link", route["path"])
                for route in value
            ),
        )
    ]


def _counters(value: dict[str, Any]) -> list[RenderableType]:
    groups = {"data plane": value["dataplane"], "kernel": value["kernel"], "control plane": value["control"]}
    groups["IKE"] = value["ike"]
    groups |= {f"{name}: NHRP": counters for name, counters in value["nhrp"].items()}
    return [_table(title, ("counter", "value"), sorted(counters.items())) for title, counters in groups.items()]


def _certificates(value: list[dict[str, Any]]) -> list[RenderableType]:
    if not value:
        return ["no profile uses certificates"]
    tables: list[RenderableType] = []
    for entry in value:
        tables.append(
            _table(
                f"{escape(entry['profile'])}: certificates ({escape(entry['identity'])})",
                ("role", "subject", "issuer", "serial", "key", "expires in"),
                (
                    (one["role"], one["subject"], one["issuer"], one["serial"], one["key"], duration(one["expires_in"]))
                    for one in entry["certificates"]
                ),
            )
        )
        tables.append(
            _table(
                f"{escape(entry['profile'])}: revocation lists ({entry['crl_policy']})",
                ("source", "issuer", "revoked", "next update in", "trusted"),
                (
                    (crl["source"], crl["issuer"], crl["revoked"], duration(crl["next_update_in"]), crl["trusted"])
                    for crl in entry["crls"]
                ),
            )
        )
        tables += [escape(warning) for warning in entry["warnings"]]
    return tables


def _endpoint(path: dict[str, Any]) -> str:
    host = f"[{path['remote']}]" if ":" in path["remote"] else path["remote"]
    return f"{host}:{path['remote_port']}"


_RENDERERS: dict[str, Callable[[Any], list[RenderableType]]] = {
    "summary": _summary,
    "nhrp": _nhrp,
    "peers": _peers,
    "sa": _sa,
    "routes": _routes,
    "counters": _counters,
    "certificates": _certificates,
}
