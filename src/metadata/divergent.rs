//! What this node recorded as the primary of an account and the next primary never had.

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest};
use rusqlite::{Row, params};

use super::blobs::read_digest;
use super::{AccountId, BlobId, MetadataError, Reader, WriteTransaction};

/// A row of the list; never reused while the list has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DivergentId(i64);

/// What was done here and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DivergentChange {
    /// A manifest was pushed.
    Manifest(DivergentManifest),
    /// A manifest was deleted.
    ManifestGone(Digest),
    /// A tag was set on a manifest.
    Tag(String, DivergentManifest),
    /// A tag was deleted.
    TagGone(String),
}

/// A manifest of the list, kept there whatever becomes of the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DivergentManifest {
    /// Its name.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The bytes as pushed.
    pub bytes: Bytes,
}

/// An entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DivergentRow {
    /// Its row.
    pub id: DivergentId,
    /// The epoch in which it was recorded.
    pub epoch: u64,
    /// When, in UNIX seconds.
    pub at: i64,
    /// The full name of the repository.
    pub repository: String,
    /// What was done.
    pub change: DivergentChange,
}

fn read_manifest(row: &Row<'_>) -> Result<DivergentManifest, MetadataError> {
    let bytes = row.get_ref(7)?.as_blob().map_err(|_| MetadataError::Corrupt { what: "divergent manifest" })?;
    Ok(DivergentManifest {
        digest: read_digest(row, 4)?,
        media_type: row.get(6)?,
        bytes: Bytes::copy_from_slice(bytes),
    })
}

fn read_divergent(row: &Row<'_>) -> Result<DivergentRow, MetadataError> {
    let change = match row.get::<_, i64>(8)? {
        3 => DivergentChange::Manifest(read_manifest(row)?),
        4 => DivergentChange::ManifestGone(read_digest(row, 4)?),
        5 => DivergentChange::Tag(row.get(5)?, read_manifest(row)?),
        6 => DivergentChange::TagGone(row.get(5)?),
        _ => return Err(MetadataError::Corrupt { what: "divergent change" }),
    };
    Ok(DivergentRow {
        id: DivergentId(row.get(0)?),
        epoch: row.get::<_, i64>(1)? as u64,
        at: row.get(2)?,
        repository: row.get(3)?,
        change,
    })
}

impl Reader<'_> {
    /// Entries of an account after one, in the order in which they were recorded, `limit` at most.
    pub fn list_divergent(
        &self,
        account: &AccountName,
        after: Option<DivergentId>,
        limit: usize,
    ) -> Result<Vec<DivergentRow>, MetadataError> {
        let sql = "SELECT id, epoch, at, repository, digest, tag, media_type, bytes, kind FROM divergent \
                   WHERE account = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let after = after.map_or(i64::MIN, |after| after.0);
        self.rows(sql, params![account.as_str(), after, limit as i64], read_divergent)
    }

    /// The first account after `after` in bytewise order that has entries.
    pub fn get_next_divergent_account(&self, after: &str) -> Result<Option<AccountName>, MetadataError> {
        let sql = "SELECT account FROM divergent WHERE account > ?1 ORDER BY account LIMIT 1";
        self.get_row(sql, [after], |row| {
            let account = AccountName::parse(row.get_ref(0)?.as_str().unwrap_or_default());
            account.map_err(|_| MetadataError::Corrupt { what: "account name" })
        })
    }

    /// How many entries an account has.
    pub fn count_divergent(&self, account: &AccountName) -> Result<u64, MetadataError> {
        let sql = "SELECT count(*) FROM divergent WHERE account = ?1";
        Ok(self.get_row(sql, [account.as_str()], |row| Ok(row.get::<_, i64>(0)? as u64))?.unwrap_or_default())
    }

    /// Blobs of an account that an entry needs, by their digests.
    pub fn list_divergent_blobs(&self, id: DivergentId) -> Result<Vec<BlobId>, MetadataError> {
        let sql = "SELECT blob_id FROM divergent_blobs WHERE divergent_id = ?1 ORDER BY blob_id";
        self.rows(sql, [id.0], |row| Ok(BlobId(row.get(0)?)))
    }
}

impl WriteTransaction<'_> {
    /// Adds an entry, unless there is one like it; with the blobs of its account that it needs.
    pub fn put_divergent(
        &self,
        account: &AccountName,
        epoch: u64,
        at: i64,
        repository: &str,
        change: &DivergentChange,
        blobs: &[BlobId],
    ) -> Result<(), MetadataError> {
        let (kind, digest, tag, manifest) = match change {
            DivergentChange::Manifest(manifest) => (3, Some(manifest.digest), "", Some(manifest)),
            DivergentChange::ManifestGone(digest) => (4, Some(*digest), "", None),
            DivergentChange::Tag(tag, manifest) => (5, Some(manifest.digest), &tag[..], Some(manifest)),
            DivergentChange::TagGone(tag) => (6, None, &tag[..], None),
        };
        let sql = "INSERT INTO divergent (account, epoch, at, kind, repository, digest, tag, media_type, bytes) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING RETURNING id";
        let media_type = manifest.map_or("", |manifest| &manifest.media_type[..]);
        let bytes = manifest.map(|manifest| &manifest.bytes[..]);
        let digest = digest.map(|digest| digest.to_compact()).unwrap_or_default();
        let row = params![account.as_str(), epoch as i64, at, kind, repository, digest, tag, media_type, bytes];
        let id = self.noting_full(self.get_row(sql, row, |row| Ok(row.get::<_, i64>(0)?)))?;
        let Some(id) = id else { return Ok(()) };
        for blob in blobs {
            let sql = "INSERT INTO divergent_blobs (divergent_id, blob_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            self.execute(sql, [id, blob.0])?;
        }
        Ok(())
    }

    /// Takes an entry off the list; its blobs are swept like others from now on.
    pub fn delete_divergent(&self, id: DivergentId) -> Result<bool, MetadataError> {
        self.execute("DELETE FROM divergent_blobs WHERE divergent_id = ?1", [id.0])?;
        Ok(self.execute("DELETE FROM divergent WHERE id = ?1", [id.0])? > 0)
    }

    /// Takes all entries of an account off the list: the account goes with all it has.
    pub fn delete_all_divergent(&self, account: AccountId) -> Result<(), MetadataError> {
        let sql = "DELETE FROM divergent_blobs WHERE blob_id IN (SELECT id FROM blobs WHERE account_id = ?1)";
        self.execute(sql, [account.0])?;
        let sql = "DELETE FROM divergent WHERE account = (SELECT name FROM accounts WHERE id = ?1)";
        self.execute(sql, [account.0]).map(drop)
    }
}
