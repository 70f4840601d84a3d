//! The sequence numbers that every outbound key has used, remembered for longer than an SA is in the tables.
//!
//! The control plane may give an SA to an adjacency, replace it, and come back to it, as when the younger of two
//! CHILD_SAs is deleted. Beginning again at 1 would seal a second packet under a nonce that was used, which for AES-GCM
//! gives the plaintexts away and lets packets be forged (RFC 4106 section 2).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use ring::digest::{SHA256, digest};

use crate::aead::Cipher;
use crate::sa::{AdjacencyCounters, OutboundSa};
use crate::turn::KeyUse;

/// Keys that are remembered: those that 1000 peers use in 65 hours when they rekey hourly.
const REMEMBERED: usize = if cfg!(test) { 1 << 10 } else { 1 << 16 };

/// How many of the oldest a new key has looked at, one of which makes room for it: bounds the cost of a command.
const LOOKS: usize = 4;

type Fingerprint = [u8; 32];

/// What is known of a key.
#[derive(Debug)]
struct Entry {
    /// The SA that counts for the key, while it is there.
    counting: Weak<OutboundSa>,
    /// What stays when it is dropped.
    key: Arc<KeyUse>,
}

/// All keys, found by their hash: no copy of a key stays here.
#[derive(Debug, Default)]
pub(crate) struct SequenceBook {
    entries: HashMap<Fingerprint, Entry>,
    /// In the order in which they came.
    order: VecDeque<Fingerprint>,
    /// Those whose entry refers to an SA, which may have been dropped since.
    referring: VecDeque<Fingerprint>,
}

impl SequenceBook {
    /// An SA that begins at sequence number 1, or where its key was if that has sealed before. With `counters`, those of
    /// its only adjacency.
    pub(crate) fn make(
        &mut self,
        spi: u32,
        cipher: Cipher,
        keymat: &[u8],
        esn: bool,
        counters: Option<Arc<AdjacencyCounters>>,
    ) -> Arc<OutboundSa> {
        let mut fingerprint = Fingerprint::default();
        fingerprint.copy_from_slice(digest(&SHA256, keymat).as_ref());
        if let Some(entry) = self.entries.get_mut(&fingerprint) {
            let sa = OutboundSa::new(spi, cipher, esn, Arc::clone(&entry.key)).of_adjacency(counters);
            if let Some(counting) = entry.counting.upgrade() {
                // Two SAs seal with one key until the older has left the tables: one of them counts for both.
                return sa.counted_by(counting).shared();
            }
            let sa = sa.shared();
            if entry.counting.ptr_eq(&Weak::new()) {
                self.referring.push_back(fingerprint);
            }
            entry.counting = Arc::downgrade(&sa);
            self.let_go();
            return sa;
        }
        self.forget();
        self.let_go();
        let key = KeyUse::new(1);
        let sa = OutboundSa::new(spi, cipher, esn, Arc::clone(&key)).of_adjacency(counters).shared();
        self.entries.insert(fingerprint, Entry { counting: Arc::downgrade(&sa), key });
        self.order.push_back(fingerprint);
        self.referring.push_back(fingerprint);
        sa
    }

    /// Let the memory of dropped SAs go, which lasts as long as an entry refers to it: two looks for every SA that is
    /// made, so that about as many are left as are in use.
    fn let_go(&mut self) {
        for _ in 0..2 {
            let Some(oldest) = self.referring.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&oldest) else { continue };
            if entry.counting.strong_count() > 0 {
                self.referring.push_back(oldest);
            } else {
                entry.counting = Weak::new();
            }
        }
    }

    /// Make room for one more: the oldest that no SA uses goes. With more SAs in use than that, none does.
    fn forget(&mut self) {
        for _ in 0..LOOKS {
            if self.order.len() < REMEMBERED {
                return;
            }
            let Some(oldest) = self.order.pop_front() else { return };
            if self.entries.get(&oldest).is_some_and(|entry| entry.counting.strong_count() > 0) {
                self.order.push_back(oldest);
            } else {
                self.entries.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> [u8; 20] {
        let mut key = [0; 20];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn made(book: &mut SequenceBook, number: u64) -> Arc<OutboundSa> {
        let cipher = Cipher::new("aes128gcm16".parse().unwrap(), &key(number)).unwrap();
        book.make(256, cipher, &key(number), true, None)
    }

    #[test]
    fn a_key_goes_on_where_it_was() {
        let mut book = SequenceBook::default();
        let first = made(&mut book, 1);
        assert_eq!(first.reserve(7), (1, 7));
        assert_eq!(made(&mut book, 2).reserve(1), (1, 1));
        // While the first is there, both count together, whichever goes first.
        let second = made(&mut book, 1);
        assert_eq!((second.reserve(1), first.reserve(1), second.reserve(1)), ((8, 1), (9, 1), (10, 1)));
        drop(first);
        assert_eq!(second.reserve(1), (11, 1));
        let third = made(&mut book, 1);
        drop(second);
        assert_eq!(third.reserve(1), (12, 1));
        drop(third);
        assert_eq!(made(&mut book, 1).reserve(1), (13, 1));
        assert_eq!(made(&mut book, 1).sequence(), 13);
    }

    #[test]
    fn no_memory_of_dropped_sas_is_held() {
        let mut book = SequenceBook::default();
        let used: Vec<_> = (0..10).map(|number| made(&mut book, number)).collect();
        for number in 0..500 {
            // The same key again and again, and always another one.
            made(&mut book, u64::MAX);
            made(&mut book, 1000 + number);
        }
        let referring = book.entries.values().filter(|entry| !entry.counting.ptr_eq(&Weak::new())).count();
        assert!(referring <= 2 * used.len() + 2 && book.referring.len() == referring, "{referring}");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_used_stays() {
        let mut book = SequenceBook::default();
        let used = made(&mut book, u64::MAX);
        used.reserve(41);
        for number in 0..REMEMBERED as u64 + 1000 {
            made(&mut book, number);
        }
        assert!(book.entries.len() <= REMEMBERED);
        assert_eq!(book.entries.len(), book.order.len());
        assert_eq!(made(&mut book, u64::MAX).reserve(1), (42, 1));
    }
}
