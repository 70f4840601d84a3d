"""A network in simulated time: one clock, seeded chance, hosts, NAT boxes and an underlay that loses packets.

`Simulation` is the clock and the only source of chance; `Underlay` carries `Datagram` values between `Host`s;
`NatBox` sits between a private network and the underlay. Nothing here knows what the payload is.
"""

from __future__ import annotations

from tests.simulation.clock import DeadlineExceeded, Simulation, Timer
from tests.simulation.nat import NatBox
from tests.simulation.underlay import Conditions, Datagram, Host, Underlay

__all__ = ["Conditions", "Datagram", "DeadlineExceeded", "Host", "NatBox", "Simulation", "Timer", "Underlay"]
