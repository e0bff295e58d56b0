//! Small manifests in memory, always current.
//!
//! An entry may only be what the metadata would answer. Whoever changes a manifest or tag evicts its keys before and
//! after the commit; whoever loads one notes the generation of its repository before reading, and what was read goes
//! in only if nothing was evicted since. So a slow reader cannot put back what a writer has just replaced.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keppel_federation::vocabulary::AccountName;
use quick_cache::Equivalent;
use quick_cache::sync::Cache;

use super::Manifest;

/// Independent generations; more make a needless refusal rarer.
const SHARDS: usize = 64;
/// What an entry costs besides its bytes.
const OVERHEAD_BYTES: u64 = 512;

/// The repository's full name and a reference, as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    pub(super) repository: Box<str>,
    pub(super) reference: Box<str>,
}

#[derive(Hash)]
struct BorrowedKey<'a> {
    repository: &'a str,
    reference: &'a str,
}

impl Equivalent<CacheKey> for BorrowedKey<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        *self.repository == *key.repository && *self.reference == *key.reference
    }
}

#[derive(Clone)]
struct ByBytes;

impl quick_cache::Weighter<CacheKey, Arc<Manifest>> for ByBytes {
    fn weight(&self, _: &CacheKey, manifest: &Arc<Manifest>) -> u64 {
        manifest.bytes.len() as u64 + OVERHEAD_BYTES
    }
}

/// The state of a repository's entries at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Generation(u64);

pub(super) struct ManifestCache {
    entries: Cache<CacheKey, Arc<Manifest>, ByBytes>,
    generations: [AtomicU64; SHARDS],
    sharding: RandomState,
    entry_max_bytes: u64,
}

impl ManifestCache {
    /// A cache of `capacity_bytes` in all, for manifests of a sixteenth of that at the most.
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let estimated_items = usize::try_from(capacity_bytes / 2048).unwrap_or(usize::MAX).clamp(16, 1 << 20);
        Self {
            entries: Cache::with_weighter(estimated_items, capacity_bytes, ByBytes),
            generations: [const { AtomicU64::new(0) }; SHARDS],
            sharding: RandomState::new(),
            entry_max_bytes: capacity_bytes / 16,
        }
    }

    pub(super) fn get(&self, repository: &str, reference: &str) -> Option<Arc<Manifest>> {
        self.entries.get(&BorrowedKey { repository, reference })
    }

    /// To be asked before the metadata is read.
    pub(super) fn generation(&self, repository: &str) -> Generation {
        Generation(self.shard(repository).load(Ordering::SeqCst))
    }

    /// Takes in what was read since `generation`, unless something of the repository was evicted meanwhile.
    pub(super) fn insert(&self, key: CacheKey, manifest: &Arc<Manifest>, generation: Generation) {
        if manifest.bytes.len() as u64 > self.entry_max_bytes {
            return;
        }
        let shard = self.shard(&key.repository);
        if shard.load(Ordering::SeqCst) != generation.0 {
            return;
        }
        self.entries.insert(key.clone(), manifest.clone());
        // An eviction may have come between the check and the insertion.
        if shard.load(Ordering::SeqCst) != generation.0 {
            self.entries.remove(&key);
        }
    }

    pub(super) fn evict(&self, keys: &[CacheKey]) {
        for key in keys {
            self.shard(&key.repository).fetch_add(1, Ordering::SeqCst);
            self.entries.remove(key);
        }
    }

    /// Takes out all of an account.
    pub(super) fn evict_account(&self, account: &AccountName) {
        // Whoever is reading must not put anything in afterwards.
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::SeqCst);
        }
        let is_of = |repository: &str| repository.split('/').next() == Some(account.as_str());
        self.entries.retain(|key, _| !is_of(&key.repository));
    }

    fn shard(&self, repository: &str) -> &AtomicU64 {
        let mut hasher = self.sharding.build_hasher();
        hasher.write(repository.as_bytes());
        &self.generations[hasher.finish() as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(reference: &str) -> CacheKey {
        CacheKey { repository: "acme/app".into(), reference: reference.into() }
    }

    #[test]
    fn what_was_read_before_an_eviction_does_not_come_back() {
        let cache = ManifestCache::new(1 << 20);
        let old = Arc::new(Manifest::for_test(b"old"));
        let before = cache.generation("acme/app");
        cache.insert(key("v1"), &old, before);
        assert_eq!(cache.get("acme/app", "v1").unwrap().bytes, old.bytes);
        cache.evict(&[key("v1")]);
        assert!(cache.get("acme/app", "v1").is_none());
        cache.insert(key("v1"), &old, before);
        assert!(cache.get("acme/app", "v1").is_none());
        cache.insert(key("v1"), &old, cache.generation("acme/app"));
        assert!(cache.get("acme/app", "v1").is_some());
    }

    #[test]
    fn an_account_goes_with_all_its_manifests_and_what_was_being_read() {
        let cache = ManifestCache::new(1 << 20);
        let manifest = Arc::new(Manifest::for_test(b"it"));
        let other = || CacheKey { repository: "acme-two/app".into(), reference: "v1".into() };
        let before = cache.generation("acme/app");
        cache.insert(key("v1"), &manifest, before);
        cache.insert(other(), &manifest, cache.generation("acme-two/app"));
        cache.evict_account(&AccountName::parse("acme").unwrap());
        cache.insert(key("v2"), &manifest, before);
        assert!(cache.get("acme/app", "v1").is_none() && cache.get("acme/app", "v2").is_none());
        assert!(cache.get("acme-two/app", "v1").is_some());
    }

    #[test]
    fn memory_stays_within_the_capacity() {
        let cache = ManifestCache::new(64 << 10);
        for number in 0..1000 {
            let manifest = Arc::new(Manifest::for_test(&[0; 1000]));
            cache.insert(key(&number.to_string()), &manifest, cache.generation("acme/app"));
        }
        assert!(cache.entries.weight() <= 64 << 10);
        let large = Arc::new(Manifest::for_test(&[0; 32 << 10]));
        cache.insert(key("large"), &large, cache.generation("acme/app"));
        assert!(cache.get("acme/app", "large").is_none());
    }
}
