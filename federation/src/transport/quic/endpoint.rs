//! The UDP sockets and what quinn is told about them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn::{AckFrequencyConfig, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use super::QuicOptions;
use super::congestion::DeliveryRateConfig;
use super::tls::Tls;
use crate::identity::NodeKey;

/// What the kernel may hold for us while we are busy.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Whoever is not yet known to be a member may send so much.
const STRANGER_WINDOW_BYTES: u32 = 16 << 10;
const DATAGRAM_BUFFER_BYTES: usize = 256 << 10;
/// A packet is lost when one that was sent this much later has arrived, or one of so many after it.
const LOST_AFTER_ROUND_TRIPS: f32 = 1.25;
const PACKETS_OVERTAKING_MAX: u32 = 10_000;
/// Packets that may arrive before the other side says so, if it does not within 25 ms anyway: an answer of two packets each
/// would cost a tenth of what a line and both sides' processors can carry.
const PACKETS_UNACKNOWLEDGED_MAX: u32 = 9;
/// Connection attempts that wait to be looked at, and what their packets may take.
const INCOMING_MAX: usize = 512;
const INCOMING_BYTES_MAX: u64 = 16 << 10;
const INCOMING_TOTAL_BYTES_MAX: u64 = 4 << 20;

/// Binds one endpoint per address to listen on.
pub(super) fn bind(options: &QuicOptions, key: &NodeKey, tls: &Arc<Tls>) -> io::Result<Vec<Endpoint>> {
    options.listen.iter().map(|address| bind_one(*address, options, key, tls)).collect()
}

fn bind_one(address: SocketAddr, options: &QuicOptions, key: &NodeKey, tls: &Arc<Tls>) -> io::Result<Endpoint> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on UDP {address}: {e}"));
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP)).map_err(named)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        let beside_v4 = options.listen.iter().any(|other| other.is_ipv4());
        socket.set_only_v6(beside_v4).map_err(named)?;
    }
    // The kernel gives what its own limits allow.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    if let Ok(given_bytes) = socket.recv_buffer_size()
        && given_bytes < SOCKET_BUFFER_BYTES
    {
        tracing::info!(
            given_bytes,
            "the system gives UDP sockets little room, so packets of fast links may get lost; on Linux net.core.rmem_max sets it, and \
             {SOCKET_BUFFER_BYTES} is enough"
        );
    }
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true).map_err(named)?;
    socket.bind(&address.into()).map_err(named)?;
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no async runtime"))?;
    Endpoint::new(endpoint_config(key), Some(server_config(options, tls)), socket.into(), runtime)
}

/// Connection ids and reset tokens come from the node's key: a node that restarts can tell its peers, on the first
/// packet of an old connection, that it knows nothing of it.
fn endpoint_config(key: &NodeKey) -> EndpointConfig {
    let reset =
        aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key.derive("keppel 2026 quic stateless reset"));
    let [a, b, c, d, e, f, g, h, ..] = key.derive("keppel 2026 quic connection ids");
    let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    config
}

fn server_config(options: &QuicOptions, tls: &Arc<Tls>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(tls.clone());
    let mut transport = transport_config(options);
    // Raised once the other side is known to be a member.
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES));
    config.transport_config(Arc::new(transport));
    config.max_incoming(INCOMING_MAX);
    config.incoming_buffer_size(INCOMING_BYTES_MAX);
    config.incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    config.retry_token_lifetime(options.handshake_timeout);
    config
}

/// The settings of a connection that goes out.
pub(super) fn client_transport_config(options: &QuicOptions) -> TransportConfig {
    let mut transport = transport_config(options);
    transport.max_concurrent_bidi_streams(VarInt::from_u32(options.streams_max));
    transport.max_concurrent_uni_streams(VarInt::from_u32(1));
    transport.receive_window(VarInt::from_u32(options.receive_window_bytes));
    transport
}

fn transport_config(options: &QuicOptions) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(IdleTimeout::try_from(options.idle_timeout).unwrap_or(VarInt::MAX.into())));
    transport.keep_alive_interval(Some(options.keep_alive_interval));
    transport.stream_receive_window(VarInt::from_u32(options.stream_receive_window_bytes));
    // Answers that were begun first end first: parts of a blob arrive in order.
    transport.send_fairness(false);
    transport.send_window(options.send_window_bytes);
    transport.congestion_controller_factory(Arc::new(DeliveryRateConfig));
    // Packets overtake each other on real lines: time tells which are lost, not how many came since.
    transport.packet_threshold(PACKETS_OVERTAKING_MAX);
    transport.time_threshold(LOST_AFTER_ROUND_TRIPS);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(PACKETS_UNACKNOWLEDGED_MAX));
    acknowledgements.reordering_threshold(VarInt::from_u32(0));
    transport.ack_frequency_config(Some(acknowledgements));
    transport.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    transport.datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    transport
}

/// The endpoint that can reach `address`: one of its family, or one that takes both.
pub(super) fn endpoint_for(endpoints: &[Endpoint], address: SocketAddr) -> Option<&Endpoint> {
    let local = |endpoint: &Endpoint| endpoint.local_addr().ok();
    let same_family = |endpoint: &&Endpoint| local(endpoint).is_some_and(|own| own.is_ipv4() == address.is_ipv4());
    let both = |endpoint: &&Endpoint| local(endpoint).is_some_and(|own| own.ip() == Ipv6Addr::UNSPECIFIED);
    let usable = endpoints.iter().find(same_family);
    usable.or_else(|| endpoints.iter().find(both).filter(|_| address.is_ipv4()))
}

/// The addresses under which this machine may be reached by others, given what it listens on: an unspecified address
/// becomes the one from which the default route leaves. Sends nothing.
pub(super) fn reachable(listening: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for address in listening {
        let ips = match address.ip().is_unspecified() {
            false => vec![address.ip()],
            true => {
                let v4 = (SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), SocketAddr::from(([192, 0, 2, 1], 9)));
                let v6 = "2001:db8::1".parse::<Ipv6Addr>().map(|far| SocketAddr::from((far, 9)));
                let v6 = v6.ok().map(|far| (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), far));
                let routes = [Some(v4), v6.filter(|_| address.is_ipv6())];
                routes.into_iter().flatten().filter_map(|(from, far)| outgoing_ip(from, far).ok()).collect()
            }
        };
        addresses.extend(ips.into_iter().map(|ip| SocketAddr::new(ip, address.port())));
    }
    if addresses.is_empty() {
        // A machine without a network can still be reached from itself.
        addresses.extend(listening.iter().map(|own| match own.is_ipv4() {
            true => SocketAddr::from((Ipv4Addr::LOCALHOST, own.port())),
            false => SocketAddr::from((Ipv6Addr::LOCALHOST, own.port())),
        }));
    }
    addresses
}

fn outgoing_ip(from: SocketAddr, far: SocketAddr) -> io::Result<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind(from)?;
    socket.connect(far)?;
    Ok(socket.local_addr()?.ip())
}
