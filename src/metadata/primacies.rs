//! Which accounts this node is primary of, was, or is about to be, and where it took them over.

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};
use rusqlite::params;

use super::blobs::read_digest;
use super::{AccountId, Cursor, ManifestId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// How far a change of the primary is, on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// This node is the primary, or was when it last looked.
    Held,
    /// It takes no writes, so that another can become the primary.
    HandingOver,
    /// It may have become the primary.
    Coming,
    /// It has become the primary, and some things are not in order yet.
    Taken,
}

impl Stage {
    fn number(self) -> i64 {
        match self {
            Self::Held => 0,
            Self::HandingOver => 1,
            Self::Coming => 2,
            Self::Taken => 3,
        }
    }

    fn of(number: i64) -> Result<Self, MetadataError> {
        match number {
            0 => Ok(Self::Held),
            1 => Ok(Self::HandingOver),
            2 => Ok(Self::Coming),
            3 => Ok(Self::Taken),
            _ => Err(MetadataError::Corrupt { what: "primacy" }),
        }
    }
}

/// An account that this node is primary of, was, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrimacyRow {
    /// Its name.
    pub account: AccountName,
    /// The epoch of the claim.
    pub epoch: u64,
    /// How far that is.
    pub stage: Stage,
}

impl Reader<'_> {
    /// The accounts that this node is primary of, was, or is about to be, after `after` in bytewise order.
    pub fn list_primacies(&self, after: &str, limit: usize) -> Result<Vec<PrimacyRow>, MetadataError> {
        let sql = "SELECT account, epoch, stage FROM primacies WHERE account > ?1 ORDER BY account LIMIT ?2";
        self.rows(sql, params![after, limit as i64], |row| {
            let account = AccountName::parse(row.get_ref(0)?.as_str().unwrap_or_default());
            let account = account.map_err(|_| MetadataError::Corrupt { what: "account name" })?;
            Ok(PrimacyRow { account, epoch: row.get::<_, i64>(1)? as u64, stage: Stage::of(row.get(2)?)? })
        })
    }

    /// Where in the log of the primary before this node was when it became primary with this epoch.
    pub fn get_succession(&self, account: &AccountName, epoch: u64) -> Result<Option<Cursor>, MetadataError> {
        let sql = "SELECT sequence, stamp FROM successions WHERE account = ?1 AND epoch = ?2";
        self.get_row(sql, params![account.as_str(), epoch as i64], |row| {
            Ok(Cursor { sequence: row.get::<_, i64>(0)? as u64, stamp: row.get(1)? })
        })
    }

    /// Whether a manifest of the repository with this full name needs a blob that was not here when the account was taken
    /// over.
    pub fn is_missing_blob(&self, repository: &str, digest: &Digest) -> Result<bool, MetadataError> {
        let sql = "SELECT 1 FROM repositories JOIN missing_blobs ON missing_blobs.repository_id = repositories.id \
                   WHERE full_name = ?1 AND missing_blobs.digest = ?2";
        Ok(self.get_row(sql, params![repository, digest.to_compact()], |_| Ok(()))?.is_some())
    }

    /// Blobs that are missing, each with a repository that needs it: those after `after`, `limit` at most.
    pub fn list_missing_blobs(
        &self,
        after: Option<(RepositoryId, Digest)>,
        limit: usize,
    ) -> Result<Vec<(RepositoryId, RepositoryName, Digest)>, MetadataError> {
        let sql = "SELECT repository_id, full_name, missing_blobs.digest FROM missing_blobs \
                   JOIN repositories ON repositories.id = repository_id \
                   WHERE (repository_id, missing_blobs.digest) > (?1, ?2) ORDER BY repository_id, missing_blobs.digest \
                   LIMIT ?3";
        let (repository, digest) = match after {
            Some((repository, digest)) => (repository.0, digest.to_compact()),
            None => (i64::MIN, Vec::new()),
        };
        self.rows(sql, params![repository, digest, limit as i64], |row| {
            let name = RepositoryName::parse(row.get_ref(1)?.as_str().unwrap_or_default());
            let name = name.map_err(|_| MetadataError::Corrupt { what: "repository name" })?;
            Ok((RepositoryId(row.get(0)?), name, read_digest(row, 2)?))
        })
    }
}

impl WriteTransaction<'_> {
    /// Records how far a change of the primary is.
    pub fn put_primacy(&self, account: &AccountName, epoch: u64, stage: Stage) -> Result<(), MetadataError> {
        let sql = "INSERT INTO primacies (account, epoch, stage) VALUES (?1, ?2, ?3) \
                   ON CONFLICT (account) DO UPDATE SET epoch = excluded.epoch, stage = excluded.stage";
        self.execute(sql, params![account.as_str(), epoch as i64, stage.number()]).map(drop)
    }

    /// Nothing has to be done any more about this node being the primary.
    pub fn delete_primacy(&self, account: &AccountName) -> Result<(), MetadataError> {
        self.execute("DELETE FROM primacies WHERE account = ?1", [account.as_str()]).map(drop)
    }

    /// Records where in the log of the primary before this node takes an account over.
    pub fn put_succession(&self, account: &AccountName, epoch: u64, at: Cursor) -> Result<(), MetadataError> {
        let sql = "INSERT INTO successions (account, epoch, sequence, stamp) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT (account, epoch) DO NOTHING";
        self.execute(sql, params![account.as_str(), epoch as i64, at.sequence as i64, at.stamp]).map(drop)
    }

    /// Records that a blob which a manifest needs is not here.
    pub fn put_missing_blob(&self, repository: RepositoryId, digest: &Digest) -> Result<(), MetadataError> {
        let sql = "INSERT INTO missing_blobs (repository_id, digest) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        self.execute(sql, params![repository.0, digest.to_compact()]).map(drop)
    }

    /// The blob is here, or is not needed any more.
    pub fn delete_missing_blob(&self, repository: RepositoryId, digest: &Digest) -> Result<(), MetadataError> {
        let sql = "DELETE FROM missing_blobs WHERE repository_id = ?1 AND digest = ?2";
        self.execute(sql, params![repository.0, digest.to_compact()]).map(drop)
    }

    /// What was pulled of an account belongs here from now on.
    pub fn keep_all_pulled(&self, account: AccountId) -> Result<(), MetadataError> {
        let sql = "DELETE FROM pulled_blobs WHERE blob_id IN (SELECT id FROM blobs WHERE account_id = ?1)";
        self.execute(sql, [account.0]).map(drop)
    }

    /// Takes an image as pulled now: when it was pulled at another primary is not known here.
    pub fn count_as_pulled(&self, manifest: ManifestId, now: i64) -> Result<(), MetadataError> {
        let sql = "UPDATE manifests SET last_pulled_at = ?2 WHERE id = ?1 AND coalesce(last_pulled_at, 0) < ?2";
        self.execute(sql, params![manifest.0, now]).map(drop)
    }
}
