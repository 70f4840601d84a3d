//! Totals and drop reasons, by name: every packet that is not delivered is in one of them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted. Each has a stable name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// Every counter.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];

            /// Its name: `drop_…` for the reasons why a packet was not delivered.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Packets read from TUN devices: a superpacket counts once.
    TunRxPackets = "tun_rx_packets",
    /// Their octets.
    TunRxOctets = "tun_rx_octets",
    /// Packets given to TUN devices: a merged packet counts once.
    TunTxPackets = "tun_tx_packets",
    /// Their octets, without the virtio header.
    TunTxOctets = "tun_tx_octets",
    /// Datagrams received from the underlay: each one of a UDP_GRO run counts.
    UnderlayRxPackets = "underlay_rx_packets",
    /// Their octets, without IP and UDP headers.
    UnderlayRxOctets = "underlay_rx_octets",
    /// Datagrams given to the underlay: each one of a UDP GSO run counts.
    UnderlayTxPackets = "underlay_tx_packets",
    /// Their octets, without IP and UDP headers.
    UnderlayTxOctets = "underlay_tx_octets",
    /// Messages given to the underlay (a UDP GSO run counts once).
    UnderlayTxMessages = "underlay_tx_messages",
    /// TUN packets that were merged of more than one.
    Coalesced = "coalesced",
    /// NAT keepalives received (RFC 3948 section 2.3).
    KeepalivesReceived = "keepalives_received",
    /// ESP dummy packets received (RFC 4303 section 2.6).
    DummiesReceived = "dummies_received",
    /// TCP SYN whose MSS was lowered.
    MssClamped = "mss_clamped",
    /// IPv4 packets that were fragmented before encapsulation.
    Fragmented = "fragmented",
    /// ICMP fragmentation needed and ICMPv6 packet too big that were sent back.
    TooBigSent = "too_big_sent",
    /// Messages that were refused as a GSO run and sent again as single datagrams.
    GsoRefused = "gso_refused",
    /// Merged packets that the TUN refused and that were written as single packets.
    TunGsoRefused = "tun_gso_refused",
    /// Worker threads, and drains, that ended by a defect of the program.
    WorkerPanics = "worker_panics",
    /// TUN devices that were taken away while their tunnel was there.
    TunGone = "tun_gone",
    /// IKE datagrams queued.
    PuntIke = "punt_ike",
    /// NHRP packets queued.
    PuntNhrp = "punt_nhrp",
    /// Misses queued.
    PuntMiss = "punt_miss",
    /// Redirects queued.
    PuntRedirect = "punt_redirect",
    /// Moves queued.
    PuntMoved = "punt_moved",
    /// Inner sources reported that are not the peer's for certain.
    PuntSource = "punt_source",
    /// ESP with unknown SPIs reported.
    PuntUnknownSpi = "punt_unknown_spi",
    /// Misses, redirects, moves, sources and unknown SPIs for which the queue had no room; the packets themselves went on.
    PuntLost = "punt_lost",
    /// The tunnel is unknown.
    DropNoTunnel = "drop_no_tunnel",
    /// No route matches the destination.
    DropNoRoute = "drop_no_route",
    /// The next hop has no adjacency, or one that is gone.
    DropNoAdjacency = "drop_no_adjacency",
    /// The adjacency has no outbound SA yet.
    DropNoSa = "drop_no_sa",
    /// A multicast packet of a tunnel without multicast peers.
    DropNoMulticast = "drop_no_multicast",
    /// The outbound SA has used its last sequence number.
    DropSequenceExhausted = "drop_sequence_exhausted",
    /// Larger than the adjacency's MTU, and not to be fragmented.
    DropTooBig = "drop_too_big",
    /// Not a sound IPv4 or IPv6 packet.
    DropMalformedInner = "drop_malformed_inner",
    /// A virtio header that does not fit its packet, or a packet that the TUN could not give.
    DropMalformedVirtio = "drop_malformed_virtio",
    /// Shorter than its kind's smallest datagram, or empty.
    DropMalformedDatagram = "drop_malformed_datagram",
    /// ESP with an SPI that no inbound SA has.
    DropUnknownSpi = "drop_unknown_spi",
    /// ESP that the replay window refuses.
    DropReplayed = "drop_replayed",
    /// ESP whose ICV does not fit.
    DropUnauthentic = "drop_unauthentic",
    /// ESP that is truncated or has a wrong trailer.
    DropMalformedEsp = "drop_malformed_esp",
    /// ESP that carries something else than GRE, or GRE in the other mode than the SA's.
    DropWrongNextHeader = "drop_wrong_next_header",
    /// ESP in tunnel mode whose inner IP header is malformed, a fragment's, not before GRE, or not between the addresses
    /// that the SA is for (RFC 4301 section 5.2).
    DropTunnelHeader = "drop_tunnel_header",
    /// GRE with a wrong version, flags, protocol, checksum or length.
    DropMalformedGre = "drop_malformed_gre",
    /// GRE with a key that none of the SA's tunnels has, or that no tunnel has.
    DropWrongKey = "drop_wrong_key",
    /// A packet whose inner source is not the peer's that sent it.
    DropWrongSource = "drop_wrong_source",
    /// Plain GRE data of somebody who is not an adjacency.
    DropUnknownPeer = "drop_unknown_peer",
    /// Plain GRE for a tunnel that is protected.
    DropUnprotected = "drop_unprotected",
    /// A datagram that the system refused to send.
    DropSendRefused = "drop_send_refused",
    /// A datagram for which the socket had no room.
    DropSendBusy = "drop_send_busy",
    /// A datagram that is larger than its link's MTU.
    DropSendTooBig = "drop_send_too_big",
    /// A packet that the TUN refused.
    DropTunWrite = "drop_tun_write",
    /// A datagram that was larger than the receive buffer.
    DropTruncated = "drop_truncated",
    /// An IKE or NHRP packet for which the punt queue had no room.
    DropPuntOverflow = "drop_punt_overflow",
}

/// Number of counters.
pub const COUNTERS: usize = Counter::ALL.len();

/// The totals of one data plane, shared by its workers.
#[derive(Debug)]
pub struct Counters {
    values: [AtomicU64; COUNTERS],
}

impl Default for Counters {
    fn default() -> Self {
        Self { values: [const { AtomicU64::new(0) }; COUNTERS] }
    }
}

impl Counters {
    /// Add to one counter.
    pub fn add(&self, counter: Counter, count: u64) {
        self.values[counter as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// The value of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Ordering::Relaxed)
    }

    /// Names and values of all.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter.name(), self.get(counter)))
    }
}

/// Counts of one vector, added to the shared totals once at its end.
#[derive(Debug)]
pub(crate) struct Tally {
    values: [u64; COUNTERS],
}

impl Default for Tally {
    fn default() -> Self {
        Self { values: [0; COUNTERS] }
    }
}

impl Tally {
    #[inline]
    pub(crate) fn add(&mut self, counter: Counter, count: u64) {
        self.values[counter as usize] += count;
    }

    /// Add everything to the totals and start again at zero.
    pub(crate) fn flush(&mut self, counters: &Counters) {
        for (value, total) in self.values.iter_mut().zip(&counters.values) {
            if *value != 0 {
                total.fetch_add(*value, Ordering::Relaxed);
                *value = 0;
            }
        }
    }
}
