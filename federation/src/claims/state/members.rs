//! The rules of membership, voters and invitations.

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::model::{DocumentKind, Invitation, Member, NewMember, Role, SecretHash, VoterPolicy};
use super::super::outcome::{Outcome, Refusal};
use super::row::{Row, RowKind, document_key};
use super::{Change, Effects, State};
use crate::vocabulary::{IssuerKeyId, NodeId, Region};

/// How many members a federation may have.
const MEMBERS_MAX: usize = 1000;
/// How many invitations may be remembered.
const INVITATIONS_MAX: usize = 1000;
/// How long a used or expired invitation is remembered, so that it is refused with the right reason.
const INVITATION_MEMORY_MS: u64 = 24 * 3600 * 1000;

/// What an invitation says.
pub(super) struct Terms {
    pub(super) secret: SecretHash,
    pub(super) region: Region,
    pub(super) role: Role,
    pub(super) issuer: Option<NodeId>,
}

impl State {
    pub(super) fn admit(&mut self, new: NewMember, effects: &mut Effects) -> Outcome {
        let admitted_at_ms = match self.members.get(&new.node) {
            Some(member) if member.region != new.region || member.role != new.role => {
                return Outcome::Refused(Refusal::OtherRegionOrRole);
            }
            Some(member) => member.admitted_at_ms,
            None if self.members.len() >= MEMBERS_MAX => {
                let limit = MEMBERS_MAX as u64;
                return Outcome::Refused(Refusal::OverLimit { what: "members".into(), limit });
            }
            None => self.clock_ms,
        };
        let NewMember { node, region, role, addresses, api_url } = new;
        let member = Member { node, region, role, addresses, api_url, admitted_at_ms };
        self.store_member(member.clone(), effects);
        Outcome::Admitted(member)
    }

    pub(super) fn remove_member(&mut self, node: NodeId, effects: &mut Effects) -> Outcome {
        let Some(member) = self.members.get(&node) else { return Outcome::NotFound };
        let full = self.members.values().filter(|member| member.role == Role::Full).count();
        if member.role == Role::Full && full == 1 {
            return Outcome::Refused(Refusal::LastMember);
        }
        if let Some(voters) = &mut self.voters {
            voters.remove(&node);
            if voters.is_empty() {
                self.voters = None;
            }
        }
        self.drop_member(node, effects);
        Outcome::Done
    }

    pub(super) fn update_member(
        &mut self,
        node: NodeId,
        addresses: Vec<SocketAddr>,
        api_url: String,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(member) = self.members.get(&node) else { return Outcome::NotFound };
        self.store_member(Member { addresses, api_url, ..(**member).clone() }, effects);
        Outcome::Done
    }

    pub(super) fn set_voters(&mut self, policy: VoterPolicy, effects: &mut Effects) -> Outcome {
        self.voters = match policy {
            VoterPolicy::Automatic => None,
            VoterPolicy::Fixed(nodes) => {
                if let Some(node) = nodes.iter().find(|node| !self.members.contains_key(node)) {
                    return Outcome::NotMember { node: *node };
                }
                Some(nodes)
            }
        };
        effects.changes.push(Change::Voters);
        Outcome::Done
    }

    pub(super) fn issue_invitation(&mut self, terms: Terms, lifetime_ms: u64, effects: &mut Effects) -> Outcome {
        let Terms { secret, region, role, issuer } = terms;
        if let Some(node) = issuer.filter(|node| !self.members.contains_key(node)) {
            return Outcome::NotMember { node };
        }
        let forget_before = self.clock_ms.saturating_sub(INVITATION_MEMORY_MS);
        let forgotten = self.invitations.extract_if(.., |_, invitation| invitation.expires_at_ms < forget_before);
        effects.rows.extend(forgotten.map(|(secret, _)| Row::delete(RowKind::Invitation, secret.hex())));
        if self.invitations.len() >= INVITATIONS_MAX {
            let limit = INVITATIONS_MAX as u64;
            return Outcome::Refused(Refusal::OverLimit { what: "invitations".into(), limit });
        }
        let expires_at_ms = self.clock_ms.saturating_add(lifetime_ms);
        self.store_invitation(Invitation { secret, region, role, expires_at_ms, used_by: None, issuer }, effects);
        Outcome::Done
    }

    pub(super) fn revoke_invitation(&mut self, secret: SecretHash, effects: &mut Effects) -> Outcome {
        match self.invitations.get(&secret) {
            None => Outcome::NotFound,
            Some(invitation) if invitation.used_by.is_some() => Outcome::AlreadyUsed,
            Some(_) => {
                self.drop_invitations(effects, |invitation| invitation.secret == secret);
                Outcome::Done
            }
        }
    }

    pub(super) fn redeem_invitation(
        &mut self,
        secret: SecretHash,
        node: NodeId,
        addresses: Vec<SocketAddr>,
        api_url: String,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(invitation) = self.invitations.get(&secret).cloned() else { return Outcome::NotFound };
        // One that an old command removed, which left its invitations.
        let is_void = invitation.issuer.is_some_and(|issuer| !self.members.contains_key(&issuer));
        match (invitation.used_by, self.members.get(&node)) {
            // The answer got lost on the way, and the node asks again.
            (Some(user), Some(member)) if user == node => return Outcome::Admitted((**member).clone()),
            (Some(_), _) => return Outcome::AlreadyUsed,
            (None, _) if is_void => return Outcome::NotFound,
            (None, _) if invitation.expires_at_ms <= self.clock_ms => return Outcome::Expired,
            (None, _) => {}
        }
        let (region, role) = (invitation.region.clone(), invitation.role);
        let outcome = self.admit(NewMember { node, region, role, addresses, api_url }, effects);
        if matches!(outcome, Outcome::Admitted(_)) {
            self.store_invitation(Invitation { used_by: Some(node), ..invitation }, effects);
        }
        outcome
    }

    pub(super) fn keep_only(&mut self, node: NodeId, effects: &mut Effects) -> Outcome {
        if !self.members.contains_key(&node) {
            return Outcome::NotMember { node };
        }
        let others: Vec<_> = self.members.keys().copied().filter(|other| *other != node).collect();
        for other in others {
            self.drop_member(other, effects);
        }
        self.voters = None;
        effects.changes.push(Change::Voters);
        Outcome::Done
    }

    /// Takes away by what nodes that are no members could still act like some: the keys that they published, and unused
    /// invitations that they made, or may have made where that was not noted.
    pub(super) fn drop_what_is_left_of(&mut self, is_gone: impl Fn(NodeId) -> bool, effects: &mut Effects) {
        self.drop_invitations(effects, |invitation| {
            invitation.used_by.is_none() && invitation.issuer.is_none_or(&is_gone)
        });
        let keys = self.documents_after(DocumentKind::IssuerKey, "").map(|document| document.id.clone());
        let keys = keys.filter(|id| IssuerKeyId::parse(id).is_ok_and(|key| is_gone(key.node())));
        for id in keys.collect::<Vec<_>>() {
            effects.rows.push(Row::delete(RowKind::Document, document_key(DocumentKind::IssuerKey, &id)));
            effects.changes.push(Change::Document(DocumentKind::IssuerKey, id.clone()));
            self.documents.remove(&(DocumentKind::IssuerKey, id));
        }
    }

    fn drop_invitations(&mut self, effects: &mut Effects, drop: impl Fn(&Invitation) -> bool) {
        let dropped = self.invitations.extract_if(.., |_, invitation| drop(invitation));
        effects.rows.extend(dropped.map(|(secret, _)| Row::delete(RowKind::Invitation, secret.hex())));
    }

    fn store_member(&mut self, member: Member, effects: &mut Effects) {
        effects.rows.push(Row::member(&member));
        effects.changes.push(Change::Member(member.node));
        self.members.insert(member.node, Arc::new(member));
    }

    fn drop_member(&mut self, node: NodeId, effects: &mut Effects) {
        self.members.remove(&node);
        effects.rows.push(Row::delete(RowKind::Member, node.to_string()));
        effects.changes.push(Change::Member(node));
    }

    fn store_invitation(&mut self, invitation: Invitation, effects: &mut Effects) {
        effects.rows.push(Row::invitation(&invitation));
        self.invitations.insert(invitation.secret, invitation);
    }
}
