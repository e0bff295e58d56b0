//! What the janitor looks at again and again: what is due, who is at it, and what was found.
//!
//! A thing is due when it was last looked at before a given time. Whoever takes it moves that time forward by a lease in
//! the same transaction, so that nobody else takes it, and so that it is due again should the taker die.

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};
use rusqlite::{Row, params};

use super::blobs::{read_blob, read_digest};
use super::{AccountId, BlobId, BlobRow, ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// What is looked at again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Care {
    /// Each manifest: whether it is what it should be.
    ManifestValidation,
    /// Each blob: whether its bytes are still right.
    BlobValidation,
    /// Each repository: which mounts nobody needs.
    MountSweep,
    /// Each account: which blobs nobody needs.
    BlobSweep,
    /// Each repository: which images its retention policies delete.
    ImageGc,
}

/// Something taken to be looked at: the row of what the kind of [`Care`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CareItem(i64);

impl CareItem {
    /// As a manifest.
    pub fn manifest(self) -> ManifestId {
        ManifestId(self.0)
    }

    /// As a blob.
    pub fn blob(self) -> BlobId {
        BlobId(self.0)
    }

    /// As a repository.
    pub fn repository(self) -> RepositoryId {
        RepositoryId(self.0)
    }

    /// As an account.
    pub fn account(self) -> AccountId {
        AccountId(self.0)
    }
}

/// A blob and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedBlob {
    /// The account.
    pub account: AccountName,
    /// Its name.
    pub digest: Digest,
    /// Its row.
    pub blob: BlobRow,
}

/// An image that needs a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffectedImage {
    /// The full name of its repository.
    pub repository: String,
    /// The manifest.
    pub digest: Digest,
    /// A tag on it, if there is one.
    pub tag: Option<String>,
}

/// What of a [`Care`] is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DueCount {
    /// How many.
    pub items: u64,
    /// When the one that waits for longest was last looked at, in UNIX seconds; `None`: there is nothing at all.
    pub oldest: Option<i64>,
}

fn item(row: &Row<'_>) -> Result<CareItem, MetadataError> {
    Ok(CareItem(row.get(0)?))
}

impl Reader<'_> {
    /// What was last looked at before a time.
    pub fn count_due(&self, care: Care, before: i64) -> Result<DueCount, MetadataError> {
        let (count, oldest) = match care {
            Care::ManifestValidation => (
                "SELECT count(*) FROM manifest_care WHERE validated_at <= ?1",
                "SELECT min(validated_at) FROM manifest_care",
            ),
            Care::BlobValidation => {
                ("SELECT count(*) FROM blobs WHERE validated_at <= ?1", "SELECT min(validated_at) FROM blobs")
            }
            Care::MountSweep => (
                "SELECT count(*) FROM repositories WHERE mounts_swept_at <= ?1",
                "SELECT min(mounts_swept_at) FROM repositories",
            ),
            Care::BlobSweep => {
                ("SELECT count(*) FROM accounts WHERE blobs_swept_at <= ?1", "SELECT min(blobs_swept_at) FROM accounts")
            }
            Care::ImageGc => (
                "SELECT count(*) FROM repositories WHERE images_collected_at <= ?1",
                "SELECT min(images_collected_at) FROM repositories",
            ),
        };
        let items = self.get_row(count, [before], |row| Ok(row.get::<_, i64>(0)? as u64))?.unwrap_or_default();
        let oldest = self.get_row(oldest, [], |row| Ok(row.get::<_, Option<i64>>(0)?))?.flatten();
        Ok(DueCount { items, oldest })
    }

    /// A repository's full name.
    pub fn get_repository_name(&self, id: RepositoryId) -> Result<Option<RepositoryName>, MetadataError> {
        self.get_row("SELECT full_name FROM repositories WHERE id = ?1", [id.0], |row| {
            RepositoryName::parse(row.get_ref(0)?.as_str().unwrap_or_default())
                .map_err(|_| MetadataError::Corrupt { what: "repository name" })
        })
    }

    /// An account's name.
    pub fn get_account_name(&self, id: AccountId) -> Result<Option<AccountName>, MetadataError> {
        self.get_row("SELECT name FROM accounts WHERE id = ?1", [id.0], |row| read_account_name(row, 0))
    }

    /// A blob by its row.
    pub fn get_owned_blob(&self, id: BlobId) -> Result<Option<OwnedBlob>, MetadataError> {
        let sql = "SELECT blobs.id, blobs.size_bytes, blobs.storage_key, blobs.blake3, blobs.broken_since, \
                   blobs.digest, accounts.name FROM blobs JOIN accounts ON accounts.id = blobs.account_id \
                   WHERE blobs.id = ?1";
        self.get_row(sql, [id.0], read_owned)
    }

    /// The blobs of an account whose digests follow `after`, `limit` at most.
    pub fn list_blobs(
        &self,
        account: AccountId,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<OwnedBlob>, MetadataError> {
        let sql = "SELECT blobs.id, blobs.size_bytes, blobs.storage_key, blobs.blake3, blobs.broken_since, \
                   blobs.digest, accounts.name FROM accounts JOIN blobs ON blobs.account_id = accounts.id \
                   WHERE accounts.id = ?1 AND blobs.digest > ?2 ORDER BY blobs.digest LIMIT ?3";
        let after = after.map(Digest::to_compact).unwrap_or_default();
        self.rows(sql, params![account.0, after, limit as i64], read_owned)
    }

    /// How many blobs an account has, and how many bytes.
    pub fn count_blobs(&self, account: AccountId) -> Result<(u64, u64), MetadataError> {
        let sql = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM blobs WHERE account_id = ?1";
        let counted =
            self.get_row(sql, [account.0], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
        Ok(counted.unwrap_or_default())
    }

    /// A repository that a blob is mounted in.
    pub fn get_mounting_repository(&self, blob: BlobId) -> Result<Option<RepositoryName>, MetadataError> {
        let sql = "SELECT full_name FROM mounts JOIN repositories ON repositories.id = mounts.repository_id \
                   WHERE mounts.blob_id = ?1 LIMIT 1";
        self.get_row(sql, [blob.0], |row| {
            RepositoryName::parse(row.get_ref(0)?.as_str().unwrap_or_default())
                .map_err(|_| MetadataError::Corrupt { what: "repository name" })
        })
    }

    /// Images that need a blob, `limit` at most.
    pub fn list_affected_images(&self, blob: BlobId, limit: usize) -> Result<Vec<AffectedImage>, MetadataError> {
        let sql = "SELECT full_name, manifests.digest, \
                   (SELECT name FROM tags WHERE tags.manifest_id = manifests.id LIMIT 1) \
                   FROM manifest_blobs JOIN manifests ON manifests.id = manifest_blobs.manifest_id \
                   JOIN repositories ON repositories.id = manifests.repository_id \
                   WHERE manifest_blobs.blob_id = ?1 LIMIT ?2";
        self.rows(sql, params![blob.0, limit as i64], |row| {
            Ok(AffectedImage { repository: row.get(0)?, digest: read_digest(row, 1)?, tag: row.get(2)? })
        })
    }

    /// How many blobs of all accounts are known to be bad.
    pub fn count_broken_blobs(&self) -> Result<u64, MetadataError> {
        let sql =
            "SELECT count(*) FROM blobs INDEXED BY blobs_broken WHERE account_id > 0 AND broken_since IS NOT NULL";
        Ok(self.get_row(sql, [], |row| Ok(row.get::<_, i64>(0)? as u64))?.unwrap_or_default())
    }

    /// How many manifests are known not to be what they should be.
    pub fn count_invalid_manifests(&self) -> Result<u64, MetadataError> {
        let sql = "SELECT count(*) FROM manifest_care INDEXED BY manifest_care_with_error \
                   WHERE repository_id > 0 AND error IS NOT NULL";
        Ok(self.get_row(sql, [], |row| Ok(row.get::<_, i64>(0)? as u64))?.unwrap_or_default())
    }

    /// Whether a manifest of the repository is known not to be what it should be.
    pub fn has_invalid_manifest(&self, repository: RepositoryId) -> Result<bool, MetadataError> {
        let sql = "SELECT 1 FROM manifest_care WHERE repository_id = ?1 AND error IS NOT NULL LIMIT 1";
        Ok(self.get_row(sql, [repository.0], |_| Ok(()))?.is_some())
    }

    /// The accounts that a declarative file asked for, in order.
    pub fn list_managed_accounts(&self) -> Result<Vec<String>, MetadataError> {
        self.rows("SELECT name FROM managed_accounts WHERE name > '' ORDER BY name", [], |row| Ok(row.get(0)?))
    }
}

impl WriteTransaction<'_> {
    /// Takes what was last looked at before a time, the longest ago first, `limit` at most; `leased` is noted as the time
    /// of the look until [`Self::put_cared`] notes another.
    pub fn take_due(&self, care: Care, before: i64, leased: i64, limit: usize) -> Result<Vec<CareItem>, MetadataError> {
        let sql = match care {
            Care::ManifestValidation => {
                "UPDATE manifest_care SET validated_at = ?2 WHERE manifest_id IN (SELECT manifest_id \
                 FROM manifest_care WHERE validated_at <= ?1 ORDER BY validated_at LIMIT ?3) RETURNING manifest_id"
            }
            Care::BlobValidation => {
                "UPDATE blobs SET validated_at = ?2 WHERE id IN (SELECT id FROM blobs \
                 WHERE validated_at <= ?1 ORDER BY validated_at LIMIT ?3) RETURNING id"
            }
            Care::MountSweep => {
                "UPDATE repositories SET mounts_swept_at = ?2 WHERE id IN (SELECT id FROM repositories \
                 WHERE mounts_swept_at <= ?1 ORDER BY mounts_swept_at LIMIT ?3) RETURNING id"
            }
            Care::BlobSweep => {
                "UPDATE accounts SET blobs_swept_at = ?2 WHERE id IN (SELECT id FROM accounts \
                 WHERE blobs_swept_at <= ?1 ORDER BY blobs_swept_at LIMIT ?3) RETURNING id"
            }
            Care::ImageGc => {
                "UPDATE repositories SET images_collected_at = ?2 WHERE id IN (SELECT id FROM repositories \
                 WHERE images_collected_at <= ?1 ORDER BY images_collected_at LIMIT ?3) RETURNING id"
            }
        };
        self.noting_full(self.rows(sql, params![before, leased, limit as i64], item))
    }

    /// Notes when something was looked at.
    pub fn put_cared(&self, care: Care, item: CareItem, at: i64) -> Result<(), MetadataError> {
        let sql = match care {
            Care::ManifestValidation => "UPDATE manifest_care SET validated_at = ?2 WHERE manifest_id = ?1",
            Care::BlobValidation => "UPDATE blobs SET validated_at = ?2 WHERE id = ?1",
            Care::MountSweep => "UPDATE repositories SET mounts_swept_at = ?2 WHERE id = ?1",
            Care::BlobSweep => "UPDATE accounts SET blobs_swept_at = ?2 WHERE id = ?1",
            Care::ImageGc => "UPDATE repositories SET images_collected_at = ?2 WHERE id = ?1",
        };
        self.execute(sql, params![item.0, at]).map(drop)
    }

    /// Notes what is wrong with a manifest; `None`: nothing.
    pub fn put_manifest_error(&self, manifest: ManifestId, error: Option<&str>) -> Result<(), MetadataError> {
        let sql = "UPDATE manifest_care SET error = ?2 WHERE manifest_id = ?1 AND error IS NOT ?2";
        self.execute(sql, params![manifest.0, error]).map(drop)
    }

    /// Notes that the bytes of a blob under this key are lost or wrong; gives whether that was news. A blob that has
    /// other bytes by now is left alone.
    pub fn mark_broken(&self, blob: BlobId, key: &str, now: i64) -> Result<bool, MetadataError> {
        let sql = "UPDATE blobs SET broken_since = ?3 WHERE id = ?1 AND storage_key = ?2 AND broken_since IS NULL";
        Ok(self.execute(sql, params![blob.0, key, now])? > 0)
    }

    /// Notes that the bytes of a blob under this key are right after all.
    pub fn mark_sound(&self, blob: BlobId, key: &str) -> Result<(), MetadataError> {
        let sql =
            "UPDATE blobs SET broken_since = NULL WHERE id = ?1 AND storage_key = ?2 AND broken_since IS NOT NULL";
        self.execute(sql, params![blob.0, key]).map(drop)
    }

    /// Notes that a declarative file asks for an account.
    pub fn put_managed_account(&self, name: &str) -> Result<(), MetadataError> {
        self.execute("INSERT INTO managed_accounts (name) VALUES (?1) ON CONFLICT DO NOTHING", [name]).map(drop)
    }

    /// Notes that no declarative file asks for an account any more.
    pub fn delete_managed_account(&self, name: &str) -> Result<(), MetadataError> {
        self.execute("DELETE FROM managed_accounts WHERE name = ?1", [name]).map(drop)
    }
}

fn read_account_name(row: &Row<'_>, column: usize) -> Result<AccountName, MetadataError> {
    AccountName::parse(row.get_ref(column)?.as_str().unwrap_or_default())
        .map_err(|_| MetadataError::Corrupt { what: "account name" })
}

fn read_owned(row: &Row<'_>) -> Result<OwnedBlob, MetadataError> {
    Ok(OwnedBlob { blob: read_blob(row)?, digest: read_digest(row, 5)?, account: read_account_name(row, 6)? })
}
