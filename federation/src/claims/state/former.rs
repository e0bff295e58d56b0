//! How rows were written before, and what they mean now: the same on every node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::model::{Account, AccountState, Invitation, Opaque, Role, SecretHash};
use crate::vocabulary::{AccountName, NodeId, Region, TenantId};

/// What tells a claim from others that was made by a command of the first version: when it was made, in milliseconds. No
/// count of commands comes near that.
pub(super) fn former_claim_id(created_at_ms: u64) -> u64 {
    created_at_ms
}

/// The first version of [`Account`].
#[derive(Serialize, Deserialize)]
pub(super) struct AccountV1 {
    name: AccountName,
    tenant: TenantId,
    settings: Opaque,
    settings_revision: u64,
    owner: NodeId,
    region: Region,
    epoch: u64,
    state: AccountState,
    created_at_ms: u64,
    replicas: BTreeMap<NodeId, Region>,
}

impl From<AccountV1> for Account {
    fn from(former: AccountV1) -> Self {
        Self {
            name: former.name,
            tenant: former.tenant,
            settings: former.settings,
            settings_revision: former.settings_revision,
            owner: former.owner,
            region: former.region,
            epoch: former.epoch,
            state: former.state,
            created_at_ms: former.created_at_ms,
            replicas: former.replicas,
            claim_id: former_claim_id(former.created_at_ms),
        }
    }
}

/// The first version of [`Invitation`].
#[derive(Serialize, Deserialize)]
pub(super) struct InvitationV1 {
    secret: SecretHash,
    region: Region,
    role: Role,
    expires_at_ms: u64,
    used_by: Option<NodeId>,
}

impl From<InvitationV1> for Invitation {
    fn from(former: InvitationV1) -> Self {
        let InvitationV1 { secret, region, role, expires_at_ms, used_by } = former;
        Self { secret, region, role, expires_at_ms, used_by, issuer: None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Row, RowKind, State};
    use super::*;

    fn load(kind: RowKind, key: &str, hex: &str) -> State {
        let body = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        let mut state = State::default();
        state.load(&Row { kind, key: key.into(), body: Some(body) }).unwrap();
        state
    }

    /// `01` the version, `acme`, `t`, `{}`, revision 5, the owner in 64 digits, `eu`, epoch 7, active, 1,700,000,000,000 ms,
    /// no replicas: as the first version wrote it.
    #[test]
    fn an_account_of_the_first_version_is_read_and_known_by_when_it_was_claimed() {
        let owner = "3037".repeat(32);
        let row = format!("010461636d650174027b7d0540{owner}026575070080d095ffbc3100");
        let state = load(RowKind::Account, "acme", &row);
        let account = state.account(&AccountName::parse("acme").unwrap()).unwrap();
        assert_eq!((account.owner, account.epoch), (NodeId::from_public_key([7; 32]), 7));
        assert_eq!((account.created_at_ms, account.claim_id), (1_700_000_000_000, 1_700_000_000_000));
        assert_eq!((account.tenant.as_str(), account.settings.as_bytes()), ("t", &b"{}"[..]));
        // Written again it has the new form, which says the same.
        let again = Row::account(account);
        let mut read = State::default();
        read.load(&again).unwrap();
        assert_eq!((read.hash(), again.body.unwrap()[0]), (state.hash(), 2));
    }

    /// The version, the hash of the secret, `eu`, full, 1,700,000,000,000 ms, not used.
    #[test]
    fn an_invitation_of_the_first_version_is_read_and_nobody_made_it() {
        let row = format!("01{}0265750080d095ffbc3100", "aa".repeat(32));
        let state = load(RowKind::Invitation, "k", &row);
        let invitation = state.invitations().next().unwrap();
        assert_eq!((invitation.issuer, invitation.used_by), (None, None));
        assert_eq!((invitation.region.as_str(), invitation.expires_at_ms), ("eu", 1_700_000_000_000));
    }
}
