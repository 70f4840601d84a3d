//! What the workers read: tunnels, adjacencies, next hops, FIBs and inbound SAs.
//!
//! There are two copies (left-right): workers read one while the writer changes the other. What packets change
//! (sequence numbers, replay windows, counters) lies behind `Arc`s that both copies share.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::slice;
use std::sync::Arc;

use left_right::{Absorb, ReadGuard, ReadHandle};

use crate::fib::Fib;
use crate::group::Group;
use crate::prefetch::{Prefetch, ask};
use crate::prefix::Prefix;
use crate::resources::ResourceSas;
use crate::sa::{AdjacencyCounters, InboundSa, OutboundSa};
use crate::sources::Sources;
use crate::spi;
use crate::vector::{Encapsulation, Endpoint};

/// Peers up to which looking ahead costs more than it saves: their SAs fill the second level cache.
const SMALL: usize = 256;
/// Octets of a FIB for which the same is true.
const SMALL_FIB: usize = 64 * 1024;

/// What a tunnel is, from its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// GRE key, sent and expected.
    pub key: Option<u32>,
    /// It takes nothing but ESP; otherwise nothing but plain GRE with its key.
    pub protected: bool,
    /// Report packets that come from one adjacency and leave by another.
    pub redirect: bool,
    /// Lower the MSS of TCP SYN to the adjacency's MTU, both ways.
    pub mss_clamp: bool,
    /// Copy the inner DSCP to the outer header.
    pub copy_dscp: bool,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self { key: None, protected: true, redirect: false, mss_clamp: true, copy_dscp: true }
    }
}

/// The peer of one tunnel at the other end of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdjacencyConfig {
    /// Its tunnel.
    pub tunnel: u32,
    /// How its packets are wrapped.
    pub encapsulation: Encapsulation,
    /// Our underlay address; `None` lets the kernel choose.
    pub local: Option<IpAddr>,
    /// The peer's underlay address.
    pub remote: IpAddr,
    /// The peer's port, 0 for ESP and GRE.
    pub remote_port: u16,
    /// Octets of the largest inner packet.
    pub mtu: u32,
}

/// A tunnel and its FIBs.
#[derive(Clone, Debug)]
pub struct Tunnel {
    /// Its configuration.
    pub config: TunnelConfig,
    /// Its IPv4 routes.
    pub v4: Fib<u32>,
    /// Its IPv6 routes.
    pub v6: Fib<u128>,
    /// The adjacencies that get a copy of multicast packets.
    pub multicast: Arc<[u32]>,
}

/// An adjacency, ready for packets: all that most packets need of it, in one cache line of the tables themselves.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Adjacency {
    /// What seals for all workers that have no SA of their own, unless it is plain GRE.
    pub outbound: Option<Arc<OutboundSa>>,
    pub(crate) counters: Arc<AdjacencyCounters>,
    /// Addresses are IPv4-mapped where they are IPv4, and unspecified where there is none.
    local: Ipv6Addr,
    remote: Ipv6Addr,
    /// Its id.
    pub id: u32,
    key: u32,
    remote_port: u16,
    tunnel: u16,
    mtu: u16,
    /// How its packets are wrapped.
    pub encapsulation: Encapsulation,
    flags: u8,
}

const _: () = assert!(size_of::<Option<Adjacency>>() == 64, "one cache line");

const HAS_KEY: u8 = 1;
const MSS_CLAMP: u8 = 1 << 1;
const COPY_DSCP: u8 = 1 << 2;
const CHECKS_SOURCES: u8 = 1 << 3;
const OPEN: u8 = 1 << 4;
const HAS_RESOURCES: u8 = 1 << 5;

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl Adjacency {
    /// `config` has been checked: its numbers fit. A remote address that is IPv4-mapped is IPv4 from here on.
    pub(crate) fn new(
        id: u32,
        config: &AdjacencyConfig,
        tunnel: &TunnelConfig,
        outbound: Option<Arc<OutboundSa>>,
        counters: Arc<AdjacencyCounters>,
    ) -> Self {
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        Self {
            outbound,
            counters,
            local: config.local.map_or(Ipv6Addr::UNSPECIFIED, mapped),
            remote: mapped(config.remote),
            id,
            key: tunnel.key.unwrap_or_default(),
            remote_port: config.remote_port,
            tunnel: config.tunnel as u16,
            mtu: config.mtu as u16,
            encapsulation: config.encapsulation,
            flags: flag(tunnel.key.is_some(), HAS_KEY)
                | flag(tunnel.mss_clamp, MSS_CLAMP)
                | flag(tunnel.copy_dscp, COPY_DSCP),
        }
    }

    /// The same with another SA.
    pub(crate) fn with_outbound(&self, outbound: Option<Arc<OutboundSa>>) -> Self {
        Self { outbound, ..self.clone() }
    }

    /// The same, and whether there are SAs of single workers besides.
    pub(crate) fn with_resources(self, has: bool) -> Self {
        Self { flags: self.flags & !HAS_RESOURCES | if has { HAS_RESOURCES } else { 0 }, ..self }
    }

    /// The same with other sources.
    pub(crate) fn with_sources(&self, sources: &Sources) -> Self {
        let flags = match sources {
            Sources::Any => 0,
            Sources::Open(_) => CHECKS_SOURCES | OPEN,
            Sources::Own(_) => CHECKS_SOURCES,
        };
        Self { flags: self.flags & !(CHECKS_SOURCES | OPEN) | flags, ..self.clone() }
    }

    /// The same with the sources of another.
    pub(crate) fn with_sources_of(self, other: &Self) -> Self {
        Self { flags: self.flags | other.flags & (CHECKS_SOURCES | OPEN), ..self }
    }

    /// Look at the inner sources of what comes from it.
    #[inline]
    pub(crate) fn checks_sources(&self) -> bool {
        self.flags & CHECKS_SOURCES != 0
    }

    /// It may send what a hub stands in for, or has stood in for.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.flags & OPEN != 0
    }

    /// Its tunnel.
    #[inline]
    pub fn tunnel(&self) -> u32 {
        u32::from(self.tunnel)
    }

    /// Octets of the largest inner packet.
    #[inline]
    pub fn mtu(&self) -> usize {
        usize::from(self.mtu)
    }

    /// GRE key, sent and expected.
    #[inline]
    pub fn key(&self) -> Option<u32> {
        (self.flags & HAS_KEY != 0).then_some(self.key)
    }

    /// Lower the MSS of TCP SYN to its MTU, both ways.
    #[inline]
    pub fn mss_clamp(&self) -> bool {
        self.flags & MSS_CLAMP != 0
    }

    /// Copy the inner DSCP to the outer header.
    #[inline]
    pub fn copy_dscp(&self) -> bool {
        self.flags & COPY_DSCP != 0
    }

    /// Our address, where it is set.
    #[inline]
    pub(crate) fn local(&self) -> Option<IpAddr> {
        (!self.local.is_unspecified()).then(|| self.local.to_canonical())
    }

    /// The peer's address.
    #[inline]
    pub(crate) fn remote(&self) -> IpAddr {
        self.remote.to_canonical()
    }

    /// Where its messages go: on the underlay, tunnel mode is ESP like any other.
    #[inline]
    pub fn endpoint(&self, tos: u8) -> Endpoint {
        let encapsulation = match self.encapsulation {
            Encapsulation::EspTunnel => Encapsulation::Esp,
            other => other,
        };
        Endpoint { encapsulation, local: self.local(), remote: self.remote(), remote_port: self.remote_port, tos }
    }

    /// Whether a datagram of this address comes from it.
    #[inline]
    pub(crate) fn is_at(&self, remote: IpAddr) -> bool {
        self.remote == mapped(remote)
    }

    /// The peer's port, 0 for ESP and GRE.
    #[inline]
    pub(crate) fn remote_port(&self) -> u16 {
        self.remote_port
    }

    /// Ask for what a packet of that many octets needs behind this adjacency.
    #[inline]
    pub(crate) fn prefetch_outward<P: Prefetch>(&self, outbound: Option<&OutboundSa>, packet: usize) {
        match outbound {
            Some(sa) => sa.prefetch::<P>(packet),
            None => ask::<P, _>(&self.counters.outward),
        }
    }
}

/// A next hop: an adjacency's id or none, and whether to resolve, or else the slot of a group, in one word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NextHop(u32);

impl Default for NextHop {
    fn default() -> Self {
        Self::new(None, false)
    }
}

impl NextHop {
    const NONE: u32 = u32::MAX >> 1;
    // Far beyond any adjacency's id.
    const GROUP: u32 = 1 << 29;

    /// The next hop that stands for the group in a slot.
    pub(crate) fn of_group(slot: u32) -> Self {
        Self((Self::GROUP | slot) << 1)
    }

    /// The slot of the group that it stands for.
    #[inline]
    pub(crate) fn group(self) -> Option<u32> {
        let value = self.0 >> 1;
        (value & Self::GROUP != 0 && value != Self::NONE).then_some(value & !Self::GROUP)
    }

    pub(crate) fn new(adjacency: Option<u32>, resolve: bool) -> Self {
        Self(adjacency.unwrap_or(Self::NONE) << 1 | u32::from(resolve))
    }

    #[inline]
    pub(crate) fn adjacency(self) -> Option<u32> {
        let adjacency = self.0 >> 1;
        (adjacency & Self::GROUP == 0).then_some(adjacency)
    }

    /// Report packets that use it.
    #[inline]
    pub(crate) fn resolve(self) -> bool {
        self.0 & 1 != 0
    }
}

/// One copy of the tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    tunnels: Vec<Option<Tunnel>>,
    adjacencies: Vec<Option<Adjacency>>,
    next_hops: Vec<NextHop>,
    groups: Vec<Group>,
    inbound: Vec<Option<Arc<InboundSa>>>,
    resources: ResourceSas,
    // Plain GRE: key and remote address to adjacency.
    gre_peers: HashMap<(Option<u32>, IpAddr), u32>,
    // Inner sources that an adjacency may have though they are not routed to it.
    sources: HashMap<u32, Arc<[Prefix]>>,
}

impl Tables {
    /// A tunnel by id.
    #[inline]
    pub fn tunnel(&self, id: u32) -> Option<&Tunnel> {
        self.tunnels.get(id as usize)?.as_ref()
    }

    /// An adjacency by id.
    #[inline]
    pub fn adjacency(&self, id: u32) -> Option<&Adjacency> {
        self.adjacencies.get(id as usize)?.as_ref()
    }

    /// What seals an adjacency's packets for the worker of a resource: its own SA, or else the fallback.
    #[inline]
    pub(crate) fn outbound<'t>(&'t self, adjacency: &'t Adjacency, resource: u32) -> Option<&'t OutboundSa> {
        let fallback = adjacency.outbound.as_deref();
        if resource == 0 || adjacency.flags & HAS_RESOURCES == 0 {
            return fallback;
        }
        self.resources.get(adjacency.id, resource).or(fallback)
    }

    /// Whether all of the tables are likely to stay in the caches while packets pass.
    #[inline]
    pub(crate) fn are_small(&self) -> bool {
        self.adjacencies.len() <= SMALL && self.inbound.len() <= SMALL
    }

    /// Ask for the next hop's entry.
    #[inline]
    pub(crate) fn prefetch_next_hop<P: Prefetch>(&self, id: u32) {
        if let Some(next_hop) = self.next_hops.get(id as usize) {
            ask::<P, _>(next_hop);
        }
    }

    /// Ask for the entry of an SPI.
    #[inline]
    pub(crate) fn prefetch_spi<P: Prefetch>(&self, spi: u32) {
        if let Some(sa) = self.inbound.get(spi::slot(spi)) {
            ask::<P, _>(sa);
        }
    }

    /// What lies in the slot of an SPI, which may be another's.
    #[inline]
    pub(crate) fn slot_of_spi(&self, spi: u32) -> Option<&InboundSa> {
        self.inbound.get(spi::slot(spi))?.as_deref()
    }

    /// Ask for the adjacency's entry.
    #[inline]
    pub(crate) fn prefetch_adjacency<P: Prefetch>(&self, id: u32) {
        if let Some(adjacency) = self.adjacencies.get(id as usize) {
            ask::<P, _>(adjacency);
        }
    }

    #[inline]
    pub(crate) fn next_hop(&self, id: u32) -> NextHop {
        self.next_hops.get(id as usize).copied().unwrap_or_default()
    }

    /// The member of a group that a flow goes by.
    #[inline]
    pub(crate) fn member(&self, slot: u32, flow: u64) -> Option<u32> {
        self.groups.get(slot as usize)?.member(flow)
    }

    /// All that packets by a next hop may go by: the members of a group, or the next hop itself.
    pub(crate) fn ways<'t>(&'t self, next_hop: Option<&'t u32>) -> &'t [u32] {
        let Some(own) = next_hop else { return &[] };
        match self.next_hop(*own).group() {
            Some(slot) => self.groups.get(slot as usize).map_or(&[], Group::members),
            None => slice::from_ref(own),
        }
    }

    /// An inbound SA by SPI: an index and a compare.
    #[inline]
    pub fn inbound_sa(&self, spi: u32) -> Option<&InboundSa> {
        self.inbound.get(spi::slot(spi))?.as_deref().filter(|sa| sa.spi == spi)
    }

    /// The next hop that a tunnel's FIB has for an address.
    pub fn lookup(&self, tunnel: u32, address: IpAddr) -> Option<u32> {
        let tunnel = self.tunnel(tunnel)?;
        match address {
            IpAddr::V4(v4) => tunnel.v4.lookup(v4.to_bits()),
            IpAddr::V6(v6) => tunnel.v6.lookup(v6.to_bits()),
        }
    }

    /// Prefixes that an adjacency may send from besides what is routed to it.
    pub(crate) fn sources(&self, adjacency: u32) -> Option<&[Prefix]> {
        self.sources.get(&adjacency).map(|prefixes| &**prefixes)
    }

    pub(crate) fn gre_peer(&self, key: Option<u32>, remote: IpAddr) -> Option<&Adjacency> {
        self.adjacency(*self.gre_peers.get(&(key, remote))?)
    }

    /// Tunnels with a GRE key: the first that is not protected, or else one that is.
    pub(crate) fn tunnel_of_key(&self, key: Option<u32>) -> Option<(u32, &Tunnel)> {
        let tunnels = self.tunnels.iter().enumerate().filter_map(|(id, tunnel)| Some((id as u32, tunnel.as_ref()?)));
        tunnels.filter(|(_, tunnel)| tunnel.config.key == key).min_by_key(|(_, tunnel)| tunnel.config.protected)
    }
}

/// One change, applied to both copies.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Tunnel(u32, Option<TunnelConfig>),
    Adjacency(u32, Option<Adjacency>),
    NextHop(u32, NextHop),
    Group(u32, Group),
    SetRoute { tunnel: u32, prefix: Prefix, next_hop: u32 },
    RemoveRoute { tunnel: u32, prefix: Prefix, cover: Option<(u8, u32)> },
    Enlarge { tunnel: u32, ipv6: bool, routes: Arc<[(Prefix, u32)]> },
    Multicast(u32, Arc<[u32]>),
    Inbound(usize, Option<Arc<InboundSa>>),
    ResourceSa { adjacency: u32, resource: u32, sa: Option<Arc<OutboundSa>> },
    GrePeer((Option<u32>, IpAddr), Option<u32>),
    Sources(u32, Option<Arc<[Prefix]>>),
}

fn put<T: Clone + Default>(entries: &mut Vec<T>, index: usize, value: T) {
    if index >= entries.len() {
        entries.resize(index + 1, T::default());
    }
    entries[index] = value;
}

impl Tunnel {
    fn new(config: TunnelConfig) -> Self {
        Self { config, v4: Fib::default(), v6: Fib::default(), multicast: Arc::new([]) }
    }

    /// Whether its FIBs are likely to stay in the caches while packets pass.
    #[inline]
    pub(crate) fn is_small(&self) -> bool {
        self.v4.octets() + self.v6.octets() <= SMALL_FIB
    }

    fn set_route(&mut self, prefix: Prefix, next_hop: u32) {
        match prefix.address() {
            IpAddr::V4(v4) => self.v4.insert(v4.to_bits(), prefix.length(), next_hop),
            IpAddr::V6(v6) => self.v6.insert(v6.to_bits(), prefix.length(), next_hop),
        }
    }
}

impl Tables {
    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Tunnel(id, config) => put(&mut self.tunnels, *id as usize, config.map(Tunnel::new)),
            Operation::Adjacency(id, adjacency) => put(&mut self.adjacencies, *id as usize, adjacency.clone()),
            Operation::NextHop(id, next_hop) => put(&mut self.next_hops, *id as usize, *next_hop),
            Operation::Group(slot, group) => put(&mut self.groups, *slot as usize, *group),
            Operation::Inbound(slot, sa) => put(&mut self.inbound, *slot, sa.clone()),
            Operation::ResourceSa { adjacency, resource, sa } => self.resources.put(*adjacency, *resource, sa.clone()),
            Operation::Sources(adjacency, Some(prefixes)) => {
                self.sources.insert(*adjacency, Arc::clone(prefixes));
            }
            Operation::Sources(adjacency, None) => {
                self.sources.remove(adjacency);
            }
            Operation::GrePeer(peer, Some(adjacency)) => {
                self.gre_peers.insert(*peer, *adjacency);
            }
            Operation::GrePeer(peer, None) => {
                self.gre_peers.remove(peer);
            }
            Operation::SetRoute { tunnel, prefix, next_hop } => {
                if let Some(tunnel) = self.tunnel_mut(*tunnel) {
                    tunnel.set_route(*prefix, *next_hop);
                }
            }
            Operation::RemoveRoute { tunnel, prefix, cover } => {
                if let Some(tunnel) = self.tunnel_mut(*tunnel) {
                    match prefix.address() {
                        IpAddr::V4(v4) => tunnel.v4.remove(v4.to_bits(), prefix.length(), *cover),
                        IpAddr::V6(v6) => tunnel.v6.remove(v6.to_bits(), prefix.length(), *cover),
                    }
                }
            }
            Operation::Enlarge { tunnel, ipv6, routes } => {
                if let Some(tunnel) = self.tunnel_mut(*tunnel) {
                    if *ipv6 {
                        tunnel.v6 = Fib::large();
                    } else {
                        tunnel.v4 = Fib::large();
                    }
                    for (prefix, next_hop) in routes.iter() {
                        tunnel.set_route(*prefix, *next_hop);
                    }
                }
            }
            Operation::Multicast(tunnel, adjacencies) => {
                if let Some(tunnel) = self.tunnel_mut(*tunnel) {
                    tunnel.multicast = Arc::clone(adjacencies);
                }
            }
        }
    }

    fn tunnel_mut(&mut self, id: u32) -> Option<&mut Tunnel> {
        self.tunnels.get_mut(id as usize)?.as_mut()
    }
}

impl Absorb<Operation> for Tables {
    fn absorb_first(&mut self, operation: &mut Operation, _other: &Self) {
        self.apply(operation);
    }

    fn sync_with(&mut self, first: &Self) {
        self.clone_from(first);
    }
}

/// A worker's view of the tables: one per worker.
#[derive(Clone, Debug)]
pub struct TablesReader(pub(crate) ReadHandle<Tables>);

impl TablesReader {
    /// The tables as they are, until the guard is let go: enter once per vector. `None` when the writer is gone.
    pub fn enter(&self) -> Option<ReadGuard<'_, Tables>> {
        self.0.enter()
    }
}
