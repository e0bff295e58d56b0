/// Why the metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// SQLite failed.
    #[error("the metadata database failed")]
    Sqlite(#[source] rusqlite::Error),
    /// There is no space left for the database.
    #[error("there is no space left for the metadata database")]
    Full,
    /// The transaction that several writes shared could not be committed; none of them is there.
    #[error("the metadata could not be committed: {0}")]
    Commit(String),
    /// A row breaks an invariant of this room.
    #[error("the metadata database holds a {what} that cannot be read")]
    Corrupt {
        /// What was read.
        what: &'static str,
    },
    /// The database was written by a later version of this program.
    #[error("the metadata database has schema {found}, but this program knows only up to {known}: run a later version")]
    TooNew {
        /// The version found.
        found: i64,
        /// The latest version known.
        known: i64,
    },
    /// More reads wait than may.
    #[error("too many reads of the metadata wait")]
    Overloaded,
    /// The writer has stopped, since the program is shutting down.
    #[error("the metadata is closed")]
    Closed,
    /// A job panicked; its writes were undone.
    #[error("a metadata job failed unexpectedly")]
    Panicked,
}

impl From<rusqlite::Error> for MetadataError {
    fn from(error: rusqlite::Error) -> Self {
        // The index of the log is grown by its own call, which fails in its own words when there is no space.
        let index_full = error.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ if index_full => Self::Full,
            _ => Self::Sqlite(error),
        }
    }
}
