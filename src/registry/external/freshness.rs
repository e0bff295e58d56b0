//! How long answers of registries outside hold: what a tag names, and that something is not there. In memory: after a
//! restart all is asked again.

use std::time::{Duration, Instant};

use keppel_federation::vocabulary::{Digest, Reference, RepositoryName};
use quick_cache::sync::Cache;

/// Tags, and absences, that are remembered.
const ENTRIES_MAX: usize = 50_000;

/// A repository's full name and a reference, as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    repository: Box<str>,
    reference: Box<str>,
}

impl Key {
    pub(super) fn new(repository: &RepositoryName, reference: &Reference) -> Self {
        Self { repository: repository.as_str().into(), reference: reference.to_string().into() }
    }
}

pub(super) struct Freshness {
    tag_lifetime: Duration,
    absence_lifetime: Duration,
    tags: Cache<Key, (Digest, Instant)>,
    absences: Cache<Key, Instant>,
}

impl Freshness {
    pub(super) fn new(tag_lifetime: Duration, absence_lifetime: Duration) -> Self {
        Self { tag_lifetime, absence_lifetime, tags: Cache::new(ENTRIES_MAX), absences: Cache::new(ENTRIES_MAX) }
    }

    /// Whether the tag was found to name this not long ago.
    pub(super) fn is_current(&self, key: &Key, digest: &Digest, now: Instant) -> bool {
        let is_young = |at: Instant| now.saturating_duration_since(at) < self.tag_lifetime;
        self.tags.get(key).is_some_and(|(known, at)| known == *digest && is_young(at))
    }

    pub(super) fn note_tag(&self, key: Key, digest: Digest, now: Instant) {
        self.absences.remove(&key);
        self.tags.insert(key, (digest, now));
    }

    /// Whether it was not there not long ago.
    pub(super) fn is_absent(&self, key: &Key, now: Instant) -> bool {
        self.absences.get(key).is_some_and(|at| now.saturating_duration_since(at) < self.absence_lifetime)
    }

    pub(super) fn note_absence(&self, key: Key, now: Instant) {
        self.tags.remove(&key);
        self.absences.insert(key, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_hold_for_their_time_and_for_what_they_were_about() {
        let freshness = Freshness::new(Duration::from_secs(60), Duration::from_secs(10));
        let key = |tag: &str| Key::new(&RepositoryName::parse("m/app").unwrap(), &Reference::parse(tag).unwrap());
        let (one, two) = (Digest::from_sha256([1; 32]), Digest::from_sha256([2; 32]));
        let now = Instant::now();
        freshness.note_tag(key("v1"), one, now);
        assert!(freshness.is_current(&key("v1"), &one, now));
        assert!(!freshness.is_current(&key("v1"), &two, now) && !freshness.is_current(&key("v2"), &one, now));
        freshness.note_absence(key("v2"), now);
        assert!(freshness.is_absent(&key("v2"), now) && !freshness.is_absent(&key("v1"), now));
        let later = now + Duration::from_secs(11);
        assert!(!freshness.is_absent(&key("v2"), later) && freshness.is_current(&key("v1"), &one, later));
        let later = later + Duration::from_secs(50);
        assert!(!freshness.is_current(&key("v1"), &one, later));
        freshness.note_tag(key("v2"), two, later);
        freshness.note_absence(key("v2"), later);
        assert!(!freshness.is_current(&key("v2"), &two, later), "what is gone names nothing");
        freshness.note_tag(key("v2"), two, later);
        assert!(!freshness.is_absent(&key("v2"), later));
    }
}
