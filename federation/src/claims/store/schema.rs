//! The tables of `federation.db`, their migrations, and the values that exist once.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use serde::{Serialize, de::DeserializeOwned};

use super::StoreError;

/// Numbered from 1, append-only; `user_version` says how many were run.
const MIGRATIONS: &[&str] = &[
    // 1: the log, its pointers, and the state.
    "CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT;
     CREATE TABLE log (idx INTEGER NOT NULL PRIMARY KEY, entry BLOB NOT NULL) STRICT;
     CREATE TABLE state (
         kind INTEGER NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (kind, key)
     ) STRICT;",
];

/// Opens the database, creating and migrating it as needed.
///
/// `vfs` names another file system than the operating system's, for the simulation.
pub(in super::super) fn open_connection(path: &Path, vfs: Option<&str>) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = match vfs {
        None => Connection::open_with_flags(path, flags)?,
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
    };
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.set_prepared_statement_cache_capacity(32);
    migrate(&mut connection, MIGRATIONS)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let run: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let run = usize::try_from(run).unwrap_or(usize::MAX);
    if run > migrations.len() {
        return Err(StoreError::Newer { found: run, known: migrations.len() });
    }
    for (number, sql) in migrations.iter().enumerate().skip(run) {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", i64::try_from(number + 1).unwrap_or(i64::MAX))?;
        transaction.commit()?;
    }
    Ok(())
}

/// A value that exists once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum MetaKey {
    /// The node this database belongs to.
    Node,
    /// The vote this node gave last.
    Vote,
    /// The last log id known to be decided.
    Committed,
    /// The last log id that was purged.
    Purged,
    /// The last log id that is in the state, and the membership of that moment.
    Applied,
}

impl MetaKey {
    fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::Applied => "applied",
        }
    }
}

pub(in super::super) fn read_meta<T: DeserializeOwned>(
    connection: &Connection,
    key: MetaKey,
) -> Result<Option<T>, StoreError> {
    let mut select = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    let value: Option<Vec<u8>> = select.query_row([key.as_str()], |row| row.get(0)).optional()?;
    value
        .map(|value| postcard::from_bytes(&value))
        .transpose()
        .map_err(|cause| StoreError::Unreadable { what: key.as_str().into(), cause: cause.to_string() })
}

pub(in super::super) fn write_meta<T: Serialize>(
    connection: &Connection,
    key: MetaKey,
    value: &T,
) -> Result<(), StoreError> {
    let value = postcard::to_stdvec(value).expect("plain data serialises");
    connection
        .prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2")?
        .execute(rusqlite::params![key.as_str(), value])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_from_a_newer_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("federation.db");
        open_connection(&path, None).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(open_connection(&path, None), Err(StoreError::Newer { found: 99, .. })));
    }

    #[test]
    fn a_second_opening_is_refused_while_the_first_stands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("federation.db");
        let first = open_connection(&path, None).unwrap();
        write_meta(&first, MetaKey::Node, &1u8).unwrap();
        assert!(open_connection(&path, None).is_err());
        drop(first);
        assert_eq!(read_meta::<u8>(&open_connection(&path, None).unwrap(), MetaKey::Node).unwrap(), Some(1));
    }

    #[test]
    fn the_queries_that_run_per_entry_use_an_index() {
        let directory = tempfile::tempdir().unwrap();
        let connection = open_connection(&directory.path().join("federation.db"), None).unwrap();
        for sql in [
            "SELECT entry FROM log WHERE idx >= 1 AND idx < 9 ORDER BY idx",
            "DELETE FROM state WHERE kind = 1 AND key = 'a'",
            "SELECT value FROM meta WHERE key = 'vote'",
        ] {
            let plan: String =
                connection.query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get(3)).unwrap();
            assert!(plan.starts_with("SEARCH"), "{sql}: {plan}");
        }
    }
}
