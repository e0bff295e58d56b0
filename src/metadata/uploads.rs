//! Upload sessions.

use keppel_federation::vocabulary::{AccountName, Algorithm, RepositoryName, UploadId};
use rusqlite::{Row, params};

use super::{MetadataError, Reader, WriteTransaction};

/// An upload session as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadRow {
    /// Its name.
    pub id: UploadId,
    /// The repository it is for.
    pub repository: RepositoryName,
    /// The algorithm that was announced for its digest.
    pub algorithm: Algorithm,
}

pub(super) fn read_upload(row: &Row<'_>) -> Result<UploadRow, MetadataError> {
    let corrupt = |_| MetadataError::Corrupt { what: "upload session" };
    Ok(UploadRow {
        id: UploadId::parse(&row.get::<_, String>(0)?).map_err(corrupt)?,
        repository: RepositoryName::parse(&row.get::<_, String>(1)?).map_err(corrupt)?,
        algorithm: Algorithm::parse(&row.get::<_, String>(2)?).map_err(corrupt)?,
    })
}

impl Reader<'_> {
    /// The session with this name.
    pub fn get_upload(&self, id: &UploadId) -> Result<Option<UploadRow>, MetadataError> {
        self.get_row("SELECT id, repository, algorithm FROM uploads WHERE id = ?1", [id.as_str()], read_upload)
    }

    /// Sessions last touched before `before`, the oldest first, `limit` at most.
    pub fn list_idle_uploads(&self, before: i64, limit: usize) -> Result<Vec<UploadRow>, MetadataError> {
        let sql = "SELECT id, repository, algorithm FROM uploads WHERE touched_at < ?1 ORDER BY touched_at LIMIT ?2";
        self.rows(sql, params![before, limit as i64], read_upload)
    }

    /// Sessions of an account's repositories, `limit` at most.
    pub fn list_account_uploads(&self, account: &AccountName, limit: usize) -> Result<Vec<UploadRow>, MetadataError> {
        // In bytewise order, 0 follows the slash.
        let (from, to) = (format!("{account}/"), format!("{account}0"));
        let sql = "SELECT id, repository, algorithm FROM uploads WHERE repository > ?1 AND repository < ?2 LIMIT ?3";
        self.rows(sql, params![from, to, limit as i64], read_upload)
    }
}

impl WriteTransaction<'_> {
    /// Records a session as touched `now`, in UNIX seconds.
    pub fn put_upload(&self, upload: &UploadRow, now: i64) -> Result<(), MetadataError> {
        let sql = "INSERT INTO uploads (id, repository, algorithm, touched_at) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (id) DO UPDATE SET touched_at = excluded.touched_at";
        let row = params![upload.id.as_str(), upload.repository.as_str(), upload.algorithm.as_str(), now];
        self.execute(sql, row).map(|_| ())
    }

    /// Ends a session; gives whether it was there.
    pub fn delete_upload(&self, id: &UploadId) -> Result<bool, MetadataError> {
        Ok(self.execute("DELETE FROM uploads WHERE id = ?1", [id.as_str()])? > 0)
    }
}
