//! Where consensus keeps its log, vote, state and snapshots: one SQLite database, `federation.db`.
//!
//! Invariants: one thread writes, in the order it was asked; what is promised durable is synced before it is
//! acknowledged; the state's rows and the place in the log they belong to change in one transaction. Applied rows are
//! not synced on their own: the log before them is, and SQLite's write-ahead log keeps the order, so that a crash takes
//! the state back to some earlier entry, never to something that was not.
//!
//! The database is opened in exclusive locking mode: a second process on the same file is refused.

mod database;
mod image;
mod log;
mod machine;
mod schema;
#[cfg(test)]
mod tests;

pub use database::StoreError;
pub(super) use database::{Database, open};
pub(super) use image::Image;
pub(super) use log::{LogReader, LogStore, decode_entry, encode_entry};
pub(super) use machine::{Machine, load_current};
pub(super) use schema::{MetaKey, open_connection, read_meta, write_meta};

/// The name of the database within the data directory.
pub(crate) const DATABASE_NAME: &str = "federation.db";
