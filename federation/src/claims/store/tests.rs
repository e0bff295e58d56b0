//! The library's own test suite over our storage, and what it does not test: that it is all there after a restart.

use std::sync::Arc;

use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftStateMachine as _};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader as _};

use super::*;
use crate::claims::command::{Batch, Command, Request};
use crate::claims::model::{NewMember, Role};
use crate::claims::raft::{Entry, LogId, RaftId, StorageError, Types, Vote};
use crate::claims::view::Shared;
use crate::vocabulary::{NodeId, Region, RequestId};

fn open(directory: &std::path::Path) -> (LogStore, Machine) {
    let connection = database::open(directory, NodeId::from_public_key([1; 32])).unwrap();
    let log = LogStore::load(&connection).unwrap();
    let shared = Arc::new(Shared::new(load_current(&connection).unwrap(), 16));
    let database = Database::spawn(connection);
    (log(database.clone()), Machine::new(database, shared))
}

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError> {
        let directory = tempfile::tempdir().unwrap();
        let (log, machine) = open(directory.path());
        Ok((directory, log, machine))
    }
}

#[test]
fn the_storage_passes_the_suite_of_the_consensus_library() {
    Suite::test_all(Builder).unwrap();
}

fn entry(index: u64, payload: EntryPayload<Types>) -> Entry {
    let log_id = LogId::new(CommittedLeaderId::new(3, RaftId::from(1)), index);
    Entry { log_id, payload }
}

fn admission(number: u8) -> EntryPayload<Types> {
    let command = Command::Admit(NewMember {
        node: NodeId::from_public_key([number; 32]),
        region: Region::parse("eu").unwrap(),
        role: Role::Full,
        addresses: Vec::new(),
        api_url: String::new(),
    });
    EntryPayload::Normal(Batch { time_ms: 7, requests: vec![Request { id: RequestId::random(), command }] })
}

#[tokio::test]
async fn log_vote_and_state_are_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let entries = [entry(0, EntryPayload::Blank), entry(1, admission(1)), entry(2, admission(2))];
    let (hash, vote) = {
        let (mut log, mut machine) = open(directory.path());
        log.blocking_append(entries.clone()).await.unwrap();
        let vote = Vote::new(4, RaftId::from(1));
        log.save_vote(&vote).await.unwrap();
        log.save_committed(Some(entries[2].log_id)).await.unwrap();
        machine.apply(entries[..2].to_vec()).await.unwrap();
        log.purge(entries[0].log_id).await.unwrap();
        let hash = machine.get_current_snapshot().await.unwrap().unwrap().snapshot.state.hash();
        let database = log.database();
        drop((log, machine));
        database.closed().await;
        (hash, vote)
    };
    let (mut log, mut machine) = open(directory.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(entries[2].log_id));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(entries[0].log_id), Some(entries[2].log_id)));
    assert_eq!(log.try_get_log_entries(0..9).await.unwrap(), entries[1..].to_vec());
    assert_eq!(machine.applied_state().await.unwrap().0, Some(entries[1].log_id));
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().snapshot.state.hash(), hash);
}

#[tokio::test]
async fn a_snapshot_replaces_all_state_in_memory_and_on_disk() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_log, mut machine) = open(from.path());
    machine.apply([entry(0, EntryPayload::Blank), entry(1, admission(1))]).await.unwrap();
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();

    let (log, mut other) = open(to.path());
    other.apply([entry(0, EntryPayload::Blank), entry(1, admission(9))]).await.unwrap();
    other.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.unwrap();
    let database = log.database();
    drop((log, other));
    database.closed().await;

    let (_log, mut other) = open(to.path());
    let again = other.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(again.snapshot.state.hash(), snapshot.snapshot.state.hash());
    assert_eq!(again.meta, snapshot.meta);
}
