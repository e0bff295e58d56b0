//! What happens on one connection: counters that the transport and the requests raise, and the verdict of the watch.
//!
//! One coarse timer per connection looks at the counters; nothing on the way of a request arms or resets a timer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    task::{Poll, Waker},
    time::Duration,
};

use futures_util::task::AtomicWaker;

use super::ServerOptions;

/// Bytes that count as progress of a stalled transfer within one body idle timeout.
const PROGRESS_MIN_BYTES: u64 = 1024;
/// How long a closed connection may take to read our last words.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(2);

/// What the server wants of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    Draining,
    Aborted,
}

/// The counters of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    stage: AtomicU8,
    waker: AtomicWaker,
    handlers: AtomicU32,
    bodies: AtomicU32,
    requests: AtomicU64,
    moved_bytes: AtomicU64,
    head_pending: AtomicBool,
    http2: AtomicBool,
    write_blocked: AtomicBool,
    lingering: AtomicBool,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            stage: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            handlers: AtomicU32::new(0),
            bodies: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            moved_bytes: AtomicU64::new(0),
            head_pending: AtomicBool::new(true),
            http2: AtomicBool::new(false),
            write_blocked: AtomicBool::new(false),
            lingering: AtomicBool::new(false),
        }
    }

    /// Asks the connection's task to move on to a later stage.
    pub(super) fn enter(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, SeqCst);
        self.waker.wake();
    }

    /// The stage; the task of this waker is woken when it changes.
    pub(super) fn stage(&self, waker: &Waker) -> Stage {
        self.waker.register(waker);
        match self.stage.load(SeqCst) {
            0 => Stage::Running,
            1 => Stage::Draining,
            _ => Stage::Aborted,
        }
    }

    pub(super) fn read(&self, bytes: usize) {
        self.moved_bytes.fetch_add(bytes as u64, Relaxed);
        if bytes > 0 && self.handlers.load(Relaxed) == 0 {
            self.head_pending.store(true, Relaxed);
        }
    }

    pub(super) fn wrote(&self, written: Poll<std::io::Result<usize>>) -> Poll<std::io::Result<usize>> {
        self.write_blocked.store(written.is_pending(), Relaxed);
        if let Poll::Ready(Ok(bytes)) = written {
            self.moved_bytes.fetch_add(bytes as u64, Relaxed);
        }
        written
    }

    /// How many requests have begun, where none of them is being answered any more.
    pub(super) fn answered(&self) -> Option<u64> {
        let in_hand = self.handlers.load(Relaxed) > 0 || self.bodies.load(Relaxed) > 0;
        (!in_hand).then(|| self.requests.load(Relaxed))
    }

    /// How many requests have begun.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    pub(super) fn linger(&self) {
        self.lingering.store(true, Relaxed);
    }

    /// Notes that a request's head has arrived; the guard lives until it has been answered.
    pub(super) fn begin_request(self: &Arc<Self>, http2: bool) -> HandlerGuard {
        self.requests.fetch_add(1, Relaxed);
        self.handlers.fetch_add(1, Relaxed);
        self.head_pending.store(false, Relaxed);
        if http2 {
            self.http2.store(true, Relaxed);
        }
        HandlerGuard { activity: self.clone() }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            handlers: self.handlers.load(Relaxed),
            bodies: self.bodies.load(Relaxed),
            requests: self.requests.load(Relaxed),
            moved_bytes: self.moved_bytes.load(Relaxed),
            head_pending: self.head_pending.load(Relaxed) && !self.http2.load(Relaxed),
            write_blocked: self.write_blocked.load(Relaxed),
            lingering: self.lingering.load(Relaxed),
        }
    }
}

/// Lives while a request is being handled.
#[derive(Debug)]
pub(super) struct HandlerGuard {
    activity: Arc<Activity>,
}

impl HandlerGuard {
    /// The answer's head is there; what is left is its body.
    pub(super) fn answered(&self) -> BodyGuard {
        self.activity.bodies.fetch_add(1, Relaxed);
        BodyGuard { activity: self.activity.clone() }
    }
}

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        self.activity.handlers.fetch_sub(1, Relaxed);
    }
}

/// Lives while an answer's body is being sent.
#[derive(Debug)]
pub(super) struct BodyGuard {
    activity: Arc<Activity>,
}

impl Drop for BodyGuard {
    fn drop(&mut self) {
        self.activity.bodies.fetch_sub(1, Relaxed);
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Snapshot {
    pub(super) handlers: u32,
    pub(super) bodies: u32,
    pub(super) requests: u64,
    pub(super) moved_bytes: u64,
    pub(super) head_pending: bool,
    pub(super) write_blocked: bool,
    pub(super) lingering: bool,
}

/// What the watch thinks of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Stay,
    /// Idle too long: finish politely.
    Close,
    /// Stalled, or too slow to be polite to.
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Handling,
    Sending,
    Lingering,
}

/// Judges a connection once per [`Watch::period`].
#[derive(Debug)]
pub(super) struct Watch {
    header_read_timeout: Duration,
    idle_timeout: Duration,
    body_idle_timeout: Duration,
    period: Duration,
    phase: Phase,
    quiet: Duration,
    head: Duration,
    seen_requests: u64,
    seen_bytes: u64,
    closing: bool,
}

impl Watch {
    pub(super) fn new(options: &ServerOptions) -> Self {
        let shortest = options.header_read_timeout.min(options.idle_timeout).min(options.body_idle_timeout);
        Self {
            header_read_timeout: options.header_read_timeout,
            idle_timeout: options.idle_timeout,
            body_idle_timeout: options.body_idle_timeout,
            period: (shortest / 4).clamp(Duration::from_millis(10), LINGER_MAX),
            phase: Phase::Idle,
            quiet: Duration::ZERO,
            head: Duration::ZERO,
            seen_requests: 0,
            seen_bytes: 0,
            closing: false,
        }
    }

    /// How often to look.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// The verdict, one period after the last.
    pub(super) fn judge(&mut self, now: Snapshot) -> Verdict {
        let phase = match now {
            Snapshot { lingering: true, .. } => Phase::Lingering,
            Snapshot { handlers: 1.., .. } => Phase::Handling,
            Snapshot { bodies: 1.., .. } | Snapshot { write_blocked: true, .. } => Phase::Sending,
            _ => Phase::Idle,
        };
        if phase != self.phase || now.requests != self.seen_requests {
            (self.phase, self.seen_requests, self.seen_bytes) = (phase, now.requests, now.moved_bytes);
            (self.quiet, self.head) = (Duration::ZERO, Duration::ZERO);
            return Verdict::Stay;
        }
        self.quiet += self.period;
        match phase {
            Phase::Handling => Verdict::Stay,
            Phase::Lingering if self.quiet >= LINGER_MAX => Verdict::Drop,
            Phase::Lingering => Verdict::Stay,
            Phase::Sending if now.moved_bytes - self.seen_bytes >= PROGRESS_MIN_BYTES => {
                (self.seen_bytes, self.quiet) = (now.moved_bytes, Duration::ZERO);
                Verdict::Stay
            }
            Phase::Sending if self.quiet >= self.body_idle_timeout => Verdict::Drop,
            Phase::Sending => Verdict::Stay,
            Phase::Idle => {
                self.head = if now.head_pending { self.head + self.period } else { Duration::ZERO };
                if self.closing || self.head >= self.header_read_timeout {
                    return Verdict::Drop;
                }
                self.closing = self.quiet >= self.idle_timeout;
                if self.closing { Verdict::Close } else { Verdict::Stay }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let second = Duration::from_secs(1);
        Watch::new(&ServerOptions {
            header_read_timeout: 4 * second,
            idle_timeout: 12 * second,
            body_idle_timeout: 8 * second,
            ..ServerOptions::default()
        })
    }

    fn verdicts(watch: &mut Watch, snapshot: Snapshot, count: usize) -> Vec<Verdict> {
        (0..count).map(|_| watch.judge(snapshot)).collect()
    }

    #[test]
    fn a_connection_that_never_sends_a_whole_head_is_dropped_at_the_header_timeout() {
        let slow = Snapshot { head_pending: true, moved_bytes: 5, ..Snapshot::default() };
        let stays = [Verdict::Stay; 3];
        assert_eq!(verdicts(&mut watch(), slow, 3), stays);
        assert_eq!(verdicts(&mut watch(), slow, 4)[3], Verdict::Drop);
    }

    #[test]
    fn an_idle_connection_is_closed_and_then_dropped() {
        let mut watch = watch();
        let idle = Snapshot { requests: 1, ..Snapshot::default() };
        let all = verdicts(&mut watch, idle, 14);
        assert!(all[..12].iter().all(|verdict| *verdict == Verdict::Stay), "{all:?}");
        assert_eq!(all[12..], [Verdict::Close, Verdict::Drop]);
    }

    #[test]
    fn a_running_handler_is_left_alone() {
        let busy = Snapshot { handlers: 1, requests: 1, ..Snapshot::default() };
        assert!(verdicts(&mut watch(), busy, 1000).iter().all(|verdict| *verdict == Verdict::Stay));
    }

    #[test]
    fn a_reader_that_takes_a_byte_now_and_then_is_dropped_and_a_slow_one_is_not() {
        let judge = |rate: u64| {
            let mut watch = watch();
            (0..40_u64).any(|second| {
                let moved_bytes = second * rate;
                watch.judge(Snapshot { bodies: 1, requests: 1, moved_bytes, ..Snapshot::default() }) == Verdict::Drop
            })
        };
        assert!(judge(1));
        assert!(!judge(PROGRESS_MIN_BYTES / 4));
    }

    #[test]
    fn a_closed_connection_lingers_only_briefly() {
        let mut watch = watch();
        let gone = Snapshot { lingering: true, requests: 1, ..Snapshot::default() };
        assert_eq!(verdicts(&mut watch, gone, 3), [Verdict::Stay, Verdict::Stay, Verdict::Drop]);
    }
}
