use std::net::IpAddr;
use std::sync::Arc;

use super::rbac::CompiledRbac;
use super::retention::CompiledGcPolicy;
use super::tags::CompiledTagPolicy;
use super::{
    AccountSettings, Ack, ExternalSource, ManifestRule, Permission, PermissionSet, PlatformFilter, RbacPolicy,
    ReplicaSettings, SettingsError, TagPolicy, TagProtection,
};

/// The policies of one revision of an account's settings, ready for decisions.
#[derive(Debug, Default)]
pub struct CompiledPolicies {
    rbac: Vec<CompiledRbac>,
    /// The primary's, where a replica has its own: what changes the account must meet both.
    rbac_of_primary: Option<Vec<CompiledRbac>>,
    tags: Vec<CompiledTagPolicy>,
    gc: Vec<CompiledGcPolicy>,
    tag_policies: Vec<TagPolicy>,
    rule: Option<ManifestRule>,
    external: Option<Arc<ExternalSource>>,
    copies: Option<u8>,
    ack: Ack,
    eager_regions: Vec<String>,
    platform_filter: Vec<PlatformFilter>,
    has_own_rules: bool,
}

/// What the policies of an account say about a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RbacVerdict {
    /// What some policy grants.
    pub granted: PermissionSet,
    /// What some policy forbids; it wins over every grant.
    pub forbidden: PermissionSet,
}

impl CompiledPolicies {
    /// Compiles settings.
    ///
    /// # Errors
    /// The field that cannot be used. Settings that were accepted once compile, unless a later version wrote them;
    /// whoever cannot compile them must deny.
    pub fn compile(settings: &AccountSettings) -> Result<Self, SettingsError> {
        Self::compile_in(settings, None)
    }

    /// Compiles settings as they are in a region whose nodes are not the account's primary; `None`: where the primary is.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn compile_in(shared: &AccountSettings, region: Option<&str>) -> Result<Self, SettingsError> {
        let settings = &region.map_or_else(|| shared.clone(), |region| shared.in_region(region));
        let own = region.and_then(|region| shared.replicas.get(region));
        let compile_rbac = |policies: &[RbacPolicy]| {
            let numbered = policies.iter().enumerate();
            let compiled =
                numbered.map(|(at, policy)| CompiledRbac::new(policy, &format!("account.rbac_policies[{at}]")));
            compiled.collect::<Result<Vec<_>, _>>()
        };
        let tags = settings.tag_policies.iter().enumerate();
        let gc = settings.gc_policies.iter().enumerate();
        let rule = match &settings.validation {
            Some(validation) => Some(
                ManifestRule::compile(&validation.rule_for_manifest)
                    .map_err(|reason| SettingsError::new("account.validation.rule_for_manifest", reason))?,
            ),
            None => None,
        };
        Ok(Self {
            rbac: compile_rbac(&settings.rbac_policies)?,
            rbac_of_primary: match own {
                Some(own) if !own.rbac_policies.is_empty() => Some(compile_rbac(&shared.rbac_policies)?),
                Some(_) | None => None,
            },
            tags: tags
                .map(|(at, policy)| CompiledTagPolicy::new(policy, at, &format!("account.tag_policies[{at}]")))
                .collect::<Result<_, _>>()?,
            gc: gc
                .map(|(at, policy)| CompiledGcPolicy::new(policy, at, &format!("account.gc_policies[{at}]")))
                .collect::<Result<_, _>>()?,
            tag_policies: settings.tag_policies.clone(),
            rule,
            external: ExternalSource::of(settings).map(Arc::new),
            copies: settings.copies,
            ack: settings.ack.unwrap_or_default(),
            eager_regions: settings.eager_regions.clone(),
            platform_filter: settings.platform_filter.clone(),
            has_own_rules: own.is_some_and(ReplicaSettings::has_rules),
        })
    }

    /// What the RBAC policies say about a user (`None`: nobody known) at an address, in a repository given without its
    /// account.
    pub fn rbac(&self, username: Option<&str>, repository: &str, address: IpAddr) -> RbacVerdict {
        let verdict_of = |policies: &[CompiledRbac]| {
            let applying = policies.iter().filter(|policy| policy.applies(username, repository, address));
            applying.fold(RbacVerdict::default(), |verdict, policy| RbacVerdict {
                granted: verdict.granted.union(policy.granted),
                forbidden: verdict.forbidden.union(policy.forbidden),
            })
        };
        let here = verdict_of(&self.rbac);
        let Some(of_primary) = &self.rbac_of_primary else { return here };
        let there = verdict_of(of_primary);
        let changes = [Permission::Push, Permission::Delete].into_iter();
        let refused = changes.clone().filter(|change| !there.granted.contains(*change)).collect();
        let forbidden = changes.filter(|change| there.forbidden.contains(*change)).collect();
        RbacVerdict { granted: here.granted.without(refused), forbidden: here.forbidden.union(forbidden) }
    }

    /// Which platforms are kept of what an index lists; empty: all.
    pub fn platform_filter(&self) -> &[PlatformFilter] {
        &self.platform_filter
    }

    /// Whether a replica here has rules of its own for what is pushed or deleted, besides those of its primary.
    pub fn has_own_rules(&self) -> bool {
        self.has_own_rules
    }

    /// Whether any policy may keep a tag from being deleted.
    pub fn protects_tags(&self) -> bool {
        self.tags.iter().any(|policy| policy.protection.delete.is_some())
    }

    /// Whether any RBAC policy may say anything.
    pub fn has_rbac(&self) -> bool {
        !self.rbac.is_empty() || self.rbac_of_primary.is_some()
    }

    /// What may not be done with a tag in a repository, given without its account.
    pub fn tag_protection(&self, repository: &str, tag: &str) -> TagProtection {
        let applying = self.tags.iter().filter(|policy| policy.applies(repository, tag));
        applying.fold(TagProtection::default(), |sum, policy| TagProtection {
            push: sum.push.or(policy.protection.push),
            overwrite: sum.overwrite.or(policy.protection.overwrite),
            delete: sum.delete.or(policy.protection.delete),
        })
    }

    /// The first policy that keeps one of these tags from being deleted, with its place.
    pub(super) fn deletion_guard(&self, repository: &str, tags: &[String]) -> Option<(usize, &TagPolicy)> {
        let guards = |policy: &CompiledTagPolicy, tag: &String| policy.applies(repository, tag);
        let at = self
            .tags
            .iter()
            .position(|policy| policy.protection.delete.is_some() && tags.iter().any(|tag| guards(policy, tag)))?;
        Some((at, self.tag_policies.get(at)?))
    }

    /// The retention policies.
    pub(super) fn gc(&self) -> &[CompiledGcPolicy] {
        &self.gc
    }

    /// The rule that manifests must meet, if there is one.
    pub fn manifest_rule(&self) -> Option<&ManifestRule> {
        self.rule.as_ref()
    }

    /// The registry outside the federation that the account's content comes from, if it does.
    pub fn external_upstream(&self) -> Option<&str> {
        self.external.as_ref().map(|source| source.url.as_str())
    }

    /// The same, with all that is needed to ask it.
    pub fn external_source(&self) -> Option<&Arc<ExternalSource>> {
        self.external.as_ref()
    }

    /// How many regions hold what was pushed before the push is acknowledged, the primary's among them.
    pub fn copies(&self) -> u8 {
        self.copies.unwrap_or(1).max(1)
    }

    /// When a change is acknowledged.
    pub fn ack(&self) -> Ack {
        self.ack
    }

    /// Whether replicas in a region hold everything.
    pub fn is_eager_in(&self, region: &str) -> bool {
        self.eager_regions.iter().any(|eager| eager == region)
    }

    /// About how much memory it takes, in units of a small policy.
    pub fn weight(&self) -> u64 {
        let rbac: u64 = self.rbac.iter().chain(self.rbac_of_primary.iter().flatten()).map(CompiledRbac::weight).sum();
        let tags: u64 = self.tags.iter().map(CompiledTagPolicy::weight).sum();
        let gc: u64 = self.gc.iter().map(CompiledGcPolicy::weight).sum();
        1 + rbac + tags + gc + if self.rule.is_some() { 64 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Permission::{AnonymousPull, Delete, Pull, Push};
    use super::*;
    use serde_json::json;

    fn compile(fields: serde_json::Value) -> CompiledPolicies {
        CompiledPolicies::compile(&AccountSettings::from_request(fields).unwrap()).unwrap()
    }

    fn set(permissions: &[super::super::Permission]) -> PermissionSet {
        permissions.iter().copied().collect()
    }

    #[test]
    fn policies_say_what_they_grant_and_forbid_to_those_who_match() {
        let policies = compile(json!({"rbac_policies": [
            {"match_repository": "public/.*", "permissions": ["anonymous_pull"]},
            {"match_username": "alice|bob", "permissions": ["pull", "push"]},
            {"match_username": "bob", "match_cidr": "192.0.2.0/24", "forbidden_permissions": ["push", "delete"]},
        ]}));
        let office = "192.0.2.7".parse().unwrap();
        let home = "198.51.100.1".parse().unwrap();
        let verdict = |user, repository, address| policies.rbac(user, repository, address);
        assert_eq!(verdict(None, "public/web", home).granted, set(&[AnonymousPull]));
        assert_eq!(verdict(None, "private/web", home), RbacVerdict::default());
        assert_eq!(verdict(Some("alice"), "public/web", home).granted, set(&[AnonymousPull, Pull, Push]));
        assert_eq!(
            verdict(Some("alice"), "web", office),
            RbacVerdict { granted: set(&[Pull, Push]), forbidden: set(&[]) }
        );
        assert_eq!(verdict(Some("bob"), "web", office).forbidden, set(&[Push, Delete]));
        assert_eq!(verdict(Some("bob"), "web", home).forbidden, set(&[]));
        assert_eq!(verdict(Some("alice2"), "web", home), RbacVerdict::default());
    }

    #[test]
    fn tags_are_protected_by_all_policies_that_match() {
        let policies = compile(json!({"tag_policies": [
            {"match_repository": "web", "match_tag": "v.*", "except_tag": "v0.*", "block_overwrite": true},
            {"except_repository": "scratch/.*", "match_tag": "v1", "block_delete": true},
            {"match_tag": "latest", "block_push": true},
        ]}));
        let protection = |repository, tag| {
            let TagProtection { push, overwrite, delete } = policies.tag_protection(repository, tag);
            (push, overwrite, delete)
        };
        assert_eq!(protection("web", "v1"), (None, Some(0), Some(1)));
        assert_eq!(protection("web", "v0.1"), (None, None, None));
        assert_eq!(protection("web/app", "v2"), (None, None, None));
        assert_eq!(protection("scratch/a", "v1"), (None, None, None));
        assert_eq!(protection("any", "latest"), (Some(2), None, None));
    }
}
