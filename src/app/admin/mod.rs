//! The operator's door to a running node: a socket in the data folder, for the folder's owner only.
//!
//! One request and one answer per connection, each a line of JSON. It has what only an operator may do to the
//! federation; everything about images goes through HTTP.

mod audit;
mod client;
mod invitations;
mod message;
mod server;
mod socket;
mod succession;

pub use crate::registry::{DivergentEntry, Readiness};
pub use client::{AdminError, ask};
pub use keppel_federation::{FederationStatus, MemberStatus};
pub use message::{
    AccountInfo, Answer, CandidateInfo, CopyInfo, EagerInfo, HoldingInfo, InvitationInfo, InvitedRole, MemberInfo,
    Request,
};
pub(super) use server::AdminServer;
