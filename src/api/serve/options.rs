use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Where to listen, and the bounds of what one connection may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// The sockets to listen on.
    pub listen: Vec<Listen>,
    /// Connections open at a time, over all sockets. One more gets a 503 and is closed.
    pub connections_max: usize,
    /// Bytes of all header names and values of a request; more is answered with 431.
    pub header_size_max_bytes: usize,
    /// Header lines of a request; more is answered with 431.
    pub headers_max: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take to arrive, on a new connection from the first moment on.
    pub header_read_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a body, in either direction, may make no progress to speak of.
    pub body_idle_timeout: Duration,
    /// How often an idle HTTP/2 peer is asked whether it is still there; also how long it may take to answer.
    pub http2_keep_alive: Duration,
    /// Requests at a time on one HTTP/2 connection.
    pub http2_streams_max: u32,
    /// How long running requests may go on after shutdown was asked for.
    pub shutdown_grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            connections_max: 16_384,
            header_size_max_bytes: 64 * 1024,
            headers_max: 100,
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_idle_timeout: Duration::from_secs(60),
            http2_keep_alive: Duration::from_secs(30),
            http2_streams_max: 256,
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// One socket to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: ListenAddress,
    /// Serve TLS instead of plain text.
    pub tls: Option<TlsOptions>,
}

impl Listen {
    /// Plain text on a TCP address.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address: ListenAddress::Tcp(address), tls: None }
    }
}

/// The address of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// IPv4 or IPv6; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix socket, created with mode 0600; a socket left behind by a dead process is replaced.
    Unix(PathBuf),
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The certificate of a TLS socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM file with the certificate and its chain, leaf first.
    pub certificate_file: PathBuf,
    /// PEM file with the private key.
    pub key_file: PathBuf,
    /// How often the files are looked at for a change.
    pub reload_interval: Duration,
}
