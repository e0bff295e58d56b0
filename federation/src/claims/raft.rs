//! The consensus library's types, bound to ours. Nothing outside this folder sees them.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft::{OptionalSend, TokioInstant, TokioRuntime};
use serde::{Deserialize, Serialize};

use super::command::Batch;
use super::outcome::Decision;
use super::store::Image;
use crate::vocabulary::NodeId;

openraft::declare_raft_types!(
    /// Everything the library is told about us.
    pub(super) Types:
        D = Batch,
        R = Reply,
        NodeId = RaftId,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Image,
        AsyncRuntime = Runtime,
);

pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<RaftId>;
pub(super) type Vote = openraft::Vote<RaftId>;
pub(super) type Membership = openraft::Membership<RaftId, openraft::EmptyNode>;
pub(super) type StoredMembership = openraft::StoredMembership<RaftId, openraft::EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<RaftId, openraft::EmptyNode>;
pub(super) type Snapshot = openraft::Snapshot<Types>;
pub(super) type StorageError = openraft::StorageError<RaftId>;
pub(super) type Raft = openraft::Raft<Types>;
pub(super) type RaftMetrics = openraft::RaftMetrics<RaftId, openraft::EmptyNode>;
pub(super) type AppendRequest = openraft::raft::AppendEntriesRequest<Types>;
pub(super) type AppendResponse = openraft::raft::AppendEntriesResponse<RaftId>;
pub(super) type VoteRequest = openraft::raft::VoteRequest<RaftId>;
pub(super) type VoteResponse = openraft::raft::VoteResponse<RaftId>;

/// A node id as the library wants it: with a default, which is nobody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub(super) struct RaftId([u8; 32]);

impl From<NodeId> for RaftId {
    fn from(node: NodeId) -> Self {
        Self(*node.public_key())
    }
}

impl From<RaftId> for NodeId {
    fn from(id: RaftId) -> Self {
        Self::from_public_key(id.0)
    }
}

#[cfg(test)]
impl From<u64> for RaftId {
    fn from(number: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        Self(key)
    }
}

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&NodeId::from(*self).short())
    }
}

impl fmt::Debug for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What applying one log entry gives: a decision for each request in it, none for the library's own entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) decisions: Vec<Decision>,
}

/// tokio, with random numbers that the simulation can seed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    #[cfg(not(test))]
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    #[cfg(test)]
    type ThreadLocalRng = super::simulation::ElectionRng;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        #[cfg(not(test))]
        return TokioRuntime::thread_rng();
        #[cfg(test)]
        super::simulation::ElectionRng
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}
