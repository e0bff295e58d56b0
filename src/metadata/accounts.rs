//! Accounts and repositories.

use keppel_federation::vocabulary::{AccountName, RepositoryName};
use rusqlite::params;

use super::{MetadataError, Reader, Usage, WriteTransaction};

/// The row of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountId(pub(super) i64);

/// The row of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub(super) i64);

#[cfg(test)]
impl RepositoryId {
    /// Any row, for tests that need none.
    pub(crate) fn for_test(id: i64) -> Self {
        Self(id)
    }
}

impl Reader<'_> {
    /// The account with this name.
    pub fn get_account(&self, name: &AccountName) -> Result<Option<AccountId>, MetadataError> {
        self.get_row("SELECT id FROM accounts WHERE name = ?1", [name.as_str()], |row| Ok(AccountId(row.get(0)?)))
    }

    /// Account names after `after` in bytewise order, `limit` at most.
    pub fn list_accounts(&self, after: Option<&AccountName>, limit: usize) -> Result<Vec<AccountName>, MetadataError> {
        let after = after.map_or("", AccountName::as_str);
        let sql = "SELECT name FROM accounts WHERE name > ?1 ORDER BY name LIMIT ?2";
        self.rows(sql, params![after, limit as i64], |row| {
            AccountName::parse(row.get_ref(0)?.as_str().unwrap_or_default())
                .map_err(|_| MetadataError::Corrupt { what: "account name" })
        })
    }

    /// How many manifests an account holds, and how many bytes in all.
    pub fn account_usage(&self, account: AccountId) -> Result<Option<Usage>, MetadataError> {
        let sql = "SELECT manifest_count, size_bytes FROM accounts WHERE id = ?1";
        self.get_row(sql, [account.0], |row| {
            Ok(Usage { manifests: row.get::<_, i64>(0)? as u64, size_bytes: row.get::<_, i64>(1)? as u64 })
        })
    }

    /// The repository with this name.
    pub fn get_repository(&self, name: &RepositoryName) -> Result<Option<RepositoryId>, MetadataError> {
        let sql = "SELECT id FROM repositories WHERE full_name = ?1";
        self.get_row(sql, [name.as_str()], |row| Ok(RepositoryId(row.get(0)?)))
    }
}

impl WriteTransaction<'_> {
    /// The account with this name, made when it is not there.
    pub fn ensure_account(&self, name: &AccountName, now: i64) -> Result<AccountId, MetadataError> {
        if let Some(id) = self.get_account(name)? {
            return Ok(id);
        }
        let sql = "INSERT INTO accounts (name, created_at) VALUES (?1, ?2) RETURNING id";
        self.inserted(sql, params![name.as_str(), now]).map(AccountId)
    }

    /// The repository with this name, made when it is not there.
    pub fn ensure_repository(
        &self,
        account: AccountId,
        name: &RepositoryName,
        now: i64,
    ) -> Result<RepositoryId, MetadataError> {
        if let Some(id) = self.get_repository(name)? {
            return Ok(id);
        }
        let sql = "INSERT INTO repositories (account_id, full_name, created_at) VALUES (?1, ?2, ?3) RETURNING id";
        self.inserted(sql, params![account.0, name.as_str(), now]).map(RepositoryId)
    }

    /// Forgets when a repository was last pushed to: it is being listed, and its manifests and tags say it again.
    pub fn forget_last_push(&self, repository: RepositoryId) -> Result<(), MetadataError> {
        self.execute("UPDATE repositories SET pushed_at = 0 WHERE id = ?1", [repository.0]).map(drop)
    }

    /// Deletes an account that holds nothing any more.
    pub fn delete_account(&self, account: AccountId) -> Result<(), MetadataError> {
        self.execute("DELETE FROM accounts WHERE id = ?1", [account.0]).map(drop)
    }

    /// Runs an insertion that returns its row's id.
    pub(super) fn inserted(&self, sql: &str, params: impl rusqlite::Params) -> Result<i64, MetadataError> {
        let id = self.noting_full(self.get_row(sql, params, |row| Ok(row.get(0)?)))?;
        id.ok_or(MetadataError::Corrupt { what: "inserted row" })
    }
}
