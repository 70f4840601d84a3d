//! The FIB: longest prefix match as a multibit trie in one arena.
//!
//! An entry is a leaf (prefix length and next hop, pushed down to every slot that it covers), a child node, or a
//! *single*: the only longer prefix below this slot, kept whole instead of a chain of nodes. A deletion names the
//! covering prefix, which the writer knows, and re-exposes it exactly. Nodes begin at 8 bits each; a FIB that grows is
//! rebuilt with a root of 16 bits, so that a small one stays small.

use std::fmt::Debug;

use crate::prefetch::{Prefetch, ask};

/// An address as a number: `u32` for IPv4, `u128` for IPv6.
pub trait Key: Copy + Eq + Debug + Default + Send + Sync + 'static {
    /// Bits of an address.
    const BITS: u32;
    /// Bits of the nodes from the root downward, for a small FIB.
    const SMALL: &'static [u8];
    /// The same for a large one.
    const LARGE: &'static [u8];
    /// `count` bits from bit `at` (0 is the highest).
    fn bits(self, at: u32, count: u32) -> usize;
    /// Whether the first `length` bits are those of `other`.
    fn matches(self, other: Self, length: u32) -> bool;
}

const fn strides<const COUNT: usize>(root: &[u8], rest: u8) -> [u8; COUNT] {
    let mut strides = [rest; COUNT];
    let mut at = 0;
    while at < root.len() {
        strides[at] = root[at];
        at += 1;
    }
    strides
}

impl Key for u32 {
    const BITS: u32 = 32;
    const SMALL: &'static [u8] = &[8, 8, 8, 8];
    const LARGE: &'static [u8] = &[16, 8, 8];

    #[inline]
    fn bits(self, at: u32, count: u32) -> usize {
        (self << at >> (32 - count)) as usize
    }

    #[inline]
    fn matches(self, other: Self, length: u32) -> bool {
        (self ^ other).checked_shr(32 - length).unwrap_or(0) == 0
    }
}

impl Key for u128 {
    const BITS: u32 = 128;
    const SMALL: &'static [u8] = &strides::<31>(&[8], 4);
    const LARGE: &'static [u8] = &strides::<29>(&[16], 4);

    #[inline]
    fn bits(self, at: u32, count: u32) -> usize {
        (self << at >> (128 - count)) as usize
    }

    #[inline]
    fn matches(self, other: Self, length: u32) -> bool {
        (self ^ other).checked_shr(128 - length).unwrap_or(0) == 0
    }
}

/// First next-hop index that a leaf cannot hold.
const LEAF_LIMIT: u32 = NONE;

// An entry: two bits of tag; a leaf has 8 bits of prefix length and 22 of next hop, the others a 30-bit index.
const TAG: u32 = 0b11 << 30;
const CHILD: u32 = 0b01 << 30;
const SINGLE: u32 = 0b10 << 30;
const INDEX: u32 = !TAG;
const NONE: u32 = (1 << 22) - 1;
const EMPTY: u32 = NONE;
// Nodes are counted in units of the smallest, so that 30 bits name 64 GiB.
const UNIT: usize = 16;

const fn leaf(length: u8, next_hop: u32) -> u32 {
    (length as u32) << 22 | next_hop
}

const fn leaf_length(entry: u32) -> u32 {
    entry >> 22 & 0xff
}

#[derive(Clone, Copy, Debug)]
struct Single<K> {
    prefix: K,
    /// The route itself, a leaf.
    route: u32,
    /// What the slot has for other addresses, a leaf.
    others: u32,
}

/// Routes of one address family: prefix to next-hop index (below 2^22 - 1).
#[derive(Clone, Debug)]
pub struct Fib<K: Key> {
    strides: &'static [u8],
    entries: Vec<u32>,
    /// Free nodes by size, `log2` of their entries.
    free_nodes: [Vec<u32>; 17],
    singles: Vec<Single<K>>,
    free_singles: Vec<u32>,
}

impl<K: Key> Default for Fib<K> {
    fn default() -> Self {
        Self::with_strides(K::SMALL)
    }
}

impl<K: Key> Fib<K> {
    fn with_strides(strides: &'static [u8]) -> Self {
        Self {
            strides,
            entries: vec![EMPTY; 1 << strides[0]],
            free_nodes: [const { Vec::new() }; 17],
            singles: Vec::new(),
            free_singles: Vec::new(),
        }
    }

    /// An empty FIB with a root of 16 bits, for thousands of routes and more.
    pub fn large() -> Self {
        Self::with_strides(K::LARGE)
    }

    /// Whether the root has 16 bits.
    pub fn is_large(&self) -> bool {
        self.strides[0] == 16
    }

    /// Octets of memory in use.
    pub fn octets(&self) -> usize {
        self.entries.len() * size_of::<u32>() + self.singles.len() * size_of::<Single<K>>()
    }

    /// The next hop of the longest prefix that covers the address.
    #[inline]
    pub fn lookup(&self, address: K) -> Option<u32> {
        let (mut base, mut depth) = (0, 0);
        for &stride in self.strides {
            let stride = u32::from(stride);
            let entry = self.entries[base + address.bits(depth, stride)];
            match entry & TAG {
                CHILD => base = (entry & INDEX) as usize * UNIT,
                SINGLE => {
                    let single = &self.singles[(entry & INDEX) as usize];
                    let hit = address.matches(single.prefix, leaf_length(single.route));
                    return Self::next_hop(if hit { single.route } else { single.others });
                }
                _ => return Self::next_hop(entry),
            }
            depth += stride;
        }
        None
    }

    /// Ask for what a lookup reads behind the root.
    #[inline]
    pub(crate) fn prefetch<P: Prefetch>(&self, address: K) {
        let stride = u32::from(self.strides[0]);
        let entry = self.entries[address.bits(0, stride)];
        match entry & TAG {
            CHILD => {
                let next = (entry & INDEX) as usize * UNIT + address.bits(stride, u32::from(self.strides[1]));
                ask::<P, _>(&self.entries[next]);
            }
            SINGLE => ask::<P, _>(&self.singles[(entry & INDEX) as usize]),
            _ => {}
        }
    }

    #[inline]
    fn next_hop(entry: u32) -> Option<u32> {
        let next_hop = entry & NONE;
        (next_hop != NONE).then_some(next_hop)
    }

    /// Add a route or change its next hop. `prefix` has no host bits.
    pub fn insert(&mut self, prefix: K, length: u8, next_hop: u32) {
        debug_assert!(next_hop < LEAF_LIMIT && u32::from(length) <= K::BITS);
        self.insert_below(0, 0, 0, prefix, leaf(length, next_hop));
    }

    /// Take a route out. `cover` is the longest other route that covers it: its length and next hop.
    pub fn remove(&mut self, prefix: K, length: u8, cover: Option<(u8, u32)>) {
        let cover = cover.map_or(EMPTY, |(length, next_hop)| leaf(length, next_hop));
        self.remove_below(0, 0, 0, prefix, u32::from(length), cover);
    }

    /// The slots of a node at `depth` that a prefix covers, if it ends within the node.
    fn covered(prefix: K, length: u32, depth: u32, stride: u32) -> Option<std::ops::Range<usize>> {
        let beyond = (depth + stride).checked_sub(length)?;
        let first = prefix.bits(depth, stride);
        Some(first..first + (1 << beyond))
    }

    fn insert_below(&mut self, base: usize, level: usize, depth: u32, prefix: K, route: u32) {
        let stride = u32::from(self.strides[level]);
        if let Some(slots) = Self::covered(prefix, leaf_length(route), depth, stride) {
            for slot in slots {
                self.paint(base + slot, level, route, |old| leaf_length(old) <= leaf_length(route));
            }
            return;
        }
        let slot = base + prefix.bits(depth, stride);
        let entry = self.entries[slot];
        match entry & TAG {
            CHILD => self.insert_below((entry & INDEX) as usize * UNIT, level + 1, depth + stride, prefix, route),
            SINGLE => {
                let index = (entry & INDEX) as usize;
                let single = self.singles[index];
                if single.prefix == prefix && leaf_length(single.route) == leaf_length(route) {
                    self.singles[index].route = route;
                    return;
                }
                let child = self.allocate_node(self.strides[level + 1], single.others);
                self.free_singles.push(index as u32);
                self.entries[slot] = CHILD | (child / UNIT) as u32;
                self.insert_below(child, level + 1, depth + stride, single.prefix, single.route);
                self.insert_below(child, level + 1, depth + stride, prefix, route);
            }
            _ => self.entries[slot] = SINGLE | self.allocate_single(Single { prefix, route, others: entry }),
        }
    }

    fn remove_below(&mut self, base: usize, level: usize, depth: u32, prefix: K, length: u32, cover: u32) {
        let stride = u32::from(self.strides[level]);
        if let Some(slots) = Self::covered(prefix, length, depth, stride) {
            for slot in slots {
                // Within the prefix, a leaf of its length is the prefix itself.
                self.paint(base + slot, level, cover, |old| leaf_length(old) == length);
            }
            return;
        }
        let slot = base + prefix.bits(depth, stride);
        let entry = self.entries[slot];
        match entry & TAG {
            CHILD => {
                let child = (entry & INDEX) as usize * UNIT;
                self.remove_below(child, level + 1, depth + stride, prefix, length, cover);
                self.collapse(slot, child, level + 1, depth + stride);
            }
            SINGLE => {
                let index = (entry & INDEX) as usize;
                let single = self.singles[index];
                if single.prefix == prefix && leaf_length(single.route) == length {
                    self.entries[slot] = single.others;
                    self.free_singles.push(index as u32);
                }
            }
            _ => {}
        }
    }

    /// Put a leaf into a slot, and into all that lies below it, where `replaces` says so of the old leaf.
    fn paint(&mut self, slot: usize, level: usize, with: u32, replaces: impl Fn(u32) -> bool + Copy) {
        let entry = self.entries[slot];
        match entry & TAG {
            CHILD => {
                let child = (entry & INDEX) as usize * UNIT;
                for below in child..child + (1 << self.strides[level + 1]) {
                    self.paint(below, level + 1, with, replaces);
                }
            }
            SINGLE => {
                let single = &mut self.singles[(entry & INDEX) as usize];
                if replaces(single.others) {
                    single.others = with;
                }
            }
            _ => {
                if replaces(entry) {
                    self.entries[slot] = with;
                }
            }
        }
    }

    /// Put a child back into its slot if one leaf, or one single beside equal leaves, says the same.
    fn collapse(&mut self, slot: usize, child: usize, level: usize, depth: u32) {
        let size = 1 << self.strides[level];
        let mut others = None;
        let mut single = None;
        for &entry in &self.entries[child..child + size] {
            let value = match entry & TAG {
                CHILD => return,
                SINGLE if single.is_some() => return,
                SINGLE => {
                    single = Some(entry);
                    self.singles[(entry & INDEX) as usize].others
                }
                _ => entry,
            };
            if *others.get_or_insert(value) != value {
                return;
            }
        }
        let Some(others) = others else { return };
        // A leaf that is longer than the slot belongs to the child alone.
        if leaf_length(others) > depth {
            return;
        }
        self.entries[slot] = single.unwrap_or(others);
        self.free_nodes[usize::from(self.strides[level])].push((child / UNIT) as u32);
    }

    fn allocate_node(&mut self, stride: u8, fill: u32) -> usize {
        let size = 1usize << stride;
        if let Some(unit) = self.free_nodes[usize::from(stride)].pop() {
            let base = unit as usize * UNIT;
            self.entries[base..base + size].fill(fill);
            return base;
        }
        let base = self.entries.len();
        self.entries.resize(base + size, fill);
        base
    }

    fn allocate_single(&mut self, single: Single<K>) -> u32 {
        if let Some(index) = self.free_singles.pop() {
            self.singles[index as usize] = single;
            return index;
        }
        self.singles.push(single);
        self.singles.len() as u32 - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The model: every route, looked through one by one.
    #[derive(Default)]
    struct Model<K>(BTreeMap<(u8, u128), (K, u32)>);

    impl<K: Key + Into<u128>> Model<K> {
        fn lookup(&self, address: K) -> Option<u32> {
            let hit =
                self.0.iter().rev().find(|((length, _), (prefix, _))| address.matches(*prefix, u32::from(*length)));
            hit.map(|(_, (_, next_hop))| *next_hop)
        }

        fn cover(&self, prefix: K, length: u8) -> Option<(u8, u32)> {
            let shorter = self.0.range(..(length, 0)).rev();
            shorter
                .filter(|((length, _), (other, _))| prefix.matches(*other, u32::from(*length)))
                .map(|((length, _), (_, next_hop))| (*length, *next_hop))
                .next()
        }
    }

    fn check<K: Key + Into<u128>>(
        mut fib: Fib<K>,
        steps: Vec<(bool, K, u8, u32)>,
        probes: Vec<K>,
        mask: impl Fn(K, u8) -> K,
    ) {
        let mut model = Model::<K>(BTreeMap::new());
        for (remove, address, length, next_hop) in &steps {
            let prefix = mask(*address, *length);
            let key = (*length, prefix.into());
            if *remove {
                if model.0.remove(&key).is_some() {
                    fib.remove(prefix, *length, model.cover(prefix, *length));
                }
            } else {
                model.0.insert(key, (prefix, *next_hop));
                fib.insert(prefix, *length, *next_hop);
            }
            for probe in probes.iter().chain([address, &prefix]) {
                assert_eq!(fib.lookup(*probe), model.lookup(*probe), "{probe:?} after {prefix:?}/{length}");
            }
        }
        // Taking every route out leaves a FIB as empty as it was.
        while let Some((&(length, key), &(prefix, _))) = model.0.iter().next_back() {
            model.0.remove(&(length, key));
            fib.remove(prefix, length, model.cover(prefix, length));
            assert_eq!(fib.lookup(prefix), model.lookup(prefix));
        }
        assert!(fib.entries[..1 << fib.strides[0]].iter().all(|&entry| entry == EMPTY));
    }

    fn mask4(address: u32, length: u8) -> u32 {
        address & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }

    fn mask6(address: u128, length: u8) -> u128 {
        address & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 96 }))]

        // Few distinct bits, so that prefixes nest and collide.
        #[test]
        fn v4_agrees_with_the_model(
            large in any::<bool>(),
            steps in prop::collection::vec((prop::bool::weighted(0.35), 0u32..4096, 0u8..=32, 0u32..1000), 1..80),
            probes in prop::collection::vec(0u32..4096, 16),
        ) {
            let spread = |bits: u32| (bits & 0xf) << 28 | (bits >> 4 & 0xf) << 14 | (bits >> 8) << 2;
            let steps = steps.into_iter().map(|(remove, bits, length, next)| (remove, spread(bits), length, next)).collect();
            let fib = if large { Fib::large() } else { Fib::default() };
            check(fib, steps, probes.into_iter().map(spread).collect(), mask4);
        }

        #[test]
        fn v6_agrees_with_the_model(
            large in any::<bool>(),
            steps in prop::collection::vec((prop::bool::weighted(0.35), 0u128..4096, 0u8..=128, 0u32..1000), 1..80),
            probes in prop::collection::vec(0u128..4096, 16),
        ) {
            let spread = |bits: u128| (bits & 0xf) << 120 | (bits >> 4 & 0xf) << 64 | (bits >> 8);
            let steps = steps.into_iter().map(|(remove, bits, length, next)| (remove, spread(bits), length, next)).collect();
            let fib = if large { Fib::large() } else { Fib::default() };
            check(fib, steps, probes.into_iter().map(spread).collect(), mask6);
        }
    }

    #[test]
    fn a_million_routes_take_reasonable_memory() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let (mut v4, mut v6) = (Fib::<u32>::large(), Fib::<u128>::large());
        let mut last = (0, 0);
        for index in 0..1_000_000 {
            last = (
                next() & 0xffff_ff00,
                0x2000_u128 << 112 | u128::from(next()) << 93 | u128::from(next() & 0xffff) << 80,
            );
            v4.insert(last.0, 24, index & 0xffff);
            v6.insert(last.1, 48, index & 0xffff);
        }
        assert_eq!(v4.lookup(last.0 | 7), Some(999_999 & 0xffff));
        assert_eq!(v6.lookup(last.1 | 7), Some(999_999 & 0xffff));
        assert!(v4.octets() < 100 << 20, "{}", v4.octets());
        assert!(v6.octets() < 300 << 20, "{}", v6.octets());
        assert!(Fib::<u32>::default().octets() + Fib::<u128>::default().octets() <= 4096);
    }
}
