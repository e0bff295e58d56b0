//! How much uploads may bring before they are blobs and count for their tenant's quota: so that what is never finished
//! does not fill the disk that all tenants share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keppel_federation::vocabulary::{TenantId, UploadId};

use super::rules::over_quota;
use super::uploads::UploadBody;
use super::{AccountRules, Inner, Quota, RegistryError};
use crate::metadata::{UploadRow, Usage};

/// What the open uploads of a tenant may hold together beyond its quota: pushes at the same time may bring the same blob,
/// and which of them still fit is decided when they end.
const SLACK_BYTES: u64 = 64 << 20;
/// What an upload counts for besides its bytes: a file, a row, and what is known of it in memory.
const OVERHEAD_BYTES: u64 = 16 << 10;

/// What unfinished uploads hold of those tenants that have a quota of bytes. Known since the start of the process.
#[derive(Debug, Default)]
pub(super) struct OpenUploads {
    tenants: Mutex<HashMap<TenantId, Arc<AtomicU64>>>,
    uploads: Mutex<HashMap<UploadId, Arc<Held>>>,
}

/// What one upload holds.
#[derive(Debug)]
struct Held {
    bytes: AtomicU64,
    of_tenant: Arc<AtomicU64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of_tenant.fetch_sub(*self.bytes.get_mut() + OVERHEAD_BYTES, Ordering::Relaxed);
    }
}

impl OpenUploads {
    /// What is counted of an upload that has come so far, `size_bytes`. Called by the one request that works on it.
    fn of(&self, tenant: &TenantId, id: &UploadId, size_bytes: u64) -> Arc<Held> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        let held = uploads.entry(id.clone()).or_insert_with(|| {
            let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            let of_tenant = tenants.entry(tenant.clone()).or_default().clone();
            of_tenant.fetch_add(OVERHEAD_BYTES, Ordering::Relaxed);
            Arc::new(Held { bytes: AtomicU64::new(0), of_tenant })
        });
        // What an earlier request counted may not have come to disk.
        let counted = held.bytes.swap(size_bytes, Ordering::Relaxed);
        held.of_tenant.fetch_add(size_bytes, Ordering::Relaxed);
        held.of_tenant.fetch_sub(counted, Ordering::Relaxed);
        held.clone()
    }

    /// Forgets an upload that is over.
    pub(super) fn end(&self, id: &UploadId) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// How much of a body may be taken.
pub(super) struct UploadRoom {
    held: Arc<Held>,
    tenant: TenantId,
    quota: Quota,
    usage: Usage,
    /// What this upload and all of the tenant's together may come to.
    limit_bytes: u64,
    limit_open_bytes: u64,
}

impl UploadRoom {
    fn refusal(&self) -> RegistryError {
        let more = Usage { manifests: 0, size_bytes: u64::MAX };
        let refused = over_quota(&self.tenant, &Quota { manifests: None, ..self.quota }, self.usage, more);
        refused.err().unwrap_or(RegistryError::StorageFull)
    }

    /// Refuses a body that is announced as longer than there is room for.
    ///
    /// # Errors
    /// [`RegistryError::QuotaExceeded`].
    pub(super) fn check(&self, length: u64) -> Result<(), RegistryError> {
        match self.held.bytes.load(Ordering::Relaxed).saturating_add(length) > self.limit_bytes {
            true => Err(self.refusal()),
            false => Ok(()),
        }
    }

    /// Takes note of what arrives.
    fn takes(&self, more: u64) -> bool {
        let own = self.held.bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        let all = self.held.of_tenant.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        own <= self.limit_bytes && all <= self.limit_open_bytes
    }
}

impl Inner {
    /// How much an upload that has come so far may still bring; `None`: its tenant has no quota of bytes.
    pub(super) async fn room_for_upload(
        &self,
        row: &UploadRow,
        size_bytes: u64,
    ) -> Result<Option<UploadRoom>, RegistryError> {
        let account = row.repository.account();
        let Some(AccountRules { tenant, quota, .. }) = self.rules(&account)? else { return Ok(None) };
        let Some(limit) = quota.size_bytes else { return Ok(None) };
        // What the tenant holds is known in the region of the account's primary, which decides at the end.
        let usage = match self.elsewhere(&account) {
            Some(_) => Usage::default(),
            None => {
                let name = tenant.clone();
                self.metadata.read(move |reader| reader.tenant_usage(name.as_str())).await?
            }
        };
        let held = self.open_uploads.of(&tenant, &row.id, size_bytes);
        let (limit_bytes, limit_open_bytes) =
            (limit.saturating_sub(usage.size_bytes), limit.saturating_add(SLACK_BYTES));
        Ok(Some(UploadRoom { held, tenant, quota, usage, limit_bytes, limit_open_bytes }))
    }
}

/// Passes a body on for as long as there is room, and then ends; [`Metered::outcome`] tells.
pub(super) struct Metered {
    room: Option<Arc<UploadRoom>>,
    is_over: Arc<std::sync::atomic::AtomicBool>,
}

impl Metered {
    pub(super) fn new(room: Option<UploadRoom>) -> Self {
        Self { room: room.map(Arc::new), is_over: Arc::default() }
    }

    pub(super) fn limit<B: UploadBody>(
        &self,
        body: B,
    ) -> impl Stream<Item = Result<Bytes, B::Cause>> + Send + Unpin + 'static {
        let (room, is_over) = (self.room.clone(), self.is_over.clone());
        let metered = body.take_while(move |piece| {
            let size = piece.as_ref().map_or(0, |piece| piece.len() as u64);
            let fits = room.as_ref().is_none_or(|room| room.takes(size));
            is_over.fetch_or(!fits, Ordering::Relaxed);
            std::future::ready(fits)
        });
        Box::pin(metered)
    }

    /// # Errors
    /// [`RegistryError::QuotaExceeded`] when not all of the body was passed on.
    pub(super) fn outcome(&self) -> Result<(), RegistryError> {
        match (&self.room, self.is_over.load(Ordering::Relaxed)) {
            (Some(room), true) => Err(room.refusal()),
            _ => Ok(()),
        }
    }
}
