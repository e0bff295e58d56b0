//! A snapshot: the state as it was at one log index.
//!
//! It is never written anywhere by itself: the rows in the database are the state, and a clone of the state in memory
//! shares all its entries, so an image costs little and is always at hand.

use std::sync::Arc;

use super::super::raft::{Snapshot, SnapshotMeta};
use super::super::state::State;
use super::super::view::Current;

/// The content of a snapshot.
#[derive(Clone, Default)]
pub(in super::super) struct Image {
    pub(in super::super) state: Arc<State>,
}

impl Image {
    /// The snapshot of the state as it is now; none before anything was applied.
    pub(super) fn snapshot_of(current: &Current) -> Option<Snapshot> {
        let log_id = current.log_id?;
        let meta = SnapshotMeta {
            last_log_id: Some(log_id),
            last_membership: current.membership.clone(),
            snapshot_id: log_id.to_string(),
        };
        Some(Snapshot { meta, snapshot: Box::new(Self { state: Arc::new(current.state.clone()) }) })
    }

    /// The snapshot of nothing, for when the library insists.
    pub(super) fn into_empty_snapshot(self) -> Snapshot {
        Snapshot { meta: SnapshotMeta::default(), snapshot: Box::new(self) }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "an image of {} accounts", self.state.accounts_len())
    }
}
