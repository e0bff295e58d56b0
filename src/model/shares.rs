use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Gives each key the same share of something, so that none takes what the others need. A key that has nothing of it is
/// not kept in memory.
#[derive(Debug)]
pub struct Shares<K> {
    each: usize,
    keys: Mutex<HashMap<K, Arc<Semaphore>>>,
}

/// What somebody has of a key's share, until it is dropped.
#[derive(Debug)]
pub struct Share<'a, K: Eq + Hash> {
    shares: &'a Shares<K>,
    key: K,
    semaphore: Option<Arc<Semaphore>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// Shares of `each` units.
    pub fn new(each: usize) -> Self {
        Self { each, keys: Mutex::default() }
    }

    /// Nothing yet of the share of a key.
    pub fn of(&self, key: K) -> Share<'_, K> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let semaphore = keys.entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.each))).clone();
        Share { shares: self, key, semaphore: Some(semaphore), permit: None }
    }
}

impl<K: Eq + Hash> Share<'_, K> {
    /// Takes so many units more, when it is their turn. No more than a whole share can ever be taken.
    ///
    /// Cancel safety: may be dropped; it then has what it had.
    pub async fn take_more(&mut self, units: usize) {
        let units = u32::try_from(units.min(self.shares.each)).unwrap_or(u32::MAX);
        let Some(semaphore) = self.semaphore.clone() else { return };
        // The semaphore is never closed.
        let Ok(more) = semaphore.acquire_many_owned(units).await else { return };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }
}

impl<K: Eq + Hash> Drop for Share<'_, K> {
    fn drop(&mut self) {
        self.permit = None;
        let mut keys = self.shares.keys.lock().unwrap_or_else(PoisonError::into_inner);
        self.semaphore = None;
        // All who have a share of it hold the semaphore, and let go of it under this lock only.
        if keys.get(&self.key).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_key_waits_for_itself_and_leaves_nothing_behind() {
        let shares = Shares::new(3);
        let (mut first, mut second, mut other) = (shares.of("a"), shares.of("a"), shares.of("b"));
        first.take_more(1).await;
        first.take_more(1).await;
        other.take_more(30).await;
        let mut waiting = Box::pin(second.take_more(2));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(first);
        waiting.await;
        let mut late = shares.of("a");
        let mut waiting = Box::pin(late.take_more(2));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(waiting);
        assert_eq!(shares.keys.lock().unwrap().len(), 2);
        drop((second, late, other));
        assert!(shares.keys.lock().unwrap().is_empty());
    }
}
