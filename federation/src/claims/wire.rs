//! The messages between the claims rooms of two nodes: bytes <-> messages, pure.
//!
//! Every message begins with a version byte. What does not decode is refused with a reason; nothing panics, and no
//! more memory is taken than the message is long, times a small factor.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::command::Request;
use super::outcome::{Decision, QuorumLoss};
use super::raft::{AppendRequest, AppendResponse, SnapshotMeta, Vote, VoteRequest, VoteResponse};
use super::state::Row;
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
