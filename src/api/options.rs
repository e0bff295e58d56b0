use super::{LimitOptions, ProxyHeaders, TrustedProxy, serve::ServerOptions};

/// How the HTTP side of a node behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiOptions {
    /// Sockets, connections and deadlines.
    pub server: ServerOptions,
    /// Announced as `OCI-Chunk-Min-Length`: chunks of an upload should have at least this size. A hint, not enforced.
    pub upload_chunk_min_bytes: u64,
    /// Tags that one push may set with `?tag=`; more is answered with 414.
    pub tags_per_push_max: usize,
    /// The URL of the token endpoint as clients reach it; without one, it is made of the host they spoke to.
    pub token_url: Option<String>,
    /// Names of hosts, in lower case; a name below one of them stands for an account.
    pub public_hosts: Vec<String>,
    /// The proxies whose word is taken for where requests come from.
    pub trusted_proxies: Vec<TrustedProxy>,
    /// The headers that these proxies write; others are the client's.
    pub proxy_headers: ProxyHeaders,
    /// How often accounts may be asked for something.
    pub limits: LimitOptions,
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self {
            server: ServerOptions::default(),
            upload_chunk_min_bytes: 1024 * 1024,
            tags_per_push_max: 100,
            token_url: None,
            public_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            proxy_headers: ProxyHeaders::XForwarded,
            limits: LimitOptions::default(),
        }
    }
}
