use std::net::SocketAddr;
use std::time::Duration;

/// The limits and waiting times of the QUIC transport. The defaults suit regions up to 300 ms apart.
#[derive(Debug, Clone)]
pub struct QuicOptions {
    /// The UDP addresses to listen on and to connect from. `[::]:0` takes both families on one socket.
    pub listen: Vec<SocketAddr>,
    /// A connection over which nothing came for so long is dead.
    pub idle_timeout: Duration,
    /// How often an idle connection is kept alive; a third of the idle timeout or less, so that two may get lost.
    pub keep_alive_interval: Duration,
    /// How long one attempt to connect may take.
    pub connect_timeout: Duration,
    /// After so long without success the next address of a node is tried beside the first.
    pub connect_stagger: Duration,
    /// The pause after a first failed attempt to connect; it doubles with each, and is jittered by half.
    pub backoff_min: Duration,
    /// The longest pause between attempts to connect.
    pub backoff_max: Duration,
    /// Requests of one node that are received or worked on at a time.
    pub streams_max: u32,
    /// How much one node may have under way to us. Bandwidth times round-trip time is what a link needs, and twice
    /// as much where packets get lost, since what waits for one that is sent again counts: 64 MiB carry 2 Gbit/s over 125 ms.
    pub receive_window_bytes: u32,
    /// The same for one stream.
    pub stream_receive_window_bytes: u32,
    /// How much we may have under way to one node.
    pub send_window_bytes: u64,
    /// Request bodies of one node held in memory at a time.
    pub request_bodies_bytes_max: u32,
    /// How long a message may take to arrive, to which comes the time its size takes at `receive_rate_min`.
    pub receive_timeout: Duration,
    /// The slowest tolerated sender, in bytes per second.
    pub receive_rate_min_bytes: u32,
    /// How long answering one request may take.
    pub handle_timeout: Duration,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Handshakes under way whose remote address is not known to be real; more are asked to prove it first.
    pub handshakes_unvalidated_max: usize,
    /// Handshakes under way whose remote address is real; more are refused.
    pub handshakes_validated_max: usize,
    /// Of those, handshakes from one address (of one /64 network for IPv6).
    pub handshakes_per_source_max: usize,
    /// Nodes that are not members but want to become one, at a time.
    pub joiners_max: usize,
    /// Such nodes per second, over all.
    pub joins_per_second: u32,
    /// How long such a node may stay connected.
    pub join_timeout: Duration,
    /// Two connections of one pair of nodes that were made within this time were made at the same moment from both
    /// sides; the surplus one is closed after the same time.
    pub duplicate_window: Duration,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            idle_timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_millis(2500),
            connect_timeout: Duration::from_secs(5),
            connect_stagger: Duration::from_millis(250),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            streams_max: 256,
            receive_window_bytes: 64 << 20,
            stream_receive_window_bytes: 16 << 20,
            send_window_bytes: 64 << 20,
            request_bodies_bytes_max: 64 << 20,
            receive_timeout: Duration::from_secs(10),
            receive_rate_min_bytes: 64 << 10,
            handle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(5),
            handshakes_unvalidated_max: 64,
            handshakes_validated_max: 256,
            handshakes_per_source_max: 64,
            joiners_max: 8,
            joins_per_second: 10,
            join_timeout: Duration::from_secs(20),
            duplicate_window: Duration::from_secs(5),
        }
    }
}

impl QuicOptions {
    /// How long a message of `size` bytes may take.
    pub(super) fn time_for(&self, size: usize) -> Duration {
        let seconds = size as f64 / f64::from(self.receive_rate_min_bytes.max(1));
        self.receive_timeout + Duration::from_secs_f64(seconds)
    }
}
