//! Registries outside the federation, as their clients see them: manifests and blobs of the OCI distribution API.
//!
//! One pooled HTTP client for all of them. It logs in as registries ask for it (tokens are kept until they run out),
//! follows redirects without handing credentials on, and remembers for each account and its upstream when that may be
//! asked again after a 429. Every phase of a request has a time limit, every body a size limit.
//!
//! | part | its job |
//! | --- | --- |
//! | [`origin`](Origin) | where an account's content comes from, as URLs |
//! | `challenge` | reads what a registry asks for in `WWW-Authenticate` |
//! | `session` | tokens and waiting times of one account at one registry |
//! | `exchange` | sends one request: login, redirects, statuses |
//! | `content` | manifests and blobs out of the answers |
//!
//! Invariants: credentials go to the registry itself and to the token service that it names, over HTTPS unless the
//! operator lists the host as a plain one; only a 404 is absence; nothing that comes back has been compared with its
//! digest yet, which is the caller's part.
//!
//! Deliberately absent: pushes, lists, what is kept (registry), and trust in what comes back.

mod challenge;
mod content;
mod error;
mod exchange;
mod origin;
mod session;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use content::{ExternalBlob, ExternalManifest, ManifestAnswer};
pub use error::ExternalError;
pub use origin::Origin;

use session::{Holder, Session};

/// How registries outside the federation are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalOptions {
    /// Hosts that are spoken to in plain HTTP, with or without a port.
    pub plain_http_hosts: Vec<String>,
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
        let builder = || {
            reqwest::Client::builder()
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
