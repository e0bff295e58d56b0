//! The server: sockets, TLS, connections and their end. Knows HTTP, but not what is served.
//!
//! Every connection is bounded: in number, in the size of a request's head, and in time, by a watch that looks at it
//! every few seconds (so timeouts are met to within a quarter of the shortest one). On shutdown the sockets close at
//! once, running requests get the grace period, and whatever is left is then cut off.

mod activity;
mod connection;
mod error;
mod listener;
mod options;
mod own_words;
mod send_file;
#[cfg(test)]
mod tests;
mod tls;
mod tracked;
mod transport;

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Version};
use hyper::{Request, Response, body::Incoming, service::Service};
use hyper_util::server::conn::auto;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use activity::{Activity, Stage};
use connection::TrackedExecutor;
use listener::Listener;
use tls::Certificates;
use transport::Transport;

use super::ProxyHeaders;

pub(crate) use send_file::{FileSender, PART_MAX_BYTES};

pub use error::{CertificateError, ServeError};
pub use options::{Listen, ListenAddress, ServerOptions, TlsOptions};

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address, an IPv4 one in its plain form; `None` on a Unix socket.
    pub address: Option<IpAddr>,
    /// The address as a header value, ready to be sent.
    pub header: HeaderValue,
    /// The headers in which a trusted proxy told the address, where one did.
    pub proxied_by: Option<ProxyHeaders>,
    files: Option<FileSender>,
}

impl Peer {
    fn new(address: Option<SocketAddr>, files: Option<FileSender>) -> Self {
        let address = address.map(|address| address.ip().to_canonical());
        let header = address.and_then(|address| HeaderValue::try_from(address.to_string()).ok());
        let header = header.unwrap_or(HeaderValue::from_static("local"));
        Self { address, header, proxied_by: None, files }
    }

    /// The one at the other end of a trusted proxy's connection, from this address.
    pub(crate) fn through_proxy(&self, address: Option<IpAddr>, written: ProxyHeaders) -> Self {
        let address = address.map(|address| SocketAddr::new(address, 0));
        Self { proxied_by: Some(written), ..Self::new(address, self.files.clone()) }
    }

    /// One at an address.
    #[cfg(test)]
    pub(crate) fn at(address: Option<IpAddr>) -> Self {
        Self::new(address.map(|address| SocketAddr::new(address, 0)), None)
    }

    /// What takes parts of files in place of their bytes, where that works for an answer of this version.
    pub(crate) fn file_sender(&self, version: Version) -> Option<&FileSender> {
        self.files.as_ref().filter(|_| version <= Version::HTTP_11)
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    driver: JoinHandle<()>,
}

impl Server {
    /// Binds the sockets and serves each connection with what `make_service` returns for its peer, until `shutdown` is
    /// cancelled. `background` is work that belongs to the server: it is started with it, and must end by itself on
    /// shutdown. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be bound or a certificate not be used; then nothing runs.
    pub fn spawn<M, S, B>(
        options: ServerOptions,
        shutdown: CancellationToken,
        background: impl Future<Output = ()> + Send + 'static,
        make_service: M,
    ) -> Result<Self, ServeError>
    where
        M: Fn(Peer) -> S + Clone + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Unpin + Send + 'static,
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut listeners = Vec::new();
        for listen in &options.listen {
            let certificates = listen.tls.clone().map(Certificates::load).transpose()?.map(Arc::new);
            listeners.push((Listener::bind(&listen.address)?, certificates));
        }
        let addresses = listeners.iter().filter_map(|(listener, _)| listener.tcp_address()).collect();
        let room = Arc::new(Room::new(options));
        let acceptors = TaskTracker::new();
        for (listener, certificates) in listeners {
            if let Some(certificates) = &certificates {
                acceptors.spawn(tls::watch(certificates.clone(), shutdown.clone()));
            }
            let acceptor = accept(room.clone(), listener, certificates, make_service.clone());
            let shutdown = shutdown.clone();
            acceptors.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = acceptor => {}
                }
            });
        }
        acceptors.spawn(background);
        acceptors.close();
        let driver = tokio::spawn(async move {
            shutdown.cancelled().await;
            acceptors.wait().await;
            room.empty().await;
        });
        Ok(Self { addresses, driver })
    }

    /// The TCP addresses listened on, in the order of the options, with the ports in use.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until the server has stopped, which takes a shutdown. Every task it started has then ended.
    pub async fn stopped(self) {
        if let Err(error) = self.driver.await {
            tracing::error!(%error, "the server's task failed");
        }
    }
}

/// All connections of a server.
struct Room {
    options: Arc<ServerOptions>,
    builder: Arc<auto::Builder<TrackedExecutor>>,
    tasks: TaskTracker,
    open: Mutex<Open>,
    open_gauge: metrics::Gauge,
    accepted: metrics::Counter,
    refused: metrics::Counter,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Arc<Activity>>,
}

impl Room {
    fn new(options: ServerOptions) -> Self {
        let tasks = TaskTracker::new();
        Self {
            builder: Arc::new(connection::builder(&options, tasks.clone())),
            options: Arc::new(options),
            tasks,
            open: Mutex::default(),
            open_gauge: metrics::gauge!("keppel_http_connections"),
            accepted: metrics::counter!("keppel_http_connections_accepted_total"),
            refused: metrics::counter!("keppel_http_connections_refused_total"),
        }
    }

    /// A place for one more connection, if there is room.
    fn admit(self: &Arc<Self>) -> Option<Seat> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.connections.len() >= self.options.connections_max {
            self.refused.increment(1);
            return None;
        }
        self.accepted.increment(1);
        self.open_gauge.increment(1);
        let (number, activity) = (open.next, Arc::new(Activity::new()));
        open.next += 1;
        open.connections.insert(number, activity.clone());
        Some(Seat { room: self.clone(), number, activity })
    }

    fn enter(&self, stage: Stage) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.connections.values().for_each(|activity| activity.enter(stage));
    }

    /// Sees all connections out: politely for the grace period, then not.
    async fn empty(&self) {
        self.tasks.close();
        self.enter(Stage::Draining);
        if tokio::time::timeout(self.options.shutdown_grace, self.tasks.wait()).await.is_err() {
            tracing::warn!("the grace period is over; the remaining connections are cut off");
            self.enter(Stage::Aborted);
            self.tasks.wait().await;
        }
    }
}

/// A connection's place in the room, given back when it is dropped.
struct Seat {
    room: Arc<Room>,
    number: u64,
    activity: Arc<Activity>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.open_gauge.decrement(1);
        self.room.open.lock().unwrap_or_else(PoisonError::into_inner).connections.remove(&self.number);
    }
}

async fn accept<M, S, B>(room: Arc<Room>, listener: Listener, certificates: Option<Arc<Certificates>>, make_service: M)
where
    M: Fn(Peer) -> S + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Unpin + Send + 'static,
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const PAUSE_MIN: Duration = Duration::from_millis(10);
    const PAUSE_MAX: Duration = Duration::from_secs(1);
    let mut pause = PAUSE_MIN;
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => {
                // Out of file descriptors or memory, most likely: closing connections will give some back.
                tracing::error!(%error, "cannot accept connections; trying again in {pause:?}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
        };
        pause = PAUSE_MIN;
        let Some(seat) = room.admit() else {
            if certificates.is_none() {
                stream.refuse(&Peer::new(address, None).header);
            }
            continue;
        };
        let files = (certificates.is_none() && stream.takes_files()).then(FileSender::default);
        let transport = Transport::new(stream, seat.activity.clone(), files.clone());
        let peer = Peer::new(address, files);
        let client = peer.header.clone();
        let service = make_service(peer);
        let certificates = certificates.clone();
        room.tasks.spawn(async move {
            let Seat { room, activity, .. } = &seat;
            let (builder, options) = (room.builder.clone(), room.options.clone());
            connection::serve(transport, certificates, service, activity.clone(), builder, options, client).await;
        });
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
