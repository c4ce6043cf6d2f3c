//! Storage whose places are small numbers, and chains of such places.
//!
//! Everything that belongs to a session is chained through its places, so that a session is closed at the cost of what
//! it had, whatever else the hub holds.

use std::ops::{Index, IndexMut};

/// Values in numbered places; freed places are used again, the last freed first.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.free.pop() {
            self.places[at as usize] = Some(value);
            return at;
        }
        self.places.push(Some(value));
        (self.places.len() - 1) as u32
    }

    /// # Panics
    /// If the place is free.
    pub(super) fn remove(&mut self, at: u32) -> T {
        let value = self.places[at as usize].take().expect("only taken places are removed");
        self.free.push(at);
        value
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        self.places[at as usize].as_ref().expect("only taken places are read")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        self.places[at as usize].as_mut().expect("only taken places are written")
    }
}

/// Doubly linked chains over the places of a slab; a place is in one chain at most. Whoever owns a chain keeps its head.
#[derive(Debug, Default)]
pub(super) struct Chains {
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: Option<u32>,
    after: Option<u32>,
}

impl Chains {
    /// Puts `at` in front.
    pub(super) fn push(&mut self, head: &mut Option<u32>, at: u32) {
        if self.links.len() <= at as usize {
            self.links.resize(at as usize + 1, Link::default());
        }
        self.links[at as usize] = Link { before: None, after: *head };
        if let Some(after) = head.replace(at) {
            self.links[after as usize].before = Some(at);
        }
    }

    /// Takes `at` out of the chain that begins at `head`.
    pub(super) fn remove(&mut self, head: &mut Option<u32>, at: u32) {
        let Link { before, after } = self.links[at as usize];
        match before {
            Some(before) => self.links[before as usize].after = after,
            None => *head = after,
        }
        if let Some(after) = after {
            self.links[after as usize].before = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!((slab.remove(a), slab.len()), ('a', 1));
        assert_eq!((slab.insert('c'), slab[a], slab[b], slab.len()), (a, 'c', 'b', 2));
    }

    #[test]
    fn chains_lose_any_link() {
        for out in 0..4 {
            let (mut chains, mut head) = (Chains::default(), None);
            (0..4).for_each(|at| chains.push(&mut head, at));
            chains.remove(&mut head, out);
            let mut seen = Vec::new();
            while let Some(at) = head {
                seen.push(at);
                chains.remove(&mut head, at);
            }
            assert_eq!(seen, [3, 2, 1, 0].into_iter().filter(|at| *at != out).collect::<Vec<_>>());
        }
    }
}
