//! What this region knows: repositories, manifests, tags, blobs, mounts and uploads, in SQLite.
//!
//! The only room of the registry with SQL. One thread writes, with group commit: requests that wait at the same time
//! share one transaction and one fsync, each isolated by a savepoint. Reads go to read-only connections.
//!
//! Invariants: whatever [`Metadata::write`] answered is on disk; a job that failed left no trace; nothing slow runs
//! inside a transaction; every query that runs per request has an index (a test proves it).
//!
//! Deliberately absent: rules about who may do what, and blob bytes.

mod accounts;
mod audit;
mod blobs;
mod care;
mod configs;
mod connection;
mod divergent;
mod error;
mod events;
mod facts;
mod follow_claims;
mod follows;
mod listing;
mod manifests;
mod migrations;
mod primacies;
mod pulled;
mod pulls;
mod reader;
mod referrers;
mod sums;
mod sweeps;
mod tags;
#[cfg(test)]
mod tests;
mod transfers;
mod uploads;
mod usage;
mod writer;

pub use accounts::{AccountId, RepositoryId};
pub use audit::AuditRow;
pub use blobs::{BlobId, BlobRow, NewBlob};
pub use care::{AffectedImage, Care, CareItem, DueCount, OwnedBlob};
pub use divergent::{DivergentChange, DivergentId, DivergentManifest, DivergentRow};
pub use error::MetadataError;
pub use events::{Cursor, Event, EventHead, EventKind, ManifestCopy, TagCopy};
pub use facts::ManifestFacts;
pub use follow_claims::{FollowClaim, Told};
pub use follows::{FollowRow, FollowState};
pub use listing::{ListedManifest, ListedRepository, ListedTag};
pub use manifests::{ManifestId, ManifestRow, NewManifest};
pub use primacies::{PrimacyRow, Stage};
pub use pulled::PulledRow;
pub use pulls::{Pull, PulledNames};
pub use reader::Reader;
pub use referrers::ReferrerRow;
pub use sums::RepositorySums;
pub use sweeps::{ImageRow, SweptBlob, SweptMount};
pub use transfers::TransferRow;
pub use uploads::UploadRow;
pub use usage::Usage;
pub use writer::WriteTransaction;

use std::path::Path;
use std::sync::Arc;

/// How the metadata is kept.
#[derive(Debug, Clone)]
pub struct MetadataOptions {
    /// Read-only connections, and so the reads that can run at once.
    pub readers: usize,
    /// Reads that may wait for a connection; one more is refused with [`MetadataError::Overloaded`].
    pub reads_waiting_max: usize,
    /// Writes that may wait for the writer; further ones wait in their turn to queue.
    pub write_queue_max: usize,
    /// Writes that share one transaction at the most.
    pub group_commit_max: usize,
    /// Memory for pages, per connection.
    pub page_cache_bytes: u64,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self {
            readers: 4,
            reads_waiting_max: 4096,
            write_queue_max: 1024,
            group_commit_max: 256,
            page_cache_bytes: 4 << 20,
        }
    }
}

/// A region's metadata. Cheap to clone; the last clone to go stops the writer, after it has done what it was given.
#[derive(Clone)]
pub struct Metadata {
    // Closed before the writer: whoever closes last moves the log into the database, which a reader must not.
    readers: Arc<connection::Readers>,
    writer: Arc<writer::Writer>,
}

impl Metadata {
    /// Opens the database at `path`, making or migrating it as needed. Blocks; call it before serving.
    ///
    /// # Errors
    /// [`MetadataError::Sqlite`] when it cannot be opened, [`MetadataError::TooNew`] when a later version wrote it.
    pub fn open(path: &Path, options: &MetadataOptions) -> Result<Self, MetadataError> {
        let mut connection = connection::open_writer(path, options)?;
        migrations::migrate(&mut connection)?;
        connection.execute_batch(writer::MOVED_HEADS)?;
        let readers = connection::Readers::open(path, options)?;
        let writer = writer::Writer::spawn(connection, options)?;
        Ok(Self { writer: Arc::new(writer), readers: Arc::new(readers) })
    }

    /// Runs `query` on a read-only connection, off the async threads, and gives its answer. All that it reads is of the
    /// moment of its first statement, whatever is written meanwhile.
    ///
    /// Cancel safety: dropping the future abandons the answer; the query runs to its end.
    ///
    /// # Errors
    /// Those of the query; [`MetadataError::Overloaded`] when too many reads wait.
    pub async fn read<T, E, F>(&self, query: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MetadataError> + Send + 'static,
        F: FnOnce(&Reader<'_>) -> Result<T, E> + Send + 'static,
    {
        self.readers.run(query).await
    }

    /// Runs `job` in a transaction shared with others, isolated by a savepoint, and answers once it is on disk. A job
    /// that gives an error leaves no trace.
    ///
    /// Cancel safety: a job that was queued runs even when the future is dropped.
    ///
    /// # Errors
    /// Those of the job; a [`MetadataError`] when the commit failed, after which nothing of the job is there.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MetadataError> + Send + 'static,
        F: FnOnce(&WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
    {
        self.enqueue(job).await?.await
    }

    /// Like [`Self::write`], but comes back once the job has its place in the queue; the future that it gives waits for
    /// the answer. Jobs run in the order in which they were queued.
    ///
    /// # Errors
    /// [`MetadataError::Closed`].
    async fn enqueue<T, E, F>(
        &self,
        job: F,
    ) -> Result<impl Future<Output = Result<T, E>> + Send + 'static, MetadataError>
    where
        T: Send + 'static,
        E: From<MetadataError> + Send + 'static,
        F: FnOnce(&WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
    {
        self.writer.enqueue(job).await
    }

    /// Has `observer` told of every account whose log of events has grown: on the writer's thread, once that is on disk
    /// and before anybody is answered. It must be quick. Only the first observer is told.
    pub fn observe_events(&self, observer: impl Fn(&[EventHead]) + Send + Sync + 'static) {
        self.writer.observe(Box::new(observer));
    }

    /// Has `may_commit` asked before each commit; what it refuses is rolled back. Only the first gate is asked.
    #[cfg(test)]
    pub fn gate_commits(&self, may_commit: impl Fn() -> bool + Send + Sync + 'static) {
        self.writer.gate(Box::new(may_commit));
    }
}
