use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::document::{Unknown, read};
use super::error::refuse;
use super::{
    GcPolicy, PlatformFilter, RbacPolicy, ReplicaSettings, Replication, ScanPolicy, Secret, SettingsError, TagPolicy,
    Upstream, Validation, null,
};

/// The most policies of one kind in an account.
pub const POLICIES_MAX: usize = 256;
/// The most regions that a push may be asked to be held by.
pub const COPIES_MAX: u8 = 8;

/// When a change of an account is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// Once no region answers with what was before.
    #[default]
    Everywhere,
    /// Once it is durable at the primary: sooner, while other regions may give the old answer for the time of a lease.
    Primary,
}

/// The settings of an account: everything about it that its owners choose and all regions share.
///
/// Serialising gives what is shown: no password, and nothing that is not set except `rbac_policies`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountSettings {
    /// Who may do what.
    #[serde(deserialize_with = "null::as_default")]
    pub rbac_policies: Vec<RbacPolicy>,
    /// Which images are deleted or kept.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub gc_policies: Vec<GcPolicy>,
    /// Which tags are guarded.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub tag_policies: Vec<TagPolicy>,
    /// Which manifests may be pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// Where the content comes from, if not from pushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<Replication>,
    /// Which platforms are replicated; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub platform_filter: Vec<PlatformFilter>,
    /// How many regions hold what was pushed before the push is acknowledged, the primary's among them; `None`: one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<u8>,
    /// When a change is acknowledged; `None`: everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// The regions whose replicas hold everything. Each shows it as the strategy of its replica, and only there.
    #[serde(skip_serializing)]
    pub eager_regions: Vec<String>,
    /// By region, what its replicas have of their own. Each shows it among its fields, and only there.
    #[serde(skip_serializing)]
    pub replicas: BTreeMap<String, ReplicaSettings>,
    /// How reports of vulnerabilities are overridden. Has an endpoint of its own, so it is not shown with the rest.
    #[serde(skip_serializing)]
    pub security_scan_policies: Vec<ScanPolicy>,
}

impl AccountSettings {
    /// Reads the settings that a client wrote: the fields of `account` in the body, without those that are not
    /// settings. Fields that nobody knows are refused.
    ///
    /// # Errors
    /// The field at fault, as `account.…`.
    pub fn from_request(fields: serde_json::Value) -> Result<Self, SettingsError> {
        Self::from_request_about(fields, false)
    }

    /// The same about an account that is there; `is_mirror`: its content comes from outside the federation, though a replica
    /// of it, which the request may be about, names a peer.
    ///
    /// # Errors
    /// The field at fault, as `account.…`.
    pub fn from_request_about(fields: serde_json::Value, is_mirror: bool) -> Result<Self, SettingsError> {
        if fields.get("security_scan_policies").is_some() {
            let reason = "has an endpoint of its own";
            return Err(SettingsError::new("account.security_scan_policies", reason));
        }
        if fields.get("eager_regions").is_some() {
            let reason = "is set by account.replication in the region that it is about";
            return Err(SettingsError::new("account.eager_regions", reason));
        }
        if fields.get("replicas").is_some() {
            let reason = "is not a field that is known here: a replica is changed in its own region";
            return Err(SettingsError::new("account.replicas", reason));
        }
        read::<Self>("account", fields, Unknown::Refused)?.checked(is_mirror)
    }

    /// Reads the body of a request about scan policies: `{"policies": […]}`.
    ///
    /// # Errors
    /// The field at fault, as `policies[…]…`.
    pub fn scan_policies_from_request(body: serde_json::Value) -> Result<Vec<ScanPolicy>, SettingsError> {
        #[derive(Deserialize)]
        struct Body {
            #[serde(deserialize_with = "null::as_default")]
            policies: Vec<ScanPolicy>,
        }
        let body: Body = read("", body, Unknown::Refused)?;
        within_limit("policies", body.policies.len())?;
        for (at, policy) in body.policies.iter().enumerate() {
            policy.check(&format!("policies[{at}]"))?;
        }
        Ok(body.policies)
    }

    /// Reads what [`Self::to_stored`] wrote. A later version may have written fields that are not known here; they are
    /// passed over.
    ///
    /// # Errors
    /// The field at fault.
    pub fn from_stored(bytes: &[u8]) -> Result<Self, SettingsError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let value = serde_json::from_slice(bytes).map_err(|error| SettingsError::new("account", error.to_string()))?;
        read("account", value, Unknown::Allowed)
    }

    /// The form that the federation keeps: what is shown, and what never is.
    pub fn to_stored(&self) -> Vec<u8> {
        let mut document = serde_json::to_value(self).unwrap_or_default();
        if let Some(password) = self.replication.as_ref().and_then(Replication::password) {
            document["replication"]["upstream"]["password"] = password.reveal().into();
        }
        if !self.security_scan_policies.is_empty() {
            document["security_scan_policies"] = serde_json::to_value(&self.security_scan_policies).unwrap_or_default();
        }
        if !self.eager_regions.is_empty() {
            document["eager_regions"] = self.eager_regions.clone().into();
        }
        if !self.replicas.is_empty() {
            document["replicas"] = serde_json::to_value(&self.replicas).unwrap_or_default();
        }
        document.to_string().into_bytes()
    }

    /// The settings that follow from a request to change `current` into `self`: what the request cannot carry stays.
    ///
    /// # Errors
    /// `account.replication`, when the request would change where the content comes from.
    pub fn replacing(mut self, current: &Self) -> Result<Self, SettingsError> {
        match (&mut self.replication, &current.replication) {
            (None, None) => {}
            (Some(new), Some(old)) if new.same_upstream(old) => new.inherit_password(old),
            _ => return Err(SettingsError::new("account.replication", "cannot be changed after the account was made")),
        }
        self.check_credentials()?;
        self.security_scan_policies.clone_from(&current.security_scan_policies);
        self.eager_regions.clone_from(&current.eager_regions);
        self.replicas.clone_from(&current.replicas);
        Ok(self)
    }

    /// Refuses a user of the upstream without a password. Who only writes back what was shown is not asked for the one that
    /// is kept: see [`Self::replacing`].
    ///
    /// # Errors
    /// `account.replication.upstream.password`.
    pub fn check_credentials(&self) -> Result<(), SettingsError> {
        match self.upstream_credentials() {
            Some((_, password)) if password.is_empty() => {
                refuse("account", "replication.upstream.password", "must be set together with username")
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the content comes from a registry outside the federation.
    pub fn is_external_replica(&self) -> bool {
        self.replication.as_ref().is_some_and(Replication::is_external)
    }

    /// The registry outside the federation that the content comes from, with the path there.
    pub fn external_upstream(&self) -> Option<&str> {
        match &self.replication.as_ref()?.upstream {
            Upstream::External { url, .. } => Some(url),
            Upstream::Peer(_) => None,
        }
    }

    /// The password for the upstream, where there is one.
    pub fn upstream_credentials(&self) -> Option<(&str, &Secret)> {
        match &self.replication.as_ref()?.upstream {
            Upstream::External { username, password, .. } if !username.is_empty() => Some((username, password)),
            _ => None,
        }
    }

    /// Says that replicas in a region hold everything, or do not.
    pub fn set_eager(&mut self, region: &str, is_eager: bool) {
        self.eager_regions.retain(|eager| eager != region);
        if is_eager {
            self.eager_regions.push(region.to_owned());
            self.eager_regions.sort_unstable();
        }
    }

    /// Whether replicas in a region hold everything.
    pub fn is_eager_in(&self, region: &str) -> bool {
        self.eager_regions.iter().any(|eager| eager == region)
    }

    fn checked(mut self, is_mirror: bool) -> Result<Self, SettingsError> {
        let external = is_mirror || self.is_external_replica();
        for (name, count) in [
            ("account.rbac_policies", self.rbac_policies.len()),
            ("account.gc_policies", self.gc_policies.len()),
            ("account.tag_policies", self.tag_policies.len()),
            ("account.platform_filter", self.platform_filter.len()),
        ] {
            within_limit(name, count)?;
        }
        for (at, policy) in self.rbac_policies.iter().enumerate() {
            policy.check(&format!("account.rbac_policies[{at}]"), external)?;
        }
        for (at, policy) in self.gc_policies.iter().enumerate() {
            policy.check(&format!("account.gc_policies[{at}]"))?;
        }
        for (at, policy) in self.tag_policies.iter().enumerate() {
            policy.check(&format!("account.tag_policies[{at}]"))?;
        }
        if let Some(replication) = &self.replication {
            replication.check("account.replication")?;
        }
        for (at, platform) in self.platform_filter.iter().enumerate() {
            platform.check(&format!("account.platform_filter[{at}]"))?;
        }
        if !self.platform_filter.is_empty() && self.replication.is_none() {
            return refuse("account", "platform_filter", "is for replicas only, and replication is not set");
        }
        if !self.platform_filter.is_empty() && self.replication.as_ref().is_some_and(|replica| replica.is_eager) {
            return refuse("account", "platform_filter", "must be empty: an eager replica holds everything");
        }
        if let Some(copies) = self.copies {
            if !(1..=COPIES_MAX).contains(&copies) {
                return refuse("account", "copies", format!("is {copies}: it must be between 1 and {COPIES_MAX}"));
            }
            if copies > 1 && external {
                return refuse("account", "copies", "is for accounts that take pushes, not for mirrors");
            }
        }
        // What is so anyway is not shown.
        self.copies = self.copies.filter(|copies| *copies > 1);
        self.ack = self.ack.filter(|ack| *ack != Ack::default());
        self.validation = match self.validation {
            Some(validation) => validation.normalized("account.validation")?,
            None => None,
        };
        Ok(self)
    }
}

fn within_limit(name: &str, count: usize) -> Result<(), SettingsError> {
    match count > POLICIES_MAX {
        true => Err(SettingsError::new(name, format!("has {count} entries: {POLICIES_MAX} is the most"))),
        false => Ok(()),
    }
}
