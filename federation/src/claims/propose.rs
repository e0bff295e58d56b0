//! On the leader: requests that wait together become one log entry.

use std::sync::Arc;

use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::command::{Batch, Request};
use super::outcome::Decision;
use super::raft::{Raft, Reply};
use super::wire::CommandReply;

/// How many requests share a log entry at most.
const BATCH_MAX: usize = 256;
/// How many bytes share a log entry, if more than one request.
const BATCH_SIZE_MAX: usize = 512 * 1024;
/// How many log entries are under way at once. More requests gather meanwhile.
const UNDER_WAY_MAX: usize = 4;

/// A request and the one who waits for its decision.
pub(super) type Waiting = (Request, oneshot::Sender<CommandReply>);

/// Where requests are queued on the leader.
#[derive(Debug, Clone)]
pub(super) struct Proposer {
    waiting: mpsc::Sender<Waiting>,
}

impl Proposer {
    /// Starts the task that makes log entries of requests. It ends when the last handle is gone.
    pub(super) fn spawn(raft: Raft, waiting_max: usize) -> (Self, tokio::task::JoinHandle<()>) {
        let (waiting, mut queue) = mpsc::channel::<Waiting>(waiting_max.max(1));
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let task = tokio::spawn(async move {
            let mut left = None;
            loop {
                let Ok(permit) = under_way.clone().acquire_owned().await else { return };
                let first = match left.take() {
                    Some(first) => first,
                    None => match queue.recv().await {
                        Some(first) => first,
                        None => return,
                    },
                };
                let group;
                (group, left) = gather(first, &mut queue);
                let raft = raft.clone();
                tokio::spawn(async move {
                    propose(&raft, group).await;
                    drop(permit);
                });
            }
        });
        (Self { waiting }, task)
    }

    /// Queues a request. The receiver fails only when the node stops.
    pub(super) fn queue(&self, request: Request) -> Result<oneshot::Receiver<CommandReply>, CommandReply> {
        let (tell, told) = oneshot::channel();
        match self.waiting.try_send((request, tell)) {
            Ok(()) => Ok(told),
            Err(mpsc::error::TrySendError::Full(_)) => Err(CommandReply::Overloaded),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(CommandReply::NotLeader(None)),
        }
    }
}

/// Takes what waits, up to the bounds; what is over them comes back.
fn gather(first: Waiting, queue: &mut mpsc::Receiver<Waiting>) -> (Vec<Waiting>, Option<Waiting>) {
    let mut size = first.0.command.size_bytes();
    let mut group = vec![first];
    while group.len() < BATCH_MAX {
        let Ok(next) = queue.try_recv() else { break };
        if next.1.is_closed() {
            continue;
        }
        size += next.0.command.size_bytes();
        if size > BATCH_SIZE_MAX {
            return (group, Some(next));
        }
        group.push(next);
    }
    (group, None)
}

async fn propose(raft: &Raft, group: Vec<Waiting>) {
    let (requests, tellers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
    let started = tokio::time::Instant::now();
    let batch = Batch { time_ms: now_ms(), requests };
    let reply = match raft.client_write(batch).await {
        Ok(written) => {
            metrics::histogram!("keppel_claims_commit_seconds").record(started.elapsed().as_secs_f64());
            return hand_out(written.data, tellers);
        }
        // Either it never was in the log, or another leader has cut it off here: the library does not tell which, and
        // what was cut off here may stand elsewhere.
        Err(
            RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::ChangeMembershipError(_))
            | RaftError::Fatal(_),
        ) => CommandReply::Unknown,
    };
    for teller in tellers {
        let _ = teller.send(reply.clone());
    }
}

fn hand_out(reply: Reply, tellers: Vec<oneshot::Sender<CommandReply>>) {
    let decisions: Vec<Decision> = reply.decisions;
    for (teller, decision) in tellers.into_iter().zip(decisions) {
        let _ = teller.send(CommandReply::Decided(decision));
    }
}

/// The leader's clock: the only place where time enters the log.
fn now_ms() -> u64 {
    #[cfg(test)]
    if let Some(simulated) = super::simulation::simulated_now_ms() {
        return simulated;
    }
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
