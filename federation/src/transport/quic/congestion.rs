//! How fast a connection may send: Cubic, which does not take every lost packet for a sign that the line is full.
//!
//! Long lines lose packets for other reasons than full queues. At 100 ms and 1 % lost, Cubic (RFC 9438) carries 1 Mbit/s
//! whatever the line could. A queue that fills shows in the round trip as well, and one that is too short to show loses a good
//! part of what is sent. So a loss counts only when the round trip has grown, or when much is lost, or when nothing comes through.
//! Rejected: BBR of the QUIC library, which measured the same, and is marked as experimental.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// What may be under way before anything is known of a line: so that the beginning of a blob, and what proves it, need one
/// round trip. It is sent over most of a round trip, not at once.
const INITIAL_WINDOW_BYTES: u64 = 1 << 20;
/// Losses beyond this share are the line's way of saying that it is full.
const LOSS_TOLERATED: f64 = 0.025;
/// So many packets more may get lost: shares of few packets say nothing.
const LOST_PACKETS_TOLERATED: u64 = 8;
/// Losses are counted over so many windows.
const WINDOWS_COUNTED: u64 = 4;
/// The round trip has grown when it is longer than the shortest by a quarter, and by this much, which busy machines add.
const QUEUE_MIN: Duration = Duration::from_millis(15);

/// Makes the controllers of connections.
#[derive(Debug, Default)]
pub(super) struct LossTolerantConfig;

impl ControllerFactory for LossTolerantConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL_WINDOW_BYTES);
        Box::new(LossTolerant {
            cubic: Arc::new(cubic).build(now, current_mtu),
            mtu: u64::from(current_mtu),
            acked: 0,
            lost: 0,
            has_queue: false,
        })
    }
}

/// The controller of one connection. All sizes in bytes.
struct LossTolerant {
    cubic: Box<dyn Controller>,
    mtu: u64,
    acked: u64,
    lost: u64,
    has_queue: bool,
}

impl LossTolerant {
    fn count(&mut self, acked: u64, lost: u64) {
        self.acked += acked;
        self.lost += lost;
        // What was long ago counts less and less.
        if self.acked + self.lost > WINDOWS_COUNTED * self.cubic.window() {
            self.acked /= 2;
            self.lost /= 2;
        }
    }

    fn loses_much(&self) -> bool {
        let tolerated = (self.acked + self.lost) as f64 * LOSS_TOLERATED;
        self.lost as f64 > tolerated + (LOST_PACKETS_TOLERATED * self.mtu) as f64
    }
}

impl Controller for LossTolerant {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.count(bytes, 0);
        self.has_queue = rtt.get().saturating_sub(rtt.min()) > QUEUE_MIN.max(rtt.min() / 4);
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.count(0, lost_bytes);
        // Routers that mark packets instead of dropping them mean it.
        let is_marked = lost_bytes == 0;
        if is_persistent_congestion || is_marked || self.has_queue || self.loses_much() {
            self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let cubic = self.cubic.clone_box();
        Box::new(Self { cubic, ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u64 = 1400;

    fn controller(start: Instant) -> Box<dyn Controller> {
        Arc::new(LossTolerantConfig).build(start, MTU as u16)
    }

    /// Loses `lost` of every hundred packets for some round trips of 100 ms.
    fn lose(controller: &mut dyn Controller, start: Instant, lost: u64, rounds: u32) {
        for round in 0..rounds {
            let sent = start + round * Duration::from_millis(100);
            for _ in 0..7 {
                // What came through is counted in the same way, without the round trips that the library alone can make.
                controller.on_congestion_event(sent + Duration::from_millis(100), sent, false, lost * MTU);
            }
        }
    }

    #[test]
    fn single_losses_on_a_line_without_a_queue_slow_nothing_down() {
        let start = Instant::now();
        let mut controller = controller(start);
        let before = controller.window();
        lose(&mut *controller, start, 1, 1);
        assert_eq!(controller.window(), before);
    }

    #[test]
    fn much_loss_slows_down() {
        let start = Instant::now();
        let mut controller = controller(start);
        let before = controller.window();
        lose(&mut *controller, start, 30, 1);
        assert!(controller.window() < before);
    }

    #[test]
    fn marks_and_a_dead_line_slow_down_at_once() {
        let start = Instant::now();
        let mut marked = controller(start);
        let before = marked.window();
        marked.on_congestion_event(start, start, false, 0);
        assert!(marked.window() < before);
        let mut dead = controller(start);
        dead.on_congestion_event(start, start, true, MTU);
        assert!(dead.window() <= 2 * MTU);
    }
}
