//! How fast a connection may send: as fast as the line was seen to deliver, with little more under way than the line holds.
//!
//! Long lines lose packets for other reasons than full queues, and whoever takes each loss for one carries next to nothing:
//! Cubic (RFC 9438) 1 Mbit/s over 100 ms at 1 % lost. So this controller looks at what arrives. In each round trip it measures
//! how fast bytes were delivered; the best of the last rounds, times the shortest round trip and a margin, is what may be
//! under way. The margin makes a short queue where the line is full, and lets the rate grow by as much each round where it
//! is not. A queue that is too short for it shows in losses beyond what lines lose by themselves: then the margin shrinks.
//!
//! Where acknowledgements come in heaps, since a machine is busy or a radio link gathers them, as much more may be under way
//! as came at once: else everybody would wait for the next heap, deliver less in each round, and be allowed less and less.
//!
//! It begins by doubling, until a queue shows, much is lost, or nothing more comes through. The shortest round trip is
//! looked for anew when it was not seen for some seconds, by sending less for two rounds, and taken to have grown when all rounds
//! are longer than our own queue can explain: another way through the net, or others who fill the queues.
//!
//! Rejected: Cubic that ignores losses without a queue, which overshot into queues, lost up to half of what it had sent there
//! and took half a minute to recover; BBR of the QUIC library, which is marked as experimental.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// What may be under way before anything is known of a line: so that the beginnings of blobs need one round trip. It is
/// sent over most of a round trip, not at once.
const INITIAL_WINDOW_BYTES: u64 = 1 << 20;
/// What may always be under way, in packets: some more than arrive before the other side says so at once.
const WINDOW_MIN: u64 = 32;
/// Rounds of which the fastest counts, at the least, and all those of this time: where a round is short, one in which a
/// busy machine stood still says nothing about the line.
const ROUNDS_REMEMBERED: usize = 10;
const REMEMBERED: Duration = Duration::from_secs(2);
/// A round is a round trip, but no shorter than this, so that near nodes' rounds have something to measure.
const ROUND_MIN: Duration = Duration::from_millis(10);
/// The queue that we make at most, as a share of the shortest round trip, and the least that is worth it: so much later
/// than necessary may acknowledgements come before we have to wait for them.
const QUEUE_SHARE: f64 = 0.3;
const QUEUE_MIN: Duration = Duration::from_millis(10);
/// What comes in heaps counts up to what the line delivers in this time.
const HEAP_MAX: Duration = Duration::from_millis(100);
/// How much of that queue and of the heaps is left where queues are too short for them.
const MARGIN_MIN: f64 = 0.2;
const MARGIN_STEP: f64 = 0.05;
/// A round that lost a greater share found a queue full, if it lost more than so many packets: shares of few say nothing.
const LOSS_TOLERATED: f64 = 0.025;
const LOST_PACKETS_TOLERATED: u64 = 8;
/// Where so much is lost, what was seen of the line before is no longer true, but for the last rounds.
const LOSS_FORGETS: f64 = 0.15;
const ROUNDS_KEPT: usize = 2;
/// The beginning ends when a round delivers less than so much more than the best before, so many times in a row.
const GROWTH_MIN: f64 = 1.25;
const FLAT_ROUNDS_MAX: u32 = 3;
/// It ends at once when so many acknowledgements in a row came so much later than the shortest round trip.
const LATE_ACKNOWLEDGEMENTS_MAX: u32 = 8;
const QUEUE_SEEN_SHARE: f64 = 0.125;
const QUEUE_SEEN_MIN: Duration = Duration::from_millis(6);
/// How long the shortest round trip is believed without being seen.
const SHORTEST_LASTS: Duration = Duration::from_secs(10);
/// Seen means up to this share longer.
const SEEN_SHARE: f64 = 1.0 / 32.0;
/// Rounds in which less is sent to see it again, and how much of what the line holds.
const DRAIN_ROUNDS: u32 = 2;
const DRAIN_SHARE: f64 = 0.75;
/// Rounds longer by this share than the shortest, so many in a row: it is the shortest no more.
const LONGER_SHARE: f64 = 0.6;
const LONGER_ROUNDS_MAX: u32 = 12;

/// Makes the controllers of connections.
#[derive(Debug, Default)]
pub(super) struct DeliveryRateConfig;

impl ControllerFactory for DeliveryRateConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(DeliveryRate::new(now, current_mtu.into()))
    }
}

/// The controller of one connection. All sizes in bytes, rates in bytes per second.
#[derive(Debug, Clone)]
struct DeliveryRate {
    mtu: u64,
    window: u64,
    /// Whether the window still doubles.
    begins: bool,
    flat_rounds: u32,
    late_acknowledgements: u32,
    rounds: VecDeque<Past>,
    heap: Heap,
    /// The shortest round trip, and when it was last seen.
    shortest: Option<(Duration, Instant)>,
    longer_rounds: u32,
    /// Rounds left in which the shortest round trip is looked for, and the shortest of them.
    drain: Option<(u32, Duration)>,
    /// How much of the queue and of the heaps is allowed for, from `MARGIN_MIN` to 1.
    margin: f64,
    round: Round,
    is_idle: bool,
}

/// What is remembered of a round.
#[derive(Debug, Clone, Copy)]
struct Past {
    ended: Instant,
    rate: f64,
    /// The most that came at once, beyond what the line would have delivered meanwhile.
    heap: f64,
}

/// Acknowledgements that come faster than the line delivers.
#[derive(Debug, Clone)]
struct Heap {
    began: Instant,
    acked: f64,
    largest: f64,
}

impl Heap {
    fn new(now: Instant) -> Self {
        Self { began: now, acked: 0.0, largest: 0.0 }
    }

    fn add(&mut self, now: Instant, bytes: u64, rate: f64) {
        let delivered = rate * now.saturating_duration_since(self.began).as_secs_f64();
        if self.acked <= delivered {
            (self.began, self.acked) = (now, bytes as f64);
        } else {
            self.acked += bytes as f64;
        }
        let delivered = rate * now.saturating_duration_since(self.began).as_secs_f64();
        self.largest = self.largest.max(self.acked - delivered).min(rate * HEAP_MAX.as_secs_f64());
    }
}

/// What has happened since a round began.
#[derive(Debug, Clone)]
struct Round {
    began: Instant,
    /// When the newest packet acknowledged before the round, and by now, was sent.
    sent_before: Option<Instant>,
    sent: Option<Instant>,
    acked: u64,
    /// By the acknowledgement that is being looked at.
    acked_at_once: u64,
    /// How much of that was acknowledged while there was nothing to send.
    limited: u64,
    lost: u64,
    shortest: Duration,
    is_marked: bool,
    is_over: bool,
}

impl Round {
    fn new(now: Instant, sent_before: Option<Instant>) -> Self {
        Self {
            began: now,
            sent_before,
            sent: sent_before,
            acked: 0,
            acked_at_once: 0,
            limited: 0,
            lost: 0,
            shortest: Duration::MAX,
            is_marked: false,
            is_over: false,
        }
    }

    /// Whether it says little about the line, since there was too little to send.
    fn is_limited(&self) -> bool {
        self.limited * 4 > self.acked
    }

    fn loss(&self) -> f64 {
        self.lost as f64 / (self.acked + self.lost).max(1) as f64
    }

    /// How fast its bytes were delivered. What was sent in a longer time than it was acknowledged in only waited together.
    fn rate(&self, now: Instant) -> Option<f64> {
        let acked_in = now.saturating_duration_since(self.began);
        let sent_in = match (self.sent_before, self.sent) {
            (Some(before), Some(sent)) => sent.saturating_duration_since(before),
            _ => Duration::ZERO,
        };
        let seconds = acked_in.max(sent_in).as_secs_f64();
        (seconds > 0.0 && self.acked > 0).then(|| self.acked as f64 / seconds)
    }
}

impl DeliveryRate {
    fn new(now: Instant, mtu: u64) -> Self {
        Self {
            mtu,
            window: INITIAL_WINDOW_BYTES,
            begins: true,
            flat_rounds: 0,
            late_acknowledgements: 0,
            rounds: VecDeque::with_capacity(ROUNDS_REMEMBERED),
            heap: Heap::new(now),
            shortest: None,
            longer_rounds: 0,
            drain: None,
            margin: 1.0,
            round: Round::new(now, None),
            is_idle: true,
        }
    }

    fn best_rate(&self) -> Option<f64> {
        self.rounds.iter().map(|round| round.rate).reduce(f64::max)
    }

    fn sent(&mut self, now: Instant) {
        if self.is_idle {
            self.is_idle = false;
            self.round = Round::new(now, None);
        }
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, is_limited: bool) {
        let took = now.saturating_duration_since(sent);
        match &mut self.shortest {
            Some((shortest, seen)) if took >= *shortest => {
                if took <= shortest.mul_f64(1.0 + SEEN_SHARE) {
                    *seen = now;
                }
            }
            shortest => *shortest = Some((took, now)),
        }
        if let Some((_, shortest)) = &mut self.drain {
            *shortest = took.min(*shortest);
        }
        let round = &mut self.round;
        round.acked += bytes;
        round.acked_at_once += bytes;
        round.limited += if is_limited { bytes } else { 0 };
        round.sent = round.sent.max(Some(sent));
        round.shortest = round.shortest.min(took);
        round.is_over |= sent >= round.began && now.saturating_duration_since(round.began) >= ROUND_MIN;
        if self.begins && !is_limited {
            self.window += bytes;
        }
    }

    /// All that one acknowledgement said has been counted.
    fn acknowledged(&mut self, now: Instant, in_flight: u64) {
        let bytes = std::mem::take(&mut self.round.acked_at_once);
        if let Some(rate) = self.best_rate() {
            self.heap.add(now, bytes, rate);
        }
        if self.begins && self.sees_queue(now) {
            self.begins = false;
            let rate = self.round.rate(now).filter(|_| self.round.sent_before.is_some());
            self.rounds.extend(rate.map(|rate| Past { ended: now, rate, heap: 0.0 }));
            let reached = self.window;
            self.set_window();
            self.window = self.window.min(reached);
        }
        if self.round.is_over {
            self.end_round(now);
        }
        self.is_idle = in_flight == 0;
    }

    fn sees_queue(&mut self, now: Instant) -> bool {
        let (Some((shortest, _)), Some(sent)) = (self.shortest, self.round.sent) else { return false };
        let queue = QUEUE_SEEN_MIN.max(shortest.mul_f64(QUEUE_SEEN_SHARE));
        let is_late = now.saturating_duration_since(sent) > shortest + queue && !self.round.is_limited();
        self.late_acknowledgements = if is_late { self.late_acknowledgements + 1 } else { 0 };
        self.late_acknowledgements >= LATE_ACKNOWLEDGEMENTS_MAX
    }

    fn end_round(&mut self, now: Instant) {
        let next = Round::new(now, self.round.sent);
        let round = std::mem::replace(&mut self.round, next);
        // The first one after a pause measures the pause.
        let Some(rate) = round.rate(now).filter(|_| round.sent_before.is_some()) else { return };
        let best = self.best_rate();
        // What was not sent says nothing about what could have been, but what was delivered can be.
        if round.is_limited() && best.is_none_or(|best| rate <= best) {
            return;
        }
        let loses_much = round.lost > LOST_PACKETS_TOLERATED * self.mtu && round.loss() > LOSS_TOLERATED;
        if loses_much && round.loss() > LOSS_FORGETS {
            self.rounds.drain(..self.rounds.len().saturating_sub(ROUNDS_KEPT));
        }
        let is_old = |past: &mut Past| now.saturating_duration_since(past.ended) > REMEMBERED;
        while self.rounds.len() >= ROUNDS_REMEMBERED && self.rounds.pop_front_if(is_old).is_some() {}
        self.rounds.push_back(Past { ended: now, rate, heap: std::mem::take(&mut self.heap.largest) });
        self.margin = match loses_much || round.is_marked {
            true => (self.margin / 2.0).max(MARGIN_MIN),
            false => (self.margin + MARGIN_STEP).min(1.0),
        };
        if self.begins {
            let is_flat = best.is_some_and(|best| rate < best * GROWTH_MIN);
            self.flat_rounds = if is_flat { self.flat_rounds + 1 } else { 0 };
            self.begins = !loses_much && !round.is_marked && self.flat_rounds < FLAT_ROUNDS_MAX;
        }
        self.look_at_round_trip(&round, now);
        self.set_window();
    }

    /// Keeps the shortest round trip true.
    fn look_at_round_trip(&mut self, round: &Round, now: Instant) {
        let Some((shortest, seen)) = self.shortest else { return };
        let longer = shortest.mul_f64(1.0 + LONGER_SHARE) + QUEUE_MIN;
        self.longer_rounds = if round.shortest > longer { self.longer_rounds + 1 } else { 0 };
        if self.longer_rounds >= LONGER_ROUNDS_MAX {
            self.shortest = Some((round.shortest, now));
            (self.longer_rounds, self.drain) = (0, None);
            return;
        }
        self.drain = match self.drain {
            Some((0 | 1, found)) => {
                self.shortest = Some((found.max(shortest), now));
                None
            }
            // What the first round finds may have been in the queue already.
            Some((left, _)) => Some((left - 1, Duration::MAX)),
            None if !self.begins && now.saturating_duration_since(seen) > SHORTEST_LASTS => {
                Some((DRAIN_ROUNDS, Duration::MAX))
            }
            None => None,
        };
    }

    fn set_window(&mut self) {
        let (Some(rate), Some((shortest, _)), false) = (self.best_rate(), self.shortest, self.begins) else { return };
        let holds = rate * shortest.as_secs_f64();
        let queue = rate * QUEUE_MIN.max(shortest.mul_f64(QUEUE_SHARE)).as_secs_f64();
        let heap = self.rounds.iter().map(|round| round.heap).fold(0.0, f64::max);
        let window = match self.drain {
            Some(_) => holds * DRAIN_SHARE,
            None => holds + (queue + heap) * self.margin,
        };
        self.window = (window as u64).max(WINDOW_MIN * self.mtu);
    }

    fn lost(&mut self, now: Instant, is_persistent: bool, bytes: u64) {
        self.round.lost += bytes;
        // Routers that mark packets instead of dropping them mean it.
        self.round.is_marked |= bytes == 0;
        if is_persistent {
            let (mtu, shortest) = (self.mtu, self.shortest);
            *self = Self { window: WINDOW_MIN * mtu, shortest, ..Self::new(now, mtu) };
        } else if self.begins && self.round.lost > self.window / 4 {
            self.begins = false;
            self.window -= self.window / 4;
        }
    }
}

impl Controller for DeliveryRate {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        self.sent(now);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        self.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.acknowledged(now, in_flight);
    }

    fn on_congestion_event(&mut self, now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.lost(now, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(WINDOW_MIN * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}
