//! What a member may ask for in its own name only.
//!
//! Members are trusted to decide with the others; but what one leaves behind must be known as its own, so that it can be
//! taken away with the membership. The node that leads looks at this, since it knows who asks.

use super::command::Command;
use super::model::DocumentKind;
use super::outcome::Refusal;
use super::view::View;
use crate::vocabulary::{IssuerKeyId, NodeId};

/// The command as it is decided when this member asks for it. What a member of an older version asks for becomes what it
/// is today.
pub(super) fn vetted(command: Command, from: NodeId, view: &View) -> Result<Command, Refusal> {
    match command {
        Command::KeepOnly { .. } | Command::KeepOnlyV1 { .. } => Err(Refusal::RecoveryOnly),
        Command::RemoveV1 { node } => Ok(Command::Remove { node }),
        Command::IssueInvitationV1 { secret, region, role, lifetime_ms } => {
            Ok(Command::IssueInvitation { secret, region, role, lifetime_ms, issuer: from })
        }
        Command::ClaimV1 { name, tenant, settings, owner } => Ok(Command::Claim { name, tenant, settings, owner }),
        Command::IssueInvitation { issuer, .. } if issuer != from => Err(Refusal::InOwnNameOnly),
        // Others may revoke a key, which is there then. Which key it is, its id says.
        Command::PutDocument { kind: DocumentKind::IssuerKey, ref id, .. }
            if IssuerKeyId::parse(id).is_ok_and(|id| id.node() != from)
                && view.document(DocumentKind::IssuerKey, id).is_none() =>
        {
            Err(Refusal::InOwnNameOnly)
        }
        other => Ok(other),
    }
}
