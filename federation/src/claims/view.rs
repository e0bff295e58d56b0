//! Reading what was agreed on: local, from memory, never waiting for the network.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{Notify, broadcast, watch};

use super::model::{Account, Document, DocumentKind, Invitation, Member, SecretHash, VoterPolicy};
use super::raft::{LogId, StoredMembership};
use super::state::{Change, State};
use crate::vocabulary::{AccountName, NodeId, TenantId};

/// The state with its place in the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Current {
    pub(super) state: State,
    pub(super) log_id: Option<LogId>,
    pub(super) membership: StoredMembership,
}

/// The state as it is now, shared by the one who applies and all who read.
#[derive(Debug)]
pub(super) struct Shared {
    current: RwLock<Current>,
    applied: watch::Sender<u64>,
    /// Tells those who wait for an index; unlike the watch it wakes them in the order they came, which lets a
    /// simulation be repeated.
    moved: Notify,
    changes: broadcast::Sender<Told>,
    snapshots_installed: AtomicU64,
}

#[derive(Debug, Clone)]
enum Told {
    Change(u64, Change),
    Everything,
}

impl Shared {
    pub(super) fn new(current: Current, changes_buffered_max: usize) -> Self {
        let applied = current.log_id.map_or(0, |id| id.index);
        Self {
            current: RwLock::new(current),
            applied: watch::Sender::new(applied),
            moved: Notify::new(),
            changes: broadcast::Sender::new(changes_buffered_max.max(1)),
            snapshots_installed: AtomicU64::new(0),
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Current> {
        // A panic while writing leaves the state as it was after some whole entry or part of one; the node stops then.
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Wakes the watchers. Called after the lock for writing was given back.
    pub(super) fn tell(&self, index: u64, changes: Vec<Change>) {
        for change in changes {
            let _ = self.changes.send(Told::Change(index, change));
        }
        self.applied.send_replace(index);
        self.moved.notify_waiters();
    }

    /// Tells the watchers that anything may have changed: the whole state came from another node.
    pub(super) fn tell_everything(&self, index: u64) {
        self.snapshots_installed.fetch_add(1, Ordering::Relaxed);
        let _ = self.changes.send(Told::Everything);
        self.applied.send_replace(index);
        self.moved.notify_waiters();
    }
}

/// What all nodes agree on, as this node knows it now. It may lag behind: see
/// [`Claims::linearize`](super::Claims::linearize).
#[derive(Debug, Clone)]
pub struct View {
    pub(super) shared: Arc<Shared>,
}

impl View {
    /// The log index that was applied last; 0: none.
    pub fn applied(&self) -> u64 {
        *self.shared.applied.borrow()
    }

    /// An account.
    pub fn account(&self, name: &AccountName) -> Option<Arc<Account>> {
        self.shared.read().state.account(name).cloned()
    }

    /// How many accounts there are.
    pub fn accounts_len(&self) -> usize {
        self.shared.read().state.accounts_len()
    }

    /// The accounts that follow a name, in order, `limit` at most.
    pub fn accounts_after(&self, after: Option<&AccountName>, limit: usize) -> Vec<Arc<Account>> {
        self.shared.read().state.accounts_after(after).take(limit).cloned().collect()
    }

    /// The accounts of a tenant that follow a name, in order, `limit` at most.
    pub fn accounts_of_tenant(
        &self,
        tenant: &TenantId,
        after: Option<&AccountName>,
        limit: usize,
    ) -> Vec<Arc<Account>> {
        self.shared.read().state.accounts_of_tenant(tenant, after).take(limit).cloned().collect()
    }

    /// A document.
    pub fn document(&self, kind: DocumentKind, id: &str) -> Option<Arc<Document>> {
        self.shared.read().state.document(kind, id).cloned()
    }

    /// The documents of a kind that follow an id, in order, `limit` at most. The empty id comes before all others.
    pub fn documents_after(&self, kind: DocumentKind, after: &str, limit: usize) -> Vec<Arc<Document>> {
        self.shared.read().state.documents_after(kind, after).take(limit).cloned().collect()
    }

    /// A member.
    pub fn member(&self, node: NodeId) -> Option<Arc<Member>> {
        self.shared.read().state.member(node).cloned()
    }

    /// All members, in the order of their ids.
    pub fn members(&self) -> Vec<Arc<Member>> {
        self.shared.read().state.members().cloned().collect()
    }

    /// The invitation with this secret, used, expired or good; forgotten ones are not there.
    pub fn invitation(&self, secret: &SecretHash) -> Option<Invitation> {
        self.shared.read().state.invitation(secret).cloned()
    }

    /// All invitations that are remembered: used, expired and good ones.
    pub fn invitations(&self) -> Vec<Invitation> {
        self.shared.read().state.invitations().cloned().collect()
    }

    /// Who decides who votes.
    pub fn voter_policy(&self) -> VoterPolicy {
        self.shared.read().state.voter_policy()
    }

    /// The applied log index and the hash of the whole state at it: nodes at the same index have the same hash. Takes
    /// time in proportion to the state: some 50 ms per 100,000 accounts.
    pub fn hash(&self) -> (u64, String) {
        // A clone shares all entries, so that nobody waits while it is hashed.
        let Current { state, log_id, .. } = self.shared.read().clone();
        (log_id.map_or(0, |id| id.index), state.hash().to_hex().to_string())
    }

    /// How often the whole state came from another node since this one started, because the log no longer reached back
    /// to where this one was.
    pub fn snapshots_installed(&self) -> u64 {
        self.shared.snapshots_installed.load(Ordering::Relaxed)
    }

    /// The applied log index, to be waited on.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// Waits until a log index has been applied. Cancel-safe; the caller sets the deadline.
    pub async fn wait_applied(&self, index: u64) {
        loop {
            let mut moved = std::pin::pin!(self.shared.moved.notified());
            moved.as_mut().enable();
            if self.applied() >= index {
                return;
            }
            moved.await;
        }
    }

    /// The changes from now on.
    pub fn watch_changes(&self) -> Changes {
        Changes { receiver: self.shared.changes.subscribe() }
    }
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This changed at this log index; look it up in the [`View`].
    Changed {
        /// The log index.
        index: u64,
        /// What changed.
        change: Change,
    },
    /// Anything may have changed: the watcher was too slow, or the state came as a whole from another node.
    Resync,
}

/// The changes of the state, one by one.
#[derive(Debug)]
pub struct Changes {
    receiver: broadcast::Receiver<Told>,
}

impl Changes {
    /// The next notice; `None` when the node has stopped. Cancel-safe.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.receiver.recv().await {
            Ok(Told::Change(index, change)) => Some(Notice::Changed { index, change }),
            Ok(Told::Everything) | Err(broadcast::error::RecvError::Lagged(_)) => Some(Notice::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
