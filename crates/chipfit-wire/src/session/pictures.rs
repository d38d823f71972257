//! Pictures by content hash, as many as fit: the least recently used goes first.
//!
//! The device keeps bytes in one; the trainer keeps another without bytes, and both visit the same pictures in the same
//! order, so that the trainer knows without asking what the device still has.

use std::collections::BTreeMap;

/// What a picture costs besides its bytes, so that empty ones are not free.
const OVERHEAD_BYTES: u64 = 64;

/// A bounded store of pictures, or of the knowledge that a picture is stored elsewhere.
#[derive(Clone, Debug)]
pub struct PictureCache<T> {
    capacity: u64,
    used: u64,
    clock: u64,
    entries: BTreeMap<[u8; 16], Entry<T>>,
    order: BTreeMap<u64, [u8; 16]>,
}

#[derive(Clone, Debug)]
struct Entry<T> {
    visited: u64,
    cost: u64,
    value: T,
}

impl<T> PictureCache<T> {
    /// Empty; `capacity` is in bytes.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, used: 0, clock: 0, entries: BTreeMap::new(), order: BTreeMap::new() }
    }

    /// The picture, if it is here. Does not count as a visit.
    pub fn get(&self, hash: &[u8; 16]) -> Option<&T> {
        self.entries.get(hash).map(|entry| &entry.value)
    }

    /// Pictures that are here.
    pub fn pictures(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Bytes in use; at most the capacity.
    pub fn used_bytes(&self) -> u64 {
        self.used
    }

    /// Makes the picture the most recently used one, with `value` if it was not here; others leave to make room.
    /// One that is larger than the whole store is not kept.
    pub fn visit(&mut self, hash: [u8; 16], bytes: u64, value: T) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&hash) {
            self.order.remove(&entry.visited);
            entry.visited = self.clock;
            self.order.insert(self.clock, hash);
            return;
        }
        let cost = bytes.saturating_add(OVERHEAD_BYTES);
        if cost > self.capacity {
            return;
        }
        while self.used > self.capacity - cost {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.used -= entry.cost;
            }
        }
        self.used += cost;
        self.entries.insert(hash, Entry { visited: self.clock, cost, value });
        self.order.insert(self.clock, hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_leaves_first() {
        let mut cache = PictureCache::new(3 * 164);
        for name in 0..3 {
            cache.visit([name; 16], 100, name);
        }
        cache.visit([0; 16], 100, 99);
        cache.visit([3; 16], 100, 3);
        assert_eq!((cache.get(&[0; 16]), cache.get(&[1; 16]), cache.get(&[3; 16])), (Some(&0), None, Some(&3)));
        assert_eq!((cache.pictures(), cache.used_bytes()), (3, 3 * 164));
    }

    #[test]
    fn what_does_not_fit_is_not_kept_and_throws_nothing_out() {
        let mut cache = PictureCache::new(200);
        cache.visit([1; 16], 100, ());
        cache.visit([2; 16], u64::MAX, ());
        assert_eq!((cache.pictures(), cache.get(&[2; 16])), (1, None));
        cache.visit([3; 16], 136, ());
        assert_eq!((cache.pictures(), cache.used_bytes()), (1, 200));
        let mut none = PictureCache::new(0);
        none.visit([1; 16], 0, ());
        assert_eq!(none.pictures(), 0);
    }
}
