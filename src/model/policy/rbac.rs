use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::error::refuse;
use super::{Pattern, SettingsError, null};

/// What a policy may grant or forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// A user may pull.
    Pull,
    /// A user may push.
    Push,
    /// A user may delete.
    Delete,
    /// Anybody may pull what is here.
    AnonymousPull,
    /// Anybody may have an external replica fetch what is not here yet.
    AnonymousFirstPull,
}

impl Permission {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Pull, Self::Push, Self::Delete, Self::AnonymousPull, Self::AnonymousFirstPull];

    /// Its name in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::AnonymousPull => "anonymous_pull",
            Self::AnonymousFirstPull => "anonymous_first_pull",
        }
    }

    /// Whether it is for those without a name.
    pub fn is_anonymous(self) -> bool {
        matches!(self, Self::AnonymousPull | Self::AnonymousFirstPull)
    }

    fn bit(self) -> u8 {
        match self {
            Self::Pull => 1,
            Self::Push => 2,
            Self::Delete => 4,
            Self::AnonymousPull => 8,
            Self::AnonymousFirstPull => 16,
        }
    }
}

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PermissionSet(u8);

impl PermissionSet {
    /// Whether a permission is in it.
    pub fn contains(self, permission: Permission) -> bool {
        self.0 & permission.bit() != 0
    }

    /// The permissions in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The permissions in this one only.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl FromIterator<Permission> for PermissionSet {
    fn from_iter<T: IntoIterator<Item = Permission>>(permissions: T) -> Self {
        Self(permissions.into_iter().fold(0, |bits, permission| bits | permission.bit()))
    }
}

impl std::fmt::Debug for PermissionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(Permission::ALL.into_iter().filter(|permission| self.contains(*permission))).finish()
    }
}

/// Grants or forbids permissions to those who match. An empty field matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RbacPolicy {
    /// Which repositories, without the account.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_repository: String,
    /// Which user names.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_username: String,
    /// Which addresses.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_cidr: String,
    /// What is granted.
    #[serde(deserialize_with = "null::as_default")]
    pub permissions: Vec<Permission>,
    /// What is forbidden, whoever grants it.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub forbidden_permissions: Vec<Permission>,
}

impl RbacPolicy {
    /// Checks everything but what needs to know the rest of the account.
    pub(super) fn check(&self, place: &str, external_replica: bool) -> Result<(), SettingsError> {
        CompiledRbac::new(self, place)?;
        if self.permissions.is_empty() && self.forbidden_permissions.is_empty() {
            return refuse(place, "permissions", "grants nothing, and forbidden_permissions forbids nothing");
        }
        for (field, permissions) in
            [("permissions", &self.permissions), ("forbidden_permissions", &self.forbidden_permissions)]
        {
            for (at, permission) in permissions.iter().enumerate() {
                let name = permission.as_str();
                if permissions[..at].contains(permission) {
                    return refuse(place, field, format!("{name:?} is listed twice"));
                }
                if permission.is_anonymous() && !self.match_username.is_empty() {
                    let reason = format!("must not be set, since {name:?} is for those without a name");
                    return refuse(place, "match_username", reason);
                }
                if !permission.is_anonymous() && self.match_username.is_empty() {
                    return refuse(place, "match_username", format!("must be set, since {name:?} is for users"));
                }
            }
        }
        if let Some(both) = self.permissions.iter().find(|granted| self.forbidden_permissions.contains(granted)) {
            let reason = format!("{:?} is both granted and forbidden", both.as_str());
            return refuse(place, "forbidden_permissions", reason);
        }
        if self.permissions.contains(&Permission::AnonymousFirstPull) && !external_replica {
            let reason = "\"anonymous_first_pull\" is for replicas of external registries only";
            return refuse(place, "permissions", reason);
        }
        Ok(())
    }
}

/// A policy ready for use.
#[derive(Debug)]
pub(super) struct CompiledRbac {
    repository: Option<Pattern>,
    username: Option<Pattern>,
    network: Option<IpNet>,
    pub(super) granted: PermissionSet,
    pub(super) forbidden: PermissionSet,
}

impl CompiledRbac {
    pub(super) fn new(policy: &RbacPolicy, place: &str) -> Result<Self, SettingsError> {
        Ok(Self {
            repository: optional_pattern(&policy.match_repository, place, "match_repository")?,
            username: optional_pattern(&policy.match_username, place, "match_username")?,
            network: network(&policy.match_cidr, place)?,
            granted: policy.permissions.iter().copied().collect(),
            forbidden: policy.forbidden_permissions.iter().copied().collect(),
        })
    }

    /// Whether the policy is about this user (`None`: nobody known), repository (without account) and address.
    pub(super) fn applies(&self, username: Option<&str>, repository: &str, address: std::net::IpAddr) -> bool {
        let user = match (&self.username, username) {
            (None, _) => true,
            (Some(pattern), Some(name)) => pattern.matches(name),
            (Some(_), None) => false,
        };
        user && self.network.is_none_or(|network| network.contains(&address.to_canonical()))
            && self.repository.as_ref().is_none_or(|pattern| pattern.matches(repository))
    }

    pub(super) fn weight(&self) -> u64 {
        1 + [&self.repository, &self.username].into_iter().flatten().map(Pattern::weight).sum::<u64>()
    }
}

/// Compiles a pattern; an empty one is none.
pub(super) fn optional_pattern(text: &str, place: &str, field: &str) -> Result<Option<Pattern>, SettingsError> {
    if text.is_empty() {
        return Ok(None);
    }
    Pattern::new(text).map(Some).or_else(|error| refuse(place, field, format!("{text:?} {error}")))
}

fn network(text: &str, place: &str) -> Result<Option<IpNet>, SettingsError> {
    if text.is_empty() {
        return Ok(None);
    }
    let Ok(network) = text.parse::<IpNet>() else {
        let reason = format!("{text:?} is not a network in CIDR notation, like 10.0.0.0/8 or 2001:db8::/32");
        return refuse(place, "match_cidr", reason);
    };
    if let IpNet::V6(net) = network
        && net.addr().to_ipv4_mapped().is_some()
    {
        return refuse(place, "match_cidr", format!("{text:?} holds IPv4 addresses: write them as such"));
    }
    Ok(Some(network.trunc()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applies(cidr: &str, address: &str) -> bool {
        let policy = RbacPolicy { match_cidr: cidr.into(), ..RbacPolicy::default() };
        CompiledRbac::new(&policy, "p").unwrap().applies(None, "r", address.parse().unwrap())
    }

    #[test]
    fn networks_hold_their_addresses_in_either_notation() {
        assert!(applies("10.1.2.3/8", "10.200.0.1") && !applies("10.0.0.0/8", "11.0.0.1"));
        assert!(applies("10.0.0.0/8", "::ffff:10.0.0.1") && !applies("10.0.0.0/8", "::ffff:11.0.0.1"));
        assert!(applies("2001:db8::/32", "2001:db8:1::1") && !applies("2001:db8::/32", "2001:db9::1"));
        assert!(!applies("::/0", "10.0.0.1"), "a network of one family holds none of the other");
    }

    #[test]
    fn what_is_not_a_network_is_refused() {
        for text in ["10.0.0.1", "10.0.0.0/33", "300.0.0.0/8", "10.0.0.0/8 ", "::ffff:10.0.0.0/104", "x", "/8"] {
            let error = network(text, "account.rbac_policies[2]").unwrap_err();
            assert_eq!(error.field, "account.rbac_policies[2].match_cidr", "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_network_panic_and_none_matches_outside_its_prefix(text in "[0-9./:a-f]{0,20}", address in any::<u32>()) {
            let address = std::net::IpAddr::from(std::net::Ipv4Addr::from(address));
            if let Ok(Some(network)) = network(&text, "p") {
                prop_assert_eq!(network.contains(&address), network.network() <= address && address <= network.broadcast());
            }
        }
    }
}
