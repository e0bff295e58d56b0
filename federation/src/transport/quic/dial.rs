//! Connecting to a node that has several addresses: the first gets a head start, then the others join the race.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use tokio::time::{sleep, timeout};

use super::endpoint::{client_transport_config, endpoint_for};
use super::tls::{Purpose, SERVER_NAME, Tls};
use super::{QuicOptions, failure};
use crate::vocabulary::NodeId;
use crate::wire::{VersionRange, Welcome};

/// More addresses of one node than these are not tried.
const ADDRESSES_MAX: usize = 16;

/// Why a node could not be connected to.
#[derive(Debug)]
pub(super) struct DialError {
    pub cause: String,
    /// It was there, but does not want us.
    pub refused: bool,
}

/// What is needed to connect.
#[derive(Debug)]
pub(super) struct Dialer {
    pub endpoints: Vec<Endpoint>,
    pub tls: Arc<Tls>,
    pub options: QuicOptions,
}

impl Dialer {
    /// Connects to `node`, or to any member, at the first of its addresses that answers with its key. As a member, the connection is given
    /// out when the other side has said that it accepts it.
    ///
    /// Cancel safety: dropping the future abandons all attempts.
    pub async fn dial(
        &self,
        node: Option<NodeId>,
        addresses: &[SocketAddr],
        purpose: Purpose,
    ) -> Result<Connection, DialError> {
        let mut waiting = addresses.iter().copied().take(ADDRESSES_MAX);
        let mut attempts = FuturesUnordered::new();
        let mut last = DialError { cause: "none of its addresses can be reached from here".into(), refused: false };
        loop {
            if attempts.is_empty() {
                match waiting.next() {
                    Some(address) => attempts.push(self.attempt(node, address, purpose)),
                    None => return Err(last),
                }
            }
            tokio::select! {
                outcome = attempts.next() => match outcome {
                    Some(Ok(connection)) => return Ok(connection),
                    // A refusal says more than an address that does not answer.
                    Some(Err(e)) if e.refused || !last.refused => last = e,
                    _ => {}
                },
                () = sleep(self.options.connect_stagger) => {
                    if let Some(address) = waiting.next() {
                        attempts.push(self.attempt(node, address, purpose));
                    }
                }
            }
        }
    }

    async fn attempt(
        &self,
        node: Option<NodeId>,
        address: SocketAddr,
        purpose: Purpose,
    ) -> Result<Connection, DialError> {
        let failed = |cause: String| DialError { cause: format!("{address}: {cause}"), refused: false };
        let endpoint =
            endpoint_for(&self.endpoints, address).ok_or_else(|| failed("not reachable from this node".into()))?;
        let tls = self.tls.client(node, purpose).map_err(|e| failed(e.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(client_transport_config(&self.options)));
        let connect = async {
            let connecting = endpoint.connect_with(config, address, SERVER_NAME);
            let connection = connecting.map_err(|e| failed(e.to_string()))?.await.map_err(|e| ended(address, &e))?;
            if purpose == Purpose::Member {
                self.await_welcome(&connection, address).await?;
            }
            Ok(connection)
        };
        match timeout(self.options.connect_timeout, connect).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed(format!("no answer within {:?}", self.options.connect_timeout))),
        }
    }

    /// In TLS 1.3 a client is done before the server has looked at its key; so success is what the server says later.
    async fn await_welcome(&self, connection: &Connection, address: SocketAddr) -> Result<(), DialError> {
        let mut stream = connection.accept_uni().await.map_err(|e| ended(address, &e))?;
        let bytes = match stream.read_to_end(Welcome::BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(e))) => return Err(ended(address, &e)),
            Err(e) => return Err(DialError { cause: format!("{address}: {e}"), refused: false }),
        };
        let refused = |cause: String| DialError { cause: format!("{address}: {cause}"), refused: true };
        let welcome = Welcome::decode(&bytes).map_err(|e| refused(e.to_string()))?;
        match VersionRange::OURS.negotiate(welcome.versions) {
            // Too old or too new: the requests will be refused with the same words, and its own may still be answered.
            Err(incompatible) => {
                tracing::warn!(peer_address = %address, "{incompatible}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

fn ended(address: SocketAddr, error: &ConnectionError) -> DialError {
    let (cause, refused) = failure::describe(error);
    DialError { cause: format!("{address}: {cause}"), refused }
}
