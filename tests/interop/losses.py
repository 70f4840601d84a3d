"""Where packets got lost: every counter of a dropped packet on the way, before and afterwards.

The data plane counts each packet that it does not deliver under a reason, the kernels count theirs, the routers count
what crosses. A ping without an answer is looked for in all of them, so that a loss is a named one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.interop.pair import Pair

#: Of the guest's kernel: refused by IPsec, by IP, by devices.
_GUEST = "cat /proc/net/xfrm_stat /proc/net/snmp /proc/net/netstat; ip -s -j link"
#: Of /proc/net/snmp and netstat.
_IP_DROPS = {
    *("IpInHdrErrors", "IpInAddrErrors", "IpInDiscards", "IpOutDiscards", "IpOutNoRoutes", "IpReasmFails"),
    *("IpFragFails", "IcmpInErrors", "IcmpOutErrors", "IcmpInCsumErrors", "IcmpOutRateLimitGlobal"),
    *("IcmpOutRateLimitHost", "UdpInErrors", "UdpRcvbufErrors", "UdpNoPorts"),
    *("IpExtInNoRoutes", "IpExtInTruncatedPkts", "IpExtInCsumErrors"),
}

Counts = dict[str, int]


def count(pair: Pair) -> Counts:
    """All of them, by "where: name"."""
    said = pair.gateway.show("counters")
    found = {f"ours: {name}": value for name, value in said["dataplane"].items() if name.startswith("drop_")}
    found |= {f"our kernel: {name}": value for name, value in said["kernel"].items()}
    for namespace in (pair.underlay.left, pair.underlay.right, pair.underlay.ours):
        found |= _links(namespace.role, namespace.ip("-s", "-j", "link"))
        found |= _ip(namespace.role, namespace.command(["cat", "/proc/net/snmp", "/proc/net/netstat"]))
    guest = pair.theirs.guest.run(_GUEST, check=True)
    lines = guest.splitlines()
    for words in (line.split() for line in lines if line.startswith("Xfrm")):
        found[f"guest: {words[0]}"] = int(words[1])
    found |= _ip("guest", guest)
    return found | _links("guest", next(line for line in lines if line.startswith("[")))


def since(pair: Pair, before: Counts) -> str:
    """What has risen, in words."""
    after = count(pair)
    risen = {name: value - before.get(name, 0) for name, value in after.items() if value > before.get(name, 0)}
    return ", ".join(f"{name} +{value}" for name, value in risen.items()) or "no counter of a drop has risen"


def _ip(where: str, text: str) -> Counts:
    found: Counts = {}
    lines = [line.partition(":") for line in text.splitlines() if line.partition(":")[0].isalpha()]
    for (group, _, names), (_, _, values) in zip(lines[::2], lines[1::2], strict=True):
        pairs = zip(names.split(), values.split(), strict=True)
        found |= {f"{where}: {group}{name}": int(value) for name, value in pairs if group + name in _IP_DROPS}
    return found


def _links(where: str, text: str) -> Counts:
    return {
        f"{where}: {link['ifname']} {way} {kind}": link["stats64"][way][kind]
        for link in json.loads(text)
        for way in ("rx", "tx")
        for kind in ("dropped", "errors")
    }
