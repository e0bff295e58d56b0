use std::sync::Arc;

use keppel_federation::vocabulary::TenantId;

use super::token::Verified;
use super::{Action, ActionSet, Authority, Identity, Right, Standing};

pub(super) const REPOSITORY: &str = "repository";
pub(super) const REGISTRY: &str = "registry";
pub(super) const CATALOG: &str = "catalog";
pub(super) const KEPPEL: &str = "keppel";
pub(super) const API: &str = "api";

/// A caller whose proof of identity was accepted, or who showed none.
#[derive(Debug, Clone)]
pub struct Caller {
    pub(super) identity: Arc<Identity>,
    pub(super) standing: Arc<Standing>,
    pub(super) credential: Option<String>,
    pub(super) limit: ActionSet,
    /// The token, shared with those who remember it; `None`: there is none, and the limit is all there is.
    pub(super) access: Option<Arc<Verified>>,
    /// When the proof ends that cannot be renewed, in UNIX seconds: no token of it is good for longer.
    pub(super) ends_at: Option<i64>,
}

impl Caller {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a bearer token was shown.
    pub fn has_token(&self) -> bool {
        self.access.is_some()
    }

    /// What they are by office.
    pub fn authority(&self) -> &Authority {
        &self.standing.authority
    }

    /// The most that the credential or token allows on something.
    pub(super) fn limit_on(&self, kind: &str, name: &str) -> ActionSet {
        match &self.access {
            None => self.limit,
            Some(token) => token
                .claims
                .access
                .iter()
                .filter(|claim| claim.kind == kind && claim.name == name)
                .flat_map(|claim| claim.actions.iter().copied())
                .collect::<ActionSet>()
                .intersection(self.limit),
        }
    }

    /// Whether the list of repositories may be asked for; it shows only what the caller may see.
    pub fn may_list(&self) -> bool {
        !self.limit_on(REGISTRY, CATALOG).is_empty()
    }

    /// Whether the credentials are good for the registry's own API at all.
    pub fn may_use_api(&self) -> bool {
        !self.limit_on(KEPPEL, API).is_empty()
    }

    /// Whether they run the registry, and their credentials allow all of that.
    pub fn is_operator(&self) -> bool {
        self.authority().operator && self.limit_on(KEPPEL, API) == ActionSet::ALL
    }

    /// Whether something may be done with a tenant.
    pub fn has(&self, right: Right, tenant: &TenantId) -> bool {
        let limit = self.limit_on(KEPPEL, API);
        let allowed = match right {
            Right::ViewAccount | Right::ViewQuota => limit.contains(Action::Pull),
            Right::EditAccount | Right::EditRobots | Right::EditQuota | Right::EditTenant => limit == ActionSet::ALL,
        };
        allowed && self.authority().has(right, tenant)
    }
}
