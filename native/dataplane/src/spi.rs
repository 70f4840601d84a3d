//! Inbound SPIs: the low bits are the slot of the SA, the high bits a generation that makes a slot's next SPI another.
//!
//! Where several sockets share a port, the remainder of the slot by their number tells which of them gets what comes with the
//! SPI: its lane.

use std::collections::VecDeque;

use crate::error::TablesError;

/// Bits of an SPI that name the slot.
pub const SLOT_BITS: u32 = 20;
const SLOTS: u32 = 1 << SLOT_BITS;
const GENERATIONS: u32 = 1 << (32 - SLOT_BITS);

/// The slot that an SPI names.
#[inline]
pub const fn slot(spi: u32) -> usize {
    (spi & (SLOTS - 1)) as usize
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Reserved,
    InUse,
}

/// The lane among so many that gets what comes with an SPI.
#[inline]
pub const fn lane(spi: u32, lanes: usize) -> usize {
    slot(spi) % lanes
}

/// Gives SPIs and takes them back.
#[derive(Debug)]
pub(crate) struct SpiAllocator {
    // The last SPI of each slot, and what it is.
    slots: Vec<(u32, State)>,
    // Of each lane, oldest first: a slot rests as long as possible.
    free: Vec<VecDeque<u32>>,
    // Whose turn it is.
    next_lane: usize,
}

impl Default for SpiAllocator {
    fn default() -> Self {
        Self { slots: Vec::new(), free: vec![VecDeque::new()], next_lane: 0 }
    }
}

impl SpiAllocator {
    /// Distribute SPIs over so many lanes from here on.
    pub(crate) fn spread(&mut self, lanes: usize) {
        let lanes = lanes.max(1);
        let free: Vec<u32> = self.free.drain(..).flatten().collect();
        self.free = vec![VecDeque::new(); lanes];
        for slot in free {
            self.free[slot as usize % lanes].push_back(slot);
        }
        self.next_lane = 0;
    }

    /// A free slot of a lane, or of any if that has none left.
    fn take_slot(&mut self, lane: usize) -> Option<u32> {
        let lanes = self.free.len();
        while self.free[lane].is_empty() && (self.slots.len() as u32) < SLOTS {
            let slot = self.slots.len();
            self.slots.push((0, State::Free));
            self.free[slot % lanes].push_back(slot as u32);
        }
        self.free[lane].pop_front().or_else(|| self.free.iter_mut().find_map(VecDeque::pop_front))
    }

    /// An SPI that is not in use, at least 2^20. `random` chooses the generation; `beside` is one of the same lane, or 0: then
    /// the lanes take turns.
    pub(crate) fn allocate(&mut self, random: u32, beside: u32) -> Result<u32, TablesError> {
        let lanes = self.free.len();
        let lane = if beside == 0 { self.next_lane } else { lane(beside, lanes) };
        let slot = self.take_slot(lane).ok_or(TablesError::NoSpi)?;
        if beside == 0 {
            self.next_lane = (lane + 1) % lanes;
        }
        let entry = &mut self.slots[slot as usize];
        // 1..GENERATIONS, so that the SPI is not reserved; and not the slot's last one.
        let mut generation = random % (GENERATIONS - 1) + 1;
        if generation == entry.0 >> SLOT_BITS {
            generation = generation % (GENERATIONS - 1) + 1;
        }
        *entry = (generation << SLOT_BITS | slot, State::Reserved);
        Ok(entry.0)
    }

    fn expect(&mut self, spi: u32, state: State) -> Option<&mut (u32, State)> {
        self.slots.get_mut(slot(spi)).filter(|entry| **entry == (spi, state))
    }

    pub(crate) fn is_reserved(&mut self, spi: u32) -> bool {
        self.expect(spi, State::Reserved).is_some()
    }

    pub(crate) fn is_in_use(&mut self, spi: u32) -> bool {
        self.expect(spi, State::InUse).is_some()
    }

    /// An SA is made for a reserved SPI.
    pub(crate) fn claim(&mut self, spi: u32) -> Result<(), TablesError> {
        if self.is_in_use(spi) {
            return Err(TablesError::SpiInUse(spi));
        }
        self.expect(spi, State::Reserved).ok_or(TablesError::SpiNotAllocated(spi))?.1 = State::InUse;
        Ok(())
    }

    /// A reserved SPI is given back unused.
    pub(crate) fn release(&mut self, spi: u32) -> Result<(), TablesError> {
        if self.is_in_use(spi) {
            return Err(TablesError::SpiInUse(spi));
        }
        self.expect(spi, State::Reserved).ok_or(TablesError::SpiNotAllocated(spi))?.1 = State::Free;
        self.put_back(spi);
        Ok(())
    }

    fn put_back(&mut self, spi: u32) {
        let lane = lane(spi, self.free.len());
        self.free[lane].push_back(slot(spi) as u32);
    }

    /// The SA of an SPI is removed.
    pub(crate) fn retire(&mut self, spi: u32) -> Result<(), TablesError> {
        self.expect(spi, State::InUse).ok_or(TablesError::UnknownInboundSa(spi))?.1 = State::Free;
        self.put_back(spi);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_never_gives_the_same_spi_twice_in_a_row() {
        let mut allocator = SpiAllocator::default();
        let mut last = 0;
        for random in [0, 0, 4094, 4094, 4095, u32::MAX, 5, 5] {
            let spi = allocator.allocate(random, 0).unwrap();
            assert_eq!(slot(spi), 0);
            assert!(spi >= 256 && spi != last);
            allocator.claim(spi).unwrap();
            assert_eq!(allocator.claim(spi), Err(TablesError::SpiInUse(spi)));
            assert_eq!(allocator.release(spi), Err(TablesError::SpiInUse(spi)));
            allocator.retire(spi).unwrap();
            assert_eq!(allocator.retire(spi), Err(TablesError::UnknownInboundSa(spi)));
            last = spi;
        }
        assert_eq!(allocator.claim(last), Err(TablesError::SpiNotAllocated(last)));
        let other = allocator.allocate(1, 0).unwrap();
        allocator.release(other).unwrap();
        assert_eq!(allocator.release(other), Err(TablesError::SpiNotAllocated(other)));
        assert_eq!(allocator.claim(0), Err(TablesError::SpiNotAllocated(0)));
    }

    #[test]
    fn slots_run_out() {
        let mut allocator = SpiAllocator::default();
        for _ in 0..SLOTS {
            allocator.allocate(7, 0).unwrap();
        }
        assert_eq!(allocator.allocate(7, 0), Err(TablesError::NoSpi));
        // A lane that has none left takes another's.
        let other = 5 << SLOT_BITS | 1;
        let given = allocator.slots[1].0;
        allocator.spread(4);
        assert_eq!(allocator.allocate(7, other), Err(TablesError::NoSpi));
        allocator.release(given).unwrap();
        assert_eq!(slot(allocator.allocate(7, 2 << SLOT_BITS | 3).unwrap()), 1);
    }

    #[test]
    fn spis_asked_for_one_after_another_are_of_different_lanes() {
        for lanes in 1..=8 {
            let mut allocator = SpiAllocator::default();
            allocator.spread(lanes);
            let mut given: VecDeque<u32> = (0..100).map(|_| allocator.allocate(9, 0).unwrap()).collect();
            let check = |given: &VecDeque<u32>| {
                for (at, &spi) in given.iter().enumerate().take(given.len() - 1) {
                    assert_eq!((lane(spi, lanes) + 1) % lanes, lane(given[at + 1], lanes), "{lanes}: {at}");
                }
            };
            check(&given);
            // Rekeys, which stay where they are, do not disturb the turns; nor does it matter what was given back.
            for round in 0..100 {
                let old = given[(round * 7) % given.len()];
                let new = allocator.allocate(9, old).unwrap();
                assert!(new != old && lane(new, lanes) == lane(old, lanes));
                allocator.release(new).unwrap();
            }
            for at in [3, 4, 5, 50, 77] {
                allocator.release(given[at]).unwrap();
            }
            given.clear();
            given.extend((0..50).map(|_| allocator.allocate(9, 0).unwrap()));
            check(&given);
            let slots = given.iter().map(|spi| slot(*spi)).max().unwrap();
            assert!(slots < 150 + 2 * lanes, "what is given back is used again");
        }
    }
}
