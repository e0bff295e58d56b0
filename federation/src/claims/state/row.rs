//! The form of the state at rest and on the way to another node: rows of kind, key and versioned body.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::model::{Account, Document, Invitation, Member, Opaque, Sublease};
use super::State;
use super::dedup::Answer;
use super::former::{AccountV1, InvitationV1};
use crate::vocabulary::{NodeId, RequestId};

/// The first version of row bodies, their first byte: what there is of most kinds.
const FIRST: u8 = 1;
/// The second one of accounts and invitations: with the identity of the claim, and who invited.
const SECOND: u8 = 2;

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub(in super::super) enum RowKind {
    Counters = 0,
    Member = 1,
    Account = 2,
    Document = 3,
    Invitation = 4,
    Sublease = 5,
    Answer = 6,
}

impl RowKind {
    pub(in super::super) fn from_number(number: i64) -> Option<Self> {
        [Self::Counters, Self::Member, Self::Account, Self::Document, Self::Invitation, Self::Sublease, Self::Answer]
            .into_iter()
            .find(|kind| *kind as i64 == number)
    }
}

/// A row to write, or without a body to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Row {
    pub(in super::super) kind: RowKind,
    pub(in super::super) key: String,
    pub(in super::super) body: Option<Vec<u8>>,
}

/// A row that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("a row of kind {kind:?} with key {key:?} cannot be read: {cause}")]
pub(in super::super) struct RowError {
    kind: RowKind,
    key: String,
    cause: String,
}

/// The single row of kind [`RowKind::Counters`].
#[derive(Serialize, Deserialize)]
struct Counters {
    sequence: u64,
    clock_ms: u64,
    voters: Option<Vec<NodeId>>,
}

/// What is kept of an answered request, with its place in the order.
#[derive(Serialize, Deserialize)]
struct AnswerBody {
    order: u64,
    answer: Answer,
}

impl RowKind {
    /// The version in which rows of this kind are written.
    fn version(self) -> u8 {
        match self {
            Self::Account | Self::Invitation => SECOND,
            Self::Counters | Self::Member | Self::Document | Self::Sublease | Self::Answer => FIRST,
        }
    }
}

impl Row {
    fn put<T: Serialize>(kind: RowKind, key: impl Into<String>, body: &T) -> Self {
        // Writing plain data to memory has no way to fail.
        let body = postcard::to_extend(body, vec![kind.version()]).expect("plain data serialises");
        Self { kind, key: key.into(), body: Some(body) }
    }

    /// Adds the row to the hash of a whole state.
    pub(in super::super) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        hasher.update(&[self.kind as u8]);
        hasher.update(&(self.key.len() as u64).to_le_bytes());
        hasher.update(self.key.as_bytes());
        let body = self.body.as_deref().unwrap_or_default();
        hasher.update(&(body.len() as u64).to_le_bytes());
        hasher.update(body);
    }

    pub(super) fn delete(kind: RowKind, key: impl Into<String>) -> Self {
        Self { kind, key: key.into(), body: None }
    }

    pub(super) fn counters(state: &State) -> Self {
        let voters = state.voters.as_ref().map(|nodes| nodes.iter().copied().collect());
        let counters = Counters { sequence: state.sequence, clock_ms: state.clock_ms, voters };
        Self::put(RowKind::Counters, "", &counters)
    }

    pub(super) fn member(member: &Member) -> Self {
        Self::put(RowKind::Member, member.node.to_string(), member)
    }

    pub(super) fn account(account: &Account) -> Self {
        Self::put(RowKind::Account, account.name.as_str(), account)
    }

    pub(super) fn document(document: &Document) -> Self {
        Self::put(RowKind::Document, document_key(document.kind, &document.id), document)
    }

    pub(super) fn invitation(invitation: &Invitation) -> Self {
        Self::put(RowKind::Invitation, invitation.secret.hex(), invitation)
    }

    pub(super) fn sublease(sublease: &Sublease) -> Self {
        Self::put(RowKind::Sublease, sublease.token.hex(), sublease)
    }

    pub(super) fn answer(request: &RequestId, order: u64, answer: &Answer) -> Self {
        Self::put(RowKind::Answer, request.as_str(), &AnswerBody { order, answer: answer.clone() })
    }

    fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, RowError> {
        match self.versioned()? {
            (version, body) if version == self.kind.version() => self.read(body),
            (other, _) => Err(self.error(format!("version {other} is not known"))),
        }
    }

    /// Reads a row that may still be of the first version.
    fn decode_either<'a, T: Deserialize<'a> + From<V1>, V1: Deserialize<'a>>(&'a self) -> Result<T, RowError> {
        match self.versioned()? {
            (FIRST, body) => self.read::<V1>(body).map(T::from),
            _ => self.decode(),
        }
    }

    fn versioned(&self) -> Result<(u8, &[u8]), RowError> {
        let body = self.body.as_deref().and_then(<[u8]>::split_first);
        body.map(|(version, body)| (*version, body)).ok_or_else(|| self.error("it is empty".into()))
    }

    fn read<'a, T: Deserialize<'a>>(&self, body: &'a [u8]) -> Result<T, RowError> {
        postcard::from_bytes(body).map_err(|cause| self.error(cause.to_string()))
    }

    fn error(&self, cause: String) -> RowError {
        RowError { kind: self.kind, key: self.key.chars().take(128).collect(), cause }
    }
}

pub(super) fn document_key(kind: super::DocumentKind, id: &str) -> String {
    format!("{}/{id}", kind as u8)
}

impl State {
    /// Every row of the state, in order.
    pub(in super::super) fn rows(&self) -> impl Iterator<Item = Row> {
        std::iter::once(Row::counters(self))
            .chain(self.members.values().map(|member| Row::member(member)))
            .chain(self.accounts.values().map(|account| Row::account(account)))
            .chain(self.documents.values().map(|document| Row::document(document)))
            .chain(self.invitations.values().map(Row::invitation))
            .chain(self.subleases.values().map(Row::sublease))
            .chain(self.answered.iter().map(|(request, order, answer)| Row::answer(request, order, answer)))
    }

    /// Takes in a row that [`Self::rows`] gave, here or on another node.
    pub(in super::super) fn load(&mut self, row: &Row) -> Result<(), RowError> {
        match row.kind {
            RowKind::Counters => {
                let counters: Counters = row.decode()?;
                self.sequence = counters.sequence;
                self.clock_ms = counters.clock_ms;
                self.voters = counters.voters.map(|nodes| nodes.into_iter().collect());
            }
            RowKind::Member => {
                let member: Member = row.decode()?;
                self.members.insert(member.node, Arc::new(member));
            }
            RowKind::Account => {
                let mut account: Account = row.decode_either::<_, AccountV1>()?;
                // The decoded bytes are a copy already; this drops spare capacity only.
                account.settings = Opaque(account.settings.0.slice(..));
                self.by_tenant.insert((account.tenant.clone(), account.name.clone()));
                self.accounts.insert(account.name.clone(), Arc::new(account));
            }
            RowKind::Document => {
                let document: Document = row.decode()?;
                self.documents.insert((document.kind, document.id.clone()), Arc::new(document));
            }
            RowKind::Invitation => {
                let invitation: Invitation = row.decode_either::<_, InvitationV1>()?;
                self.invitations.insert(invitation.secret, invitation);
            }
            RowKind::Sublease => {
                let sublease: Sublease = row.decode()?;
                self.subleases.insert(sublease.token, sublease);
            }
            RowKind::Answer => {
                let AnswerBody { order, answer } = row.decode()?;
                let request = RequestId::parse(&row.key).map_err(|cause| row.error(cause.to_string()))?;
                self.answered.load(request, order, answer);
            }
        }
        Ok(())
    }
}
