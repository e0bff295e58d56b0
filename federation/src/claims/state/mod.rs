//! The replicated state and its rules: pure, without clock, randomness or I/O, so that every node decides alike.
//!
//! The state lives in memory; every change also names the rows to write, so that the database follows step by step.

mod accounts;
mod apply;
mod dedup;
mod documents;
mod former;
mod members;
mod row;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::model::{Account, Document, DocumentKind, Invitation, Member, SecretHash, Sublease, VoterPolicy};
use crate::vocabulary::{AccountName, NodeId, TenantId};
use dedup::Answered;
pub(super) use row::{Row, RowKind};

/// Everything the federation agrees on. Cloning it is cheap: entries are shared.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Counts accepted commands; revisions and epochs come from it, so none is ever used twice.
    sequence: u64,
    /// The latest time seen in the log; never goes back.
    clock_ms: u64,
    voters: Option<BTreeSet<NodeId>>,
    members: BTreeMap<NodeId, Arc<Member>>,
    accounts: BTreeMap<AccountName, Arc<Account>>,
    by_tenant: BTreeSet<(TenantId, AccountName)>,
    documents: BTreeMap<(DocumentKind, String), Arc<Document>>,
    invitations: BTreeMap<SecretHash, Invitation>,
    subleases: BTreeMap<SecretHash, Sublease>,
    answered: Answered,
}

/// Something that was decided and may interest a watcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The account was claimed, changed, moved or forfeited.
    Account(AccountName),
    /// The member was admitted, changed or removed.
    Member(NodeId),
    /// The document was put or removed.
    Document(DocumentKind, String),
    /// An operator decided who votes.
    Voters,
}

/// What follows from applying commands: rows to write and changes to tell.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) rows: Vec<Row>,
    pub(super) changes: Vec<Change>,
}

impl State {
    pub(super) fn member(&self, node: NodeId) -> Option<&Arc<Member>> {
        self.members.get(&node)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values()
    }

    pub(super) fn invitation(&self, secret: &SecretHash) -> Option<&Invitation> {
        self.invitations.get(secret)
    }

    pub(super) fn invitations(&self) -> impl Iterator<Item = &Invitation> {
        self.invitations.values()
    }

    pub(super) fn account(&self, name: &AccountName) -> Option<&Arc<Account>> {
        self.accounts.get(name)
    }

    pub(super) fn accounts_len(&self) -> usize {
        self.accounts.len()
    }

    pub(super) fn accounts_after(&self, after: Option<&AccountName>) -> impl Iterator<Item = &Arc<Account>> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.accounts.range::<AccountName, _>((from, std::ops::Bound::Unbounded)).map(|(_, account)| account)
    }

    pub(super) fn accounts_of_tenant<'a>(
        &'a self,
        tenant: &'a TenantId,
        after: Option<&AccountName>,
    ) -> impl Iterator<Item = &'a Arc<Account>> {
        let from = match after {
            Some(after) => std::ops::Bound::Excluded((tenant.clone(), after.clone())),
            None => std::ops::Bound::Included((tenant.clone(), first_name())),
        };
        self.by_tenant
            .range((from, std::ops::Bound::Unbounded))
            .take_while(move |(other, _)| other == tenant)
            .filter_map(|(_, name)| self.accounts.get(name))
    }

    pub(super) fn document(&self, kind: DocumentKind, id: &str) -> Option<&Arc<Document>> {
        self.documents.get(&(kind, id.to_owned()))
    }

    pub(super) fn documents_after(&self, kind: DocumentKind, after: &str) -> impl Iterator<Item = &Arc<Document>> {
        let from = std::ops::Bound::Excluded((kind, after.to_owned()));
        self.documents
            .range((from, std::ops::Bound::Unbounded))
            .take_while(move |((other, _), _)| *other == kind)
            .map(|(_, document)| document)
    }

    pub(super) fn voter_policy(&self) -> VoterPolicy {
        self.voters.clone().map_or(VoterPolicy::Automatic, VoterPolicy::Fixed)
    }

    /// BLAKE3 over all rows in their order: equal on two nodes exactly when they agree on everything.
    pub(super) fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.rows().for_each(|row| row.hash_into(&mut hasher));
        hasher.finalize()
    }
}

/// The name that sorts before all others.
fn first_name() -> AccountName {
    AccountName::parse("0").expect("the grammar allows a single digit")
}
