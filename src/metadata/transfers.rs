//! Uploads that are transfers of a blob from another region.

use keppel_federation::vocabulary::{Digest, RepositoryName};
use rusqlite::params;

use super::uploads::read_upload;
use super::{MetadataError, Reader, UploadRow, WriteTransaction};

/// A transfer that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferRow {
    /// What has arrived.
    pub upload: UploadRow,
    /// The size of the whole.
    pub size_bytes: u64,
    /// The root of its BLAKE3 tree.
    pub root: [u8; 32],
}

impl Reader<'_> {
    /// The transfer of a blob into a repository.
    pub fn get_transfer(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<TransferRow>, MetadataError> {
        let sql = "SELECT uploads.id, uploads.repository, uploads.algorithm, transfers.size_bytes, transfers.blake3 \
                   FROM transfers JOIN uploads ON uploads.id = transfers.upload_id \
                   WHERE transfers.repository = ?1 AND transfers.digest = ?2";
        self.get_row(sql, params![repository.as_str(), digest.to_compact()], |row| {
            let (upload, size_bytes) = (read_upload(row)?, row.get::<_, i64>(3)? as u64);
            Ok(TransferRow { upload, size_bytes, root: row.get(4)? })
        })
    }
}

impl WriteTransaction<'_> {
    /// Records a transfer and its upload as touched `now`, in UNIX seconds. Another one of the same blob is forgotten:
    /// its bytes are left to the storage sweep.
    pub fn put_transfer(&self, transfer: &TransferRow, digest: &Digest, now: i64) -> Result<(), MetadataError> {
        let TransferRow { upload, size_bytes, root } = transfer;
        let sql = "DELETE FROM uploads WHERE id = \
                   (SELECT upload_id FROM transfers WHERE repository = ?1 AND digest = ?2) AND id <> ?3";
        self.execute(sql, params![upload.repository.as_str(), digest.to_compact(), upload.id.as_str()])?;
        self.put_upload(upload, now)?;
        let sql = "INSERT INTO transfers (repository, digest, upload_id, size_bytes, blake3) VALUES (?1, ?2, ?3, ?4, ?5) \
                   ON CONFLICT (repository, digest) DO UPDATE SET upload_id = excluded.upload_id, \
                   size_bytes = excluded.size_bytes, blake3 = excluded.blake3";
        let (repository, size_bytes) = (upload.repository.as_str(), *size_bytes as i64);
        self.execute(sql, params![repository, digest.to_compact(), upload.id.as_str(), size_bytes, root]).map(drop)
    }
}
