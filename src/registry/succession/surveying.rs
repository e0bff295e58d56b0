//! Before a primary is replaced that is not asked: how far a replica is, and that it goes no further in the meantime.
//!
//! What a primary acknowledges because a replica has it, must be with its successor. So the successor asks all replicas how far
//! they are, and compares. From then on they take nothing more from that primary, for as long as this may take: else it
//! could acknowledge something because of one that was asked already.

use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, NodeId};
use serde::{Deserialize, Serialize};

use crate::metadata::{Cursor, FollowState};
use crate::model::uptime;
use crate::registry::{Registry, RegistryError};

/// How far a node is in the log of a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// It has never had anything of this log.
    Nothing,
    /// It is listing the account from this primary, anew perhaps: it may have had more before.
    Unclear,
    /// Everything up to there.
    At(Cursor),
}

impl Registry {
    /// How far this node is in the log of an account's primary. From then on it takes nothing more from there, as long as this
    /// epoch goes on, and for `lasting` at most.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn survey(
        &self,
        account: &AccountName,
        (primary, epoch): (NodeId, u64),
        lasting: Duration,
    ) -> Result<Progress, RegistryError> {
        let (inner, name) = (self.inner.clone(), account.clone());
        // The writer, so that nothing is half-way: what is told is checked in the transaction that applies it.
        let read = self.inner.metadata.write(move |transaction| {
            inner.primacies.hold_back(&name, primary, epoch, uptime().saturating_add(lasting));
            transaction.get_follow(&name)
        });
        let row = read.await.map_err(RegistryError::Metadata)?.filter(|row| row.source == Some(primary));
        Ok(match row {
            Some(row) if row.state == FollowState::Following => Progress::At(row.cursor),
            Some(_) => Progress::Unclear,
            None => Progress::Nothing,
        })
    }

    /// Accounts of whose primary nothing is taken, each with the epoch in which that is so.
    pub fn surveyed_accounts(&self) -> Vec<(AccountName, u64)> {
        self.inner.primacies.all_held_back()
    }

    /// Takes what the primary tells again: it is not replaced, or has been.
    pub fn end_survey(&self, account: &AccountName) {
        self.inner.primacies.release(account);
    }
}
