use serde::{Deserialize, Serialize};

use super::{AccountSettings, PlatformFilter, RbacPolicy, TagPolicy, Validation};

/// What the replicas in one region have of their own. What is empty is as the primary has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaSettings {
    /// What its owners call the primary, where that is not the host of its API.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upstream: String,
    /// Who may do what there. Changes of the account must be allowed by the primary's policies too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rbac_policies: Vec<RbacPolicy>,
    /// Which tags are guarded against changes that come through that region.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tag_policies: Vec<TagPolicy>,
    /// Which manifests may be pushed through that region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// Which platforms are kept there; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platform_filter: Vec<PlatformFilter>,
}

impl ReplicaSettings {
    /// What of `asked` differs from what the primary has. Equal policies are read from the primary, so that what was shown
    /// can be written back, and goes on following the primary.
    pub fn of(asked: &AccountSettings, primary: &AccountSettings) -> Self {
        Self {
            upstream: String::new(),
            rbac_policies: own(&asked.rbac_policies, &primary.rbac_policies),
            tag_policies: own(&asked.tag_policies, &primary.tag_policies),
            validation: asked.validation.clone().filter(|own| primary.validation.as_ref() != Some(own)),
            platform_filter: match primary.is_external_replica() {
                true => own(&asked.platform_filter, &primary.platform_filter),
                false => asked.platform_filter.clone(),
            },
        }
    }

    /// Whether anything that is pushed or deleted through the region has to meet more than the primary's rules.
    pub(super) fn has_rules(&self) -> bool {
        !self.tag_policies.is_empty() || self.validation.is_some()
    }
}

fn own<T: Clone + PartialEq>(asked: &[T], primary: &[T]) -> Vec<T> {
    if asked == primary { Vec::new() } else { asked.to_vec() }
}

impl AccountSettings {
    /// The settings as they are in a region that holds a replica.
    #[must_use]
    pub fn in_region(&self, region: &str) -> Self {
        let mut settings = self.clone();
        if !self.is_external_replica() {
            settings.platform_filter.clear();
        }
        let Some(own) = self.replicas.get(region) else { return settings };
        if !own.rbac_policies.is_empty() {
            settings.rbac_policies.clone_from(&own.rbac_policies);
        }
        if !own.tag_policies.is_empty() {
            settings.tag_policies.clone_from(&own.tag_policies);
        }
        if own.validation.is_some() {
            settings.validation.clone_from(&own.validation);
        }
        if !own.platform_filter.is_empty() {
            settings.platform_filter.clone_from(&own.platform_filter);
        }
        settings
    }

    /// Sets what the replicas in a region have of their own.
    pub fn set_replica(&mut self, region: &str, own: ReplicaSettings) {
        match own == ReplicaSettings::default() {
            true => drop(self.replicas.remove(region)),
            false => drop(self.replicas.insert(region.to_owned(), own)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CompiledPolicies, Permission, PermissionSet};
    use super::*;
    use serde_json::json;

    fn settings(fields: serde_json::Value) -> AccountSettings {
        AccountSettings::from_request(fields).unwrap()
    }

    #[test]
    fn a_replica_has_its_own_policies_where_they_differ_and_the_primarys_else() {
        let grant = |user: &str| json!([{"match_username": user, "permissions": ["pull"]}]);
        let mut shared = settings(json!({"rbac_policies": grant("ada"), "tag_policies": [{"block_delete": true}]}));
        let asked = settings(json!({"rbac_policies": grant("bob"), "tag_policies": [{"block_delete": true}]}));
        shared.set_replica("us", ReplicaSettings::of(&asked, &shared));
        let stored = AccountSettings::from_stored(&shared.to_stored()).unwrap();
        assert_eq!(stored, shared, "it travels with the account");
        assert_eq!(stored.in_region("us").rbac_policies, asked.rbac_policies);
        assert_eq!(stored.in_region("ap").rbac_policies, shared.rbac_policies);
        // What is equal is not its own: it follows the primary.
        let mut later = stored;
        later.tag_policies.clear();
        assert!(later.in_region("us").tag_policies.is_empty());
        assert!(!serde_json::to_string(&later).unwrap().contains("replicas"), "only its own region shows it");
        later.set_replica("us", ReplicaSettings::of(&later.clone(), &later));
        assert!(later.replicas.is_empty());
    }

    #[test]
    fn what_changes_the_account_must_be_granted_by_both_and_forbidden_by_neither() {
        let set = |permissions: &[Permission]| permissions.iter().copied().collect::<PermissionSet>();
        let all = json!(["pull", "push", "delete"]);
        let mut shared = settings(json!({"rbac_policies": [
            {"match_username": "ada", "permissions": ["push"]},
            {"match_username": "eve", "permissions": all, "match_repository": "web"},
            {"match_username": "eve", "forbidden_permissions": ["delete", "pull"]}]}));
        let own = settings(json!({"rbac_policies": [
            {"match_username": "ada|eve", "permissions": all},
            {"match_repository": "web", "permissions": ["anonymous_pull"]}]}));
        shared.set_replica("us", ReplicaSettings::of(&own, &shared));
        let here = "192.0.2.1".parse().unwrap();
        let us = CompiledPolicies::compile_in(&shared, Some("us")).unwrap();
        let of = |policies: &CompiledPolicies, user: Option<&str>| policies.rbac(user, "web", here);
        assert_eq!(of(&us, Some("ada")).granted, set(&[Permission::Pull, Permission::Push, Permission::AnonymousPull]));
        assert_eq!(of(&us, Some("eve")).forbidden, set(&[Permission::Delete]), "pulls are the region's own affair");
        assert_eq!(of(&us, None).granted, set(&[Permission::AnonymousPull]));
        for region in [None, Some("ap")] {
            let elsewhere = CompiledPolicies::compile_in(&shared, region).unwrap();
            assert_eq!(of(&elsewhere, Some("ada")).granted, set(&[Permission::Push]));
            assert_eq!(of(&elsewhere, None).granted, set(&[]));
        }
    }
}
