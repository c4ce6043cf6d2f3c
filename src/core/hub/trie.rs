//! Which patterns with wildcards match a subject.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::Hashing;
use super::slab::Slab;

const ROOT: u32 = 0;
const ONE: &[u8] = b"*";
const REST: &[u8] = b">";

/// Patterns by their tokens. `*` and `>` are edges like any other: no token of a subject can be taken for one.
///
/// ```text
/// a.*.c   a.>          (root) --a--> ( ) --*--> ( ) --c--> (a.*.c)
///                                     \---->--> (a.>)
/// ```
///
/// All edges live in one table keyed by (node, token), so a node costs no map of its own. A match looks at three edges
/// per node; it visits at most as many nodes as there are, and at most two per prefix it has reached before.
#[derive(Debug)]
pub(super) struct Trie {
    nodes: Slab<Node>,
    /// Every node but the root, under the edge that leads to it.
    edges: HashTable<u32>,
    hashing: Hashing,
}

#[derive(Debug)]
struct Node {
    parent: u32,
    token: Box<[u8]>,
    children: u32,
    /// The pattern that ends here.
    pattern: Option<u32>,
}

impl Trie {
    pub(super) fn new(hashing: Hashing) -> Self {
        let mut nodes = Slab::new();
        nodes.insert(Node { parent: ROOT, token: Box::default(), children: 0, pattern: None });
        Self { nodes, edges: HashTable::new(), hashing }
    }

    /// Adds a pattern that is not there yet.
    pub(super) fn insert(&mut self, text: &[u8], pattern: u32) {
        let end = tokens(text)
            .fold(ROOT, |node, token| self.child(node, token).unwrap_or_else(|| self.grow(node, token)));
        self.nodes[end].pattern = Some(pattern);
    }

    /// The pattern with exactly this text.
    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        let end = tokens(text).try_fold(ROOT, |node, token| self.child(node, token))?;
        self.nodes[end].pattern
    }

    /// Removes a pattern that is there, and the nodes that led only to it.
    pub(super) fn remove(&mut self, text: &[u8]) {
        let Some(mut at) = tokens(text).try_fold(ROOT, |node, token| self.child(node, token)) else { return };
        self.nodes[at].pattern = None;
        while at != ROOT && self.nodes[at].children == 0 && self.nodes[at].pattern.is_none() {
            let node = self.nodes.remove(at);
            let hash = self.hashing.hash_one((node.parent, &*node.token));
            if let Ok(edge) = self.edges.find_entry(hash, |n| *n == at) {
                edge.remove();
            }
            self.nodes[node.parent].children -= 1;
            at = node.parent;
        }
    }

    /// Adds the patterns that match `subject` to `out`, in an order that depends on the patterns alone.
    pub(super) fn matches(&self, subject: &[u8], out: &mut Vec<u32>) {
        if !self.edges.is_empty() {
            self.visit(ROOT, subject, out);
        }
    }

    fn visit(&self, node: u32, subject: &[u8], out: &mut Vec<u32>) {
        let (token, rest) = match subject.iter().position(|b| *b == b'.') {
            Some(dot) => (&subject[..dot], Some(&subject[dot + 1..])),
            None => (subject, None),
        };
        out.extend(self.child(node, REST).and_then(|n| self.nodes[n].pattern));
        for next in [self.child(node, token), self.child(node, ONE)].into_iter().flatten() {
            match rest {
                Some(rest) if self.nodes[next].children > 0 => self.visit(next, rest, out),
                Some(_) => {}
                None => out.extend(self.nodes[next].pattern),
            }
        }
    }

    fn child(&self, parent: u32, token: &[u8]) -> Option<u32> {
        let hash = self.hashing.hash_one((parent, token));
        let is = |n: &u32| self.nodes[*n].parent == parent && *self.nodes[*n].token == *token;
        self.edges.find(hash, is).copied()
    }

    fn grow(&mut self, parent: u32, token: &[u8]) -> u32 {
        let at = self.nodes.insert(Node { parent, token: token.into(), children: 0, pattern: None });
        self.nodes[parent].children += 1;
        let (nodes, hashing) = (&self.nodes, &self.hashing);
        let hash = |n: &u32| hashing.hash_one((nodes[*n].parent, &*nodes[*n].token));
        self.edges.insert_unique(hash(&at), at, hash);
        at
    }
}

/// Whether a valid pattern has wildcards.
pub(super) fn is_wild(pattern: &[u8]) -> bool {
    pattern.iter().any(|b| matches!(b, b'*' | b'>'))
}

fn tokens(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(trie: &Trie, subject: &str) -> Vec<u32> {
        let mut out = Vec::new();
        trie.matches(subject.as_bytes(), &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn patterns_match_as_they_say_and_leave_nothing_behind() {
        let mut trie = Trie::new(super::super::hashing(7));
        let patterns = ["*", ">", "a.*", "a.>", "*.b", "a.*.c", "*.*.>"];
        for (i, p) in patterns.iter().enumerate() {
            trie.insert(p.as_bytes(), i as u32);
        }
        assert_eq!(matching(&trie, "a"), [0, 1]);
        assert_eq!(matching(&trie, "a.b"), [1, 2, 3, 4]);
        assert_eq!(matching(&trie, "a.b.c"), [1, 3, 5, 6]);
        assert_eq!(matching(&trie, "b.b.c"), [1, 6]);
        for (i, p) in patterns.iter().enumerate() {
            assert_eq!(trie.get(p.as_bytes()), Some(i as u32));
            trie.remove(p.as_bytes());
            assert_eq!(trie.get(p.as_bytes()), None);
        }
        assert_eq!((trie.nodes.len(), trie.edges.len()), (1, 0));
    }
}
