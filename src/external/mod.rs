//! Registries outside the federation, as their clients see them: manifests and blobs of the OCI distribution API.
//!
//! One pooled HTTP client for all of them. It logs in as registries ask for it (tokens are kept until they run out),
//! follows redirects without handing credentials on, and remembers for each account and its upstream when that may be
//! asked again after a 429. Every phase of a request has a time limit, every body a size limit.
//!
//! | part | its job |
//! | --- | --- |
//! | [`origin`](Origin) | where an account's content comes from, as URLs |
//! | `resolver` | keeps it out of networks that the operator forbids |
//! | `challenge` | reads what a registry asks for in `WWW-Authenticate` |
//! | `session` | tokens and waiting times of one account at one registry |
//! | `exchange` | sends one request: login, redirects, statuses |
//! | `content` | manifests and blobs out of the answers |
//!
//! Invariants: credentials go to the registry itself and to the token service that it names, over HTTPS unless the
//! operator lists the host as a plain one; nobody is asked in a network that the operator forbids; only a 404 is absence; nothing that comes back has been compared with its
//! digest yet, which is the caller's part.
//!
//! Deliberately absent: pushes, lists, what is kept (registry), and trust in what comes back.

mod challenge;
mod content;
mod error;
mod exchange;
mod origin;
mod resolver;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use content::{ExternalBlob, ExternalManifest, ManifestAnswer};
pub use error::ExternalError;
pub use origin::Origin;

use ipnet::IpNet;
use resolver::Resolver;
use session::{Holder, Session};

/// This machine itself and its links, where clouds have the services that hand out credentials.
const FORBIDDEN_NETWORKS: [&str; 5] = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "::/127", "fe80::/10"];

/// How registries outside the federation are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalOptions {
    /// Hosts that are spoken to in plain HTTP, with a port, or without one for all ports. They may be in any network.
    pub plain_http_hosts: Vec<String>,
    /// Where nobody is asked who is not one of these hosts: neither the registry itself nor what it refers to.
    pub forbidden_networks: Vec<IpNet>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long the head of an answer may take to arrive, and a whole manifest.
    pub answer_timeout: Duration,
    /// How long a body may stand still.
    pub stall_timeout: Duration,
    /// The largest manifest, in bytes.
    pub manifest_size_max_bytes: u64,
}

impl Default for ExternalOptions {
    fn default() -> Self {
        Self {
            plain_http_hosts: Vec::new(),
            forbidden_networks: FORBIDDEN_NETWORKS.iter().filter_map(|network| network.parse().ok()).collect(),
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(30),
            manifest_size_max_bytes: 4 << 20,
        }
    }
}

/// Asks registries outside the federation. Cheap to clone.
#[derive(Clone)]
pub struct ExternalClient {
    inner: Arc<Inner>,
}

struct Inner {
    options: ExternalOptions,
    /// For HTTPS, by the system's proxy where there is one.
    https: reqwest::Client,
    /// For the operator's plain hosts, which are near.
    plain: reqwest::Client,
    sessions: Mutex<HashMap<Holder, Arc<Session>>>,
}

impl ExternalClient {
    /// A client without connections. `authorities_pem`: certificates to trust besides those of the system.
    ///
    /// # Errors
    /// When these, or the system's certificates, cannot be read.
    pub fn new(options: ExternalOptions, authorities_pem: &[u8]) -> Result<Self, reqwest::Error> {
        let authorities = reqwest::Certificate::from_pem_bundle(authorities_pem)?;
        let resolver = Arc::new(Resolver::new(&options));
        let builder = || {
            reqwest::Client::builder()
                .dns_resolver(Arc::clone(&resolver))
                .user_agent(concat!("keppel/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(options.connect_timeout)
                .read_timeout(options.stall_timeout)
                .pool_idle_timeout(Duration::from_secs(60))
        };
        let trusting = builder().https_only(true).tls_certs_merge(authorities);
        let (https, plain) = (trusting.build()?, builder().no_proxy().build()?);
        let inner = Inner { https, plain, options, sessions: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How it asks.
    pub fn options(&self) -> &ExternalOptions {
        &self.inner.options
    }
}
