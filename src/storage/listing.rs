//! Walks through a storage space for those who look for what does not belong there.

use std::sync::{Arc, Mutex, PoisonError};

use keppel_federation::vocabulary::AccountName;

use super::driver::{ObjectIterator, StorageDriver};
use super::work::Workers;
use super::{StorageError, StoredObject};

/// A walk through everything in an account's space, page by page and in no order. What is stored or removed meanwhile
/// may or may not appear.
pub struct ObjectListing {
    driver: Arc<dyn StorageDriver>,
    account: AccountName,
    walk: Arc<Mutex<Option<ObjectIterator>>>,
    workers: Workers,
}

impl ObjectListing {
    pub(super) fn new(driver: Arc<dyn StorageDriver>, account: AccountName, workers: Workers) -> Self {
        Self { driver, account, walk: Arc::default(), workers }
    }

    /// The next objects, `page_max` at most; none at the end.
    ///
    /// Cancel safety: a page whose call is dropped is lost.
    ///
    /// # Errors
    /// [`StorageError::Io`]. The walk has then ended.
    pub async fn next_page(&mut self, page_max: usize) -> Result<Vec<StoredObject>, StorageError> {
        let (driver, account, walk) = (self.driver.clone(), self.account.clone(), self.walk.clone());
        let page = move || {
            let mut walk = walk.lock().unwrap_or_else(PoisonError::into_inner);
            let walk = match &mut *walk {
                Some(walk) => walk,
                empty => empty.insert(driver.list(&account)?),
            };
            walk.take(page_max).collect()
        };
        self.workers.run(page).await
    }
}
