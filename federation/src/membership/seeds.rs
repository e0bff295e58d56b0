//! From seeds to addresses: `host:port`, where the host is an address or a name with any number of addresses.
//!
//! A name gives addresses and nothing else: whom one meets there, its key says.

use std::net::{IpAddr, SocketAddr};

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use tokio::sync::OnceCell;

/// More addresses of one seed than these are not used.
const ADDRESSES_MAX: usize = 16;

/// A place where a member may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    host: String,
    port: u16,
}

/// A text is not a seed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {0:?} is not of the form host:port")]
pub struct SeedError(String);

impl std::str::FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let invalid = || SeedError(text.chars().take(300).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let host = match host.strip_prefix('[') {
            Some(six) => six.strip_suffix(']').filter(|six| six.parse::<std::net::Ipv6Addr>().is_ok()),
            None => Some(host).filter(|name| is_name(name)),
        };
        Ok(Self { host: host.ok_or_else(invalid)?.to_owned(), port })
    }
}

fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

impl std::fmt::Display for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Resolves seeds, as the system's `resolv.conf` and `hosts` say.
#[derive(Debug, Default)]
pub struct Resolver {
    dns: OnceCell<Option<TokioResolver>>,
}

impl Resolver {
    /// All addresses of all seeds, those of names looked up anew. A name that does not resolve is logged and skipped.
    pub async fn resolve(&self, seeds: &[Seed]) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for found in join_all(seeds.iter().map(|seed| self.resolve_one(seed))).await {
            for address in found {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses
    }

    async fn resolve_one(&self, seed: &Seed) -> Vec<SocketAddr> {
        if let Ok(ip) = seed.host.parse::<IpAddr>() {
            return vec![SocketAddr::new(ip, seed.port)];
        }
        let with_port = |ip| SocketAddr::new(ip, seed.port);
        let looked_up = match self.dns().await {
            Some(dns) => dns.lookup_ip(seed.host.as_str()).await.map_err(|e| e.to_string()),
            None => Err("the system has no usable DNS configuration".into()),
        };
        let cause = match looked_up {
            Ok(found) => return found.iter().take(ADDRESSES_MAX).map(with_port).collect(),
            Err(cause) => cause,
        };
        // What the system itself knows, from its hosts file or otherwise.
        match tokio::net::lookup_host((seed.host.as_str(), seed.port)).await {
            Ok(found) => found.take(ADDRESSES_MAX).collect(),
            Err(_) => {
                tracing::warn!(%seed, "a seed cannot be resolved: {cause}");
                Vec::new()
            }
        }
    }

    async fn dns(&self) -> Option<&TokioResolver> {
        let make = || async {
            let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
            resolver.inspect_err(|e| tracing::warn!("DNS cannot be used: {e}")).ok()
        };
        self.dns.get_or_init(make).await.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_host_and_port() {
        for good in ["a.example:5000", "192.0.2.1:1", "[2001:db8::1]:65535", "localhost:9"] {
            assert_eq!(good.parse::<Seed>().unwrap().to_string(), good);
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:65536", "2001:db8::1:9", "[a]:1", "a b:1", "[::1:1"] {
            assert!(bad.parse::<Seed>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn literal_addresses_and_local_names_resolve_without_a_name_server() {
        let seeds = ["192.0.2.1:1", "[::1]:2", "192.0.2.1:1", "localhost:3"].map(|seed| seed.parse().unwrap());
        let found = Resolver::default().resolve(&seeds).await;
        let count = |text: &str| found.iter().filter(|address| address.to_string() == text).count();
        assert_eq!((count("192.0.2.1:1"), count("[::1]:2")), (1, 1));
        assert!(found.iter().any(|address| address.ip().is_loopback() && address.port() == 3), "{found:?}");
    }
}
