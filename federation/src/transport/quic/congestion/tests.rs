use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const MTU: u64 = 1400;
const TICK: Duration = Duration::from_micros(500);

/// A line with a queue before it, and a sender that always has something to send over it.
struct Simulation {
    controller: DeliveryRate,
    bytes_per_second: f64,
    /// How long a packet may wait in the queue.
    queue: Duration,
    round_trip: Duration,
    loss: f64,
    random: StdRng,
    start: Instant,
    now: Instant,
    /// When the line has sent all that waits.
    free: Instant,
    smoothed: Duration,
    tokens: f64,
    in_flight: u64,
    /// When the acknowledgement of each packet would be here, and when it was sent.
    acknowledgements: VecDeque<(Instant, Instant)>,
    /// Whether the receiver has other things to do, and comes to look again and again only.
    is_busy: bool,
    looks_at: Instant,
    doomed: VecDeque<Instant>,
    sent: u64,
    delivered: u64,
    overflowed: u64,
}

impl Simulation {
    fn new(mbit: f64, round_trip_ms: u64, queue_ms: u64, loss: f64) -> Self {
        let start = Instant::now();
        Self {
            controller: DeliveryRate::new(start, MTU),
            bytes_per_second: mbit * 1e6 / 8.0,
            queue: Duration::from_millis(queue_ms),
            round_trip: Duration::from_millis(round_trip_ms),
            loss,
            random: StdRng::seed_from_u64(7),
            start,
            now: start,
            free: start,
            smoothed: Duration::from_millis(round_trip_ms.max(1)),
            tokens: 0.0,
            in_flight: 0,
            acknowledgements: VecDeque::new(),
            is_busy: false,
            looks_at: start,
            doomed: VecDeque::new(),
            sent: 0,
            delivered: 0,
            overflowed: 0,
        }
    }

    /// Goes on until so many seconds after the start; gives the share of the line that was used meanwhile.
    fn run_until(&mut self, seconds: f64) -> f64 {
        let (began, before) = (self.now, self.delivered);
        let end = self.start + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.now += TICK;
            self.send();
            self.acknowledge();
            self.lose();
        }
        (self.delivered - before) as f64 / (self.now - began).as_secs_f64() / self.bytes_per_second
    }

    /// As the QUIC library paces.
    fn send(&mut self) {
        let per_second = 1.25 * self.controller.window() as f64 / self.smoothed.as_secs_f64();
        let capacity = (per_second * 0.002).max((10 * MTU) as f64);
        self.tokens = (self.tokens + per_second * TICK.as_secs_f64()).min(capacity);
        while self.tokens >= MTU as f64 && self.in_flight + MTU <= self.controller.window() {
            self.tokens -= MTU as f64;
            self.in_flight += MTU;
            self.sent += MTU;
            self.controller.sent(self.now);
            let waits = self.free.saturating_duration_since(self.now);
            if waits > self.queue {
                self.overflowed += MTU;
                self.doomed.push_back(self.now);
            } else if self.random.random_bool(self.loss) {
                self.doomed.push_back(self.now);
            } else {
                self.free = self.free.max(self.now) + Duration::from_secs_f64(MTU as f64 / self.bytes_per_second);
                self.acknowledgements.push_back((self.free + self.round_trip, self.now));
            }
        }
    }

    /// Ten packets together, or what is there after 25 ms.
    fn acknowledge(&mut self) {
        let mut newest = None;
        let is_due =
            |at: usize, waits: Duration| self.acknowledgements.get(at).is_some_and(|(due, _)| *due + waits <= self.now);
        let is_silent = !is_due(9, Duration::ZERO) && !is_due(0, Duration::from_millis(25));
        if is_silent || self.is_busy && self.now < self.looks_at {
            return;
        }
        self.looks_at = self.now + Duration::from_millis(self.random.random_range(5..40));
        while let Some((_, sent)) = self.acknowledgements.pop_front_if(|(due, _)| *due <= self.now) {
            self.in_flight -= MTU;
            self.delivered += MTU;
            self.controller.acked(self.now, sent, MTU, false);
            newest = Some(sent);
        }
        if let Some(sent) = newest {
            self.controller.acknowledged(self.now, self.in_flight);
            self.smoothed = (self.smoothed * 7 + (self.now - sent)) / 8;
        }
    }

    fn lose(&mut self) {
        let mut lost = 0;
        while self.doomed.pop_front_if(|sent| self.now - *sent > self.smoothed.mul_f64(1.25)).is_some() {
            self.in_flight -= MTU;
            lost += MTU;
        }
        if lost > 0 {
            self.controller.lost(self.now, false, lost);
        }
    }

    fn overflowed_share(&self) -> f64 {
        self.overflowed as f64 / self.sent as f64
    }
}

#[test]
fn a_long_line_is_filled_whether_or_not_it_loses_packets_and_its_queue_does_not_overflow() {
    // What is sent at the beginning is more than the slowest of them holds, with its queue.
    for (mbit, loss, overflowed) in
        [(20.0, 0.0, 0.02), (200.0, 0.0, 0.001), (200.0, 0.01, 0.001), (1000.0, 0.01, 0.001)]
    {
        let mut line = Simulation::new(mbit, 100, 100, loss);
        let used = line.run_until(10.0);
        assert!(used > 0.87, "{used:.3} of {mbit} Mbit/s were used with {loss} lost");
        let later = line.run_until(40.0);
        assert!(later > 0.95, "{later:.3} of {mbit} Mbit/s were used with {loss} lost");
        assert!(line.overflowed_share() < overflowed, "{:.4} overflowed, {mbit} Mbit/s", line.overflowed_share());
    }
}

#[test]
fn a_queue_that_is_short_is_not_overrun_for_long() {
    for (queue_ms, overflowed) in [(20, 0.02), (5, 0.05)] {
        let mut line = Simulation::new(200.0, 100, queue_ms, 0.0);
        let used = line.run_until(20.0);
        assert!(used > 0.85, "{used:.3} used with a queue of {queue_ms} ms");
        assert!(line.overflowed_share() < overflowed, "{:.4} overflowed of {queue_ms} ms", line.overflowed_share());
    }
}

#[test]
fn the_queue_that_is_made_is_short() {
    let mut line = Simulation::new(200.0, 100, 1000, 0.0);
    line.run_until(10.0);
    let waits = line.free.saturating_duration_since(line.now);
    assert!(waits < Duration::from_millis(40), "{waits:?}");
}

#[test]
fn a_line_that_becomes_slower_is_not_overrun_for_long_and_one_that_becomes_faster_is_used() {
    let mut line = Simulation::new(200.0, 50, 50, 0.01);
    line.run_until(5.0);
    line.bytes_per_second /= 5.0;
    let before = line.overflowed;
    let used = line.run_until(10.0);
    assert!(used > 0.9, "{used:.3}");
    let lost_ms = (line.overflowed - before) as f64 / (line.bytes_per_second * 5.0) * 1000.0;
    assert!(lost_ms < 200.0, "what was sent in {lost_ms:.0} ms was too much");
    line.bytes_per_second *= 5.0;
    line.run_until(12.0);
    let used = line.run_until(15.0);
    assert!(used > 0.9, "{used:.3}");
}

#[test]
fn a_longer_way_is_noticed() {
    for loss in [0.0, 0.01] {
        let mut line = Simulation::new(200.0, 20, 100, loss);
        line.run_until(5.0);
        line.round_trip = Duration::from_millis(80);
        line.run_until(12.0);
        let used = line.run_until(20.0);
        assert!(used > 0.9, "{used:.3} used with {loss} lost");
    }
}

#[test]
fn the_shortest_round_trip_is_found_again_while_the_line_is_full() {
    let mut line = Simulation::new(200.0, 100, 300, 0.0);
    line.run_until(45.0);
    let (shortest, _) = line.controller.shortest.unwrap();
    assert!(shortest < Duration::from_millis(105), "{shortest:?}");
}

#[test]
fn nodes_near_by_on_busy_machines_do_not_take_their_business_for_a_slow_line() {
    let mut line = Simulation::new(1000.0, 0, 50, 0.0);
    line.is_busy = true;
    line.run_until(20.0);
    let used = line.run_until(40.0);
    assert!(used > 0.9, "{used:.3}, window {}", line.controller.window());
}

#[test]
fn a_busy_receiver_behind_a_short_queue_is_not_overrun() {
    let mut line = Simulation::new(200.0, 20, 20, 0.001);
    line.is_busy = true;
    let used = line.run_until(20.0);
    assert!(used > 0.6, "{used:.3} used");
    assert!(line.overflowed_share() < 0.03, "{:.4} overflowed", line.overflowed_share());
}

#[test]
fn two_senders_share_a_line() {
    // The second one finds the line full.
    let mut first = Simulation::new(100.0, 50, 100, 0.0);
    first.run_until(5.0);
    let mut second = Simulation::new(100.0, 50, 100, 0.0);
    (second.start, second.now, second.free) = (first.start, first.now, first.free);
    second.controller = DeliveryRate::new(first.now, MTU);
    let mut at = 5.0;
    let mut shares = (0.0, 0.0);
    while at < 25.0 {
        at += TICK.as_secs_f64();
        shares.0 += first.run_until(at);
        second.free = first.free;
        shares.1 += second.run_until(at);
        first.free = second.free;
    }
    let steps = 20.0 / TICK.as_secs_f64();
    let (one, other) = (shares.0 / steps, shares.1 / steps);
    assert!(one + other > 0.9, "{one:.2} and {other:.2}");
    assert!(one > 0.2 && other > 0.2, "{one:.2} and {other:.2}");
}

#[test]
fn marks_slow_down_and_after_a_dead_line_it_begins_anew() {
    let mut line = Simulation::new(200.0, 100, 100, 0.0);
    line.run_until(5.0);
    let before = line.controller.window();
    for _ in 0..4 {
        line.controller.lost(line.now, false, 0);
        line.run_until((line.now - line.start).as_secs_f64() + 0.2);
    }
    assert!(line.controller.window() < before, "{} after {before}", line.controller.window());
    line.controller.lost(line.now, true, MTU);
    assert_eq!(line.controller.window(), WINDOW_MIN * MTU);
    assert!(line.controller.begins);
}

#[test]
fn rounds_with_little_to_send_change_nothing() {
    let mut line = Simulation::new(200.0, 100, 100, 0.0);
    line.run_until(5.0);
    let (mut before, mut now) = (0, line.now);
    for exchange in 0..50 {
        // The first one ends the last round of what was before.
        if exchange == 1 {
            before = line.controller.window();
        }
        let sent = now;
        line.controller.sent(sent);
        now += Duration::from_millis(100);
        line.controller.acked(now, sent, MTU, true);
        line.controller.acknowledged(now, 0);
        now += Duration::from_millis(200);
    }
    assert_eq!(line.controller.window(), before);
}
