use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::{MetadataError, MetadataOptions, Reader};

/// Prepared statements kept per connection; more than there are.
const STATEMENT_CACHE: usize = 256;

pub(super) fn open_writer(path: &Path, options: &MetadataOptions) -> Result<Connection, MetadataError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "wal_autocheckpoint", 2000)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    prepare(&connection, options)?;
    Ok(connection)
}

fn open_reader(path: &Path, options: &MetadataOptions) -> Result<Connection, MetadataError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    prepare(&connection, options)?;
    Ok(connection)
}

fn prepare(connection: &Connection, options: &MetadataOptions) -> Result<(), MetadataError> {
    let kibibytes = i64::try_from(options.page_cache_bytes / 1024).unwrap_or(i64::MAX);
    connection.pragma_update(None, "cache_size", -kibibytes)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Plans come from the statements alone. Else whatever is bound to one that may be planned in two ways has it planned again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    Ok(())
}

/// The read-only connections.
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn open(path: &Path, options: &MetadataOptions) -> Result<Self, MetadataError> {
        let count = options.readers.max(1);
        let idle = (0..count).map(|_| open_reader(path, options)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            idle: Mutex::new(idle),
            permits: Arc::new(Semaphore::new(count)),
            places: Arc::new(Semaphore::new(count + options.reads_waiting_max)),
        })
    }

    pub(super) async fn run<T, E, F>(self: &Arc<Self>, query: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<MetadataError> + Send + 'static,
        F: FnOnce(&Reader<'_>) -> Result<T, E> + Send + 'static,
    {
        let _place = self.places.clone().try_acquire_owned().map_err(|_| MetadataError::Overloaded)?;
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| MetadataError::Closed)?;
        let readers = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let lent = Lent { readers: &readers, connection: readers.take() };
            match &lent.connection {
                Some(connection) => {
                    // All that it reads is of one moment. Given back, also when the query panics.
                    let _moment = connection.unchecked_transaction().map_err(MetadataError::from)?;
                    query(&Reader::new(connection))
                }
                None => Err(MetadataError::Closed.into()),
            }
        });
        task.await.unwrap_or_else(|_| Err(MetadataError::Panicked.into()))
    }

    fn take(&self) -> Option<Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// A connection that finds its way back, also when the query panics.
struct Lent<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_statement_is_planned_once_whatever_is_bound_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let connection = open_writer(&directory.path().join("a.db"), &MetadataOptions::default()).unwrap();
        connection
            .execute_batch("CREATE TABLE blobs (account INTEGER, size INTEGER); CREATE INDEX a ON blobs (account)")
            .unwrap();
        let mut statement = connection.prepare("SELECT size FROM blobs WHERE account = ?1 AND size = ?2").unwrap();
        for number in 0..5 {
            assert!(!statement.exists([number, number]).unwrap());
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }
}
