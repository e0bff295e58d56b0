//! How much accounts and tenants hold. The counters are the database's own: triggers keep them.

use rusqlite::params;

use super::{AccountId, MetadataError, Reader, WriteTransaction};

/// What a tenant's accounts hold in this region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Manifests, in all repositories.
    pub manifests: u64,
    /// Bytes of blobs, each once per account, and of manifests.
    pub size_bytes: u64,
}

impl Reader<'_> {
    /// What a tenant's accounts hold.
    pub fn tenant_usage(&self, tenant: &str) -> Result<Usage, MetadataError> {
        let sql = "SELECT manifest_count, size_bytes FROM tenants WHERE name = ?1";
        let usage = self.get_row(sql, [tenant], |row| {
            Ok(Usage { manifests: row.get::<_, i64>(0)? as u64, size_bytes: row.get::<_, i64>(1)? as u64 })
        })?;
        Ok(usage.unwrap_or_default())
    }

    /// The tenant that an account is counted for; empty: none yet.
    pub fn tenant_of(&self, account: AccountId) -> Result<String, MetadataError> {
        let tenant = self.get_row("SELECT tenant FROM accounts WHERE id = ?1", [account.0], |row| Ok(row.get(0)?))?;
        Ok(tenant.unwrap_or_default())
    }
}

impl WriteTransaction<'_> {
    /// Counts an account for a tenant from now on, with all that it holds.
    pub fn set_tenant(&self, account: AccountId, tenant: &str) -> Result<(), MetadataError> {
        if self.tenant_of(account)? == tenant {
            return Ok(());
        }
        let sql = "INSERT INTO tenants (name, manifest_count, size_bytes) VALUES (?1, 0, 0) ON CONFLICT DO NOTHING";
        self.execute(sql, [tenant])?;
        self.execute("UPDATE accounts SET tenant = ?2 WHERE id = ?1", params![account.0, tenant]).map(|_| ())
    }
}

/// What differs between the counters and what they count.
#[cfg(test)]
pub(crate) const RECOUNT: &str = "
    SELECT 'repository ' || full_name FROM repositories WHERE
        manifest_count <> (SELECT count(*) FROM manifests WHERE repository_id = repositories.id)
        OR tag_count <> (SELECT count(*) FROM tags WHERE repository_id = repositories.id)
        OR size_bytes <> (SELECT coalesce(sum(length(bytes)), 0) FROM manifests WHERE repository_id = repositories.id)
            + (SELECT coalesce(sum(blobs.size_bytes), 0) FROM mounts JOIN blobs ON blobs.id = mounts.blob_id
               WHERE mounts.repository_id = repositories.id)
    UNION ALL
    SELECT 'account ' || name FROM accounts WHERE
        manifest_count <> (SELECT count(*) FROM manifests JOIN repositories ON repositories.id = repository_id
                           WHERE account_id = accounts.id)
        OR size_bytes <> (SELECT coalesce(sum(blobs.size_bytes), 0) FROM blobs WHERE account_id = accounts.id)
            + (SELECT coalesce(sum(length(manifests.bytes)), 0) FROM manifests
               JOIN repositories ON repositories.id = repository_id WHERE account_id = accounts.id)
    UNION ALL
    SELECT 'tenant ' || name FROM tenants WHERE
        manifest_count <> (SELECT coalesce(sum(manifest_count), 0) FROM accounts WHERE tenant = tenants.name)
        OR size_bytes <> (SELECT coalesce(sum(size_bytes), 0) FROM accounts WHERE tenant = tenants.name)";

#[cfg(test)]
impl Reader<'_> {
    /// The counters that do not say what is there.
    pub(crate) fn miscounted(&self) -> Result<Vec<String>, MetadataError> {
        self.rows(RECOUNT, [], |row| Ok(row.get(0)?))
    }
}
