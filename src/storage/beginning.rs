//! The first bytes of a blob, with what proves them without the rest of their group.
//!
//! A group is what a receiver can check with a blob's tree alone, and is some 190 packets: on a line that loses one in a
//! hundred it hardly ever comes without one of them being sent again. Its first bytes are a few packets. What proves them are
//! the hashes to the right of the way from there up to the group's own: one for each time that the group can be halved.

use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// How long a beginning is, unless the whole blob is shorter: a power of two of BLAKE3's chunks.
pub const BEGINNING_BYTES: u64 = 8 * 1024;

/// Where the subtrees that the beginning is in are divided, and where they end, the largest first.
fn divisions(group_bytes: usize) -> Vec<(usize, usize)> {
    let (mut divisions, mut end) = (Vec::new(), group_bytes);
    while end as u64 > BEGINNING_BYTES {
        let middle = 1 << (end - 1).ilog2();
        divisions.push((middle, end));
        end = middle;
    }
    divisions
}

fn value_of(offset: usize, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset as u64);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// What proves the beginning of a blob whose first group this is: nothing where the beginning is all of it.
pub fn prove_beginning(first_group: &[u8]) -> Vec<[u8; 32]> {
    let divisions = divisions(first_group.len());
    divisions.into_iter().map(|(middle, end)| value_of(middle, &first_group[middle..end])).collect()
}

/// The hash of a first group of so many bytes, whose beginning and proof these are; `is_root`: it is the only one.
pub(super) fn proved_group(
    beginning: &[u8],
    proof: &[[u8; 32]],
    group_bytes: usize,
    is_root: bool,
) -> Option<[u8; 32]> {
    let is_all = group_bytes as u64 <= BEGINNING_BYTES;
    let expected_bytes = if is_all { group_bytes } else { BEGINNING_BYTES as usize };
    if beginning.len() != expected_bytes || proof.len() != divisions(group_bytes).len() {
        return None;
    }
    if is_all && is_root {
        return Some(*blake3::hash(beginning).as_bytes());
    }
    let mut value = value_of(0, beginning);
    for (level, right) in proof.iter().enumerate().rev() {
        value = match is_root && level == 0 {
            true => *merge_subtrees_root(&value, right, Mode::Hash).as_bytes(),
            false => merge_subtrees_non_root(&value, right, Mode::Hash),
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tree::TreeHasher;
    use crate::storage::{GROUP_BYTES, Outboard, Verifier};
    use proptest::prelude::*;

    const K: usize = 1024;
    const GROUP: usize = GROUP_BYTES as usize;
    const BEGINNING: usize = BEGINNING_BYTES as usize;

    fn blob(size: usize) -> (Vec<u8>, Verifier) {
        let data: Vec<u8> = (0..size).map(|at| (at % 247) as u8 ^ (at >> 10) as u8).collect();
        let mut hasher = TreeHasher::new();
        hasher.update(&data);
        let (root, pairs) = hasher.finish();
        let outboard = Outboard { blob_size_bytes: size as u64, pairs: pairs.into() };
        (data, Verifier::new(&outboard, root).unwrap())
    }

    fn parts(data: &[u8]) -> (&[u8], Vec<[u8; 32]>) {
        (&data[..data.len().min(BEGINNING)], prove_beginning(&data[..data.len().min(GROUP)]))
    }

    #[test]
    fn a_beginning_is_proved_at_every_edge() {
        let edges = [K, BEGINNING, 2 * BEGINNING, 3 * BEGINNING, 64 * K, GROUP, 2 * GROUP];
        for size in edges.into_iter().flat_map(|edge| [edge - 1, edge, edge + 1]).chain([0, 1, 5 * GROUP + 77]) {
            let (data, verifier) = blob(size);
            let (beginning, proof) = parts(&data);
            assert!(verifier.is_beginning(beginning, &proof), "{size} bytes");
            assert!(size > GROUP || size <= BEGINNING || proof.len() <= 5, "{size} bytes");
        }
    }

    #[test]
    fn neither_a_shorter_nor_a_longer_beginning_nor_another_proof_passes() {
        for size in [BEGINNING - 9, BEGINNING + 1, GROUP - 1, 3 * GROUP] {
            let (data, verifier) = blob(size);
            let (beginning, proof) = parts(&data);
            assert!(!verifier.is_beginning(&beginning[..beginning.len() - 1], &proof), "{size} bytes");
            assert!(!verifier.is_beginning(&[beginning, &[0][..]].concat(), &proof), "{size} bytes");
            assert!(!verifier.is_beginning(&[], &[]), "{size} bytes");
            let more = [&proof[..], &[[0; 32]]].concat();
            assert!(!verifier.is_beginning(beginning, &more), "{size} bytes");
            if let Some((_, less)) = proof.split_last() {
                assert!(!verifier.is_beginning(beginning, less), "{size} bytes");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn one_wrong_bit_is_noticed(size in 1..2 * GROUP, at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let (data, verifier) = blob(size);
            let (beginning, mut proof) = parts(&data);
            let mut beginning = beginning.to_vec();
            let at = at.index(beginning.len() + proof.len() * 32);
            match at.checked_sub(beginning.len()) {
                None => beginning[at] ^= 1 << bit,
                Some(at) => proof[at / 32][at % 32] ^= 1 << bit,
            }
            prop_assert!(!verifier.is_beginning(&beginning, &proof));
        }
    }
}
