//! The state machine as the library wants it: applies entries in memory, writes the changed rows, gives and takes images.

use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, ErrorVerb, OptionalSend, RaftSnapshotBuilder};
use rusqlite::Connection;

use super::super::raft::{Entry, LogId, Reply, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types};
use super::super::state::{Effects, Row, RowKind};
use super::super::view::{Current, Shared};
use super::schema::{MetaKey, read_meta, write_meta};
use super::{Database, Image, StoreError};

/// What is kept under [`MetaKey::Applied`].
type Applied = (Option<LogId>, StoredMembership);

/// Reads the state with its place in the log.
pub(in super::super) fn load_current(connection: &Connection) -> Result<Current, StoreError> {
    let (log_id, membership) = read_meta::<Applied>(connection, MetaKey::Applied)?.unwrap_or_default();
    let mut current = Current { log_id, membership, ..Current::default() };
    let unreadable = |cause: String| StoreError::Unreadable { what: "the state".into(), cause };
    let mut select = connection.prepare("SELECT kind, key, body FROM state")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let number: i64 = row.get(0)?;
        let kind = RowKind::from_number(number).ok_or_else(|| unreadable(format!("kind {number} is not known")))?;
        let row = Row { kind, key: row.get(1)?, body: Some(row.get(2)?) };
        current.state.load(&row).map_err(|cause| unreadable(cause.to_string()))?;
    }
    Ok(current)
}

fn write_rows(connection: &Connection, rows: &[Row]) -> Result<(), StoreError> {
    let mut put = connection.prepare_cached(
        "INSERT INTO state (kind, key, body) VALUES (?1, ?2, ?3) ON CONFLICT (kind, key) DO UPDATE SET body = ?3",
    )?;
    let mut delete = connection.prepare_cached("DELETE FROM state WHERE kind = ?1 AND key = ?2")?;
    for row in rows {
        match &row.body {
            Some(body) => put.execute(rusqlite::params![row.kind as i64, row.key, body])?,
            None => delete.execute(rusqlite::params![row.kind as i64, row.key])?,
        };
    }
    Ok(())
}

/// Applies what was decided.
#[derive(Debug)]
pub(in super::super) struct Machine {
    database: Database,
    shared: Arc<Shared>,
}

impl Machine {
    pub(in super::super) fn new(database: Database, shared: Arc<Shared>) -> Self {
        Self { database, shared }
    }
}

/// Gives images.
#[derive(Debug)]
pub(in super::super) struct ImageBuilder {
    shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<Types> for ImageBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        Ok(Image::snapshot_of(&self.shared.read()).unwrap_or_else(|| Image::default().into_empty_snapshot()))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = ImageBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let current = self.shared.read();
        Ok((current.log_id, current.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut effects = Effects::default();
        let mut replies = Vec::new();
        let applied: Applied = {
            let mut current = self.shared.write();
            for entry in entries {
                let mut reply = Reply::default();
                match entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(batch) => {
                        reply.decisions = current.state.apply(entry.log_id.index, batch, &mut effects);
                    }
                    EntryPayload::Membership(membership) => {
                        current.membership = StoredMembership::new(Some(entry.log_id), membership);
                    }
                }
                current.log_id = Some(entry.log_id);
                replies.push(reply);
            }
            (current.log_id, current.membership.clone())
        };
        let index = applied.0.map_or(0, |id| id.index);
        let Effects { rows, changes } = effects;
        self.database
            .write_lazily(move |connection| {
                write_rows(connection, &rows)?;
                write_meta(connection, MetaKey::Applied, &applied)
            })
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Write))?;
        self.shared.tell(index, changes);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> ImageBuilder {
        ImageBuilder { shared: self.shared.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Image>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<Image>) -> Result<(), StorageError> {
        let applied: Applied = (meta.last_log_id, meta.last_membership.clone());
        let state = snapshot.state.clone();
        self.database
            .write_and_wait(move |connection| {
                connection.execute("DELETE FROM state", [])?;
                for row in state.rows() {
                    write_rows(connection, &[row])?;
                }
                write_meta(connection, MetaKey::Applied, &applied)
            })
            .await
            .map_err(|cause| cause.into_storage_error(ErrorVerb::Write))?;
        let (log_id, membership) = (meta.last_log_id, meta.last_membership.clone());
        *self.shared.write() = Current { state: (*snapshot.state).clone(), log_id, membership };
        self.shared.tell_everything(log_id.map_or(0, |id| id.index));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        Ok(Image::snapshot_of(&self.shared.read()))
    }
}
