//! Invitations: which there are, and taking one back.

use std::time::{SystemTime, UNIX_EPOCH};

use keppel_federation::Federation;
use keppel_federation::claims::{Invitation, Outcome};

use super::server::in_words;
use super::{Answer, InvitationInfo};

/// The invitations that are remembered: those that can still be used first, and of these the one that ends last.
pub(super) fn list(federation: &Federation) -> Vec<InvitationInfo> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let info = |invitation: Invitation| InvitationInfo {
        id: invitation.secret.hex(),
        region: invitation.region,
        role: invitation.role.as_str().to_owned(),
        issuer: invitation.issuer,
        expires_at_ms: invitation.expires_at_ms,
        expired: invitation.expires_at_ms <= now_ms,
        used_by: invitation.used_by,
    };
    let mut all: Vec<InvitationInfo> = federation.state().invitations().into_iter().map(info).collect();
    all.sort_by_key(|info| (info.used_by.is_some() || info.expired, std::cmp::Reverse(info.expires_at_ms)));
    all
}

/// Takes the one back whose id begins so.
pub(super) async fn revoke(federation: &Federation, id: &str) -> Result<Answer, String> {
    let all = federation.state().invitations();
    let found: Vec<_> = all.iter().filter(|known| !id.is_empty() && known.secret.hex().starts_with(id)).collect();
    let [invitation] = found[..] else {
        return Err(match found.len() {
            0 => format!("no invitation has an id that begins with {id:?}: see `keppel federation invitations`"),
            count => format!("{count} invitations have ids that begin with {id:?}: write more of it"),
        });
    };
    match federation.revoke_invitation(invitation.secret).await.map_err(in_words)?.outcome {
        Outcome::Done => Ok(Answer::Done),
        Outcome::AlreadyUsed => {
            Err("it has been used: end the membership of the node with `keppel federation remove`".into())
        }
        Outcome::NotFound => Err("it is gone already".into()),
        other => Err(format!("unexpected outcome: {other:?}")),
    }
}
