"""The data plane: batch forwarder between a TUN and the underlay.

Control-plane surface. Ids of adjacencies and next hops are small integers that the caller chooses; tables change
at `commit()`, which returns when no vector in flight can see the old ones. A call with a bad argument raises
ValueError that names it, one that the system refuses raises OSError; a packet never raises.
"""

from typing import Literal, final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

__all__ = [
    "BUILD_PROFILE",
    "Cipher",
    "Dataplane",
    "DecapResult",
    "EncapResult",
    "MemoryForwarder",
    "MlKem512",
    "MlKem768",
    "MlKem1024",
    "Punt",
    "ReplayWindow",
    "Tables",
    "__version__",
    "checksum",
    "coalesce",
    "parse_gre",
    "segment",
    "write_gre",
]

__version__: str
BUILD_PROFILE: Literal["release", "debug"]

_Encapsulation = Literal["udp", "esp", "esp-tunnel", "gre"]

@final
class Punt:
    """Something that the data plane hands to the control plane."""

    #: "ike": a datagram of port 500 or (marker removed) 4500. "nhrp": the NHRP packet behind the GRE header.
    #: "miss": a packet used a next hop with resolve=True (`data`: packed destination address). "redirect": a packet
    #: came from one peer of a redirecting tunnel and leaves to another (`data`: its head, `adjacency`: the peer that
    #: it came from). "moved": authenticated ESP came from another address than the adjacency has. "gone": the tunnel's
    #: network device was taken away, and nothing of that tunnel is forwarded any more. "unknown_spi": ESP came with an
    #: SPI that no inbound SA has (`data`: the SPI), once a second and sender. "source": a packet came whose inner source
    #: (`data`, packed) is not routed to its adjacency; it was dropped, or with a `next_hop`, which leads elsewhere for
    #: the moment, let pass.
    kind: Literal["ike", "nhrp", "miss", "redirect", "moved", "gone", "unknown_spi", "source"]
    #: Tunnel id, -1 where it does not apply ("ike", "unknown_spi").
    tunnel: int
    #: Adjacency that the packet came from, -1 when none is known (plain GRE of a stranger, "ike", "miss").
    adjacency: int
    #: "miss": the next hop that was used; "source": see there; else -1.
    next_hop: int
    #: Underlay addresses as text and ports ("" and 0 where they do not apply). Ports are 0 for "esp" and "gre".
    local: str
    local_port: int
    remote: str
    remote_port: int
    data: bytes

@disjoint_base
class Tables:
    """Tables and counters of a data plane: what `Dataplane` and `MemoryForwarder` share."""

    def set_adjacency(
        self,
        adjacency: int,
        tunnel: int,
        encapsulation: _Encapsulation,
        local: str,
        remote: str,
        remote_port: int,
        mtu: int,
    ) -> None: ...
    def remove_adjacency(self, adjacency: int) -> None: ...
    def set_next_hop(self, next_hop: int, adjacency: int | None, resolve: bool) -> None: ...
    def set_next_hop_group(self, next_hop: int, members: list[int]) -> None: ...
    def remove_next_hop(self, next_hop: int) -> None: ...
    def set_route(self, tunnel: int, prefix: str, next_hop: int) -> None: ...
    def remove_route(self, tunnel: int, prefix: str) -> None: ...
    def set_multicast(self, tunnel: int, adjacencies: list[int]) -> None: ...
    def set_sources(self, adjacency: int, which: Literal["any", "open", "own"], prefixes: list[str]) -> None:
        """Which inner sources the packets of an adjacency may have; at first any. "own": what is routed to it, and
        `prefixes`. "open": besides, what is routed to an adjacency that is open or may send from anywhere, or to none."""

    def allocate_spi(self, beside: int = 0) -> int:
        """An unused inbound SPI (at least 256) that carries its slot. It stays reserved until removed or released.

        Those that are asked for one after another are received by different sockets of `nat_port`, where it has
        several; with `beside`, an inbound SPI, by the same socket as that: so nothing overtakes when one SA replaces another.
        """

    def release_spi(self, spi: int) -> None:
        """Give back an SPI that no SA was made for."""

    def add_inbound_sa(
        self, spi: int, suite: str, keymat: bytes, adjacencies: list[int], esn: bool, replay_window: int
    ) -> None: ...
    def remove_inbound_sa(self, spi: int) -> None: ...
    def set_outbound_sa(
        self, spi: int, suite: str, keymat: bytes, adjacencies: list[int], esn: bool, resource: int = 0
    ) -> None:
        """Seal what these adjacencies send with this SA. `resource` 0: by all workers that have none of their own, and
        NHRP; 1 to 15: by the worker "encapN" of that number."""

    def clear_outbound_sa(self, adjacency: int, resource: int = 0) -> None:
        """Take an SA from an adjacency; nothing happens if it has none. Without the SA of resource 0, packets of workers
        that have none of their own are drop_no_sa, and so is NHRP."""
    def commit(self) -> None: ...

    # -- observation ----------------------------------------------------------------------------------------
    def counters(self) -> dict[str, int]:
        """Totals and every drop reason ("drop_..."), by name, since the start."""

    def adjacency_counters(self, adjacency: int) -> dict[str, int]:
        """Packets and inner octets ("packets_in", "bytes_in", "packets_out", "bytes_out"), and milliseconds since the
        last data packet ("idle_ms_in", "idle_ms_out"; -1: none yet). NHRP is not data."""

    def sa_counters(self, spi: int) -> dict[str, int]:
        """Of an inbound SA: "packets", "bytes", "replayed", "unauthentic"."""

    def outbound_sa_counters(self, adjacency: int, resource: int = 0) -> dict[str, int]:
        """Of the outbound SA an adjacency has for a resource: "spi", "packets", "bytes", "sequence". ValueError if none."""

@final
class Dataplane(Tables):
    """Tables, descriptors and drivers of one gateway process."""

    def __new__(cls, *, aead_backend: str = "auto", queues: int = 1) -> Dataplane:
        """`queues`: of every TUN device, and sockets that share `nat_port`, for as many workers per direction (1 to 8)."""

    @property
    def aead_backend(self) -> str:
        """The backend that new keys get, for people: "dsvpn (VAES+AVX2)", "ring (VAES+AVX2)"."""

    # -- descriptors ---------------------------------------------------------------------------------------
    def add_tunnel(
        self,
        name: str,
        *,
        key: int | None = None,
        protected: bool = True,
        redirect: bool = False,
        mss_clamp: bool = True,
        copy_dscp: bool = True,
    ) -> int:
        """Create the TUN device `name` with its offloads and give the tunnel's id, in force at once.

        `protected` tunnels take nothing but ESP; the others nothing but plain GRE with their key.
        """

    def remove_tunnel(self, tunnel: int) -> None:
        """Close the TUN, which takes the device and its routes with it. In force at once, as pending commands are."""

    def open_underlay(
        self,
        *,
        ike_port: int = 500,
        nat_port: int = 4500,
        esp: bool = True,
        gre: bool = False,
        dont_fragment: bool = True,
        ipv4: bool = True,
        ipv6: bool = True,
        udp_gso: bool = True,
        device: int = 0,
    ) -> None:
        """Bind the UDP sockets and the raw sockets that are asked for. OSError names the port that is busy.

        `udp_gso` False sends every datagram by itself, for kernels and devices that mangle what they should cut.
        `device`: index of a network device, a VRF, that all of them are bound to; 0 for none.
        """

    def send_ike(self, local: str, local_port: int, remote: str, remote_port: int, datagram: bytes) -> None:
        """Send an IKE message from port `ike_port` or, behind a non-ESP marker, from `nat_port`.

        `local` "" lets the kernel choose the source. A send that fails is counted, not raised.
        """

    def set_cookie_gate(self, version: int, secret: bytes, previous: bytes) -> None:
        """Answer IKE_SA_INIT requests without a good cookie by one, before they become punts (RFC 7296 section 2.6).

        `version` numbers `secret`; cookies of `previous` (empty: none) still count. An empty `secret` ends it.
        """

    def cookie_gate_counts(self) -> tuple[int, int]:
        """Cookies that the gate has sent, and messages that it has dropped."""

    def send_keepalive(self, local: str, remote: str, remote_port: int) -> None:
        """Send a NAT keepalive (RFC 3948 section 2.3) from `nat_port`."""

    def send_nhrp(self, adjacency: int, packet: bytes) -> bool:
        """Send an NHRP packet through an adjacency, sealed as its data is. False if it cannot carry it now."""

    def offloads(self) -> dict[str, str]:
        """Which offloads run, by name, and how they stand: "on", or "off: " and why. For people."""

    def kernel_drops(self) -> dict[str, int]:
        """What the kernel dropped before the data plane saw it, since the descriptors were opened.

        "drop_socket_queue": datagrams for which the sockets had no room, or with a wrong checksum. "drop_tun_queue":
        packets that came to the TUN devices faster than they were read. "drop_tun_backlog": packets that were written
        to the TUN devices and for which the host's input queue had no room. Reads the system: not for every packet.
        """

    # -- drivers --------------------------------------------------------------------------------------------
    def descriptors(self) -> list[tuple[int, Literal["encap", "decap"]]]:
        """Descriptors to watch for reading when no workers run; each goes to `drain`. Empty while workers run."""

    def drain(self, descriptor: int, budget: int) -> int:
        """Forward at most `budget` vectors from one descriptor, until it has no more. Gives packets taken in.

        OSError (ENODEV) if the TUN was taken away: it must not be watched any more. RuntimeError for a defect.
        """

    def start_workers(self, threads: int | None = None) -> None:
        """Let native threads own the descriptors, with the GIL released: one for both directions, two for one each, or an
        even number up to two for each queue. None: two for each queue; with one queue as many as serve this machine best.
        ValueError for another number. Nothing happens if they do."""

    @property
    def worker_threads(self) -> int:
        """How many worker threads there are: 0 when none runs."""

    @staticmethod
    def best_worker_threads() -> int:
        """How many worker threads this machine is served best by: 1, or an even number, half of which are the queues."""

    @property
    def worker_packets(self) -> dict[str, int]:
        """What each worker has taken in, by its name ("encap0"): packets from TUN devices or messages from sockets, where
        a superpacket or a joined run of datagrams counts once. Empty when none runs."""

    def stop_workers(self) -> None:
        """Stop and join the threads. RuntimeError if one had failed."""

    @property
    def punt_descriptor(self) -> int:
        """An eventfd that is readable while punts wait."""

    def take_punts(self, limit: int) -> list[Punt]:
        """The oldest punts. RuntimeError, once, if a worker thread has failed."""

# -- memory to memory -------------------------------------------------------------------------------------------
# A vector is an arena of octets and rows of uint32 that point into it. The row of a TUN packet is a record of 20
# octets in the machine's byte order: uint32 offset, uint32 length (of the IP packet, without its virtio header), uint8
# flags, uint8 gso_type, uint16 hdr_len, uint16 gso_size, uint16 csum_start, uint16 csum_offset, uint16 0; a structured
# array of that dtype is passed as `array.view(np.uint32).reshape(-1, 5)`. Arrays must be C-contiguous.

@final
class MemoryForwarder(Tables):
    """Encapsulation and decapsulation between NumPy arenas, with the tables of a data plane and no descriptor."""

    def __new__(
        cls,
        *,
        segments: int = 64,
        octets: int = 65507,
        coalesce_tcp: bool = True,
        coalesce_udp: bool = True,
        verify_checksums: bool = False,
    ) -> MemoryForwarder:
        """`segments` and `octets` bound one message of a UDP adjacency."""

    def add_tunnel(
        self,
        *,
        key: int | None = None,
        protected: bool = True,
        redirect: bool = False,
        mss_clamp: bool = True,
        copy_dscp: bool = True,
    ) -> int:
        """Add a tunnel without a device and give its id. It is in force after `commit()`."""

    def remove_tunnel(self, tunnel: int) -> None:
        """Forget a tunnel, after `commit()`."""

    def add_endpoints(self, local: str, local_port: int, remote: str, remote_port: int) -> int:
        """Register the two ends of received datagrams and give the index that the rows of `decap` take."""

    def encap(
        self,
        tunnel: int,
        arena: npt.NDArray[np.uint8],
        packets: npt.NDArray[np.uint32],
        output: npt.NDArray[np.uint8],
        now_ns: int,
    ) -> EncapResult:
        """Encapsulate TUN packets (rows of 5) into `output`, of at least 131072 octets.

        If `consumed` is less than the rows given, `output` is full: call again with the rest.
        """

    def decap(self, arena: npt.NDArray[np.uint8], datagrams: npt.NDArray[np.uint32], now_ns: int) -> DecapResult:
        """Decapsulate datagrams, in place in `arena`.

        Rows of offset, length, segment size (stride of a UDP_GRO run, 0: one datagram), kind (0 UDP NAT port, 1 ESP,
        2 GRE, 3 UDP IKE port) and index of the endpoints.
        """

    def take_punts(self, limit: int) -> list[Punt]: ...
    def lookup_ipv4(self, tunnel: int, addresses: npt.NDArray[np.uint32], next_hops: npt.NDArray[np.uint32]) -> None:
        """Look addresses (host byte order) up in a tunnel's FIB. 0xFFFFFFFF: no route."""

    def lookup_ipv6(self, tunnel: int, addresses: npt.NDArray[np.uint8], next_hops: npt.NDArray[np.uint32]) -> None:
        """Look addresses (rows of 16 octets) up in a tunnel's FIB. 0xFFFFFFFF: no route."""

    def lookup_adjacencies(self, next_hops: npt.NDArray[np.uint32], spis: npt.NDArray[np.uint32]) -> None:
        """Follow next hops to their adjacencies. `spis` gets the SPI of each one's outbound SA, 0 without one."""

@final
class EncapResult:
    """What encapsulation gave."""

    @property
    def consumed(self) -> int:
        """Packets that are dealt with."""

    @property
    def messages(self) -> npt.NDArray[np.uint32]:
        """Rows of adjacency, encapsulation (0 udp, 1 esp, 2 gre), remote port, TOS, offset in the output arena,
        length, segment size, number of datagrams."""

    @property
    def replies(self) -> npt.NDArray[np.uint8]:
        """Octets of ICMP errors for the TUN."""

    @property
    def reply_packets(self) -> npt.NDArray[np.uint32]:
        """Their rows (of TUN packets)."""

@final
class DecapResult:
    """What decapsulation or coalescing gave: packets for the TUN, by reference to the arena."""

    @property
    def packets(self) -> npt.NDArray[np.uint32]:
        """Rows of tunnel, header offset, header length, first slice, number of slices, length, packets merged, 0.

        A packet is its octets in `headers` and then its slices; the first 10 octets are the virtio header.
        """

    @property
    def slices(self) -> npt.NDArray[np.uint32]:
        """Rows of offset and length in the arena."""

    @property
    def headers(self) -> npt.NDArray[np.uint8]:
        """Octets that lie in no slice."""

    def gather(self, arena: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
        """The packets as a vector of their own: an arena and its rows of TUN packets."""

@final
class Cipher:
    """The AEAD of a suite with one key. `keymat` is the key followed by the salt. ValueError for a suite that is none."""

    def __new__(cls, suite: str, keymat: bytes) -> Cipher: ...
    def seal(
        self,
        arena: npt.NDArray[np.uint8],
        records: npt.NDArray[np.uint32],
        *,
        spi: int,
        first_sequence: int,
        esn: bool = False,
    ) -> None:
        """Encrypt every record (row of offset and length) in place and write its ICV of 16 octets behind it."""

    def open(
        self,
        arena: npt.NDArray[np.uint8],
        records: npt.NDArray[np.uint32],
        authentic: npt.NDArray[np.uint8],
        *,
        spi: int,
        first_sequence: int,
        esn: bool = False,
    ) -> None:
        """Authenticate and decrypt every record in place. `authentic` gets 1 or 0 for each."""

@final
class MlKem512:
    """A key pair of ML-KEM-512 (FIPS 203). `seed` is d || z, 64 octets. ValueError for arguments of other lengths."""

    def __new__(cls, seed: bytes) -> MlKem512: ...
    @property
    def public_key(self) -> bytes:
        """The encapsulation key, 800 octets."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 octets, of a ciphertext of 768. One that was altered gives another secret and no error."""

    @staticmethod
    def encapsulate(public_key: bytes, message: bytes) -> tuple[bytes, bytes]:
        """Ciphertext and shared secret. `message` is 32 random octets. ValueError for a key that is none."""

@final
class MlKem768:
    """A key pair of ML-KEM-768 (FIPS 203). `seed` is d || z, 64 octets. ValueError for arguments of other lengths."""

    def __new__(cls, seed: bytes) -> MlKem768: ...
    @property
    def public_key(self) -> bytes:
        """The encapsulation key, 1,184 octets."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 octets, of a ciphertext of 1,088. One that was altered gives another secret and no error."""

    @staticmethod
    def encapsulate(public_key: bytes, message: bytes) -> tuple[bytes, bytes]:
        """Ciphertext and shared secret. `message` is 32 random octets. ValueError for a key that is none."""

@final
class MlKem1024:
    """A key pair of ML-KEM-1024 (FIPS 203). `seed` is d || z, 64 octets. ValueError for arguments of other lengths."""

    def __new__(cls, seed: bytes) -> MlKem1024: ...
    @property
    def public_key(self) -> bytes:
        """The encapsulation key, 1,568 octets."""

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, 32 octets, of a ciphertext of 1,568. One that was altered gives another secret and no error."""

    @staticmethod
    def encapsulate(public_key: bytes, message: bytes) -> tuple[bytes, bytes]:
        """Ciphertext and shared secret. `message` is 32 random octets. ValueError for a key that is none."""

@final
class ReplayWindow:
    """The replay window of an inbound SA: RFC 4303 section 3.4.3. `size` counts packets: rounded up to a
    multiple of 64, 0 is off, at most 8192."""

    def __new__(cls, size: int) -> ReplayWindow: ...
    def update(self, sequences: npt.NDArray[np.uint64], accepted: npt.NDArray[np.uint8]) -> None:
        """Check each sequence number and take it up if it is new. `accepted` gets 1 or 0 for each."""

def checksum(octets: npt.NDArray[np.uint8]) -> int:
    """The Internet checksum (RFC 1071) of octets, as the field's value in host byte order."""

def coalesce(
    arena: npt.NDArray[np.uint8], packets: npt.NDArray[np.uint32], *, verify_checksums: bool = False
) -> DecapResult:
    """Merge single packets as decapsulation does. Headers of merged packets are rewritten in `arena`."""

def segment(
    arena: npt.NDArray[np.uint8], packets: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Cut superpackets into packets. Gives an arena and its rows of TUN packets."""

def write_gre(
    arena: npt.NDArray[np.uint8], offsets: npt.NDArray[np.uint32], *, key: int | None, protocol: int
) -> None:
    """Write a GRE header (RFC 2890) at every offset."""

def parse_gre(
    arena: npt.NDArray[np.uint8], records: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint32]
) -> None:
    """Read the GRE header of every record (row of offset and length). `lengths` gets the octets of each, 0 for one that
    is refused."""
