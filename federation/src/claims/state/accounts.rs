//! The rules of claims, settings, subleases and primaries.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::model::{Account, AccountState, Opaque, Role, SecretHash, Sublease};
use super::super::outcome::{Outcome, Refusal};
use super::row::{Row, RowKind};
use super::{Change, Effects, State};
use crate::vocabulary::{AccountName, NodeId, TenantId};

/// How many unused sublease tokens an account may have.
const SUBLEASES_PER_ACCOUNT_MAX: usize = 64;

impl State {
    pub(super) fn claim(
        &mut self,
        name: AccountName,
        tenant: TenantId,
        settings: Opaque,
        owner: NodeId,
        claim_id: u64,
        effects: &mut Effects,
    ) -> Outcome {
        if let Some(account) = self.accounts.get(&name) {
            let Account { epoch, settings_revision, .. } = **account;
            return match account.owner == owner && account.tenant == tenant {
                true => Outcome::Won { epoch, settings_revision, created: false },
                false => Outcome::Taken { region: account.region.clone(), node: account.owner, epoch },
            };
        }
        let Some(member) = self.members.get(&owner) else { return Outcome::NotMember { node: owner } };
        if member.role == Role::Witness {
            return Outcome::Refused(Refusal::Witness);
        }
        let account = Account {
            name: name.clone(),
            tenant: tenant.clone(),
            settings,
            settings_revision: self.sequence,
            owner,
            region: member.region.clone(),
            epoch: self.sequence,
            state: AccountState::Active,
            created_at_ms: self.clock_ms,
            replicas: BTreeMap::new(),
            claim_id,
        };
        let won = Outcome::Won { epoch: account.epoch, settings_revision: account.settings_revision, created: true };
        self.by_tenant.insert((tenant, name));
        self.store_account(account, effects);
        won
    }

    pub(super) fn forfeit(&mut self, name: &AccountName, epoch: u64, effects: &mut Effects) -> Outcome {
        let Some(account) = self.accounts.get(name) else { return Outcome::NotFound };
        if account.epoch != epoch {
            return Outcome::StaleEpoch { epoch: account.epoch, owner: account.owner };
        }
        self.by_tenant.remove(&(account.tenant.clone(), name.clone()));
        self.accounts.remove(name);
        effects.rows.push(Row::delete(RowKind::Account, name.as_str()));
        effects.changes.push(Change::Account(name.clone()));
        self.drop_subleases(effects, |sublease| sublease.account == *name);
        Outcome::Done
    }

    pub(super) fn put_settings(
        &mut self,
        name: &AccountName,
        settings: Opaque,
        expected_revision: Option<u64>,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(account) = self.accounts.get(name) else { return Outcome::NotFound };
        if expected_revision.is_some_and(|expected| expected != account.settings_revision) {
            return Outcome::Conflict { revision: account.settings_revision };
        }
        let revision = self.sequence;
        self.store_account(Account { settings, settings_revision: revision, ..(**account).clone() }, effects);
        Outcome::Stored { revision }
    }

    pub(super) fn set_deleting(&mut self, name: &AccountName, deleting: bool, effects: &mut Effects) -> Outcome {
        let Some(account) = self.accounts.get(name) else { return Outcome::NotFound };
        let state = if deleting { AccountState::Deleting } else { AccountState::Active };
        if account.state != state {
            self.store_account(Account { state, ..(**account).clone() }, effects);
        }
        Outcome::Done
    }

    pub(super) fn issue_sublease(
        &mut self,
        name: AccountName,
        token: SecretHash,
        lifetime_ms: u64,
        effects: &mut Effects,
    ) -> Outcome {
        if !self.accounts.contains_key(&name) {
            return Outcome::NotFound;
        }
        let now = self.clock_ms;
        self.drop_subleases(effects, |sublease| sublease.expires_at_ms <= now);
        if self.subleases.values().filter(|sublease| sublease.account == name).count() >= SUBLEASES_PER_ACCOUNT_MAX {
            let limit = SUBLEASES_PER_ACCOUNT_MAX as u64;
            return Outcome::Refused(Refusal::OverLimit { what: "unused sublease tokens".into(), limit });
        }
        let sublease = Sublease { token, account: name, expires_at_ms: now.saturating_add(lifetime_ms) };
        effects.rows.push(Row::sublease(&sublease));
        self.subleases.insert(token, sublease);
        Outcome::Done
    }

    pub(super) fn redeem_sublease(
        &mut self,
        name: &AccountName,
        token: SecretHash,
        node: NodeId,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(account) = self.accounts.get(name) else { return Outcome::NotFound };
        let Some(sublease) = self.subleases.get(&token).filter(|sublease| sublease.account == *name) else {
            return Outcome::NotFound;
        };
        if sublease.expires_at_ms <= self.clock_ms {
            return Outcome::Expired;
        }
        let Some(member) = self.members.get(&node) else { return Outcome::NotMember { node } };
        if member.role == Role::Witness {
            return Outcome::Refused(Refusal::Witness);
        }
        let mut account = (**account).clone();
        account.replicas.insert(node, member.region.clone());
        self.subleases.remove(&token);
        effects.rows.push(Row::delete(RowKind::Sublease, token.hex()));
        self.store_account(account, effects);
        Outcome::Done
    }

    pub(super) fn detach_replica(&mut self, name: &AccountName, node: NodeId, effects: &mut Effects) -> Outcome {
        let Some(account) = self.accounts.get(name) else { return Outcome::NotFound };
        let mut account = (**account).clone();
        if account.replicas.remove(&node).is_none() {
            return Outcome::NotFound;
        }
        self.store_account(account, effects);
        Outcome::Done
    }

    pub(super) fn move_primary(
        &mut self,
        name: &AccountName,
        to: NodeId,
        expected_epoch: u64,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(account) = self.accounts.get(name) else { return Outcome::NotFound };
        if account.epoch != expected_epoch {
            return Outcome::StaleEpoch { epoch: account.epoch, owner: account.owner };
        }
        let Some(member) = self.members.get(&to) else { return Outcome::NotMember { node: to } };
        if member.role == Role::Witness {
            return Outcome::Refused(Refusal::Witness);
        }
        let mut account = (**account).clone();
        // The old primary keeps what it has, as a replica; the new one is no replica of itself.
        account.replicas.insert(account.owner, account.region.clone());
        account.replicas.remove(&to);
        account.owner = to;
        account.region = member.region.clone();
        account.epoch += 1;
        let epoch = account.epoch;
        self.store_account(account, effects);
        Outcome::Moved { epoch }
    }

    fn store_account(&mut self, account: Account, effects: &mut Effects) {
        effects.rows.push(Row::account(&account));
        effects.changes.push(Change::Account(account.name.clone()));
        self.accounts.insert(account.name.clone(), Arc::new(account));
    }

    fn drop_subleases(&mut self, effects: &mut Effects, drop: impl Fn(&Sublease) -> bool) {
        let dropped = self.subleases.extract_if(.., |_, sublease| drop(sublease));
        effects.rows.extend(dropped.map(|(token, _)| Row::delete(RowKind::Sublease, token.hex())));
    }
}
