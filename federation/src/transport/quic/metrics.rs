//! Figures of the QUIC transport.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use metrics::{counter, gauge};

use super::Shared;

const INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn handshake_refused(reason: &'static str) {
    counter!("keppel_federation_handshakes_refused_total", "reason" => reason).increment(1);
}

pub(super) fn request_refused() {
    counter!("keppel_federation_requests_refused_total").increment(1);
}

#[derive(Default, Clone, Copy)]
struct Traffic {
    sent_bytes: u64,
    sent_packets: u64,
    received_bytes: u64,
    received_packets: u64,
    lost_bytes: u64,
    lost_packets: u64,
}

/// Samples all connections until the transport is gone.
pub(super) async fn sample(shared: Weak<Shared>) {
    let mut before: HashMap<usize, Traffic> = HashMap::new();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let connections = shared.peers.connections();
        gauge!("keppel_federation_connections").set(connections.len() as f64);
        let mut now = HashMap::with_capacity(connections.len());
        for (node, connection) in connections {
            let stats = connection.stats();
            let traffic = Traffic {
                sent_bytes: stats.udp_tx.bytes,
                sent_packets: stats.udp_tx.datagrams,
                received_bytes: stats.udp_rx.bytes,
                received_packets: stats.udp_rx.datagrams,
                lost_bytes: stats.path.lost_bytes,
                lost_packets: stats.path.lost_packets,
            };
            let last = before.get(&connection.stable_id()).copied().unwrap_or_default();
            let count = |name: &'static str, direction: &'static str, now: u64, last: u64| {
                counter!(name, "direction" => direction).increment(now.saturating_sub(last));
            };
            count("keppel_federation_quic_bytes_total", "sent", traffic.sent_bytes, last.sent_bytes);
            count("keppel_federation_quic_bytes_total", "received", traffic.received_bytes, last.received_bytes);
            count("keppel_federation_quic_packets_total", "sent", traffic.sent_packets, last.sent_packets);
            count("keppel_federation_quic_packets_total", "received", traffic.received_packets, last.received_packets);
            count("keppel_federation_quic_bytes_total", "lost", traffic.lost_bytes, last.lost_bytes);
            count("keppel_federation_quic_packets_total", "lost", traffic.lost_packets, last.lost_packets);
            gauge!("keppel_federation_window_bytes", "peer" => node.short()).set(stats.path.cwnd as f64);
            gauge!("keppel_federation_round_trip_seconds", "peer" => node.short()).set(stats.path.rtt.as_secs_f64());
            now.insert(connection.stable_id(), traffic);
        }
        before = now;
    }
}
