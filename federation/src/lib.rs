//! What happens between the regions of a Keppel federation.
//!
//! This crate knows nodes, regions, accounts and claims. It deliberately knows no HTTP and nothing of what an image
//! means: the registry that hosts it gives meaning to the content.
//!
//! | room | its job |
//! | --- | --- |
//! | [`vocabulary`] | names, digests and identifiers, parsed once at the border |
//! | [`identity`] | the key of a node, whose public half is the node's id |
//! | [`wire`] | bytes to messages and back, limits, version negotiation |
//! | [`membership`] | who is reachable, and what members say of themselves |
//! | [`claims`] | consensus on members, claims and account settings; its SQLite log, state and snapshots |
//! | [`transport`] | requests and datagrams between authenticated nodes |

pub mod claims;
pub mod identity;
pub mod membership;
pub mod transport;
pub mod vocabulary;
pub mod wire;
