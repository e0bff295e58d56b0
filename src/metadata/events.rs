//! The ordered log of what changed in an account. The rows are the database's own: triggers write them.
//!
//! A [`Cursor`] is a place in one log. Old events are trimmed, but never the newest, so that whoever has applied all of
//! a log always finds their place in it.

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

use super::blobs::read_digest;
use super::{AccountId, MetadataError, Reader, RepositoryId, WriteTransaction};

/// A place in the log of an account: everything up to it, itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Counts the events of the account from 1; 0 is before the first.
    pub sequence: u64,
    /// Tells this log from others that have an event with the same number.
    pub stamp: i64,
}

/// The end of an account's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventHead {
    /// The account.
    pub account: AccountName,
    /// Its newest event.
    pub cursor: Cursor,
}

/// What happened, in the repository that the event names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The repository was made.
    RepositoryMade,
    /// The repository was deleted.
    RepositoryGone,
    /// A manifest was pushed, or its description changed.
    ManifestPut(Digest),
    /// A manifest was deleted.
    ManifestGone(Digest),
    /// A tag names this manifest from now on.
    TagSet(String, Digest),
    /// A tag was deleted.
    TagGone(String),
    /// A blob was taken out of the repository.
    BlobGone(Digest),
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place.
    pub cursor: Cursor,
    /// When it happened, in UNIX seconds.
    pub at: i64,
    /// The full name of the repository.
    pub repository: String,
    /// What happened.
    pub kind: EventKind,
}

/// A manifest with what another region cannot find out by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestCopy {
    /// Its name.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The bytes as pushed.
    #[serde(with = "as_bytes")]
    pub bytes: Bytes,
    /// The size of the manifest and of all that it refers to, in bytes.
    pub total_size_bytes: u64,
    /// The labels of the image's configuration, a JSON object.
    pub labels: String,
    /// When the oldest of its layers was made, in UNIX seconds.
    pub min_layer_created_at: Option<i64>,
    /// When the newest of its layers was made, in UNIX seconds.
    pub max_layer_created_at: Option<i64>,
    /// When it was pushed, in UNIX seconds.
    pub pushed_at: i64,
}

/// Bytes as one value, not as a list of numbers.
mod as_bytes {
    use bytes::Bytes;
    use serde::{Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::copy_from_slice(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// A tag with the manifest that it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagCopy {
    /// The tag.
    pub name: String,
    /// The manifest.
    pub digest: Digest,
    /// When it was set, in UNIX seconds.
    pub pushed_at: i64,
}

const COLUMNS: &str = "manifests.digest, manifests.media_type, manifests.bytes, manifests.total_size_bytes, manifests.labels, manifests.min_layer_created_at, manifests.max_layer_created_at, manifests.pushed_at";

fn read_copy(row: &Row<'_>) -> Result<ManifestCopy, MetadataError> {
    Ok(ManifestCopy {
        digest: read_digest(row, 0)?,
        media_type: row.get(1)?,
        bytes: Bytes::copy_from_slice(
            row.get_ref(2)?.as_blob().map_err(|_| MetadataError::Corrupt { what: "manifest" })?,
        ),
        total_size_bytes: row.get::<_, i64>(3)? as u64,
        labels: row.get(4)?,
        min_layer_created_at: row.get(5)?,
        max_layer_created_at: row.get(6)?,
        pushed_at: row.get(7)?,
    })
}

fn read_event(row: &Row<'_>) -> Result<Event, MetadataError> {
    let corrupt = || MetadataError::Corrupt { what: "event" };
    let tag = |row: &Row<'_>| row.get::<_, Option<String>>(6)?.ok_or_else(corrupt);
    let kind = match row.get::<_, i64>(3)? {
        1 => EventKind::RepositoryMade,
        2 => EventKind::RepositoryGone,
        3 => EventKind::ManifestPut(read_digest(row, 5)?),
        4 => EventKind::ManifestGone(read_digest(row, 5)?),
        5 => EventKind::TagSet(tag(row)?, read_digest(row, 5)?),
        6 => EventKind::TagGone(tag(row)?),
        7 => EventKind::BlobGone(read_digest(row, 5)?),
        _ => return Err(corrupt()),
    };
    let cursor = Cursor { sequence: row.get::<_, i64>(0)? as u64, stamp: row.get(1)? };
    Ok(Event { cursor, at: row.get(2)?, repository: row.get(4)?, kind })
}

impl Reader<'_> {
    /// The end of an account's log; `None` for an account that is not here.
    pub fn get_event_head(&self, account: &AccountName) -> Result<Option<(AccountId, Cursor)>, MetadataError> {
        let sql = "SELECT id, event_head, event_stamp FROM accounts WHERE name = ?1";
        self.get_row(sql, [account.as_str()], |row| {
            let cursor = Cursor { sequence: row.get::<_, i64>(1)? as u64, stamp: row.get(2)? };
            Ok((AccountId(row.get(0)?), cursor))
        })
    }

    /// Whether the log has an event at this place, or the place is its end.
    pub fn is_in_log(&self, account: AccountId, cursor: Cursor) -> Result<bool, MetadataError> {
        let (sequence, stamp) = (cursor.sequence as i64, cursor.stamp);
        let sql = "SELECT 1 FROM accounts WHERE id = ?1 AND event_head = ?2 AND event_stamp = ?3";
        if self.get_row(sql, params![account.0, sequence, stamp], |_| Ok(()))?.is_some() {
            return Ok(true);
        }
        let sql = "SELECT 1 FROM events WHERE account_id = ?1 AND sequence = ?2 AND stamp = ?3";
        Ok(self.get_row(sql, params![account.0, sequence, stamp], |_| Ok(()))?.is_some())
    }

    /// Events after a place, in their order, `limit` at most.
    pub fn list_events(&self, account: AccountId, after: u64, limit: usize) -> Result<Vec<Event>, MetadataError> {
        let sql = "SELECT sequence, stamp, at, kind, repository, digest, tag FROM events \
                   WHERE account_id = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3";
        self.rows(sql, params![account.0, after as i64, limit as i64], read_event)
    }

    /// The first repository of an account whose full name follows `after`.
    pub fn get_next_repository(
        &self,
        account: AccountId,
        after: &str,
    ) -> Result<Option<(RepositoryId, String)>, MetadataError> {
        let sql = "SELECT id, full_name FROM repositories WHERE account_id = ?1 AND full_name > ?2 \
                   ORDER BY full_name LIMIT 1";
        self.get_row(sql, params![account.0, after], |row| Ok((RepositoryId(row.get(0)?), row.get(1)?)))
    }

    /// The repository of an account with this full name.
    pub fn get_repository_of(
        &self,
        account: AccountId,
        full_name: &str,
    ) -> Result<Option<RepositoryId>, MetadataError> {
        let sql = "SELECT id FROM repositories WHERE account_id = ?1 AND full_name = ?2";
        self.get_row(sql, params![account.0, full_name], |row| Ok(RepositoryId(row.get(0)?)))
    }

    /// A manifest as it is sent to other regions.
    pub fn get_manifest_copy(&self, repository: &str, digest: &Digest) -> Result<Option<ManifestCopy>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM repositories JOIN manifests ON manifests.repository_id = repositories.id \
             WHERE full_name = ?1 AND digest = ?2"
        );
        self.get_row(&sql, params![repository, digest.to_compact()], read_copy)
    }

    /// Manifests of a repository by digest after `after`: `limit` at most, and no more than have `bytes_max` together,
    /// but one. Gives whether these are the last ones.
    pub fn list_manifest_copies(
        &self,
        repository: RepositoryId,
        after: Option<&Digest>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<ManifestCopy>, bool), MetadataError> {
        let sql = format!("SELECT {COLUMNS} FROM manifests WHERE repository_id = ?1 AND digest > ?2 ORDER BY digest");
        let after = after.map(Digest::to_compact).unwrap_or_default();
        let mut statement = self.statement(&sql)?;
        let mut rows = statement.query(params![repository.0, after])?;
        let (mut copies, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            let copy = read_copy(row)?;
            bytes += copy.bytes.len();
            if copies.len() >= limit || (bytes > bytes_max && !copies.is_empty()) {
                return Ok((copies, false));
            }
            copies.push(copy);
        }
        Ok((copies, true))
    }

    /// Tags of a repository after `after` in bytewise order, `limit` at most.
    pub fn list_tag_copies(
        &self,
        repository: RepositoryId,
        after: &str,
        limit: usize,
    ) -> Result<Vec<TagCopy>, MetadataError> {
        let sql = "SELECT tags.name, manifests.digest, tags.pushed_at FROM tags \
                   JOIN manifests ON manifests.id = tags.manifest_id \
                   WHERE tags.repository_id = ?1 AND tags.name > ?2 ORDER BY tags.name LIMIT ?3";
        self.rows(sql, params![repository.0, after, limit as i64], |row| {
            Ok(TagCopy { name: row.get(0)?, digest: read_digest(row, 1)?, pushed_at: row.get(2)? })
        })
    }

    /// Digests of manifests of a repository after `after`, up to `upto` (itself included) or the last, `limit` at most.
    pub fn list_digests(
        &self,
        repository: RepositoryId,
        after: Option<&Digest>,
        upto: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<Digest>, MetadataError> {
        let sql = "SELECT digest FROM manifests WHERE repository_id = ?1 AND digest > ?2 AND digest <= ?3 \
                   ORDER BY digest LIMIT ?4";
        let after = after.map(Digest::to_compact).unwrap_or_default();
        // No algorithm has this number.
        let upto = upto.map_or_else(|| vec![0xff], Digest::to_compact);
        self.rows(sql, params![repository.0, after, upto, limit as i64], |row| read_digest(row, 0))
    }
}

impl WriteTransaction<'_> {
    /// Takes away the oldest events of an account: all but `kept_max`, and those from before `kept_since` (in UNIX
    /// seconds), but never the newest, and `limit` at most. Gives how many went.
    pub fn trim_events(
        &self,
        account: AccountId,
        kept_max: u64,
        kept_since: i64,
        limit: usize,
    ) -> Result<usize, MetadataError> {
        let head = self.get_row("SELECT event_head FROM accounts WHERE id = ?1", [account.0], |row| Ok(row.get(0)?))?;
        let head: i64 = head.unwrap_or_default();
        let oldest_kept = head.saturating_sub(i64::try_from(kept_max).unwrap_or(i64::MAX)).saturating_add(1);
        let oldest = self.list_events(account, 0, limit)?;
        let goes = |event: &&Event| {
            let sequence = event.cursor.sequence as i64;
            sequence < head && (sequence < oldest_kept || event.at < kept_since)
        };
        match oldest.iter().take_while(goes).last() {
            None => Ok(0),
            Some(last) => {
                let sql = "DELETE FROM events WHERE account_id = ?1 AND sequence <= ?2";
                self.execute(sql, params![account.0, last.cursor.sequence as i64])
            }
        }
    }
}
