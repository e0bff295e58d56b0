//! When the majority is lost for good: a stopped node goes on alone.
//!
//! This gives up a promise on purpose. What the lost voters had decided and this node had not yet received is gone, and
//! if they do come back, they must not decide anything more: they have to join again with an empty database.

use std::path::Path;

use openraft::{CommittedLeaderId, EmptyNode, EntryPayload};

use super::command::{Batch, Command, Request};
use super::raft::{Entry, LogId, Membership, RaftId, Vote};
use super::store::{
    DATABASE_NAME, LogReader, LogStore, MetaKey, StoreError, encode_entry, load_current, open, read_meta, write_meta,
};
use crate::vocabulary::{NodeId, RequestId};

/// What a recovery keeps and what it may lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The last log index in this node's state.
    pub applied: u64,
    /// The last log index in this node's log. What stands between the two is kept, although it may never have been
    /// acknowledged. What others decided after it is lost.
    pub last_log: u64,
    /// The term of that last entry: if a lost member had a higher one, it decided more.
    pub term: u64,
    /// How many accounts this node knows.
    pub accounts: usize,
    /// The members that are dropped; they must join again, with an empty database.
    pub dropped: Vec<NodeId>,
    /// The accounts whose primary is dropped: their claims have to be moved.
    pub orphaned: usize,
}

impl std::fmt::Display for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { applied, last_log, term, accounts, dropped, orphaned } = self;
        writeln!(
            f,
            "This node holds the log up to entry {last_log} of term {term}, and has applied it up to {applied}."
        )?;
        writeln!(f, "It knows {accounts} accounts. Whatever other members decided after entry {last_log} is lost.")?;
        writeln!(f, "{} other members are dropped and must join again with an empty database:", dropped.len())?;
        for node in dropped {
            writeln!(f, "  {node}")?;
        }
        write!(f, "{orphaned} accounts have a dropped member as their primary and must be moved.")
    }
}

/// Makes a stopped node the only member and voter of its federation; with `confirmed` false, only says what would be.
///
/// # Errors
/// Any [`StoreError`]; in particular when the node still runs, or has no database.
pub fn recover(directory: &Path, node: NodeId, confirmed: bool) -> Result<Recovery, StoreError> {
    if !directory.join(DATABASE_NAME).exists() {
        return Err(StoreError::Closed(format!("there is no {DATABASE_NAME} in {}", directory.display())));
    }
    let mut connection = open(directory, node)?;
    let current = load_current(&connection)?;
    let last = LogStore::last_log_id(&connection)?.max(current.log_id);
    let Some(last) = last else {
        return Err(StoreError::Closed("this node has never been part of a federation".into()));
    };
    let pending = LogReader::admissions_after(&connection, current.log_id)?;
    if current.state.member(node).is_none() && !pending.contains(&node) {
        return Err(StoreError::Closed("this node does not know itself as a member".into()));
    }
    let dropped: Vec<NodeId> =
        current.state.members().map(|member| member.node).chain(pending).filter(|other| *other != node).collect();
    let orphaned = current.state.accounts_after(None).filter(|account| account.owner != node).count();
    let recovery = Recovery {
        applied: current.log_id.map_or(0, |id| id.index),
        last_log: last.index,
        term: last.leader_id.term,
        accounts: current.state.accounts_len(),
        dropped,
        orphaned,
    };
    if !confirmed {
        return Ok(recovery);
    }
    let vote = read_meta::<Vote>(&connection, MetaKey::Vote)?.unwrap_or_default();
    let term = vote.leader_id().term.max(last.leader_id.term) + 1;
    let id = RaftId::from(node);
    let log_id = |index| LogId::new(CommittedLeaderId::new(term, id), index);
    let membership = Membership::new(vec![[id].into()], std::collections::BTreeMap::from([(id, EmptyNode::new())]));
    let keep = Request { id: RequestId::random(), command: Command::KeepOnly { node } };
    let entries = [
        Entry { log_id: log_id(last.index + 1), payload: EntryPayload::Membership(membership) },
        // The clock does not go back, so no time is needed here.
        Entry {
            log_id: log_id(last.index + 2),
            payload: EntryPayload::Normal(Batch { time_ms: 0, requests: vec![keep] }),
        },
    ];
    let transaction = connection.transaction()?;
    write_meta(&transaction, MetaKey::Vote, &Vote::new_committed(term, id))?;
    for entry in &entries {
        let index = i64::try_from(entry.log_id.index).unwrap_or(i64::MAX);
        transaction
            .execute("INSERT INTO log (idx, entry) VALUES (?1, ?2)", rusqlite::params![index, encode_entry(entry)])?;
    }
    transaction.commit()?;
    Ok(recovery)
}

/// The members and the number of accounts of its own that a stopped node knows; nothing when it has no database.
pub(crate) fn held(directory: &Path, node: NodeId) -> Result<(Vec<NodeId>, usize), StoreError> {
    if !directory.join(DATABASE_NAME).exists() {
        return Ok(Default::default());
    }
    let state = load_current(&open(directory, node)?)?.state;
    let owned = state.accounts_after(None).filter(|account| account.owner == node).count();
    Ok((state.members().map(|member| member.node).collect(), owned))
}

/// Removes a stopped node's `federation.db`, so that it can join a federation as a new member. Its key stays.
///
/// # Errors
/// [`StoreError`] when the node still runs or a file cannot be removed.
pub fn forget(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(DATABASE_NAME);
    if !path.exists() {
        return Ok(());
    }
    // Fails while another process has it open.
    drop(super::store::open_connection(&path, None)?);
    for suffix in ["-wal", "-shm", "-journal", ""] {
        let file = directory.join(format!("{DATABASE_NAME}{suffix}"));
        match std::fs::remove_file(&file) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Path { path: file.display().to_string(), cause: cause.to_string() });
            }
            _ => {}
        }
    }
    Ok(())
}
