//! One node's part in consensus: the library's handle and all that stands around it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use rusqlite::Connection;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::contacts::Contacts;
use super::network::{Incoming, Network, Received};
use super::options::ClaimsOptions;
use super::outcome::ClaimsError;
use super::propose::Proposer;
use super::raft::{Raft, RaftId, RaftMetrics, Snapshot, Vote};
use super::store::{Database, LogReader, LogStore, Machine, StoreError, load_current};
use super::view::{Shared, View};
use super::wire::{self, ConsensusReply, ConsensusRequest, Piece, PieceReply};
use crate::transport::Transport;
use crate::vocabulary::NodeId;

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) options: ClaimsOptions,
    pub(super) raft: Raft,
    pub(super) metrics: watch::Receiver<RaftMetrics>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) contacts: Arc<Contacts>,
    pub(super) proposer: Proposer,
    pub(super) permits: Semaphore,
    pub(super) view: View,
    pub(super) majority_contact: Mutex<Option<MajorityContact>>,
    /// The vote and the last index of the log that this node started with. The library lets a leader that starts again
    /// lead on by that vote, but does not know then how much of its log had been decided: any of it may have been.
    pub(super) started_with: Option<(Vote, u64)>,
    incoming: tokio::sync::Mutex<Incoming>,
}

/// When a majority was asked last of those times at which it stood behind this node's view.
#[derive(Clone, Copy)]
pub(super) struct MajorityContact {
    pub(super) asked: Instant,
    /// The same on the clock that counts the time asleep.
    pub(super) asked_uptime: Duration,
}

/// The tasks and handles that are joined at shutdown.
pub(super) struct Belongings {
    pub(super) database: Database,
    pub(super) proposer: tokio::task::JoinHandle<()>,
    /// Reads the log for the task that watches its size. Dropped before the database is closed.
    pub(super) log: LogReader,
}

impl Node {
    /// Takes up where the database ends.
    pub(super) async fn start(
        options: ClaimsOptions,
        transport: Arc<dyn Transport>,
        connection: Connection,
    ) -> Result<(Arc<Self>, Belongings), ClaimsError> {
        let storage = |cause: StoreError| ClaimsError::Storage(cause.to_string());
        let id = transport.local();
        let current = load_current(&connection).map_err(storage)?;
        let log = LogStore::load(&connection).map_err(storage)?;
        let shared = Arc::new(Shared::new(current, options.changes_buffered_max));
        let database = spawn_database(connection, &options);
        #[cfg_attr(not(test), expect(unused_mut, reason = "only a test breaks its promise"))]
        let mut log = log(database.clone());
        #[cfg(test)]
        {
            log.hasty = options.defect == Some(super::simulation::Defect::AcknowledgeBeforeSync);
        }
        let reader = log.reader();
        let started_with = log.elected();
        let machine = Machine::new(database.clone(), shared.clone());
        let contacts = Arc::new(Contacts::new());
        let network = Network {
            transport: transport.clone(),
            contacts: contacts.clone(),
            heartbeat_interval: options.heartbeat_interval,
            piece_size_bytes: options.snapshot_piece_size_bytes,
            piece_timeout: options.snapshot_piece_timeout,
            #[cfg(test)]
            waits_itself: options.simulated.is_some(),
            #[cfg(test)]
            presumptuous: options.defect == Some(super::simulation::Defect::CountMinority),
        };
        let config = Arc::new(config(&options)?);
        let raft = Raft::new(RaftId::from(id), config, network, log, machine)
            .await
            .map_err(|cause| ClaimsError::Storage(cause.to_string()))?;
        let (proposer, task) = Proposer::spawn(raft.clone(), options.commands_waiting_max);
        let node = Self {
            id,
            metrics: raft.metrics(),
            raft,
            transport,
            contacts,
            proposer,
            permits: Semaphore::new(options.commands_waiting_max.clamp(1, Semaphore::MAX_PERMITS)),
            view: View { shared },
            majority_contact: Mutex::new(None),
            started_with,
            incoming: tokio::sync::Mutex::default(),
            options,
        };
        Ok((Arc::new(node), Belongings { database, proposer: task, log: reader }))
    }

    /// Fails once the library has stopped, with the reason.
    pub(super) fn check_alive(&self) -> Result<(), ClaimsError> {
        match &self.metrics.borrow().running_state {
            // The library's task is gone without a word: it has panicked.
            Ok(()) if self.metrics.has_changed().is_err() => {
                Err(ClaimsError::Storage("consensus has stopped on this node; see the log".into()))
            }
            Ok(()) => Ok(()),
            Err(openraft::error::Fatal::Stopped) => Err(ClaimsError::Stopping),
            Err(cause) => Err(ClaimsError::Storage(cause.to_string())),
        }
    }

    /// Answers one message of another node's library.
    pub(super) async fn consensus(&self, from: NodeId, bytes: &[u8]) -> Result<bytes::Bytes, String> {
        let request: ConsensusRequest = wire::decode(bytes).map_err(|cause| cause.to_string())?;
        let speaker = match &request {
            ConsensusRequest::Append(append) => append.vote.leader_id(),
            ConsensusRequest::Vote(vote) => vote.vote.leader_id(),
            ConsensusRequest::Piece(piece) => piece.vote.leader_id(),
        };
        if speaker.node_id != RaftId::from(from) {
            return Err("the message speaks for another node than its sender".into());
        }
        self.contacts.heard(from);
        let reply = match request {
            ConsensusRequest::Append(append) => {
                ConsensusReply::Append(self.raft.append_entries(append).await.map_err(|cause| cause.to_string())?)
            }
            ConsensusRequest::Vote(vote) => {
                ConsensusReply::Vote(self.raft.vote(vote).await.map_err(|cause| cause.to_string())?)
            }
            ConsensusRequest::Piece(piece) => ConsensusReply::Piece(self.piece(piece).await?),
        };
        Ok(wire::encode(&reply))
    }

    async fn piece(&self, piece: Piece) -> Result<PieceReply, String> {
        let own = self.metrics.borrow().vote;
        if piece.vote < own {
            return Ok(PieceReply::Taken(own));
        }
        let mut incoming = self.incoming.lock().await;
        match incoming.take(&piece).map_err(|cause| cause.to_string())? {
            Received::Restart => Ok(PieceReply::Restart),
            Received::More => Ok(PieceReply::Taken(piece.vote)),
            Received::Whole(snapshot) => {
                let snapshot = Snapshot { meta: piece.meta, snapshot };
                let installed = self.raft.install_full_snapshot(piece.vote, snapshot).await;
                let vote = installed.map_err(|cause| cause.to_string())?.vote;
                incoming.complete(piece.transfer);
                Ok(PieceReply::Taken(vote))
            }
        }
    }
}

#[cfg(not(test))]
fn spawn_database(connection: Connection, _options: &ClaimsOptions) -> Database {
    Database::spawn(connection)
}

#[cfg(test)]
fn spawn_database(connection: Connection, options: &ClaimsOptions) -> Database {
    match &options.simulated {
        None => Database::spawn(connection),
        Some(disk) => {
            let sync = options.defect != Some(super::simulation::Defect::AcknowledgeBeforeSync);
            Database::spawn_simulated(connection, disk.clone(), sync)
        }
    }
}

fn config(options: &ClaimsOptions) -> Result<Config, ClaimsError> {
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    #[expect(deprecated, reason = "the struct has a deprecated field, which is left off")]
    let config = Config {
        cluster_name: "keppel".into(),
        // The library waits for the greater time, which it calls the leader's lease, and then for a random one.
        election_timeout_min: millis(options.election_timeout_min / 2),
        election_timeout_max: millis(options.election_timeout_max / 2),
        heartbeat_interval: millis(options.heartbeat_interval),
        install_snapshot_timeout: millis(options.snapshot_piece_timeout),
        send_snapshot_timeout: 0,
        max_payload_entries: 256,
        replication_lag_threshold: options.log_entries_kept,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_interval_entries),
        snapshot_max_chunk_size: 0,
        max_in_snapshot_log_to_keep: options.log_entries_kept,
        purge_batch_size: 64,
        enable_tick: true,
        enable_heartbeat: true,
        enable_elect: true,
    };
    config.validate().map_err(|cause| ClaimsError::Storage(cause.to_string()))
}
