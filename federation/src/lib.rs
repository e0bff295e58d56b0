//! What happens between the regions of a Keppel federation.
//!
//! This crate knows nodes, regions, accounts and claims. It deliberately knows no HTTP and nothing of what an image
//! means: the registry that hosts it gives meaning to the content.
//!
//! The host uses one type, [`Federation`]; what it takes and gives are the words of [`vocabulary`] and the plain data of
//! [`claims`], [`membership`] and [`admission`]. `examples/three_nodes.rs` shows it at work.
//!
//! | room | its job |
//! | --- | --- |
//! | [`vocabulary`] | names, digests and identifiers, parsed once at the border |
//! | [`identity`] | the key of a node, whose public half is the node's id |
//! | [`wire`] | bytes to messages and back, limits, version negotiation |
//! | [`transport`] | requests and datagrams between authenticated nodes: QUIC, and its in-memory twin |
//! | [`membership`] | who is reachable, and what members say of themselves |
//! | [`claims`] | consensus on members, claims and account settings; its SQLite log, state and snapshots |
//! | [`content`] | the trait by which the host hands out what it stores |
//! | [`admission`] | invitations, and how a node remembers that it was let in |
//! | `node` | ties the rooms together: the façade |

pub mod admission;
pub mod claims;
pub mod content;
pub mod identity;
pub mod membership;
mod node;
pub mod transport;
pub mod vocabulary;
pub mod wire;

pub use node::{
    Federation, FederationEvent, FederationEvents, FederationOptions, FederationStatus, InviteError, JoinError,
    MemberStatus, QuorumStatus, RetireError, Retired, StartError, StateStatus, retire,
};
