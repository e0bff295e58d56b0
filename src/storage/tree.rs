//! The BLAKE3 tree of a blob: its root, and the hash pairs above groups of 256 KiB ("outboard").
//!
//! The outboard lets another region verify each group as it arrives. It holds the pairs of chaining values of all tree
//! nodes above the groups, the root's pair first, then all of the left subtree, then all of the right ("pre-order"),
//! 64 bytes a node. A blob of one group has none. Anybody can check an outboard against the root alone, so it needs no
//! checksum of its own, and can be computed again from the bytes when it is lost.

use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// The size of a group: the unit in which a receiver verifies.
pub const GROUP_BYTES: u64 = 256 * 1024;

const PAIR_BYTES: u64 = 64;

type ChainingValue = [u8; 32];

/// How long the outboard of a blob of `size_bytes` is.
pub fn outboard_size_bytes(size_bytes: u64) -> u64 {
    (groups(size_bytes) - 1) * PAIR_BYTES
}

pub(super) fn groups(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(GROUP_BYTES).max(1)
}

/// How many of a node's groups are below its left child: the largest power of two that leaves the right one something.
pub(super) fn groups_on_the_left(groups: u64) -> u64 {
    1 << (groups - 1).ilog2()
}

/// Computes root and outboard of bytes that arrive piece by piece. Keeps 32 bytes for every 256 KiB.
pub(super) struct TreeHasher {
    group: blake3::Hasher,
    group_bytes: u64,
    closed: Vec<ChainingValue>,
}

impl TreeHasher {
    pub(super) fn new() -> Self {
        Self { group: blake3::Hasher::new(), group_bytes: 0, closed: Vec::new() }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // A full group is closed only when more follows: the only group of a blob is its root.
            if self.group_bytes == GROUP_BYTES {
                self.closed.push(self.group.finalize_non_root());
                self.group = blake3::Hasher::new();
                self.group.set_input_offset(self.closed.len() as u64 * GROUP_BYTES);
                self.group_bytes = 0;
            }
            let taken = bytes.len().min((GROUP_BYTES - self.group_bytes) as usize);
            self.group.update(&bytes[..taken]);
            self.group_bytes += taken as u64;
            bytes = &bytes[taken..];
        }
    }

    /// The root and the outboard.
    pub(super) fn finish(mut self) -> (ChainingValue, Vec<u8>) {
        if self.closed.is_empty() {
            return (*self.group.finalize().as_bytes(), Vec::new());
        }
        self.closed.push(self.group.finalize_non_root());
        let mut outboard = Vec::with_capacity((self.closed.len() - 1) * PAIR_BYTES as usize);
        let (left, right) = append_pair(&self.closed, &mut outboard);
        (*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(), outboard)
    }
}

/// Appends the pair of the node above `groups` (two or more), then those below it.
fn append_pair(groups: &[ChainingValue], outboard: &mut Vec<u8>) -> (ChainingValue, ChainingValue) {
    let at = outboard.len();
    outboard.resize(at + PAIR_BYTES as usize, 0);
    let (left, right) = groups.split_at(groups_on_the_left(groups.len() as u64) as usize);
    let mut below = |groups: &[ChainingValue]| match groups {
        [group] => *group,
        _ => {
            let (left, right) = append_pair(groups, outboard);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    };
    let pair = (below(left), below(right));
    outboard[at..at + 32].copy_from_slice(&pair.0);
    outboard[at + 32..at + 64].copy_from_slice(&pair.1);
    pair
}

/// Whether `outboard` is, to the last byte, the outboard of the blob of `size_bytes` with this root.
pub(super) fn is_outboard_of(outboard: &[u8], size_bytes: u64, root: &ChainingValue) -> bool {
    if outboard.len() as u64 != outboard_size_bytes(size_bytes) {
        return false;
    }
    if outboard.is_empty() {
        return true;
    }
    checked_pair(outboard, groups(size_bytes))
        .is_some_and(|(left, right)| merge_subtrees_root(&left, &right, Mode::Hash).as_bytes() == root)
}

/// The first pair of `pairs`, a subtree of `groups` groups, if all pairs below it agree with it.
fn checked_pair(pairs: &[u8], groups: u64) -> Option<(ChainingValue, ChainingValue)> {
    let (pair, below) = pairs.split_at_checked(PAIR_BYTES as usize)?;
    let (left, right) = pair.split_at(32);
    let groups_left = groups_on_the_left(groups);
    let (pairs_left, pairs_right) = below.split_at_checked(((groups_left - 1) * PAIR_BYTES) as usize)?;
    let agrees = |value: &[u8], pairs: &[u8], groups: u64| {
        groups == 1
            || checked_pair(pairs, groups)
                .is_some_and(|(left, right)| merge_subtrees_non_root(&left, &right, Mode::Hash) == value)
    };
    let agree = agrees(left, pairs_left, groups_left) && agrees(right, pairs_right, groups - groups_left);
    agree.then_some((left.try_into().ok()?, right.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bao_tree::BlockSize;
    use bao_tree::io::outboard::PreOrderOutboard;
    use bao_tree::io::sync::CreateOutboard as _;
    use proptest::prelude::*;
    use std::io;

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i % 251) as u8 ^ (i >> 13) as u8).collect()
    }

    fn hash(data: &[u8], piece: usize) -> (ChainingValue, Vec<u8>) {
        let mut hasher = TreeHasher::new();
        data.chunks(piece).for_each(|piece| hasher.update(piece));
        hasher.finish()
    }

    fn assert_agrees_with_other_implementations(data: &[u8], piece: usize) {
        let (root, outboard) = hash(data, piece);
        assert_eq!(root, *blake3::hash(data).as_bytes(), "root of {} bytes", data.len());
        let other = PreOrderOutboard::<Vec<u8>>::create(io::Cursor::new(data), BlockSize::from_chunk_log(8)).unwrap();
        assert_eq!(root, *other.root.as_bytes());
        assert!(outboard == other.data, "outboard of {} bytes", data.len());
        assert_eq!(outboard.len() as u64, outboard_size_bytes(data.len() as u64));
        assert!(is_outboard_of(&outboard, data.len() as u64, &root));
    }

    #[test]
    fn root_and_outboard_agree_with_blake3_and_bao_tree_at_the_edges_of_groups() {
        const K: usize = 1024;
        let edges = [K, 2 * K, 16 * K, 255 * K, 256 * K, 512 * K, 768 * K, 1024 * K, 1280 * K, 2048 * K];
        let around = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
        for size in [0, 1, 2, 3 * K * K + 17].into_iter().chain(around) {
            assert_agrees_with_other_implementations(&bytes(size), 64 * K);
        }
    }

    #[test]
    fn an_outboard_with_any_changed_byte_is_refused() {
        let data = bytes(5 * 256 * 1024 + 3);
        let (root, outboard) = hash(&data, usize::MAX);
        for at in 0..outboard.len() {
            let mut changed = outboard.clone();
            changed[at] ^= 1;
            assert!(!is_outboard_of(&changed, data.len() as u64, &root), "byte {at}");
        }
        assert!(!is_outboard_of(&outboard[64..], data.len() as u64, &root));
        assert!(!is_outboard_of(&outboard, data.len() as u64, &[0; 32]));
        assert!(!is_outboard_of(&[], data.len() as u64, &root));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn pieces_of_any_size_give_the_same_tree(size in 0usize..3_000_000, piece in 1usize..700_000) {
            assert_agrees_with_other_implementations(&bytes(size), piece.max(size / 2000 + 1));
        }

        #[test]
        fn checking_any_bytes_as_an_outboard_never_panics(
            junk in proptest::collection::vec(any::<u8>(), 0..2048), size in any::<u64>(),
        ) {
            let fitting = (junk.len() as u64 / PAIR_BYTES + 1) * GROUP_BYTES;
            prop_assert!(junk.len() < 64 || !is_outboard_of(&junk, fitting, &[7; 32]));
            is_outboard_of(&junk, size, &[7; 32]);
        }
    }
}
