//! From a batch of requests to decisions.

use super::super::command::{Batch, Command, Request};
use super::super::outcome::{Decision, Outcome};
use super::dedup::Answer;
use super::former::former_claim_id;
use super::members::Terms;
use super::row::{Row, RowKind};
use super::{Effects, State};

impl State {
    /// Decides every request of a log entry, in order.
    pub(in super::super) fn apply(&mut self, index: u64, batch: Batch, effects: &mut Effects) -> Vec<Decision> {
        self.clock_ms = self.clock_ms.max(batch.time_ms);
        let decisions = batch.requests.into_iter().map(|request| self.decide(index, request, effects)).collect();
        effects.rows.push(Row::counters(self));
        decisions
    }

    fn decide(&mut self, index: u64, request: Request, effects: &mut Effects) -> Decision {
        if let Some(Answer { outcome, applied }) = self.answered.get(&request.id) {
            return Decision { outcome: outcome.clone(), applied: *applied };
        }
        self.sequence += 1;
        let outcome = match request.command.check() {
            Ok(()) => self.carry_out(request.command, effects),
            Err(refusal) => Outcome::Refused(refusal),
        };
        let answer = Answer { outcome: outcome.clone(), applied: index };
        let (order, forgotten) = self.answered.record(request.id.clone(), answer.clone());
        effects.rows.push(Row::answer(&request.id, order, &answer));
        effects.rows.extend(forgotten.map(|request| Row::delete(RowKind::Answer, request.as_str())));
        Decision { outcome, applied: index }
    }

    fn carry_out(&mut self, command: Command, effects: &mut Effects) -> Outcome {
        match command {
            Command::Admit(member) => self.admit(member, effects),
            Command::RemoveV1 { node } => self.remove_member(node, effects),
            Command::Remove { node } => {
                let outcome = self.remove_member(node, effects);
                if outcome == Outcome::Done {
                    self.drop_what_is_left_of(|left| left == node, effects);
                }
                outcome
            }
            Command::UpdateMember { node, addresses, api_url } => self.update_member(node, addresses, api_url, effects),
            Command::SetVoters(policy) => self.set_voters(policy, effects),
            Command::IssueInvitationV1 { secret, region, role, lifetime_ms } => {
                self.issue_invitation(Terms { secret, region, role, issuer: None }, lifetime_ms, effects)
            }
            Command::IssueInvitation { secret, region, role, lifetime_ms, issuer } => {
                self.issue_invitation(Terms { secret, region, role, issuer: Some(issuer) }, lifetime_ms, effects)
            }
            Command::RevokeInvitation { secret } => self.revoke_invitation(secret, effects),
            Command::RedeemInvitation { secret, node, addresses, api_url } => {
                self.redeem_invitation(secret, node, addresses, api_url, effects)
            }
            Command::KeepOnlyV1 { node } => self.keep_only(node, effects),
            Command::KeepOnly { node } => {
                let outcome = self.keep_only(node, effects);
                if outcome == Outcome::Done {
                    self.drop_what_is_left_of(|left| left != node, effects);
                }
                outcome
            }
            Command::ClaimV1 { name, tenant, settings, owner } => {
                let claim_id = former_claim_id(self.clock_ms);
                self.claim(name, tenant, settings, owner, claim_id, effects)
            }
            Command::Claim { name, tenant, settings, owner } => {
                self.claim(name, tenant, settings, owner, self.sequence, effects)
            }
            Command::Forfeit { name, epoch } => self.forfeit(&name, epoch, effects),
            Command::PutSettings { name, settings, expected_revision } => {
                self.put_settings(&name, settings, expected_revision, effects)
            }
            Command::SetDeleting { name, deleting } => self.set_deleting(&name, deleting, effects),
            Command::IssueSublease { name, token, lifetime_ms } => {
                self.issue_sublease(name, token, lifetime_ms, effects)
            }
            Command::RedeemSublease { name, token, node } => self.redeem_sublease(&name, token, node, effects),
            Command::DetachReplica { name, node } => self.detach_replica(&name, node, effects),
            Command::MovePrimary { name, to, expected_epoch } => self.move_primary(&name, to, expected_epoch, effects),
            Command::PutDocument { kind, id, body, expected_revision } => {
                self.put_document(kind, id, body, expected_revision, effects)
            }
            Command::RemoveDocument { kind, id, expected_revision } => {
                self.remove_document(kind, id, expected_revision, effects)
            }
        }
    }
}
