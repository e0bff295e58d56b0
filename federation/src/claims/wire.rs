//! The messages between the claims rooms of two nodes: bytes <-> messages, pure.
//!
//! Every message begins with a version byte. What does not decode is refused with a reason; nothing panics, and no
//! more memory is taken than the message is long, times a small factor.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::command::Request;
use super::outcome::{Decision, QuorumLoss};
use super::raft::{AppendRequest, AppendResponse, SnapshotMeta, Vote, VoteRequest, VoteResponse};
use super::state::{Row, RowKind, State};
use super::store::decode_entry;
use crate::vocabulary::NodeId;

/// The version of all messages of this room.
const VERSION: u8 = 1;

/// The largest message of this room: a piece of a snapshot or some log entries, each with the largest document.
pub const MESSAGE_SIZE_MAX: usize = 4 * 1024 * 1024;

/// From a node that leads or wants to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ConsensusRequest {
    Append(AppendRequest),
    Vote(VoteRequest),
    Piece(Piece),
}

/// The answer, in the same order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ConsensusReply {
    Append(AppendResponse),
    Vote(VoteResponse),
    Piece(PieceReply),
}

/// A part of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    /// Tells attempts to transfer the same snapshot apart.
    pub(super) transfer: u64,
    /// Counts the pieces from 0.
    pub(super) number: u32,
    pub(super) rows: Vec<Row>,
    /// On the last piece: the hash of the whole state.
    pub(super) whole: Option<[u8; 32]>,
}

/// What became of a piece.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum PieceReply {
    /// Taken; the receiver's vote.
    Taken(Vote),
    /// The receiver does not have the pieces before it: start again.
    Restart,
}

/// From any node to the one that leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CommandRequest {
    /// Decide this.
    Decide(Request),
    /// How far must a node have applied the log, to show everything that was decided before this question?
    ReadIndex,
}

/// The leader's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum CommandReply {
    Decided(Decision),
    ReadIndex(u64),
    /// The node asked does not lead; it believes this one does. Nothing was done.
    NotLeader(Option<NodeId>),
    /// The leader lacks a majority. Nothing was done.
    NoQuorum(QuorumLoss),
    /// The leader proposed the command and does not know what became of it.
    Unknown,
    /// The leader has too much waiting. Nothing was done.
    Overloaded,
    /// The asker is not a member. Nothing was done.
    NotMember,
}

/// Bytes that are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("version {0} of the claims messages is not spoken here, only version {VERSION}")]
    Version(u8),
    #[error("a message of {size_bytes} bytes is over the limit of {MESSAGE_SIZE_MAX}")]
    TooLarge { size_bytes: usize },
    #[error("the message is empty")]
    Empty,
    #[error("the message cannot be read: {0}")]
    Unreadable(String),
}

pub(super) fn encode<T: Serialize>(message: &T) -> bytes::Bytes {
    postcard::to_extend(message, vec![VERSION]).expect("plain data serialises").into()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bytes {
        _ if bytes.len() > MESSAGE_SIZE_MAX => Err(WireError::TooLarge { size_bytes: bytes.len() }),
        [] => Err(WireError::Empty),
        [VERSION, body @ ..] => postcard::from_bytes(body).map_err(|cause| WireError::Unreadable(cause.to_string())),
        [other, ..] => Err(WireError::Version(*other)),
    }
}

/// Feeds arbitrary bytes to every decoder that sees bytes from other nodes or the disk. What the fuzz target and the
/// property tests call: none may panic, whatever the bytes are.
pub fn exercise_decoders(bytes: &[u8]) {
    let _ = decode::<ConsensusReply>(bytes);
    let _ = decode::<CommandRequest>(bytes);
    let _ = decode::<CommandReply>(bytes);
    let _ = decode_entry(bytes);
    if let Ok(ConsensusRequest::Piece(piece)) = decode::<ConsensusRequest>(bytes) {
        let mut state = State::default();
        for row in &piece.rows {
            let _ = state.load(row);
        }
    }
    for kind in 0..=7 {
        let Some(kind) = RowKind::from_number(kind) else { continue };
        let _ = State::default().load(&Row { kind, key: "k".into(), body: Some(bytes.to_vec()) });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use openraft::{CommittedLeaderId, EmptyNode, EntryPayload};
    use proptest::prelude::*;

    use super::super::command::{Batch, Command};
    use super::super::model::{DocumentKind, NewMember, Opaque, Role, SecretHash, VoterPolicy};
    use super::super::outcome::{Outcome, Refusal};
    use super::super::raft::{Entry, LogId, Membership, RaftId, StoredMembership};
    use super::super::state::Effects;
    use super::*;
    use crate::vocabulary::{AccountName, Region, RequestId, TenantId};

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    fn commands() -> Vec<Command> {
        let (name, region) = (AccountName::parse("acme").unwrap(), Region::parse("eu").unwrap());
        let (addresses, api_url) = (vec![([127, 0, 0, 1], 80).into()], "https://eu.example.org".to_owned());
        let (secret, tenant) = (SecretHash::of(b"secret"), TenantId::parse("t").unwrap());
        vec![
            Command::Admit(NewMember {
                node: node(1),
                region: region.clone(),
                role: Role::Full,
                addresses: addresses.clone(),
                api_url: api_url.clone(),
            }),
            Command::UpdateMember { node: node(1), addresses: addresses.clone(), api_url: api_url.clone() },
            Command::SetVoters(VoterPolicy::Fixed([node(1)].into())),
            Command::IssueInvitation {
                secret,
                region: region.clone(),
                role: Role::Witness,
                lifetime_ms: 5,
                issuer: node(1),
            },
            Command::IssueInvitationV1 { secret, region, role: Role::Witness, lifetime_ms: 5 },
            Command::RedeemInvitation { secret, node: node(2), addresses, api_url },
            Command::Claim {
                name: name.clone(),
                tenant: tenant.clone(),
                settings: Opaque::from(&b"{}"[..]),
                owner: node(1),
            },
            Command::ClaimV1 { name: name.clone(), tenant, settings: Opaque::from(&b"{}"[..]), owner: node(1) },
            Command::PutSettings { name: name.clone(), settings: Opaque::default(), expected_revision: Some(6) },
            Command::IssueSublease { name: name.clone(), token: secret, lifetime_ms: 9 },
            Command::RedeemSublease { name: name.clone(), token: secret, node: node(2) },
            Command::MovePrimary { name: name.clone(), to: node(1), expected_epoch: 6 },
            Command::PutDocument {
                kind: DocumentKind::User,
                id: "alice".into(),
                body: Opaque::from(&b"x"[..]),
                expected_revision: None,
            },
            Command::Forfeit { name, epoch: 7 },
            Command::RevokeInvitation { secret },
            Command::RemoveV1 { node: node(2) },
            Command::Remove { node: node(2) },
        ]
    }

    fn batch() -> Batch {
        let requests = commands().into_iter().map(|command| Request { id: RequestId::random(), command });
        Batch { time_ms: 7, requests: requests.collect() }
    }

    /// One of each message, encoded.
    fn messages() -> Vec<Vec<u8>> {
        let log_id = LogId::new(CommittedLeaderId::new(3, RaftId::from(1)), 5);
        let nodes = BTreeMap::from([(RaftId::from(1), EmptyNode::new())]);
        let membership = Membership::new(vec![[RaftId::from(1)].into()], nodes);
        let vote = Vote::new(3, RaftId::from(1));
        let mut state = State::default();
        state.apply(5, batch(), &mut Effects::default());
        let entries =
            [EntryPayload::Blank, EntryPayload::Membership(membership.clone()), EntryPayload::Normal(batch())]
                .map(|payload| Entry { log_id, payload })
                .to_vec();
        let (prev_log_id, leader_commit) = (Some(log_id), None);
        let mut all = vec![
            encode(&ConsensusRequest::Append(AppendRequest { vote, prev_log_id, entries, leader_commit })),
            encode(&ConsensusRequest::Vote(VoteRequest::new(vote, Some(log_id)))),
            encode(&ConsensusRequest::Piece(Piece {
                vote,
                meta: SnapshotMeta {
                    last_log_id: Some(log_id),
                    last_membership: StoredMembership::new(Some(log_id), membership),
                    snapshot_id: "s".into(),
                },
                transfer: 1,
                number: 0,
                rows: state.rows().collect(),
                whole: Some([1; 32]),
            })),
            encode(&ConsensusReply::Append(AppendResponse::Conflict)),
            encode(&ConsensusReply::Vote(VoteResponse::new(vote, Some(log_id), true))),
            encode(&ConsensusReply::Piece(PieceReply::Taken(vote))),
            encode(&CommandRequest::ReadIndex),
            encode(&CommandReply::NoQuorum(QuorumLoss { voters: vec![node(1)], missing: vec![] })),
            encode(&CommandReply::NotLeader(Some(node(1)))),
            encode(&CommandReply::Decided(Decision { outcome: Outcome::Refused(Refusal::EmptyId), applied: 8 })),
        ];
        all.extend(batch().requests.into_iter().map(|request| encode(&CommandRequest::Decide(request))));
        all.into_iter().map(Vec::from).collect()
    }

    #[test]
    fn commands_keep_their_wire_form() {
        for command in commands() {
            let request = CommandRequest::Decide(Request { id: RequestId::random(), command });
            assert_eq!(decode::<CommandRequest>(&encode(&request)).unwrap(), request);
        }
        // The numbers of the variants are the format: this is the removal of a member, as it was and as it is.
        for (number, command) in [(1, Command::RemoveV1 { node: node(7) }), (17, Command::Remove { node: node(7) })] {
            let id = RequestId::parse(&"0".repeat(32)).unwrap();
            let request = CommandRequest::Decide(Request { id, command });
            let mut wire = vec![1, 0, 32];
            wire.extend([b'0'; 32]);
            wire.extend([number, 64]);
            wire.extend(b"07".repeat(32));
            assert_eq!(&encode(&request)[..], &wire[..]);
        }
    }

    #[test]
    fn what_is_too_large_or_of_another_version_is_refused_with_the_reason() {
        let large = vec![VERSION; MESSAGE_SIZE_MAX + 1];
        assert!(matches!(decode::<CommandRequest>(&large), Err(WireError::TooLarge { .. })));
        assert_eq!(decode::<CommandRequest>(&[9, 1]).unwrap_err(), WireError::Version(9));
        assert_eq!(decode::<CommandRequest>(&[]).unwrap_err(), WireError::Empty);
    }

    #[test]
    fn a_length_that_is_not_there_takes_no_memory() {
        // An append request that announces 2^60 entries, and documents of 2^60 bytes.
        for prefix in messages() {
            for cut in 1..prefix.len().min(400) {
                let mut bytes = prefix[..cut].to_vec();
                bytes.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10]);
                exercise_decoders(&bytes);
            }
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            exercise_decoders(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            exercise_decoders(&bytes);
        }

        #[test]
        fn mutated_messages_never_panic(
            which in any::<proptest::sample::Index>(),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let messages = messages();
            let mut bytes = messages[which.index(messages.len())].clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            exercise_decoders(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            exercise_decoders(&bytes);
        }
    }
}
