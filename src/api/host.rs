//! Which account a request is about by the name of the host it was sent to.
//!
//! `<account>.<public host>` stands for the account: names of repositories are then those within it. A host's name only
//! ever says what a name means; who may do what is decided by the full name, so that no host opens anything.

use http::{HeaderMap, Uri};
use keppel_federation::vocabulary::{AccountName, ParseError, RepositoryName};

use super::{forwarded, serve::Peer, service::ApiState};

/// What the host of a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Names begin with their account.
    Whole,
    /// Names are those within this account.
    Account(AccountName),
    /// The host is below a public one, and the name of no account.
    Nowhere,
}

impl Place {
    /// Looks at the host that a request was sent to.
    pub(crate) fn of(public_hosts: &[String], peer: &Peer, headers: &HeaderMap, uri: &Uri) -> Self {
        if public_hosts.is_empty() {
            return Self::Whole;
        }
        let host = forwarded::host(peer, headers, uri).unwrap_or_default();
        Self::of_host(public_hosts, host)
    }

    fn of_host(public_hosts: &[String], host: &str) -> Self {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        // One public host may be below another.
        if public_hosts.contains(&name) {
            return Self::Whole;
        }
        let below = public_hosts.iter().filter_map(|public| name.strip_suffix(public.as_str())?.strip_suffix('.'));
        // The longest public host leaves the shortest name.
        match below.min_by_key(|label| label.len()).map(AccountName::parse) {
            None => Self::Whole,
            Some(Ok(account)) => Self::Account(account),
            Some(Err(_)) => Self::Nowhere,
        }
    }

    /// The account that names are within.
    pub(crate) fn account(&self) -> Option<&AccountName> {
        match self {
            Self::Account(account) => Some(account),
            Self::Whole | Self::Nowhere => None,
        }
    }

    /// Reads a repository's name as a client writes it here.
    pub(crate) fn parse(&self, state: &ApiState, name: &str) -> Result<RepositoryName, ParseError> {
        match self.account() {
            None => state.registry().parse_repository(name),
            Some(account) => RepositoryName::parse(&format!("{account}/{name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_below_a_public_one_stand_for_accounts() {
        let public = ["registry.example.org".to_owned(), "eu.registry.example.org".to_owned()];
        let account = |name: &str| Place::Account(AccountName::parse(name).unwrap());
        for (host, place) in [
            ("registry.example.org", Place::Whole),
            ("Registry.Example.ORG.:443", Place::Whole),
            ("acme.registry.example.org", account("acme")),
            ("ACME.registry.example.org:5000", account("acme")),
            ("acme.registry.example.org.", account("acme")),
            ("eu.registry.example.org", Place::Whole),
            ("acme.eu.registry.example.org", account("acme")),
            ("acme.sub.registry.example.org", Place::Nowhere),
            ("-.registry.example.org", Place::Nowhere),
            (".registry.example.org", Place::Nowhere),
            ("acme_.registry.example.org", Place::Nowhere),
            ("acmeregistry.example.org", Place::Whole),
            ("127.0.0.1:5000", Place::Whole),
            ("[::1]:5000", Place::Whole),
            ("", Place::Whole),
            ("registry.example.org.evil.example", Place::Whole),
        ] {
            assert_eq!(Place::of_host(&public, host), place, "{host}");
            assert_eq!(Place::of_host(&[], host), Place::of_host(&[], ""), "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_host_makes_it_panic(host in "\\PC{0,60}", near in "[a-zA-Z0-9.:-]{0,10}\\.registry\\.example\\.org[.:0-9]{0,6}") {
            let public = ["registry.example.org".to_owned()];
            let _ = (Place::of_host(&public, &host), Place::of_host(&public, &near));
        }
    }
}
