//! What the host has decided by the federation. Thin: the rules are consensus' business.

use std::time::Duration;

use super::Federation;
use crate::claims::{ClaimsError, Command, Decision, DocumentKind, Member, Opaque, SecretHash, View, VoterPolicy};
use crate::vocabulary::{AccountName, NodeId, RequestId, TenantId};

impl Federation {
    /// Has a command decided, wherever the leader is. A refusal is a decision, not an error.
    ///
    /// Cancel safety: dropping the future leaves open whether the command is carried out.
    ///
    /// # Errors
    /// Any [`ClaimsError`]; [`ClaimsError::NoQuorum`] says what is missing and what to do.
    pub async fn submit(&self, command: Command) -> Result<Decision, ClaimsError> {
        self.inner.claims().submit(command).await
    }

    /// Like [`Federation::submit`], under a request id: the same id again gives the first decision again.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn submit_as(&self, request: RequestId, command: Command) -> Result<Decision, ClaimsError> {
        self.inner.claims().submit_as(request, command).await
    }

    /// Waits until [`Federation::state`] shows everything that was decided before this call, anywhere.
    ///
    /// # Errors
    /// Any [`ClaimsError`].
    pub async fn linearize(&self) -> Result<View, ClaimsError> {
        self.inner.claims().linearize().await
    }

    /// The last moment, as [`uptime`](crate::vocabulary::uptime), at which a majority is known to have stood behind what
    /// this node sees; none: none since it started.
    pub fn majority_asked_at(&self) -> Option<Duration> {
        self.inner.claims().majority_asked_at()
    }

    /// Asks for a majority's confirmation now and gives the moment from which it counts, as
    /// [`uptime`](crate::vocabulary::uptime).
    ///
    /// # Errors
    /// Those of [`Federation::linearize`].
    pub async fn confirm_majority(&self) -> Result<Duration, ClaimsError> {
        self.inner.claims().confirm_majority().await
    }

    /// Waits until a leader is known. Cancel-safe; the caller sets the deadline.
    pub async fn wait_for_leader(&self) -> Option<NodeId> {
        self.inner.claims().wait_for_leader().await
    }

    /// All members, in the order of their ids.
    pub fn members(&self) -> Vec<Member> {
        self.state().members().iter().map(|member| (**member).clone()).collect()
    }

    /// Ends a node's membership. It is cut off by every member that learns of it, at once; the keys that it published and
    /// the invitations that it made go with it.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn remove(&self, node: NodeId) -> Result<Decision, ClaimsError> {
        self.submit(Command::Remove { node }).await
    }

    /// Takes an invitation back that nobody has used.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn revoke_invitation(&self, secret: SecretHash) -> Result<Decision, ClaimsError> {
        self.submit(Command::RevokeInvitation { secret }).await
    }

    /// Decides who votes.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn set_voters(&self, policy: VoterPolicy) -> Result<Decision, ClaimsError> {
        self.submit(Command::SetVoters(policy)).await
    }

    /// Claims an account name for this node.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn claim(&self, name: AccountName, tenant: TenantId, settings: Opaque) -> Result<Decision, ClaimsError> {
        let owner = self.node();
        self.submit(Command::Claim { name, tenant, settings, owner }).await
    }

    /// Gives a claim back, if it is still the one of `epoch`.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn forfeit(&self, name: AccountName, epoch: u64) -> Result<Decision, ClaimsError> {
        self.submit(Command::Forfeit { name, epoch }).await
    }

    /// Replaces the settings of an account, if they still have the expected revision.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn put_settings(
        &self,
        name: AccountName,
        settings: Opaque,
        expected_revision: Option<u64>,
    ) -> Result<Decision, ClaimsError> {
        self.submit(Command::PutSettings { name, settings, expected_revision }).await
    }

    /// Makes another member the primary of an account, if it is still in the expected epoch.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn move_primary(
        &self,
        name: AccountName,
        to: NodeId,
        expected_epoch: u64,
    ) -> Result<Decision, ClaimsError> {
        self.submit(Command::MovePrimary { name, to, expected_epoch }).await
    }

    /// Records a sublease token, good once and for `lifetime`.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn issue_sublease(
        &self,
        name: AccountName,
        token: SecretHash,
        lifetime: Duration,
    ) -> Result<Decision, ClaimsError> {
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        self.submit(Command::IssueSublease { name, token, lifetime_ms }).await
    }

    /// Uses a sublease token up for this node.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn redeem_sublease(&self, name: AccountName, token: SecretHash) -> Result<Decision, ClaimsError> {
        let node = self.node();
        self.submit(Command::RedeemSublease { name, token, node }).await
    }

    /// Creates or replaces a document, if it still has the expected revision.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn put_document(
        &self,
        kind: DocumentKind,
        id: String,
        body: Opaque,
        expected_revision: Option<u64>,
    ) -> Result<Decision, ClaimsError> {
        self.submit(Command::PutDocument { kind, id, body, expected_revision }).await
    }

    /// Removes a document, if it still has the expected revision.
    ///
    /// # Errors
    /// Those of [`Federation::submit`].
    pub async fn remove_document(
        &self,
        kind: DocumentKind,
        id: String,
        expected_revision: Option<u64>,
    ) -> Result<Decision, ClaimsError> {
        self.submit(Command::RemoveDocument { kind, id, expected_revision }).await
    }
}
