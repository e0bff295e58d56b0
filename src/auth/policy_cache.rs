use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Region, TenantId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::Records;
use crate::model::policy::{AccountSettings, CompiledPolicies};

/// The most accounts whose policies are kept.
const ACCOUNTS_MAX: usize = 4096;

/// Compiled policies of accounts, as long as their settings stay what they were.
pub(super) struct PolicyCache {
    cache: Cache<AccountName, Arc<Policies>, ByWeight>,
}

/// The policies of an account at a revision; `None`: they cannot be used.
pub(super) struct Policies {
    revision: u64,
    replica_region: Option<Region>,
    pub(super) compiled: Option<Arc<CompiledPolicies>>,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<AccountName, Arc<Policies>> for ByWeight {
    fn weight(&self, _: &AccountName, policies: &Arc<Policies>) -> u64 {
        policies.compiled.as_ref().map_or(1, |compiled| compiled.weight())
    }
}

impl PolicyCache {
    /// Keeps policies of this weight all together, in units of a small policy.
    pub(super) fn new(weight_max: u64) -> Self {
        Self { cache: Cache::with_weighter(ACCOUNTS_MAX, weight_max.max(1024), ByWeight) }
    }

    /// The tenant of an account and its policies.
    pub(super) fn of(&self, records: &dyn Records, name: &AccountName) -> Option<(TenantId, Arc<Policies>)> {
        let record = records.get_account(name)?;
        let known = self.cache.get(name).filter(|policies| {
            policies.revision == record.settings_revision && policies.replica_region == record.replica_region
        });
        let policies = known.unwrap_or_else(|| {
            let region = record.replica_region.as_ref().map(Region::as_str);
            let compiled = AccountSettings::from_stored(&record.settings)
                .and_then(|settings| CompiledPolicies::compile_in(&settings, region))
                .inspect_err(|error| {
                    tracing::error!(account = %name, %error, "an account's policies cannot be used; it is closed to all but operators");
                });
            let policies = Arc::new(Policies {
                revision: record.settings_revision,
                replica_region: record.replica_region.clone(),
                compiled: compiled.ok().map(Arc::new),
            });
            self.cache.insert(name.clone(), policies.clone());
            policies
        });
        Some((record.tenant, policies))
    }
}
