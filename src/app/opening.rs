//! Opens what is on disk: the folder and its lock, the blobs, the metadata. All of it off the async threads.

use std::path::Path;

use super::{DataFolder, StartError};
use crate::config::{Config, StorageDriver};
use crate::metadata::Metadata;
use crate::storage::{ObjectKind, Storage};

/// Objects of a space that are looked at before it counts as empty; uploads may come before blobs.
const OBJECTS_LOOKED_AT: usize = 10_000;

/// Opens all of it, or nothing.
pub(super) async fn open(config: &Config) -> Result<(DataFolder, Metadata, Storage), StartError> {
    let given = config.clone();
    let (data, storage, is_new) = blocking(move || {
        let data = DataFolder::open(&given.node.data)?;
        let storage = match given.storage.driver {
            StorageDriver::Filesystem => Storage::filesystem(given.filesystem_options())?,
            StorageDriver::Memory => Storage::memory(given.memory_options()),
        };
        Ok((data, storage, is_missing(&given.metadata_path())))
    })
    .await?;
    let (path, options) = (config.metadata_path(), config.metadata_options());
    if is_new {
        // Before the database is made, so that the next start asks again.
        refuse_orphans(&path, &storage).await?;
    }
    let open = move || Metadata::open(&path, &options).map_err(|source| StartError::Metadata { path, source });
    Ok((data, blocking(open).await?, storage))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(StartError::Panicked))
}

/// Whether there is no database; an empty file is none.
fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) || !path.exists()
}

/// Blobs without any metadata are those of a database that was lost or left elsewhere. The storage sweep would take every
/// one of them for what a crash left.
async fn refuse_orphans(path: &Path, storage: &Storage) -> Result<(), StartError> {
    for account in storage.list_spaces().await? {
        let objects = storage.list(&account).next_page(OBJECTS_LOOKED_AT).await?;
        if objects.iter().any(|object| matches!(object.kind, ObjectKind::Blob(_))) {
            return Err(StartError::MetadataLost { path: path.to_owned(), account });
        }
    }
    Ok(())
}
