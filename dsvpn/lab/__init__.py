"""A DSVPN network in network namespaces: one hub, two spokes, a NAT box, a LAN behind each gateway.

`dsvpn lab` runs it as a demonstration that checks itself; the tests build their networks from the same parts.
"""
