//! How the consensus library reaches other nodes: its messages over [`Transport`], snapshots in pieces.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::SnapshotResponse;
use openraft::{AnyError, EmptyNode, RPCTypes};

use super::contacts::Contacts;
use super::raft::{AppendRequest, AppendResponse, RaftId, Snapshot, Types, Vote, VoteRequest, VoteResponse};
use super::state::Row;
use super::wire::{self, ConsensusReply, ConsensusRequest, Piece, PieceReply};
use crate::transport::{Channel, Transport, TransportError};
use crate::vocabulary::NodeId;

/// How often one piece of a snapshot is tried.
const PIECE_ATTEMPTS_MAX: u32 = 5;

/// Makes a way to each node.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) contacts: Arc<Contacts>,
    pub(super) heartbeat_interval: Duration,
    pub(super) piece_size_bytes: usize,
    pub(super) piece_timeout: Duration,
    /// Waits here after an error, so that the library does not: its way to wait has a random tie-break, which would
    /// make simulations impossible to replay.
    #[cfg(test)]
    pub(super) waits_itself: bool,
    /// Counts silence as consent: a defect for the tests.
    #[cfg(test)]
    pub(super) presumptuous: bool,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: RaftId, _node: &EmptyNode) -> Way {
        Way { target: target.into(), network: self.clone() }
    }
}

/// The way to one node.
pub(super) struct Way {
    target: NodeId,
    network: Network,
}

type RpcError<E = RaftError<RaftId>> = RPCError<RaftId, EmptyNode, E>;

impl Way {
    async fn ask(&self, request: &ConsensusRequest, deadline: Duration) -> Result<ConsensusReply, TransportError> {
        let message = wire::encode(request);
        self.network.contacts.asked(self.target);
        let answer = self.network.transport.request(self.target, Channel::Consensus, message, deadline).await;
        #[cfg(test)]
        if let (Err(cause), true) = (&answer, self.network.waits_itself) {
            if !matches!(cause, TransportError::Timeout { .. }) {
                tokio::time::sleep(self.network.heartbeat_interval).await;
            }
            return Err(TransportError::Timeout { node: self.target, after: deadline });
        }
        let answer = answer.inspect_err(|cause| {
            self.network.contacts.failed(self.target, cause, self.network.heartbeat_interval * 3);
        })?;
        self.network.contacts.answered(self.target);
        wire::decode(&answer).map_err(|cause| TransportError::Refused { node: self.target, reason: cause.to_string() })
    }

    fn wrong_answer(&self) -> TransportError {
        TransportError::Refused { node: self.target, reason: "the answer is of another kind than the question".into() }
    }

    fn error<E: std::error::Error>(&self, action: RPCTypes, cause: TransportError) -> RpcError<E> {
        match cause {
            TransportError::Timeout { after, .. } => {
                let (id, target) = (self.network.transport.local().into(), self.target.into());
                RPCError::Timeout(Timeout { action, id, target, timeout: after })
            }
            // The library waits before it tries again after this one, and only after this one.
            cause => RPCError::Unreachable(Unreachable::new(&cause)),
        }
    }

    async fn send_piece(&self, piece: Piece) -> Result<PieceReply, TransportError> {
        // On the last piece the receiver writes everything to its disk.
        let deadline = self.network.piece_timeout * if piece.whole.is_some() { 6 } else { 1 };
        let request = ConsensusRequest::Piece(piece);
        let mut attempt = 1;
        loop {
            match self.ask(&request, deadline).await {
                Ok(ConsensusReply::Piece(reply)) => return Ok(reply),
                Ok(_) => return Err(self.wrong_answer()),
                Err(cause) if attempt == PIECE_ATTEMPTS_MAX => return Err(cause),
                Err(_) => tokio::time::sleep(self.network.heartbeat_interval * attempt).await,
            }
            attempt += 1;
        }
    }

    async fn send_snapshot(&self, vote: Vote, snapshot: Snapshot) -> Result<Vote, TransportError> {
        let (meta, state) = (snapshot.meta, snapshot.snapshot.state);
        let transfer = rand::random();
        let piece = |number, rows, whole| Piece { vote, meta: meta.clone(), transfer, number, rows, whole };
        let mut number = 0;
        let mut rows = Vec::new();
        let mut size = 0;
        let mut walk = state.rows();
        loop {
            let row = walk.next();
            let last = row.is_none();
            if let Some(row) = row {
                size += row_size(&row);
                rows.push(row);
            }
            if !last && size < self.network.piece_size_bytes {
                continue;
            }
            let whole = last.then(|| *state.hash().as_bytes());
            match self.send_piece(piece(number, std::mem::take(&mut rows), whole)).await? {
                PieceReply::Taken(theirs) if last || theirs > vote => return Ok(theirs),
                PieceReply::Taken(_) => {}
                PieceReply::Restart => {
                    let reason = "the receiver lost the earlier pieces".into();
                    return Err(TransportError::Refused { node: self.target, reason });
                }
            }
            (number, size) = (number + 1, 0);
        }
    }
}

fn row_size(row: &Row) -> usize {
    row.key.len() + row.body.as_ref().map_or(0, Vec::len) + 16
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(&mut self, rpc: AppendRequest, option: RPCOption) -> Result<AppendResponse, RpcError> {
        let answer = self.ask(&ConsensusRequest::Append(rpc), option.hard_ttl()).await;
        #[cfg(test)]
        if self.network.presumptuous && answer.is_err() {
            return Ok(AppendResponse::Success);
        }
        match answer {
            Ok(ConsensusReply::Append(response)) => Ok(response),
            Ok(_) => Err(self.error(RPCTypes::AppendEntries, self.wrong_answer())),
            Err(cause) => Err(self.error(RPCTypes::AppendEntries, cause)),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, RpcError> {
        match self.ask(&ConsensusRequest::Vote(rpc), option.hard_ttl()).await {
            Ok(ConsensusReply::Vote(response)) => Ok(response),
            Ok(_) => Err(self.error(RPCTypes::Vote, self.wrong_answer())),
            Err(cause) => Err(self.error(RPCTypes::Vote, cause)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<Types, Fatal<RaftId>>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => match sent {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(cause @ TransportError::Timeout { .. }) => Err(NetworkError::new(&cause).into()),
                // After the other kind of error the library waits, with a random tie-break.
                #[cfg(test)]
                Err(cause) if self.network.waits_itself => {
                    tokio::time::sleep(self.network.heartbeat_interval).await;
                    Err(NetworkError::new(&cause).into())
                }
                Err(cause) => Err(StreamingError::Unreachable(Unreachable::new(&cause))),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.network.heartbeat_interval))
    }
}

/// A snapshot that is coming in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    transfer: Option<u64>,
    /// The transfer that was completed last: its pieces may still arrive again.
    completed: Option<u64>,
    next: u32,
    state: super::state::State,
    /// Of the rows as they came: a node of an older version writes some of them in another way.
    hasher: blake3::Hasher,
}

impl Incoming {
    /// Notes that the snapshot of a transfer was installed.
    pub(super) fn complete(&mut self, transfer: u64) {
        self.completed = Some(transfer);
    }
}

/// What a piece led to.
pub(super) enum Received {
    More,
    Whole(Box<super::store::Image>),
    Restart,
}

impl Incoming {
    /// Takes the next piece. One that came before is taken as read.
    pub(super) fn take(&mut self, piece: &Piece) -> Result<Received, AnyError> {
        if self.completed == Some(piece.transfer) {
            return Ok(Received::More);
        }
        if self.transfer != Some(piece.transfer) {
            if piece.number != 0 {
                return Ok(Received::Restart);
            }
            *self = Self { transfer: Some(piece.transfer), completed: self.completed, ..Self::default() };
        }
        if piece.number > self.next {
            return Ok(Received::Restart);
        }
        if piece.number < self.next {
            return Ok(Received::More);
        }
        for row in &piece.rows {
            self.state.load(row).map_err(|cause| AnyError::new(&cause))?;
            row.hash_into(&mut self.hasher);
        }
        self.next += 1;
        let Some(whole) = piece.whole else { return Ok(Received::More) };
        let state = std::mem::take(&mut self.state);
        self.transfer = None;
        if *self.hasher.finalize().as_bytes() != whole {
            return Err(AnyError::error("the state does not have the hash that was announced"));
        }
        Ok(Received::Whole(Box::new(super::store::Image { state: Arc::new(state) })))
    }
}
