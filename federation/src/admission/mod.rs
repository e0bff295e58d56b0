//! How a node becomes a member: invitations, and the one message in which they are shown.
//!
//! An invitation is a text that a member makes and an operator carries to the new node. It names some members by key
//! and address, so that the new node shows the secret to nobody else; the federation's replicated state holds only the
//! hash of the secret, knows whether it was used, and by its own clock whether it has expired.
//!
//! This room has the forms and what a node remembers while it joins; when to do what is the façade's business.

mod introduction;
mod invitation;
mod message;

pub use introduction::{Introduction, IntroductionError};
pub use invitation::{Door, FederationId, Invitation, InvitationError, Secret};
pub use message::{Admitted, JoinRequest, MessageError, exercise_decoders};
