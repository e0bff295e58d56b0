use serde::{Deserialize, Serialize};

/// A digest of a set that does not depend on the order of its elements: their hashes are added up, and counted. Two sets
/// that differ have different sums, unless somebody made them for that purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetSum {
    /// How many elements there are.
    pub count: u64,
    sum: [u64; 4],
}

impl SetSum {
    /// Adds an element that consists of these parts.
    pub fn add(&mut self, parts: &[&[u8]]) {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let hash = hasher.finalize();
        for (lane, bytes) in self.sum.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            *lane = lane.wrapping_add(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        }
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(elements: &[&[&[u8]]]) -> SetSum {
        let mut sum = SetSum::default();
        elements.iter().for_each(|element| sum.add(element));
        sum
    }

    #[test]
    fn sums_depend_on_what_is_in_a_set_and_on_nothing_else() {
        let [a, b, c]: [&[&[u8]]; 3] = [&[b"a"], &[b"b"], &[b"ab", b"c"]];
        assert_eq!(sum_of(&[a, b, c]), sum_of(&[c, a, b]));
        assert_ne!(sum_of(&[a, b]), sum_of(&[a, c]));
        assert_ne!(sum_of(&[a, a]), sum_of(&[b, b]));
        assert_ne!(sum_of(&[a]), sum_of(&[a, a]));
        assert_ne!(sum_of(&[c]), sum_of(&[&[b"a", b"bc"]]), "parts are told apart");
        assert_eq!(sum_of(&[]), SetSum::default());
    }
}
