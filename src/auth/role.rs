use std::collections::BTreeMap;

use keppel_federation::vocabulary::{AccountName, TenantId};
use serde::{Deserialize, Serialize};

use super::ActionSet;
use crate::model::policy::Pattern;

/// What a user is in a tenant. A higher role may do all that a lower one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees the tenant's accounts and pulls from them.
    Viewer,
    /// Pushes and deletes images.
    Editor,
    /// Makes, changes and deletes accounts, and robots.
    Admin,
}

impl Role {
    /// All of them, from the lowest.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Editor, Self::Admin];

    /// Its name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }
}

/// What can be done with a tenant and its accounts, apart from images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// See an account of the tenant and its settings.
    ViewAccount,
    /// Make, change and delete an account of the tenant.
    EditAccount,
    /// Make, change and delete robots of the tenant.
    EditRobots,
    /// See the tenant's quota.
    ViewQuota,
    /// Change the tenant's quota.
    EditQuota,
    /// Make, change and delete tenants and users.
    EditTenant,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::ViewAccount, Self::EditAccount, Self::EditRobots, Self::ViewQuota, Self::EditQuota, Self::EditTenant];

    /// The role that has it; `None`: operators only.
    fn least_role(self) -> Option<Role> {
        match self {
            Self::ViewAccount | Self::ViewQuota => Some(Role::Viewer),
            Self::EditAccount | Self::EditRobots => Some(Role::Admin),
            Self::EditQuota | Self::EditTenant => None,
        }
    }
}

/// What a caller is by office, apart from the policies of accounts.
#[derive(Debug, Clone, Default)]
pub struct Authority {
    /// Runs the registry: may do everything everywhere.
    pub operator: bool,
    /// The role in each tenant.
    pub roles: BTreeMap<TenantId, Role>,
    /// What a robot was made for.
    pub(super) grants: Vec<RobotGrant>,
}

impl Authority {
    /// The authority of whoever runs the registry.
    pub fn operator() -> Self {
        Self { operator: true, ..Self::default() }
    }

    /// The role in a tenant.
    pub fn role(&self, tenant: &TenantId) -> Option<Role> {
        self.roles.get(tenant).copied()
    }

    /// Whether something may be done with a tenant.
    pub fn has(&self, right: Right, tenant: &TenantId) -> bool {
        self.operator || right.least_role().is_some_and(|least| self.role(tenant).is_some_and(|role| role >= least))
    }
}

/// Something that a robot may do, in accounts of its own tenant.
#[derive(Debug, Clone)]
pub(super) struct RobotGrant {
    pub(super) tenant: TenantId,
    /// `None`: every account of the tenant.
    pub(super) account: Option<AccountName>,
    /// Without the account.
    pub(super) repository: Pattern,
    pub(super) actions: ActionSet,
}
