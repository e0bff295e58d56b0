//! Checks parts of a blob against its BLAKE3 tree, as they arrive from somewhere else.

use blake3::hazmat::HasherExt as _;

use super::Outboard;
use super::beginning::proved_group;
use super::tree::{GROUP_BYTES, groups, groups_on_the_left, is_outboard_of};

const PAIR_BYTES: usize = 64;

/// Knows the hash of every group of a blob, and so whether bytes are the right ones before the rest is there.
pub struct Verifier {
    size_bytes: u64,
    root: [u8; 32],
    /// One for each group; empty for a blob of one group, whose hash is the root.
    groups: Vec<[u8; 32]>,
}

impl Verifier {
    /// A verifier from an outboard that came from wherever; `None` when it is not the one of `root`.
    pub fn new(outboard: &Outboard, root: [u8; 32]) -> Option<Self> {
        let size_bytes = outboard.blob_size_bytes;
        if !is_outboard_of(&outboard.pairs, size_bytes, &root) {
            return None;
        }
        let mut found = Vec::new();
        if !outboard.pairs.is_empty() {
            collect_groups(&outboard.pairs, groups(size_bytes), &mut found);
        }
        Some(Self { size_bytes, root, groups: found })
    }

    /// The size of the blob.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many groups it has; one of nothing at all has one.
    pub(super) fn groups(&self) -> u64 {
        self.groups.len().max(1) as u64
    }

    /// Whether these are the blob's bytes at `offset`, which is the beginning of a group. They end with a group, too,
    /// or with the blob.
    pub fn is_part(&self, offset: u64, bytes: &[u8]) -> bool {
        let end = offset.saturating_add(bytes.len() as u64);
        let ends_well = end == self.size_bytes || end.is_multiple_of(GROUP_BYTES);
        if !offset.is_multiple_of(GROUP_BYTES) || end > self.size_bytes || !ends_well {
            return false;
        }
        if self.groups.is_empty() {
            return offset == 0 && end == self.size_bytes && *blake3::hash(bytes).as_bytes() == self.root;
        }
        bytes.chunks(GROUP_BYTES as usize).enumerate().all(|(at, group)| {
            let start = offset + at as u64 * GROUP_BYTES;
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(start);
            hasher.update(group);
            self.groups.get((start / GROUP_BYTES) as usize) == Some(&hasher.finalize_non_root())
        })
    }

    /// Whether these are the first [`BEGINNING_BYTES`](super::BEGINNING_BYTES) of the blob, or all of a shorter one, as the
    /// proof says that came with them.
    pub fn is_beginning(&self, bytes: &[u8], proof: &[[u8; 32]]) -> bool {
        let group_bytes = self.size_bytes.min(GROUP_BYTES) as usize;
        let is_root = self.groups.is_empty();
        let expected = self.groups.first().unwrap_or(&self.root);
        proved_group(bytes, proof, group_bytes, is_root).as_ref() == Some(expected)
    }
}

/// Appends the hashes of the groups under a subtree of two groups or more, whose pairs begin at `pairs`. They are known
/// to be as many as the tree has.
fn collect_groups(pairs: &[u8], groups: u64, into: &mut Vec<[u8; 32]>) {
    let (pair, below) = pairs.split_at(PAIR_BYTES);
    let left = groups_on_the_left(groups);
    let (pairs_left, pairs_right) = below.split_at((left - 1) as usize * PAIR_BYTES);
    for (value, pairs, groups) in [(&pair[..32], pairs_left, left), (&pair[32..], pairs_right, groups - left)] {
        match groups {
            1 => into.extend(<[u8; 32]>::try_from(value)),
            _ => collect_groups(pairs, groups, into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tree::TreeHasher;
    use proptest::prelude::*;

    const GROUP: usize = GROUP_BYTES as usize;

    fn tree_of(data: &[u8]) -> (Outboard, [u8; 32]) {
        let mut hasher = TreeHasher::new();
        hasher.update(data);
        let (root, pairs) = hasher.finish();
        (Outboard { blob_size_bytes: data.len() as u64, pairs: pairs.into() }, root)
    }

    fn data(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at % 249) as u8 ^ (at >> 12) as u8).collect()
    }

    #[test]
    fn parts_are_known_at_every_edge_of_groups() {
        for size in [0, 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 5 * GROUP + 7, 8 * GROUP] {
            let data = data(size);
            let (outboard, root) = tree_of(&data);
            let verifier = Verifier::new(&outboard, root).expect("the right outboard");
            for groups in 1..=3 {
                for (at, part) in data.chunks(groups * GROUP).enumerate() {
                    let offset = (at * groups * GROUP) as u64;
                    assert!(verifier.is_part(offset, part), "{size} bytes, at {offset}");
                    if size > GROUP {
                        assert!(!verifier.is_part(offset + GROUP_BYTES, part), "{size} bytes, at {offset}, moved");
                    }
                }
            }
            assert!(verifier.is_part(0, &data));
        }
    }

    #[test]
    fn an_outboard_of_another_blob_makes_no_verifier() {
        let ((mut outboard, root), (other, _)) = (tree_of(&data(3 * GROUP)), tree_of(&data(3 * GROUP + 1)));
        assert!(Verifier::new(&other, root).is_none());
        outboard.pairs = outboard.pairs.slice(..64);
        assert!(Verifier::new(&outboard, root).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn one_wrong_byte_is_noticed(size in 1..4 * GROUP, at in any::<prop::sample::Index>(), with in 1..=255_u8) {
            let mut data = data(size);
            let (outboard, root) = tree_of(&data);
            let verifier = Verifier::new(&outboard, root).expect("the right outboard");
            data[at.index(size)] ^= with;
            prop_assert!(!verifier.is_part(0, &data));
        }
    }
}
