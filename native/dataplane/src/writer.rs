//! The commands that change the tables.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use left_right::WriteHandle;

use crate::aead::{Cipher, Suite};
use crate::error::TablesError;
use crate::group::{GROUP_LIMIT, Group};
use crate::prefix::Prefix;
use crate::replay::MAX_REPLAY_WINDOW;
use crate::resources::MAX_RESOURCE;
use crate::sa::{AdjacencyCounters, AdjacencyCounts, InboundSa, InboundSaCounts, OutboundSa, OutboundSaCounts};
use crate::sequence::SequenceBook;
use crate::sources::Sources;
use crate::spi::{self, SpiAllocator};
use crate::tables::{Adjacency, AdjacencyConfig, NextHop, Operation, Tables, TablesReader, TunnelConfig};
use crate::vector::Encapsulation;

/// First tunnel id that is too large.
pub const TUNNEL_LIMIT: u32 = 1 << 12;
/// First adjacency id that is too large.
pub const ADJACENCY_LIMIT: u32 = 1 << 20;
/// First next hop id that is too large.
pub const NEXT_HOP_LIMIT: u32 = 1 << 20;

/// Routes of one family beyond which a FIB gets its large root: 256 KiB a copy.
const LARGE_FIB: usize = 4096;

/// Empty tables: the one writer, and a reader to clone for every worker.
pub fn tables() -> (TablesWriter, TablesReader) {
    let (mut handle, reader) = left_right::new::<Tables, Operation>();
    // The first publication copies whole tables; made while they are empty, it costs nothing.
    handle.publish();
    let writer = TablesWriter {
        handle,
        tunnels: HashMap::new(),
        adjacencies: HashMap::new(),
        next_hops: HashMap::new(),
        groups: HashMap::new(),
        group_slots: 0,
        free_group_slots: Vec::new(),
        inbound: HashMap::new(),
        resources: HashMap::new(),
        gre_peers: HashMap::new(),
        spis: SpiAllocator::default(),
        sequences: SequenceBook::default(),
    };
    (writer, TablesReader(reader))
}

#[derive(Debug)]
struct TunnelRecord {
    config: TunnelConfig,
    // By length, so that the covering prefix of another is found by as many probes as it has bits.
    routes: HashMap<Prefix, u32>,
    v4: usize,
    v6: usize,
    large_v4: bool,
    large_v6: bool,
}

/// Checks commands and applies them at [`TablesWriter::commit`]. There is one per data plane.
#[derive(Debug)]
pub struct TablesWriter {
    handle: WriteHandle<Tables, Operation>,
    tunnels: HashMap<u32, TunnelRecord>,
    adjacencies: HashMap<u32, Adjacency>,
    // With the number of routes and groups that point at each.
    next_hops: HashMap<u32, (NextHop, u32)>,
    // Those that are groups: their slots and members.
    groups: HashMap<u32, (u32, Vec<u32>)>,
    group_slots: u32,
    free_group_slots: Vec<u32>,
    inbound: HashMap<u32, Arc<InboundSa>>,
    // The outbound SAs of adjacencies besides the fallback, by resource.
    resources: HashMap<u32, BTreeMap<u32, Arc<OutboundSa>>>,
    // The adjacencies of one key and remote address in the order they were set: the last one counts.
    gre_peers: HashMap<(Option<u32>, IpAddr), Vec<u32>>,
    spis: SpiAllocator,
    sequences: SequenceBook,
}

fn check_id(what: &'static str, id: u32, limit: u32) -> Result<(), TablesError> {
    if id < limit { Ok(()) } else { Err(TablesError::IdTooLarge { what, id, limit }) }
}

fn check_resource(resource: u32) -> Result<(), TablesError> {
    if resource <= MAX_RESOURCE { Ok(()) } else { Err(TablesError::Resource(resource)) }
}

impl TablesWriter {
    /// Make the changes since the last commit visible. Returns when no vector in flight sees the old tables.
    ///
    /// The caller holds no guard of a reader.
    pub fn commit(&mut self) {
        self.commit_waiting(std::thread::yield_now);
    }

    /// As [`TablesWriter::commit`]; `wait` is called again and again while vectors are in flight, which takes as long as
    /// a vector does.
    pub fn commit_waiting(&mut self, mut wait: impl FnMut()) {
        if self.handle.has_pending_operations() {
            // The second publication is possible when the copy that the first one took out of use has no reader.
            for _ in 0..2 {
                while !self.handle.try_publish() {
                    wait();
                }
            }
        }
    }

    fn apply(&mut self, operation: Operation) {
        self.handle.append(operation);
    }

    /// Add a tunnel.
    pub fn add_tunnel(&mut self, id: u32, config: TunnelConfig) -> Result<(), TablesError> {
        check_id("tunnel", id, TUNNEL_LIMIT)?;
        if self.tunnels.contains_key(&id) {
            return Err(TablesError::TunnelExists(id));
        }
        let record = TunnelRecord { config, routes: HashMap::new(), v4: 0, v6: 0, large_v4: false, large_v6: false };
        self.tunnels.insert(id, record);
        self.apply(Operation::Tunnel(id, Some(config)));
        Ok(())
    }

    /// Remove a tunnel with its routes and adjacencies.
    pub fn remove_tunnel(&mut self, id: u32) -> Result<(), TablesError> {
        let record = self.tunnels.remove(&id).ok_or(TablesError::UnknownTunnel(id))?;
        for next_hop in record.routes.values() {
            self.release_next_hop(*next_hop);
        }
        let of_tunnel = |adjacency: &&Adjacency| adjacency.tunnel() == id;
        let adjacencies: Vec<u32> = self.adjacencies.values().filter(of_tunnel).map(|adjacency| adjacency.id).collect();
        for adjacency in adjacencies {
            self.remove_adjacency(adjacency)?;
        }
        self.apply(Operation::Tunnel(id, None));
        Ok(())
    }

    /// Make or replace an adjacency. It keeps its counters, its sources and, unless it becomes plain GRE, its outbound SAs.
    pub fn set_adjacency(&mut self, id: u32, config: AdjacencyConfig) -> Result<(), TablesError> {
        check_id("adjacency", id, ADJACENCY_LIMIT)?;
        // An IPv4-mapped address is the IPv4 address.
        let canonical = |address: IpAddr| address.to_canonical();
        let config = AdjacencyConfig { local: config.local.map(canonical), remote: canonical(config.remote), ..config };
        let tunnel = self.tunnels.get(&config.tunnel).ok_or(TablesError::UnknownTunnel(config.tunnel))?.config;
        let encapsulation = config.encapsulation;
        if tunnel.protected == (encapsulation == Encapsulation::Gre) {
            let protected = tunnel.protected;
            return Err(TablesError::Protection { tunnel: config.tunnel, protected, encapsulation });
        }
        if (encapsulation == Encapsulation::Udp) == (config.remote_port == 0) {
            return Err(TablesError::RemotePort { encapsulation, port: config.remote_port });
        }
        if let Some(local) = config.local
            && local.is_ipv4() != config.remote.is_ipv4()
        {
            return Err(TablesError::AddressFamily { local, remote: config.remote });
        }
        if encapsulation == Encapsulation::EspTunnel && config.local.is_none() {
            return Err(TablesError::TunnelModeLocal);
        }
        if !(68..=65_535).contains(&config.mtu) {
            return Err(TablesError::Mtu(config.mtu));
        }
        let old = self.adjacencies.get(&id);
        let (outbound, counters) = match old {
            Some(old) => (old.outbound.clone(), Arc::clone(&old.counters)),
            None => (None, Arc::new(AdjacencyCounters::default())),
        };
        let outbound = outbound.filter(|_| encapsulation != Encapsulation::Gre);
        if encapsulation == Encapsulation::Gre {
            self.clear_resources(id);
        }
        let old = self.adjacencies.get(&id);
        let mut adjacency =
            Adjacency::new(id, &config, &tunnel, outbound, counters).with_resources(self.resources.contains_key(&id));
        if let Some(old) = old {
            adjacency = adjacency.with_sources_of(old);
        }
        self.forget_gre_peer(id);
        self.put_adjacency(adjacency);
        if encapsulation == Encapsulation::Gre {
            let peer = (tunnel.key, config.remote);
            self.gre_peers.entry(peer).or_default().push(id);
            self.apply(Operation::GrePeer(peer, Some(id)));
        }
        Ok(())
    }

    fn put_adjacency(&mut self, adjacency: Adjacency) {
        self.adjacencies.insert(adjacency.id, adjacency.clone());
        self.apply(Operation::Adjacency(adjacency.id, Some(adjacency)));
    }

    fn forget_gre_peer(&mut self, id: u32) {
        let Some(adjacency) = self.adjacencies.get(&id) else {
            return;
        };
        let peer = (adjacency.key(), adjacency.endpoint(0).remote);
        let Some(ids) = self.gre_peers.get_mut(&peer) else {
            return;
        };
        ids.retain(|other| *other != id);
        let current = ids.last().copied();
        if current.is_none() {
            self.gre_peers.remove(&peer);
        }
        self.apply(Operation::GrePeer(peer, current));
    }

    /// Say which inner sources the packets of an adjacency may have; at first any.
    pub fn set_sources(&mut self, adjacency: u32, sources: &Sources) -> Result<(), TablesError> {
        self.put_adjacency(self.known_adjacency(adjacency)?.with_sources(sources));
        self.apply(Operation::Sources(adjacency, sources.prefixes()));
        Ok(())
    }

    /// Remove an adjacency and its outbound SAs. Next hops that point at it drop their packets.
    pub fn remove_adjacency(&mut self, id: u32) -> Result<(), TablesError> {
        if !self.adjacencies.contains_key(&id) {
            return Err(TablesError::UnknownAdjacency(id));
        }
        self.forget_gre_peer(id);
        self.clear_resources(id);
        self.adjacencies.remove(&id);
        self.apply(Operation::Adjacency(id, None));
        self.apply(Operation::Sources(id, None));
        Ok(())
    }

    /// Make or change a next hop.
    pub fn set_next_hop(&mut self, id: u32, adjacency: Option<u32>, resolve: bool) -> Result<(), TablesError> {
        check_id("next_hop", id, NEXT_HOP_LIMIT)?;
        if let Some(adjacency) = adjacency {
            self.known_adjacency(adjacency)?;
        }
        let next_hop = NextHop::new(adjacency, resolve);
        self.next_hops.entry(id).or_default().0 = next_hop;
        self.apply(Operation::NextHop(id, next_hop));
        self.dissolve(id);
        Ok(())
    }

    /// Make or change a next hop that stands for several, among which flows are distributed.
    pub fn set_next_hop_group(&mut self, id: u32, members: &[u32]) -> Result<(), TablesError> {
        check_id("next_hop", id, NEXT_HOP_LIMIT)?;
        if members.is_empty() || members.len() > GROUP_LIMIT {
            return Err(TablesError::GroupSize(members.len()));
        }
        for &member in members {
            if member == id || self.groups.contains_key(&member) {
                return Err(TablesError::GroupInGroup(member));
            }
            if !self.next_hops.contains_key(&member) {
                return Err(TablesError::UnknownNextHop(member));
            }
        }
        if self.groups.values().any(|(_, others)| others.contains(&id)) {
            return Err(TablesError::GroupInGroup(id));
        }
        for member in members {
            if let Some((_, users)) = self.next_hops.get_mut(member) {
                *users += 1;
            }
        }
        let slot = self.free_group_slots.pop().unwrap_or_else(|| {
            self.group_slots += 1;
            self.group_slots - 1
        });
        let next_hop = NextHop::of_group(slot);
        self.apply(Operation::Group(slot, Group::new(members)));
        self.next_hops.entry(id).or_default().0 = next_hop;
        self.apply(Operation::NextHop(id, next_hop));
        self.dissolve(id);
        self.groups.insert(id, (slot, members.to_vec()));
        Ok(())
    }

    /// Forget the group that a next hop was.
    fn dissolve(&mut self, id: u32) {
        if let Some((slot, members)) = self.groups.remove(&id) {
            for member in members {
                self.release_next_hop(member);
            }
            self.apply(Operation::Group(slot, Group::default()));
            self.free_group_slots.push(slot);
        }
    }

    fn known_adjacency(&self, id: u32) -> Result<&Adjacency, TablesError> {
        self.adjacencies.get(&id).ok_or(TablesError::UnknownAdjacency(id))
    }

    /// Remove a next hop that no route and no group points at.
    pub fn remove_next_hop(&mut self, id: u32) -> Result<(), TablesError> {
        match self.next_hops.get(&id) {
            None => return Err(TablesError::UnknownNextHop(id)),
            Some((_, 0)) => {}
            Some((_, routes)) => {
                return Err(TablesError::NextHopInUse { next_hop: id, routes: *routes });
            }
        }
        self.next_hops.remove(&id);
        self.apply(Operation::NextHop(id, NextHop::default()));
        self.dissolve(id);
        Ok(())
    }

    fn release_next_hop(&mut self, id: u32) {
        if let Some((_, routes)) = self.next_hops.get_mut(&id) {
            *routes -= 1;
        }
    }

    /// Add a route or change its next hop.
    pub fn set_route(&mut self, tunnel: u32, prefix: Prefix, next_hop: u32) -> Result<(), TablesError> {
        let record = self.tunnels.get_mut(&tunnel).ok_or(TablesError::UnknownTunnel(tunnel))?;
        self.next_hops.get_mut(&next_hop).ok_or(TablesError::UnknownNextHop(next_hop))?.1 += 1;
        let old = record.routes.insert(prefix, next_hop);
        let ipv6 = prefix.address().is_ipv6();
        let (count, large) =
            if ipv6 { (&mut record.v6, &mut record.large_v6) } else { (&mut record.v4, &mut record.large_v4) };
        *count += usize::from(old.is_none());
        let operation = if *count > LARGE_FIB && !*large {
            *large = true;
            let of_family = record.routes.iter().filter(|(prefix, _)| prefix.address().is_ipv6() == ipv6);
            let routes = of_family.map(|(prefix, next_hop)| (*prefix, *next_hop)).collect();
            Operation::Enlarge { tunnel, ipv6, routes }
        } else {
            Operation::SetRoute { tunnel, prefix, next_hop }
        };
        if let Some(old) = old {
            self.release_next_hop(old);
        }
        self.apply(operation);
        Ok(())
    }

    /// Take a route out; what it covered follows the next shorter prefix again.
    pub fn remove_route(&mut self, tunnel: u32, prefix: Prefix) -> Result<(), TablesError> {
        let record = self.tunnels.get_mut(&tunnel).ok_or(TablesError::UnknownTunnel(tunnel))?;
        let next_hop = record.routes.remove(&prefix).ok_or(TablesError::UnknownRoute { tunnel, prefix })?;
        let count = if prefix.address().is_ipv6() { &mut record.v6 } else { &mut record.v4 };
        *count -= 1;
        let shorter = (0..prefix.length()).rev();
        let cover =
            shorter.map(|length| prefix.shortened(length)).find_map(|cover| Some((cover, *record.routes.get(&cover)?)));
        let cover = cover.map(|(prefix, next_hop)| (prefix.length(), next_hop));
        self.release_next_hop(next_hop);
        self.apply(Operation::RemoveRoute { tunnel, prefix, cover });
        Ok(())
    }

    /// Say which adjacencies get a copy of every multicast and broadcast packet of a tunnel.
    pub fn set_multicast(&mut self, tunnel: u32, adjacencies: &[u32]) -> Result<(), TablesError> {
        if !self.tunnels.contains_key(&tunnel) {
            return Err(TablesError::UnknownTunnel(tunnel));
        }
        for &adjacency in adjacencies {
            self.known_adjacency(adjacency)?;
        }
        self.apply(Operation::Multicast(tunnel, adjacencies.into()));
        Ok(())
    }

    /// Distribute inbound SPIs over so many lanes, by [`spi_lane`](crate::spi_lane), from here on.
    pub fn spread_spis(&mut self, lanes: usize) {
        self.spis.spread(lanes);
    }

    /// Reserve an unused inbound SPI that carries its slot. `random`: 32 random bits. The lanes take turns.
    pub fn allocate_spi(&mut self, random: u32) -> Result<u32, TablesError> {
        self.spis.allocate(random, 0)
    }

    /// The same, of the lane of another inbound SPI.
    pub fn allocate_spi_beside(&mut self, random: u32, beside: u32) -> Result<u32, TablesError> {
        self.spis.allocate(random, beside)
    }

    /// Give back an SPI that no SA was made for.
    pub fn release_spi(&mut self, spi: u32) -> Result<(), TablesError> {
        self.spis.release(spi)
    }

    fn protected_adjacencies(&self, adjacencies: &[u32]) -> Result<(), TablesError> {
        if adjacencies.is_empty() {
            return Err(TablesError::NoAdjacencies);
        }
        for &id in adjacencies {
            if self.known_adjacency(id)?.encapsulation == Encapsulation::Gre {
                return Err(TablesError::PlainAdjacency(id));
            }
        }
        Ok(())
    }

    /// The counters of an SA's adjacency if it has one alone.
    fn counters_of_only(&self, adjacencies: &[u32]) -> Option<Arc<AdjacencyCounters>> {
        let [only] = adjacencies else { return None };
        Some(Arc::clone(&self.adjacencies.get(only)?.counters))
    }

    /// Accept ESP with an SPI that `allocate_spi` gave. `replay_window` in packets, 0 for none.
    pub fn add_inbound_sa(
        &mut self,
        spi: u32,
        suite: Suite,
        keymat: &[u8],
        adjacencies: &[u32],
        esn: bool,
        replay_window: u32,
    ) -> Result<(), TablesError> {
        if !self.spis.is_reserved(spi) {
            let in_use = self.spis.is_in_use(spi);
            return Err(if in_use { TablesError::SpiInUse(spi) } else { TablesError::SpiNotAllocated(spi) });
        }
        if replay_window > MAX_REPLAY_WINDOW {
            return Err(TablesError::ReplayWindow(replay_window));
        }
        self.protected_adjacencies(adjacencies)?;
        let cipher = Cipher::new(suite, keymat)?;
        self.spis.claim(spi)?;
        let counters = self.counters_of_only(adjacencies);
        let sa = InboundSa::new(spi, cipher, adjacencies, counters, esn, replay_window);
        self.inbound.insert(spi, Arc::clone(&sa));
        self.apply(Operation::Inbound(spi::slot(spi), Some(sa)));
        Ok(())
    }

    /// Stop accepting an SPI and give it back to the allocator.
    pub fn remove_inbound_sa(&mut self, spi: u32) -> Result<(), TablesError> {
        self.spis.retire(spi)?;
        self.inbound.remove(&spi);
        self.apply(Operation::Inbound(spi::slot(spi), None));
        Ok(())
    }

    /// Seal what these adjacencies send with this SA, which they share, from the next commit on: resource 0, the
    /// fallback.
    pub fn set_outbound_sa(
        &mut self,
        spi: u32,
        suite: Suite,
        keymat: &[u8],
        adjacencies: &[u32],
        esn: bool,
    ) -> Result<(), TablesError> {
        self.set_resource_sa(0, spi, suite, keymat, adjacencies, esn)
    }

    /// The same for one resource: what the worker with this index sends, if it is not 0.
    pub fn set_resource_sa(
        &mut self,
        resource: u32,
        spi: u32,
        suite: Suite,
        keymat: &[u8],
        adjacencies: &[u32],
        esn: bool,
    ) -> Result<(), TablesError> {
        if spi < 256 {
            return Err(TablesError::ReservedSpi(spi));
        }
        check_resource(resource)?;
        self.protected_adjacencies(adjacencies)?;
        let counters = self.counters_of_only(adjacencies);
        let sa = self.sequences.make(spi, Cipher::new(suite, keymat)?, keymat, esn, counters);
        for &id in adjacencies {
            self.put_outbound_sa(id, resource, Some(Arc::clone(&sa)))?;
        }
        Ok(())
    }

    /// Take the fallback SA from an adjacency.
    pub fn clear_outbound_sa(&mut self, adjacency: u32) -> Result<(), TablesError> {
        self.clear_resource_sa(adjacency, 0)
    }

    /// Take the SA of a resource from an adjacency, if it has one: that worker uses the fallback again. Without the fallback,
    /// workers that have an SA of their own go on with it, and the others have none.
    pub fn clear_resource_sa(&mut self, adjacency: u32, resource: u32) -> Result<(), TablesError> {
        check_resource(resource)?;
        self.put_outbound_sa(adjacency, resource, None)
    }

    fn put_outbound_sa(&mut self, id: u32, resource: u32, sa: Option<Arc<OutboundSa>>) -> Result<(), TablesError> {
        let adjacency = self.known_adjacency(id)?.clone();
        if resource == 0 {
            self.put_adjacency(adjacency.with_outbound(sa));
            return Ok(());
        }
        let of_adjacency = self.resources.entry(id).or_default();
        match &sa {
            Some(sa) => of_adjacency.insert(resource, Arc::clone(sa)),
            None => of_adjacency.remove(&resource),
        };
        let has = !of_adjacency.is_empty();
        if !has {
            self.resources.remove(&id);
        }
        self.apply(Operation::ResourceSa { adjacency: id, resource, sa });
        self.put_adjacency(adjacency.with_resources(has));
        Ok(())
    }

    /// Forget all SAs of an adjacency but the fallback. Whoever calls puts the adjacency anew, or removes it.
    fn clear_resources(&mut self, id: u32) {
        for resource in self.resources.remove(&id).unwrap_or_default().into_keys() {
            self.apply(Operation::ResourceSa { adjacency: id, resource, sa: None });
        }
    }

    /// Counters of an adjacency.
    pub fn adjacency_counters(&self, adjacency: u32) -> Result<AdjacencyCounts, TablesError> {
        Ok(self.known_adjacency(adjacency)?.counters.counts())
    }

    /// Counters of an inbound SA.
    pub fn inbound_sa_counters(&self, spi: u32) -> Result<InboundSaCounts, TablesError> {
        Ok(self.inbound.get(&spi).ok_or(TablesError::UnknownInboundSa(spi))?.counts())
    }

    /// Counters of the fallback SA that an adjacency has.
    pub fn outbound_sa_counters(&self, adjacency: u32) -> Result<OutboundSaCounts, TablesError> {
        Ok(self.outbound_sa(adjacency)?.counts())
    }

    /// Counters of the SA that an adjacency has for a resource.
    pub fn resource_sa_counters(&self, adjacency: u32, resource: u32) -> Result<OutboundSaCounts, TablesError> {
        check_resource(resource)?;
        if resource == 0 {
            return self.outbound_sa_counters(adjacency);
        }
        self.known_adjacency(adjacency)?;
        let sa = self.resources.get(&adjacency).and_then(|of_adjacency| of_adjacency.get(&resource));
        Ok(sa.ok_or(TablesError::NoOutboundSa(adjacency))?.counts())
    }

    /// The fallback SA that an adjacency has.
    pub fn outbound_sa(&self, adjacency: u32) -> Result<&Arc<OutboundSa>, TablesError> {
        let outbound = &self.known_adjacency(adjacency)?.outbound;
        outbound.as_ref().ok_or(TablesError::NoOutboundSa(adjacency))
    }
}
