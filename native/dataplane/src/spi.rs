//! Inbound SPIs: the low bits are the slot of the SA, the high bits a generation that makes a slot's next SPI another.

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

/// Gives SPIs and takes them back.
#[derive(Debug, Default)]
pub(crate) struct SpiAllocator {
    // The last SPI of each slot, and what it is.
    slots: Vec<(u32, State)>,
    // Oldest first: a slot rests as long as possible.
    free: VecDeque<u32>,
}

impl SpiAllocator {
    /// An SPI that is not in use, at least 2^20. `random` chooses the generation.
    pub(crate) fn allocate(&mut self, random: u32) -> Result<u32, TablesError> {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None if (self.slots.len() as u32) < SLOTS => {
                self.slots.push((0, State::Free));
                self.slots.len() as u32 - 1
            }
            None => return Err(TablesError::NoSpi),
        };
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
        self.free.push_back(slot(spi) as u32);
        Ok(())
    }

    /// The SA of an SPI is removed.
    pub(crate) fn retire(&mut self, spi: u32) -> Result<(), TablesError> {
        self.expect(spi, State::InUse).ok_or(TablesError::UnknownInboundSa(spi))?.1 = State::Free;
        self.free.push_back(slot(spi) as u32);
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
            let spi = allocator.allocate(random).unwrap();
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
        let other = allocator.allocate(1).unwrap();
        allocator.release(other).unwrap();
        assert_eq!(allocator.release(other), Err(TablesError::SpiNotAllocated(other)));
        assert_eq!(allocator.claim(0), Err(TablesError::SpiNotAllocated(0)));
    }

    #[test]
    fn slots_run_out() {
        let mut allocator = SpiAllocator::default();
        for _ in 0..SLOTS {
            allocator.allocate(7).unwrap();
        }
        assert_eq!(allocator.allocate(7), Err(TablesError::NoSpi));
    }
}
