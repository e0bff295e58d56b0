use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::refuse;
use super::{Secret, SettingsError, null};

/// Where a replica gets its content from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    /// The other end.
    pub upstream: Upstream,
    /// Whether the replica holds everything, and not only what was pulled: strategy `eager`. Of peers only.
    pub is_eager: bool,
}

/// The other end of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// The primary of the same name, reached through this peer: strategy `on_first_use` or `eager`.
    Peer(String),
    /// A registry outside the federation: strategy `from_external_on_first_use`.
    External {
        /// Its host and the path that names begin with there, without a scheme.
        url: String,
        /// Who we are there; empty: nobody.
        username: String,
        /// Our password there.
        password: Secret,
    },
}

const ON_FIRST_USE: &str = "on_first_use";
const EAGER: &str = "eager";
const FROM_EXTERNAL: &str = "from_external_on_first_use";

impl Replication {
    /// Its name in documents.
    pub fn strategy(&self) -> &'static str {
        match self.upstream {
            Upstream::Peer(_) if self.is_eager => EAGER,
            Upstream::Peer(_) => ON_FIRST_USE,
            Upstream::External { .. } => FROM_EXTERNAL,
        }
    }

    /// Whether the content comes from outside the federation.
    pub fn is_external(&self) -> bool {
        matches!(self.upstream, Upstream::External { .. })
    }

    /// Whether both name the same other end; credentials and how much is held may differ.
    pub fn same_upstream(&self, other: &Self) -> bool {
        match (&self.upstream, &other.upstream) {
            (Upstream::Peer(a), Upstream::Peer(b)) => a == b,
            (Upstream::External { url: a, .. }, Upstream::External { url: b, .. }) => a == b,
            _ => false,
        }
    }

    pub(super) fn password(&self) -> Option<&Secret> {
        match &self.upstream {
            Upstream::External { password, .. } if !password.is_empty() => Some(password),
            _ => None,
        }
    }

    /// Takes over the password of `other` when this one has the same user and no password: it is never shown, so that
    /// what was read can be written back without it.
    pub(super) fn inherit_password(&mut self, other: &Self) {
        if let (
            Upstream::External { url, username, password },
            Upstream::External { url: old_url, username: old_username, password: old_password },
        ) = (&mut self.upstream, &other.upstream)
            && password.is_empty()
            && url == old_url
            && username == old_username
        {
            *password = old_password.clone();
        }
    }

    pub(super) fn check(&self, place: &str) -> Result<(), SettingsError> {
        match &self.upstream {
            Upstream::Peer(peer) if !is_host(peer) => {
                refuse(place, "upstream", format!("{peer:?} is not the host name of a peer"))
            }
            Upstream::Peer(_) => Ok(()),
            Upstream::External { url, username, password } => {
                let (host, path) = url.split_once('/').unwrap_or((url, ""));
                let path_is_good = path.is_empty() || keppel_federation::vocabulary::is_repository_path(path);
                if !is_host(host) || !path_is_good {
                    let reason = format!("{url:?} must be a host with an optional path, without a scheme");
                    return refuse(place, "upstream.url", reason);
                }
                if username.is_empty() && !password.is_empty() {
                    return refuse(place, "upstream.username", "must be set together with password");
                }
                if username.contains(':') || username.chars().any(char::is_control) || username.len() > 256 {
                    return refuse(place, "upstream.username", "must not hold ':' or control characters");
                }
                match password.reveal().len() > 4096 {
                    true => refuse(place, "upstream.password", "is longer than 4096 bytes"),
                    false => Ok(()),
                }
            }
        }
    }
}

/// Whether a text is a host name or address, with an optional port.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !text.ends_with(']') => (name, port),
        _ => (text, "443"),
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name_is_good = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            name.len() <= 253
                && name.split('.').all(|label| {
                    (1..=63).contains(&label.len())
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                })
        }
    };
    name_is_good && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[derive(Deserialize)]
struct Document {
    strategy: String,
    #[serde(default)]
    upstream: Option<UpstreamDocument>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "upstream must be the name of a peer or an object with url, username and password")]
enum UpstreamDocument {
    Peer(String),
    External(ExternalDocument),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalDocument {
    url: String,
    #[serde(default, deserialize_with = "null::as_default")]
    username: String,
    #[serde(default, deserialize_with = "null::as_default")]
    password: String,
}

impl<'de> Deserialize<'de> for Replication {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let document = Document::deserialize(deserializer)?;
        let upstream = match (document.strategy.as_str(), document.upstream) {
            (ON_FIRST_USE | EAGER, Some(UpstreamDocument::Peer(peer))) => Upstream::Peer(peer),
            (FROM_EXTERNAL, Some(UpstreamDocument::External(external))) => Upstream::External {
                url: external.url,
                username: external.username,
                password: Secret::new(external.password),
            },
            (ON_FIRST_USE | EAGER, _) => return Err(D::Error::custom("upstream must be the host name of a peer")),
            (FROM_EXTERNAL, _) => {
                return Err(D::Error::custom(
                    "upstream must be an object with url, and username and password if needed",
                ));
            }
            (other, _) => {
                let reason =
                    format!("strategy is {other:?}: it must be {ON_FIRST_USE:?}, {EAGER:?} or {FROM_EXTERNAL:?}");
                return Err(D::Error::custom(reason));
            }
        };
        Ok(Self { is_eager: document.strategy == EAGER, upstream })
    }
}

/// The form that is shown: without the password.
impl Serialize for Replication {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'a, T> {
            strategy: &'a str,
            upstream: T,
        }
        #[derive(Serialize)]
        struct External<'a> {
            url: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            username: &'a str,
        }
        let strategy = self.strategy();
        match &self.upstream {
            Upstream::Peer(upstream) => Shown { strategy, upstream }.serialize(serializer),
            Upstream::External { url, username, .. } => {
                Shown { strategy, upstream: External { url, username } }.serialize(serializer)
            }
        }
    }
}

/// A platform whose manifests are replicated: an OCI platform object. Fields that are empty match everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformFilter {
    /// For example `amd64`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub architecture: String,
    /// For example `linux`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub os: String,
    /// For example `10.0.14393.1066`.
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub os_version: String,
    /// For example `win32k`.
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub os_features: Vec<String>,
    /// For example `v8`.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub variant: String,
}

impl PlatformFilter {
    pub(super) fn check(&self, place: &str) -> Result<(), SettingsError> {
        if *self == Self::default() {
            return refuse(place, "architecture", "a platform without any field matches everything: leave it out");
        }
        let fields = [
            ("architecture", &self.architecture),
            ("os", &self.os),
            ("os.version", &self.os_version),
            ("variant", &self.variant),
        ];
        for (field, text) in fields.into_iter().chain(self.os_features.iter().map(|text| ("os.features", text))) {
            if text.len() > 64 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return refuse(place, field, "must have 64 characters at most, and no spaces");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_other_texts() {
        for good in
            ["registry.example.org", "registry-1.docker.io:443", "10.0.0.1:5000", "[2001:db8::1]:5000", "[::1]", "eu"]
        {
            assert!(is_host(good), "{good}");
        }
        for bad in
            ["", "https://x", "a b", "a:b", "a:0", "a:", "a:+1", "-a", "a..b", "user@host", "::1", "[::1", "a:99999"]
        {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
