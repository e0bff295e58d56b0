//! Which stored bytes were found to be right, and are therefore not hashed again at every read.
//!
//! A file of which somebody else could have written is known by its [`Imprint`]: as long as the system tells the same of
//! it, nobody has. What changes below the file system leaves no trace there, so that knowledge ends by itself after a
//! while, and at once for bytes that have to be fetched from a disk again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keppel_federation::vocabulary::StorageKey;

use super::Verifier;
use super::driver::Imprint;

/// How long ago bytes must have been written to before they are remembered: times of files are coarse, and two changes
/// within one step of them look like one.
pub(super) const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// About what one generation may take of memory. There are two.
const GENERATION_BYTES_MAX: usize = 4 << 20;
/// About what an entry takes.
const ENTRY_BYTES: usize = 200;
/// What a group takes while not all of a blob is known: its hash.
const GROUP_WEIGHT_BYTES: usize = 33;

/// Remembers, of as many blobs as there is room for, those used last.
pub(super) struct VerifiedBlobs {
    verified_for: Duration,
    settled_after: Duration,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<StorageKey, Entry>,
    old: HashMap<StorageKey, Entry>,
    /// What the young ones take of memory.
    young_bytes: usize,
}

struct Entry {
    imprint: Imprint,
    since: Instant,
    extent: Extent,
}

enum Extent {
    /// Every group was found to be right.
    Whole,
    /// Some were: a bit for each.
    Groups { verifier: Arc<Verifier>, right: Vec<u64>, left: u64 },
}

impl Entry {
    fn size_bytes(&self) -> usize {
        match &self.extent {
            Extent::Whole => ENTRY_BYTES,
            Extent::Groups { verifier, .. } => ENTRY_BYTES + verifier.groups() as usize * GROUP_WEIGHT_BYTES,
        }
    }
}

impl VerifiedBlobs {
    pub(super) fn new(verified_for: Duration, settled_after: Duration) -> Self {
        Self { verified_for, settled_after, generations: Mutex::default() }
    }

    /// Whether these groups of a blob were found to be right, and nobody can have written to it since.
    pub(super) fn are_right(&self, key: &StorageKey, imprint: &Imprint, groups: Range<u64>) -> bool {
        self.find(key, |entry| {
            entry.imprint.is_still(imprint)
                && match &entry.extent {
                    Extent::Whole => true,
                    Extent::Groups { right, .. } => groups.into_iter().all(|group| has_bit(right, group)),
                }
        })
        .unwrap_or(false)
    }

    /// What the groups of a blob are checked with, if it is at hand.
    pub(super) fn verifier(&self, key: &StorageKey) -> Option<Arc<Verifier>> {
        self.find(key, |entry| match &entry.extent {
            Extent::Whole => None,
            Extent::Groups { verifier, .. } => Some(verifier.clone()),
        })
        .flatten()
    }

    /// Remembers that a group was just found to be right, in bytes that had this imprint before they were read.
    pub(super) fn note(&self, key: &StorageKey, imprint: &Imprint, verifier: &Arc<Verifier>, group: u64) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.verified_for.is_zero() || !imprint.is_settled(since_epoch, self.settled_after) {
            return;
        }
        let is_known = self.find(key, |entry| {
            let is_same = entry.imprint.is_still(imprint);
            if is_same && let Extent::Groups { right, left, .. } = &mut entry.extent {
                set_bit(right, left, group);
                if *left == 0 {
                    entry.extent = Extent::Whole;
                }
            }
            is_same
        });
        if is_known == Some(true) {
            return;
        }
        let (mut right, mut left) = (vec![0; verifier.groups().div_ceil(64) as usize], verifier.groups());
        set_bit(&mut right, &mut left, group);
        let extent = match left {
            0 => Extent::Whole,
            _ => Extent::Groups { verifier: verifier.clone(), right, left },
        };
        let entry = Entry { imprint: *imprint, since: Instant::now(), extent };
        // One that would drive out all others is not worth it.
        if entry.size_bytes() <= GENERATION_BYTES_MAX / 2 {
            let mut generations = self.lock();
            generations.old.remove(key);
            generations.insert(key.clone(), entry);
        }
    }

    /// Forgets what is known of a blob.
    pub(super) fn forget(&self, key: &StorageKey) {
        let mut generations = self.lock();
        generations.old.remove(key);
        if let Some(entry) = generations.young.remove(key) {
            generations.young_bytes = generations.young_bytes.saturating_sub(entry.size_bytes());
        }
    }

    /// Looks at what is known of a blob, if it is known still.
    fn find<T>(&self, key: &StorageKey, look: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let mut generations = self.lock();
        if let Some(entry) = generations.old.remove(key) {
            generations.insert(key.clone(), entry);
        }
        let entry = generations.young.get_mut(key)?;
        if entry.since.elapsed() < self.verified_for {
            return Some(look(entry));
        }
        let size_bytes = entry.size_bytes();
        generations.young.remove(key);
        generations.young_bytes = generations.young_bytes.saturating_sub(size_bytes);
        None
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn insert(&mut self, key: StorageKey, entry: Entry) {
        self.young_bytes += entry.size_bytes();
        if self.young_bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = entry.size_bytes();
        }
        if let Some(before) = self.young.insert(key, entry) {
            self.young_bytes = self.young_bytes.saturating_sub(before.size_bytes());
        }
    }
}

fn has_bit(bits: &[u64], at: u64) -> bool {
    bits.get((at / 64) as usize).is_some_and(|word| word & (1 << (at % 64)) != 0)
}

fn set_bit(bits: &mut [u64], left: &mut u64, at: u64) {
    if let Some(word) = bits.get_mut((at / 64) as usize)
        && *word & (1 << (at % 64)) == 0
    {
        *word |= 1 << (at % 64);
        *left -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{GROUP_BYTES, Outboard, tree::TreeHasher};

    fn verifier(groups: u64) -> Arc<Verifier> {
        let data = vec![7; (groups * GROUP_BYTES) as usize];
        let mut hasher = TreeHasher::new();
        hasher.update(&data);
        let (root, pairs) = hasher.finish();
        let outboard = Outboard { blob_size_bytes: data.len() as u64, pairs: pairs.into() };
        Arc::new(Verifier::new(&outboard, root).unwrap())
    }

    fn imprint() -> Imprint {
        Imprint { file: 1, size_bytes: 10, modified: (5, 0), changed: Some((5, 0)) }
    }

    #[test]
    fn groups_are_remembered_one_by_one_until_all_are() {
        let (verified, key, three) =
            (VerifiedBlobs::new(Duration::MAX, SETTLED_AFTER), StorageKey::random(), verifier(3));
        assert!(!verified.are_right(&key, &imprint(), 0..1));
        verified.note(&key, &imprint(), &three, 1);
        assert!(verified.are_right(&key, &imprint(), 1..2) && !verified.are_right(&key, &imprint(), 0..2));
        assert!(verified.verifier(&key).is_some());
        for group in [0, 0, 2] {
            verified.note(&key, &imprint(), &three, group);
        }
        assert!(verified.are_right(&key, &imprint(), 0..3));
        assert!(verified.verifier(&key).is_none(), "hashes are not kept for longer than needed");
        verified.forget(&key);
        assert!(!verified.are_right(&key, &imprint(), 0..1));
    }

    #[test]
    fn what_was_written_to_or_is_too_new_or_too_old_is_not_known() {
        let (key, one) = (StorageKey::random(), verifier(1));
        let verified = VerifiedBlobs::new(Duration::MAX, SETTLED_AFTER);
        verified.note(&key, &imprint(), &one, 0);
        let changes = [
            Imprint { size_bytes: 11, ..imprint() },
            Imprint { modified: (5, 1), ..imprint() },
            Imprint { changed: Some((6, 0)), ..imprint() },
            Imprint { file: 2, ..imprint() },
        ];
        for changed in changes {
            assert!(!verified.are_right(&key, &changed, 0..1), "{changed:?}");
        }
        assert!(verified.are_right(&key, &Imprint { changed: None, ..imprint() }, 0..1), "deleted while it is read");

        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        for seconds in [now, now + 1000] {
            let (new, key) = (Imprint { changed: Some((seconds, 0)), ..imprint() }, StorageKey::random());
            verified.note(&key, &new, &one, 0);
            assert!(!verified.are_right(&key, &new, 0..1));
        }
        let forgetful = VerifiedBlobs::new(Duration::from_nanos(1), SETTLED_AFTER);
        forgetful.note(&key, &imprint(), &one, 0);
        assert!(!forgetful.are_right(&key, &imprint(), 0..1));
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let verified = VerifiedBlobs::new(Duration::MAX, SETTLED_AFTER);
        let (used, one, two) = (StorageKey::random(), verifier(1), verifier(2));
        verified.note(&used, &imprint(), &one, 0);
        for number in 0..4 * GENERATION_BYTES_MAX / ENTRY_BYTES {
            let verifier = if number % 2 == 0 { &one } else { &two };
            verified.note(&StorageKey::random(), &imprint(), verifier, 0);
            if number % 1000 == 0 {
                assert!(verified.are_right(&used, &imprint(), 0..1), "after {number}");
            }
        }
        let generations = verified.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_BYTES_MAX / ENTRY_BYTES);
    }
}
