//! What repositories hold, as digests of sets: with them two regions find out what differs without sending it all.

use keppel_federation::vocabulary::{AccountName, Digest};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::blobs::read_digest;
use super::{AccountId, BlobId, Cursor, ManifestId, MetadataError, Reader, RepositoryId};
use crate::model::SetSum;

/// Rows that are read at a time.
const ROWS: usize = 10_000;

/// What a repository holds, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositorySums {
    /// Its full name.
    pub name: String,
    /// Its manifests, by digest.
    pub manifests: SetSum,
    /// Its tags, each with the digest of the manifest that it names.
    pub tags: SetSum,
    /// The blobs that its manifests refer to and that it has, by digest.
    pub blobs: SetSum,
    /// What these blobs have together, in bytes.
    pub blob_bytes: u64,
}

impl RepositorySums {
    /// A repository in which there is nothing.
    pub fn empty(name: &str) -> Self {
        let none = SetSum::default();
        Self { name: name.to_owned(), manifests: none, tags: none, blobs: none, blob_bytes: 0 }
    }
}

impl Reader<'_> {
    /// How far an account of another region is followed.
    pub fn get_follow_cursor(&self, account: &AccountName) -> Result<Option<Cursor>, MetadataError> {
        let sql = "SELECT sequence, stamp FROM follows WHERE account = ?1 AND state = 2";
        self.get_row(sql, [account.as_str()], |row| {
            Ok(Cursor { sequence: row.get::<_, i64>(0)? as u64, stamp: row.get(1)? })
        })
    }

    /// The sums of an account's repositories whose full names follow `after`, up to `upto` (itself included) or the last;
    /// `limit` at most. `sound_only`: blobs whose bytes are known to be bad do not count.
    pub fn list_repository_sums(
        &self,
        account: AccountId,
        after: &str,
        upto: Option<&str>,
        limit: usize,
        sound_only: bool,
    ) -> Result<Vec<RepositorySums>, MetadataError> {
        let (mut all, mut after) = (Vec::new(), after.to_owned());
        while all.len() < limit
            && let Some((id, name)) = self.get_next_repository(account, &after)?
            && upto.is_none_or(|upto| name.as_str() <= upto)
        {
            let mut sums = RepositorySums::empty(&name);
            let mut last = None;
            loop {
                let digests = self.list_digests(id, last.as_ref(), None, ROWS)?;
                digests.iter().for_each(|digest| sums.manifests.add(&[&digest.to_compact()]));
                match digests.len() == ROWS {
                    true => last = digests.last().copied(),
                    false => break,
                }
            }
            let mut last = String::new();
            loop {
                let tags = self.list_tag_copies(id, &last, ROWS)?;
                tags.iter().for_each(|tag| sums.tags.add(&[tag.name.as_bytes(), &tag.digest.to_compact()]));
                match tags.into_iter().nth(ROWS - 1) {
                    Some(tag) => last = tag.name,
                    None => break,
                }
            }
            for (digest, size_bytes) in self.list_needed_blobs(id, None, usize::MAX >> 1, sound_only)? {
                sums.blobs.add(&[&digest.to_compact()]);
                sums.blob_bytes = sums.blob_bytes.saturating_add(size_bytes);
            }
            all.push(sums);
            after = name;
        }
        Ok(all)
    }

    /// The blobs of a repository that its manifests refer to, after a digest, with their sizes in bytes; `limit` at most.
    pub fn list_needed_blobs(
        &self,
        repository: RepositoryId,
        after: Option<&Digest>,
        limit: usize,
        sound_only: bool,
    ) -> Result<Vec<(Digest, u64)>, MetadataError> {
        let sql = "SELECT blobs.digest, blobs.size_bytes FROM mounts JOIN blobs ON blobs.id = mounts.blob_id \
                   WHERE mounts.repository_id = ?1 AND blobs.digest > ?2 AND (?4 = 0 OR blobs.broken_since IS NULL) \
                   AND EXISTS (SELECT 1 FROM manifest_blobs AS refers \
                   WHERE refers.blob_id = blobs.id AND refers.repository_id = ?1) \
                   ORDER BY blobs.digest LIMIT ?3";
        let after = after.map(Digest::to_compact).unwrap_or_default();
        self.rows(sql, params![repository.0, after, limit as i64, sound_only], |row| {
            Ok((read_digest(row, 0)?, row.get::<_, i64>(1)? as u64))
        })
    }

    /// Whether it is recorded that a manifest refers to a blob.
    pub fn is_linked(&self, manifest: ManifestId, blob: BlobId) -> Result<bool, MetadataError> {
        let sql = "SELECT 1 FROM manifest_blobs WHERE manifest_id = ?1 AND blob_id = ?2";
        Ok(self.get_row(sql, params![manifest.0, blob.0], |_| Ok(()))?.is_some())
    }

    /// How many bytes the manifests have together that were put after a place in an account's log and are still there.
    pub fn backlog_bytes(&self, account: AccountId, after: u64) -> Result<u64, MetadataError> {
        let sql = "SELECT coalesce(sum(length(manifests.bytes)), 0) FROM events \
                   JOIN repositories ON repositories.full_name = events.repository \
                   JOIN manifests ON manifests.repository_id = repositories.id AND manifests.digest = events.digest \
                   WHERE events.account_id = ?1 AND events.sequence > ?2 AND events.kind = 3";
        let bytes = self.get_row(sql, params![account.0, after as i64], |row| Ok(row.get::<_, i64>(0)? as u64))?;
        Ok(bytes.unwrap_or_default())
    }
}
