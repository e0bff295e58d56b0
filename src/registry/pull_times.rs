//! Pull times, gathered in memory and written in batches.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::{Manifest, Registry, RegistryError};
use crate::metadata::{ManifestId, Pull, RepositoryId};

/// Pulls that may wait to be written; those over it are not counted, which a metric shows.
const WAITING_MAX: usize = 200_000;
/// Pulls written in one transaction.
const BATCH: usize = 1000;

type Key = (ManifestId, Option<(RepositoryId, Box<str>)>);

#[derive(Default)]
pub(super) struct PullTimes {
    waiting: Mutex<HashMap<Key, i64>>,
}

impl PullTimes {
    fn note(&self, key: Key, at: i64) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX || waiting.contains_key(&key) {
            waiting.insert(key, at);
        } else {
            metrics::counter!("keppel_pull_times_dropped_total").increment(1);
        }
    }

    fn take(&self) -> Vec<Pull> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let pulls = waiting.into_iter().map(|((manifest, tag), at)| {
            let tag = tag.map(|(repository, tag)| (repository, tag.into_string()));
            Pull { manifest, tag, at }
        });
        pulls.collect()
    }
}

impl Registry {
    /// Notes in memory that a manifest was pulled; at most one pull a second is noted while it stays in the cache.
    /// Never waits.
    pub fn note_pull(&self, manifest: &Manifest) {
        let now = self.inner.clock.now();
        if let (Some((id, repository)), true) = (manifest.row, manifest.is_first_pull_at(now)) {
            let tag = manifest.tag.clone().map(|tag| (repository, tag));
            self.inner.pull_times.note((id, tag), now);
        }
    }

    /// Writes the pull times gathered so far. What cannot be written is lost: pull times are hints for retention.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn flush_pull_times(&self) -> Result<(), RegistryError> {
        let mut pulls = self.inner.pull_times.take();
        while !pulls.is_empty() {
            let batch = pulls.split_off(pulls.len().saturating_sub(BATCH));
            self.inner
                .metadata
                .write(move |transaction| transaction.record_pulls(&batch))
                .await
                .map_err(|error: crate::metadata::MetadataError| RegistryError::from(error))?;
        }
        Ok(())
    }
}
