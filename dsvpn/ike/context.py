"""What all IKE SAs of an engine share: randomness, SPIs, events, datagrams and the tables that find them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING

from dsvpn.addresses import Address, Path
from dsvpn.errors import HostError, MisuseError
from dsvpn.ike.cookies import CookieJar
from dsvpn.ike.events import Event, IkeAuthenticationRefused
from dsvpn.ike.fragmentation import FragmentBudget
from dsvpn.ike.half_open import HalfOpenLimits, HalfOpenTable
from dsvpn.ike.kem import LIBRARY_KEMS, Kem
from dsvpn.ike.lost_spi import LostSpis
from dsvpn.ike.profile import IkeProfile
from dsvpn.ike.redirect import RedirectCounts
from dsvpn.wire.ikev2 import SPI_LENGTH, ZERO_SPI

if TYPE_CHECKING:
    from dsvpn.ike.association import Association
    from dsvpn.ike.child_sa import ChildSa
    from dsvpn.ike.ike_sa import IkeSa

#: Refusals reported at once, and per second after that: what strangers cause must not fill logs.
REFUSAL_BURST = 20.0
REFUSAL_RATE = 2.0
#: Seconds between reports of peers that speak IKEv1.
IKEV1_INTERVAL = 60.0


class Context:
    """The shared state of one engine."""

    def __init__(
        self,
        profiles: dict[str, IkeProfile],
        random: Callable[[int], bytes],
        allocate_spi: Callable[[int], int],
        release_spi: Callable[[int], None],
        key_log: Callable[[str], None] | None,
        wall_clock: Callable[[], float] | None = None,
        limits: HalfOpenLimits | None = None,
        token_secret: bytes = b"",
        kems: Mapping[str, Kem] = LIBRARY_KEMS,
    ) -> None:
        self.profiles = profiles
        #: The suites of all profiles, and those without additional key exchanges; credentials alone change later.
        self.suites = tuple(dict.fromkeys(suite for profile in profiles.values() for suite in profile.ike))
        self.plain_suites = tuple(suite for suite in self.suites if not suite.additional)
        self.random = random
        self.kems = kems
        self.release_spi = release_spi
        self.key_log = key_log
        #: What crash tokens are made with (RFC 6290); empty makes none.
        self.token_secret = token_secret
        self.lost_spis = LostSpis()
        self.redirects = RedirectCounts()
        self._wall_clock = wall_clock
        self.events: deque[Event] = deque()
        self.outbox: list[tuple[bytes, Path]] = []
        #: IKE SAs by the SPI that we chose.
        self.ike_sas: dict[bytes, IkeSa] = {}
        self.half_open = HalfOpenTable(HalfOpenLimits() if limits is None else limits)
        self.half_open_refused = 0
        self.ikev1 = 0
        #: Requests of a later major version that were answered.
        self.later_versions = 0
        self._ikev1_told = -inf
        self.cookies = CookieJar(random)
        #: Associations with IKE SAs by the remote address of their path.
        self.by_address: dict[Address, set[Association]] = {}
        self.fragments = FragmentBudget()
        #: Associations by handle: those that we initiate and those that are established.
        self.associations: dict[int, Association] = {}
        #: Whom an inbound ESP SPI belongs to.
        self.children: dict[int, tuple[Association, ChildSa]] = {}
        #: Associations whose deadlines have changed on account of another one.
        self.touched: list[Association] = []
        self._allocate_spi = allocate_spi
        self._last_handle = 0
        self._refusals = REFUSAL_BURST
        self._refused_at = 0.0
        self._refusals_hidden = 0

    def index(self, association: Association, address: Address) -> None:
        """`association` has IKE SAs with `address`."""
        self.by_address.setdefault(address, set()).add(association)

    def unindex(self, association: Association, address: Address) -> None:
        """It has none with this address any more."""
        found = self.by_address.get(address)
        if found is not None:
            found.discard(association)
            if not found:
                del self.by_address[address]

    def new_handle(self) -> int:
        """A handle that the engine never gave before."""
        self._last_handle += 1
        return self._last_handle

    def new_ike_spi(self) -> bytes:
        """An unused IKE SPI; zero means "none yet" on the wire."""
        while True:
            spi = self.random(SPI_LENGTH)
            if spi != ZERO_SPI and spi not in self.ike_sas:
                return spi

    def new_nonce(self) -> bytes:
        """Half the key size of any PRF here and more (RFC 7296 section 2.10)."""
        return self.random(32)

    def allocate_spi(self, replaces: ChildSa | None = None) -> int | None:
        """An inbound ESP SPI, for a CHILD_SA in the place of another one or not; None when the owner has no more."""
        try:
            return self._allocate_spi(0 if replaces is None else replaces.inbound_spi)
        except HostError:
            return None

    def time_of_day(self) -> datetime:
        """The time by which certificates are valid or not. MisuseError without a wall clock."""
        if self._wall_clock is None:
            raise MisuseError("certificates need a wall clock; give the engine one")
        return datetime.fromtimestamp(self._wall_clock(), UTC)

    def uniform(self) -> float:
        """A random number in [0, 1)."""
        return int.from_bytes(self.random(4), "big") / 2**32

    def emit(self, event: Event) -> None:
        """Tell the owner."""
        self.events.append(event)

    def send(self, datagram: bytes, path: Path) -> None:
        """Queue a datagram."""
        self.outbox.append((datagram, path))

    def note_ikev1(self, path: Path, now: float) -> None:
        """Somebody speaks IKEv1, which is historic (RFC 9395): no answer, but the owner is told now and then."""
        self.ikev1 += 1
        if now >= self._ikev1_told + IKEV1_INTERVAL:
            self._ikev1_told = now
            self.emit(
                IkeAuthenticationRefused(
                    "", path, "nobody", "peer speaks IKEv1, which is obsolete; configure IKEv2 there"
                )
            )

    def refuse(self, profile: str, path: Path, identity: str, reason: str, now: float) -> None:
        """Tell the owner of a peer that was refused, at a limited rate."""
        self._refusals = min(REFUSAL_BURST, self._refusals + (now - self._refused_at) * REFUSAL_RATE)
        self._refused_at = now
        if self._refusals < 1.0:
            self._refusals_hidden += 1
            return
        self._refusals -= 1.0
        if self._refusals_hidden:
            reason = f"{reason} (and {self._refusals_hidden} refusals that are not shown)"
            self._refusals_hidden = 0
        self.emit(IkeAuthenticationRefused(profile, path, identity, reason))
