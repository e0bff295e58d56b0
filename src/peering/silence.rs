//! Which nodes are silent: so that whoever can do without their answer does not wait for it, and the time it takes to find
//! that out is waited once, not by each.
//!
//! A late answer is no silence: a primary may hold one back until other regions have what it shows, and a machine may be
//! busy. So a node is asked what time it has, which it says at once; and any packet that comes from it meanwhile, be it an
//! acknowledgement, shows that it is there. QUIC sends what gets lost again several times in that time, so that a line that
//! loses some is not taken for one that is cut. While it is silent it goes on being asked, and a first answer ends it.
//!
//! Invariant: this only decides how long an answer is waited for, never what is said without it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::Federation;
use keppel_federation::transport::TransportError;
use keppel_federation::vocabulary::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::messages::{Question, encode};

/// How long an answer may take before the node is looked at, in round trips, and at the least.
const LATE_ROUND_TRIPS: u32 = 3;
const LATE_MIN: Duration = Duration::from_millis(300);
/// How long nothing at all may come from it.
const SILENT_ROUND_TRIPS: u32 = 10;
const SILENT_MIN: Duration = Duration::from_secs(1);
/// Between two looks at a node that is silent, or whose answer is late.
const PAUSE: Duration = Duration::from_millis(300);
/// A silent node that nobody asks for is not looked at any more.
const INTEREST: Duration = Duration::from_secs(30);

/// How much depends on an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// There is something to say without it.
    Slight,
    /// Without it the client is told to come again.
    Great,
}

/// What came from a node: by which connection, and how many packets.
type Packets = (usize, u64);

/// The way to other nodes, as far as it matters here: the federation, or in tests a line that loses what is sent.
pub(super) trait Line: Clone + Send + Sync + 'static {
    /// Whether the node said what time it has.
    fn probe(&self, node: NodeId, within: Duration) -> impl Future<Output = bool> + Send;

    fn packets(&self, node: NodeId) -> Option<Packets>;

    fn round_trip(&self, node: NodeId) -> Option<Duration>;
}

impl Line for Federation {
    async fn probe(&self, node: NodeId, within: Duration) -> bool {
        // One that refuses is there.
        matches!(self.ask(node, encode(&Question::Clock), within).await, Ok(_) | Err(TransportError::Refused { .. }))
    }

    fn packets(&self, node: NodeId) -> Option<Packets> {
        self.packets_from(node)
    }

    fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.round_trip_to(node)
    }
}

/// The nodes that are looked at.
pub(super) struct Silences<L> {
    line: L,
    nodes: Mutex<HashMap<NodeId, Watched>>,
}

struct Watched {
    is_silent: Arc<watch::Sender<bool>>,
    looked_for: Arc<Mutex<Instant>>,
    look: Option<AbortOnDropHandle<()>>,
}

impl<L: Line> Silences<L> {
    pub(super) fn new(line: L) -> Self {
        Self { line, nodes: Mutex::default() }
    }

    /// The node has answered something.
    pub(super) fn heard(&self, node: NodeId) {
        if let Some(watched) = self.lock().get(&node) {
            watched.is_silent.send_if_modified(std::mem::take);
        }
    }

    /// Waits beside a question until it is of no use to wait for its answer any more.
    ///
    /// Cancel safety: safe.
    pub(super) async fn in_vain(&self, node: NodeId, need: Need) {
        let late = LATE_MIN.max(self.line.round_trip(node).unwrap_or_default() * LATE_ROUND_TRIPS);
        let patience = match need {
            Need::Slight => late,
            Need::Great => late * 4,
        };
        sleep(patience).await;
        loop {
            let mut is_silent = self.look(node);
            if matches!(timeout(SILENT_MIN, is_silent.wait_for(|is_silent| *is_silent)).await, Ok(Ok(_))) {
                return;
            }
        }
    }

    /// Has the node looked at, unless it is.
    fn look(&self, node: NodeId) -> watch::Receiver<bool> {
        let mut nodes = self.lock();
        let watched = nodes.entry(node).or_insert_with(|| Watched {
            is_silent: Arc::new(watch::Sender::new(false)),
            looked_for: Arc::new(Mutex::new(Instant::now())),
            look: None,
        });
        *watched.looked_for.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if watched.look.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let (line, is_silent, looked_for) =
                (self.line.clone(), watched.is_silent.clone(), watched.looked_for.clone());
            let look = tokio::spawn(async move { look_until_heard(&line, node, &is_silent, &looked_for).await });
            watched.look = Some(AbortOnDropHandle::new(look));
        }
        watched.is_silent.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Watched>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look_until_heard<L: Line>(
    line: &L,
    node: NodeId,
    is_silent: &watch::Sender<bool>,
    looked_for: &Mutex<Instant>,
) {
    loop {
        let within = SILENT_MIN.max(line.round_trip(node).unwrap_or_default() * SILENT_ROUND_TRIPS);
        let (before, began) = (line.packets(node), Instant::now());
        let has_answered = line.probe(node, within).await;
        let is_there = || line.packets(node).is_some_and(|now| Some(now) != before);
        if !has_answered && !is_there() {
            // An attempt to connect may have failed at once, and say nothing yet.
            sleep(within.saturating_sub(began.elapsed())).await;
        }
        if has_answered || is_there() {
            is_silent.send_if_modified(std::mem::take);
            return;
        }
        if !is_silent.send_replace(true) {
            metrics::counter!("keppel_silent_nodes_total", "peer" => node.short().to_string()).increment(1);
            tracing::info!(peer = %node.short(), "nothing comes from a node: what is known is said without asking it");
        }
        let interest = *looked_for.lock().unwrap_or_else(PoisonError::into_inner);
        if interest.elapsed() > INTEREST {
            return;
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    /// A line of 100 ms that loses packets, and may be cut. What is lost is sent again, as QUIC does: twice, and later each
    /// time. The node's heartbeats come as well.
    #[derive(Clone)]
    struct Lossy {
        loss: f64,
        is_cut: Arc<AtomicBool>,
        packets: Arc<AtomicU64>,
        rng: Arc<Mutex<StdRng>>,
        answers: bool,
    }

    const ROUND_TRIP: Duration = Duration::from_millis(100);

    impl Lossy {
        fn new(loss: f64) -> Self {
            let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(7)));
            Self { loss, is_cut: Arc::default(), packets: Arc::default(), rng, answers: true }
        }

        fn gets_through(&self) -> bool {
            !self.is_cut.load(Ordering::SeqCst) && !self.rng.lock().unwrap().random_bool(self.loss)
        }
    }

    impl Line for Lossy {
        async fn probe(&self, _: NodeId, within: Duration) -> bool {
            let exchange = async {
                let (mut again, mut copies) = (ROUND_TRIP * 2, 1);
                loop {
                    // There, and the answer or the acknowledgement back.
                    let arrives = (0..copies).any(|_| self.gets_through()) && self.gets_through();
                    copies = 2;
                    if arrives {
                        sleep(ROUND_TRIP).await;
                        self.packets.fetch_add(1, Ordering::SeqCst);
                        match self.answers {
                            true => return,
                            false => std::future::pending::<()>().await,
                        }
                    }
                    sleep(again).await;
                    again *= 2;
                }
            };
            let heartbeats = async {
                loop {
                    sleep(Duration::from_millis(500)).await;
                    self.packets.fetch_add(u64::from(self.gets_through()), Ordering::SeqCst);
                }
            };
            let either = async {
                tokio::select! {
                    () = exchange => true,
                    () = heartbeats => false,
                }
            };
            timeout(within, either).await.unwrap_or(false)
        }

        fn packets(&self, _: NodeId) -> Option<Packets> {
            Some((1, self.packets.load(Ordering::SeqCst)))
        }

        fn round_trip(&self, _: NodeId) -> Option<Duration> {
            Some(ROUND_TRIP)
        }
    }

    fn node() -> NodeId {
        NodeId::from_public_key([1; 32])
    }

    async fn gives_up_after<L: Line>(silences: &Silences<L>, need: Need) -> Duration {
        let start = Instant::now();
        silences.in_vain(node(), need).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_is_waited_for_once_and_ends_with_the_first_answer() {
        let line = Lossy::new(0.0);
        let silences = Silences::new(line.clone());
        line.is_cut.store(true, Ordering::SeqCst);
        let first = gives_up_after(&silences, Need::Slight).await;
        assert!(first < Duration::from_millis(1500), "{first:?}");
        for _ in 0..50 {
            let next = gives_up_after(&silences, Need::Slight).await;
            assert!(next <= Duration::from_millis(301), "{next:?}");
        }
        assert!(gives_up_after(&silences, Need::Great).await > Duration::from_secs(1));
        // It comes back, and is found to be there without anybody's question.
        line.is_cut.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(2)).await;
        let slow = timeout(Duration::from_secs(7), silences.in_vain(node(), Need::Slight)).await;
        assert!(slow.is_err(), "it is there");
        line.is_cut.store(true, Ordering::SeqCst);
        gives_up_after(&silences, Need::Slight).await;
        silences.heard(node());
        assert!(gives_up_after(&silences, Need::Slight).await > Duration::from_millis(301), "it was heard since");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_no_silence_nor_is_a_line_that_loses_some() {
        let mut busy = Lossy::new(0.0);
        busy.answers = false;
        let silences = Silences::new(busy);
        assert!(timeout(Duration::from_secs(60), silences.in_vain(node(), Need::Slight)).await.is_err());
        for loss in [0.01, 0.05] {
            let silences = Silences::new(Lossy::new(loss));
            let hour = Duration::from_secs(3600);
            assert!(timeout(hour, silences.in_vain(node(), Need::Slight)).await.is_err(), "{loss}");
        }
    }
}
