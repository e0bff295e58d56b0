use std::net::IpAddr;

use keppel_federation::vocabulary::{RepositoryName, TenantId};

use super::{Action, ActionSet, Authority, Identity, Role};
use crate::model::policy::{CompiledPolicies, Permission};

/// What the decision needs to know of an account.
#[derive(Debug, Clone, Copy)]
pub struct AccountView<'a> {
    /// Who is billed and authorised.
    pub tenant: &'a TenantId,
    /// Its policies.
    pub policies: &'a CompiledPolicies,
}

/// What a caller may do in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Access {
    /// What they may do.
    pub actions: ActionSet,
    /// Whether they may know that it exists.
    pub see: bool,
    /// Whether their pull may have an external replica fetch what is not here yet.
    pub first_pull: bool,
}

impl Access {
    /// Nothing.
    pub const NONE: Self = Self { actions: ActionSet::NONE, see: false, first_pull: false };

    /// Whether an action is allowed.
    pub fn allows(&self, action: Action) -> bool {
        self.actions.contains(action)
    }

    /// The same access with no more than some actions.
    #[must_use]
    pub fn narrowed(self, limit: ActionSet) -> Self {
        let actions = self.actions.intersection(limit);
        Self { actions, see: self.see, first_pull: self.first_pull && actions.contains(Action::Pull) }
    }
}

/// Decides what a caller may do in a repository: what roles, robot scopes and policies grant, less what policies
/// forbid. `account` is `None` where there is no such account: then only an operator gets far enough to be told.
pub fn decide(
    identity: &Identity,
    authority: &Authority,
    account: Option<AccountView<'_>>,
    repository: &RepositoryName,
    address: IpAddr,
) -> Access {
    let Some(account) = account else {
        return match authority.operator {
            true => Access { actions: ActionSet::ALL, see: true, first_pull: false },
            false => Access::NONE,
        };
    };
    let role = authority.role(account.tenant);
    let by_office = match (authority.operator, role) {
        (true, _) | (false, Some(Role::Admin | Role::Editor)) => ActionSet::ALL,
        (false, Some(Role::Viewer)) => [Action::Pull].into_iter().collect(),
        (false, None) => by_robot_scopes(authority, account.tenant, repository),
    };
    let verdict = account.policies.rbac(identity.username(), repository.path(), address);
    let granted = verdict.granted.without(verdict.forbidden);
    let by_policy: ActionSet = [
        (Permission::Pull, Action::Pull),
        (Permission::Push, Action::Push),
        (Permission::Delete, Action::Delete),
        (Permission::AnonymousPull, Action::Pull),
    ]
    .into_iter()
    .filter_map(|(permission, action)| granted.contains(permission).then_some(action))
    .collect();
    let forbidden = |action: Action| {
        let permission = match action {
            Action::Pull => Permission::Pull,
            Action::Push => Permission::Push,
            Action::Delete => Permission::Delete,
        };
        verdict.forbidden.contains(permission)
    };
    let actions: ActionSet = by_office.union(by_policy).iter().filter(|action| !forbidden(*action)).collect();
    let may_fetch = identity.username().is_some() || granted.contains(Permission::AnonymousFirstPull);
    Access {
        actions,
        see: authority.operator || role.is_some() || !actions.is_empty(),
        first_pull: may_fetch && actions.contains(Action::Pull),
    }
}

fn by_robot_scopes(authority: &Authority, tenant: &TenantId, repository: &RepositoryName) -> ActionSet {
    let fits = authority.grants.iter().filter(|grant| {
        grant.tenant == *tenant
            && grant.account.as_ref().is_none_or(|account| account.as_str() == repository.account_str())
            && grant.repository.matches(repository.path())
    });
    fits.fold(ActionSet::NONE, |sum, grant| sum.union(grant.actions))
}
