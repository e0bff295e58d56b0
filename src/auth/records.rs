use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, TenantId};

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// An auth tenant.
    Tenant,
    /// A user or robot; its id is the subject of its identity.
    User,
    /// A public key that tokens are signed with; its id is the key's id.
    IssuerKey,
}

/// A document that all regions share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its content.
    pub body: Bytes,
    /// Grows with every change, never the same twice.
    pub revision: u64,
}

/// What all regions share about an account, as far as access is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    /// Who is billed and authorised.
    pub tenant: TenantId,
    /// The settings, as they are stored.
    pub settings: Bytes,
    /// Grows with every change of the settings, never the same twice.
    pub settings_revision: u64,
}

/// Reads what all regions share, from memory: every call is quick and waits for nothing.
///
/// Two implementations: the federation's state, and [`MemoryRecords`].
pub trait Records: Send + Sync + 'static {
    /// A record.
    fn get(&self, kind: RecordKind, id: &str) -> Option<Record>;
    /// An account.
    fn get_account(&self, name: &AccountName) -> Option<AccountRecord>;
}

/// Records of one process: for a registry without users, and for tests.
#[derive(Debug, Default)]
pub struct MemoryRecords {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    records: BTreeMap<(RecordKind, String), Record>,
    accounts: BTreeMap<AccountName, AccountRecord>,
}

impl MemoryRecords {
    /// Writes a record.
    pub fn put(&self, kind: RecordKind, id: &str, body: Vec<u8>) {
        let mut inner = self.lock();
        inner.revision += 1;
        let record = Record { body: body.into(), revision: inner.revision };
        inner.records.insert((kind, id.to_owned()), record);
    }

    /// Removes a record.
    pub fn remove(&self, kind: RecordKind, id: &str) {
        self.lock().records.remove(&(kind, id.to_owned()));
    }

    /// Writes an account.
    pub fn put_account(&self, name: AccountName, tenant: TenantId, settings: Vec<u8>) {
        let mut inner = self.lock();
        inner.revision += 1;
        let record = AccountRecord { tenant, settings: settings.into(), settings_revision: inner.revision };
        inner.accounts.insert(name, record);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records for MemoryRecords {
    fn get(&self, kind: RecordKind, id: &str) -> Option<Record> {
        self.lock().records.get(&(kind, id.to_owned())).cloned()
    }

    fn get_account(&self, name: &AccountName) -> Option<AccountRecord> {
        self.lock().accounts.get(name).cloned()
    }
}
