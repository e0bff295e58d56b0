//! The log and the vote, as the library wants them stored.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{EntryPayload, ErrorVerb, LogState, OptionalSend, RaftLogReader};
use rusqlite::Connection;

use super::super::command::Command;
use super::super::raft::{Entry, LogId, StorageError, Types, Vote};
use super::schema::{MetaKey, read_meta, write_meta};
use super::{Database, StoreError};
use crate::vocabulary::NodeId;

/// The version of stored entries, their first byte.
const VERSION: u8 = 1;
/// How many bytes of entries are read at once for another node, if more than one.
const READ_SIZE_MAX: usize = 512 * 1024;

pub(in super::super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    postcard::to_extend(entry, vec![VERSION]).expect("plain data serialises")
}

pub(in super::super) fn decode_entry(bytes: &[u8]) -> Result<Entry, StoreError> {
    let unreadable = |cause: String| StoreError::Unreadable { what: "a log entry".into(), cause };
    match bytes {
        [VERSION, body @ ..] => postcard::from_bytes(body).map_err(|cause| unreadable(cause.to_string())),
        [other, ..] => Err(unreadable(format!("version {other} is not known"))),
        [] => Err(unreadable("it is empty".into())),
    }
}

/// Reads entries; as many as there are nodes to send them to.
#[derive(Debug, Clone)]
pub(in super::super) struct LogReader {
    database: Database,
}

impl LogReader {
    /// The nodes that entries after a log id admit, decided or not.
    pub(in super::super) fn admissions_after(
        connection: &Connection,
        applied: Option<LogId>,
    ) -> Result<Vec<NodeId>, StoreError> {
        let mut select = connection.prepare("SELECT entry FROM log WHERE idx >= ?1 ORDER BY idx")?;
        let mut rows = select.query([bounded(applied.map_or(0, |id| id.index + 1))])?;
        let mut nodes = Vec::new();
        while let Some(row) = rows.next()? {
            let entry = decode_entry(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?)?;
            let EntryPayload::Normal(batch) = entry.payload else { continue };
            for request in batch.requests {
                match request.command {
                    Command::Admit(member) => nodes.push(member.node),
                    Command::RedeemInvitation { node, .. } => nodes.push(node),
                    _ => {}
                }
            }
        }
        Ok(nodes)
    }

    /// How many bytes the log takes, and the index from which on the latter half of them is.
    pub(in super::super) async fn size(&self) -> Result<(u64, u64), StoreError> {
        self.database
            .read(|connection| {
                let mut select = connection.prepare_cached("SELECT idx, length(entry) FROM log ORDER BY idx")?;
                let rows = select.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
                let sizes = rows.collect::<Result<Vec<_>, _>>()?;
                let total: i64 = sizes.iter().map(|(_, size)| size).sum();
                let mut before = 0;
                let middle = sizes.iter().find(|(_, size)| {
                    before += size;
                    before * 2 >= total
                });
                let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
                Ok((unsigned(total), middle.map_or(0, |(index, _)| unsigned(*index))))
            })
            .await
    }

    async fn entries(&self, from: u64, to: u64, size_max: usize) -> Result<Vec<Entry>, StoreError> {
        self.database
            .read(move |connection| {
                let mut select =
                    connection.prepare_cached("SELECT entry FROM log WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")?;
                let mut rows = select.query([bounded(from), bounded(to)])?;
                let (mut entries, mut size) = (Vec::new(), 0);
                while let Some(row) = rows.next()? {
                    let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
                    size += bytes.len();
                    if size > size_max && !entries.is_empty() {
                        break;
                    }
                    entries.push(decode_entry(bytes)?);
                }
                Ok(entries)
            })
            .await
    }
}

/// SQLite's integers are signed.
fn bounded(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX).await.map_err(|cause| cause.into_storage_error(ErrorVerb::Read))
    }

    async fn limited_get_log_entries(&mut self, from: u64, to: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(from, to, READ_SIZE_MAX).await.map_err(|cause| cause.into_storage_error(ErrorVerb::Read))
    }
}

/// The log and the vote. Its pointers are kept in memory as well: only the library's core changes them.
#[derive(Debug)]
pub(in super::super) struct LogStore {
    database: Database,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// Acknowledges before the disk does: a defect for the tests.
    #[cfg(test)]
    pub(in super::super) hasty: bool,
}

impl LogStore {
    /// Reads the pointers from a connection that `database` will write through.
    pub(in super::super) fn load(connection: &Connection) -> Result<impl FnOnce(Database) -> Self + use<>, StoreError> {
        let vote = read_meta(connection, MetaKey::Vote)?;
        let committed = read_meta::<Option<LogId>>(connection, MetaKey::Committed)?.flatten();
        let purged = read_meta(connection, MetaKey::Purged)?;
        let last = Self::last_log_id(connection)?;
        Ok(move |database| Self {
            database,
            vote,
            committed,
            purged,
            last,
            #[cfg(test)]
            hasty: false,
        })
    }

    /// A reader of its own.
    pub(in super::super) fn reader(&self) -> LogReader {
        LogReader { database: self.database.clone() }
    }

    /// The vote and the last index of the log, where a leader had been elected by that vote.
    pub(in super::super) fn elected(&self) -> Option<(Vote, u64)> {
        let vote = self.vote.filter(Vote::is_committed)?;
        Some((vote, self.last?.index))
    }

    #[cfg(test)]
    pub(super) fn database(&self) -> Database {
        self.database.clone()
    }

    /// The id of the last entry that is stored.
    pub(in super::super) fn last_log_id(connection: &Connection) -> Result<Option<LogId>, StoreError> {
        let purged = read_meta(connection, MetaKey::Purged)?;
        Ok(Self::last_entry(connection)?.map(|entry| entry.log_id).or(purged))
    }

    fn last_entry(connection: &Connection) -> Result<Option<Entry>, StoreError> {
        let mut select = connection.prepare("SELECT entry FROM log ORDER BY idx DESC LIMIT 1")?;
        let mut rows = select.query([])?;
        match rows.next()? {
            Some(row) => decode_entry(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?).map(Some),
            None => Ok(None),
        }
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader().try_get_log_entries(range).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        Ok(LogState { last_purged_log_id: self.purged, last_log_id: self.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.database
            .write_and_wait(move |connection| write_meta(connection, MetaKey::Vote, &vote))
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Write))?;
        self.vote = Some(vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.committed = committed;
        self.database
            .write_lazily(move |connection| write_meta(connection, MetaKey::Committed, &committed))
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Write))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        for entry in entries {
            self.last = Some(entry.log_id);
            rows.push((bounded(entry.log_id.index), encode_entry(&entry)));
        }
        let work = move |connection: &Connection| {
            let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO log (idx, entry) VALUES (?1, ?2)")?;
            for (index, entry) in rows {
                insert.execute(rusqlite::params![index, entry])?;
            }
            Ok(())
        };
        let result = |result: Result<(), String>| result.map_err(std::io::Error::other);
        #[cfg(test)]
        if self.hasty {
            callback.log_io_completed(Ok(()));
            return self.database.write_lazily(work).await.map_err(|cause| cause.into_storage_error(ErrorVerb::Write));
        }
        self.database
            .write_durably(work, move |done| callback.log_io_completed(result(done)))
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Write))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let from = bounded(log_id.index);
        self.database
            .write_and_wait(move |connection| {
                connection.prepare_cached("DELETE FROM log WHERE idx >= ?1")?.execute([from])?;
                Ok(())
            })
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Write))?;
        let purged = self.purged;
        self.last = self
            .database
            .read(move |connection| Ok(Self::last_entry(connection)?.map(|entry| entry.log_id).or(purged)))
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Read))?;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.purged = self.purged.max(Some(log_id));
        self.last = self.last.max(self.purged);
        let (purged, upto) = (self.purged, bounded(log_id.index));
        self.database
            .write_lazily(move |connection| {
                if let Some(purged) = purged {
                    write_meta(connection, MetaKey::Purged, &purged)?;
                }
                connection.prepare_cached("DELETE FROM log WHERE idx <= ?1")?.execute([upto])?;
                Ok(())
            })
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Delete))
    }
}
