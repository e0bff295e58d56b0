//! Writes that other nodes hand over, at the primary: each is done once at most, and only while whoever handed it over waits.
//!
//! A line may swallow an answer, and a process may stand still between hearing a question and acting on it. So a write has a
//! key, under which it can be asked about again: then it is the same attempt that is waited for, or its outcome that is told.
//! And it has an end, in the time of the primary, which is not moved by anything that holds the question up: after that it
//! is not begun any more, so that whoever gave up may tell its client so.
//!
//! Outcomes are kept in memory. A primary that has started anew has another name for itself, by which the asker knows that
//! the outcome cannot be told any more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::NodeId;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::messages::{Answer, Refusal, Terms};
use crate::model::uptime;
use crate::registry::WriteWindow;

/// Before the end so much is left for saying that the write is being worked on, and for the next question to come.
const MARGIN: Duration = Duration::from_secs(2);
/// How long an outcome is kept after it was asked for last: longer than anybody asks again ([`super::forwarding`]).
const KEPT_FOR: Duration = Duration::from_secs(90);
/// Outcomes that are kept.
const KEPT_MAX: usize = 50_000;

/// By whom, and under which key.
type Key = (NodeId, u64);

/// The writes that were handed over.
pub(super) struct ForwardedWrites {
    /// This process, as long as it runs.
    instance: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attempts: HashMap<Key, Arc<Attempt>>,
    /// When which was asked for, the longest time ago first.
    asked: VecDeque<(Duration, Key)>,
}

/// One write.
struct Attempt {
    /// When it was asked for last, as uptime in milliseconds.
    asked_ms: AtomicU64,
    window: WriteWindow,
    outcome: watch::Receiver<Option<Answer>>,
    task: AbortHandle,
    waiting: AtomicUsize,
}

impl ForwardedWrites {
    pub(super) fn new() -> Self {
        Self { instance: rand::random(), state: Mutex::default() }
    }

    /// Does a write, or waits for the attempt that is under way, until shortly before its end.
    ///
    /// Cancel safety: a write that nobody waits for any more and that has not begun is not done.
    pub(super) async fn answer<W>(&self, from: NodeId, terms: Terms, work: impl FnOnce(WriteWindow) -> W) -> Answer
    where
        W: Future<Output = Answer> + Send + 'static,
    {
        if terms.instance != self.instance {
            return self.clock();
        }
        let until = Duration::from_millis(terms.until_ms);
        if until <= uptime() {
            return Answer::Refused(Refusal::Overdue);
        }
        let key = (from, terms.key);
        let Some(attempt) = self.join(key, until, work) else { return Answer::Refused(Refusal::Overdue) };
        let waiting = Waiting { writes: self, key, attempt, goes_on: false };
        let mut outcome = waiting.attempt.outcome.clone();
        let left = until.saturating_sub(MARGIN).saturating_sub(uptime());
        let answer = match tokio::time::timeout(left, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Answer::AtWork),
            // The task was ended, by a shutdown.
            Ok(Err(_)) => Answer::Refused(Refusal::Trouble),
            // It goes on: whoever asks again puts the end off.
            Err(_) => return waiting.go_on(),
        };
        if answer == Answer::Refused(Refusal::Overdue) {
            // Nothing was begun, so the next question may begin it.
            self.forget(key);
        }
        answer
    }

    /// What this process calls itself, and what time it has.
    pub(super) fn clock(&self) -> Answer {
        Answer::Clock { instance: self.instance, now_ms: millis(uptime()) }
    }

    fn join<W>(&self, key: Key, until: Duration, work: impl FnOnce(WriteWindow) -> W) -> Option<Arc<Attempt>>
    where
        W: Future<Output = Answer> + Send + 'static,
    {
        let now = uptime();
        let mut state = self.lock();
        state.sweep(now);
        state.asked.push_back((now, key));
        if !state.attempts.contains_key(&key) {
            if state.attempts.len() >= KEPT_MAX {
                return None;
            }
            let window = WriteWindow::until(until);
            let (tell, outcome) = watch::channel(None);
            let work = work(window.clone());
            let task = tokio::spawn(async move {
                let answer = work.await;
                tell.send_replace(Some(answer));
            });
            let (task, waiting, asked_ms) = (task.abort_handle(), AtomicUsize::new(0), AtomicU64::new(0));
            state.attempts.insert(key, Arc::new(Attempt { asked_ms, window, outcome, task, waiting }));
        }
        let attempt = state.attempts.get(&key)?;
        attempt.asked_ms.store(millis(now), Ordering::Release);
        attempt.window.extend(until);
        attempt.waiting.fetch_add(1, Ordering::AcqRel);
        Some(attempt.clone())
    }

    fn forget(&self, key: Key) {
        self.lock().attempts.remove(&key);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets what was not asked for in a long time.
    fn sweep(&mut self, now: Duration) {
        while let Some((asked, key)) = self.asked.front().copied()
            && now.saturating_sub(asked) > KEPT_FOR
        {
            self.asked.pop_front();
            let is_old = |attempt: &Arc<Attempt>| attempt.asked_ms.load(Ordering::Acquire) <= millis(asked);
            if self.attempts.get(&key).is_some_and(is_old) {
                self.attempts.remove(&key);
            }
        }
    }
}

/// Somebody waits for an attempt.
struct Waiting<'a> {
    writes: &'a ForwardedWrites,
    key: Key,
    attempt: Arc<Attempt>,
    goes_on: bool,
}

impl Waiting<'_> {
    /// Whoever waited will ask again.
    fn go_on(mut self) -> Answer {
        self.goes_on = true;
        Answer::AtWork
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.writes.lock();
        let is_last = self.attempt.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
        let is_under_way = self.attempt.outcome.borrow().is_none();
        if is_last && !self.goes_on && is_under_way && self.attempt.window.close() {
            // What it fetches goes on by itself.
            self.attempt.task.abort();
            state.attempts.remove(&self.key);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keppel_federation::vocabulary::AccountName;
    use tokio::sync::Notify;

    fn node() -> NodeId {
        NodeId::from_public_key([1; 32])
    }

    fn in_a_while() -> u64 {
        millis(uptime() + Duration::from_secs(60))
    }

    fn terms(writes: &ForwardedWrites, key: u64, until_ms: u64) -> Terms {
        Terms { instance: writes.instance, key, until_ms }
    }

    /// A write that waits, then counts itself.
    struct Work {
        go: Arc<Notify>,
        done: Arc<AtomicUsize>,
    }

    impl Work {
        fn new() -> Self {
            Self { go: Arc::default(), done: Arc::default() }
        }

        fn times(&self) -> usize {
            self.done.load(Ordering::SeqCst)
        }

        async fn ask(&self, writes: &ForwardedWrites, terms: Terms) -> Answer {
            let (go, done) = (self.go.clone(), self.done.clone());
            let work = |window: WriteWindow| async move {
                go.notified().await;
                match window.begin(&AccountName::parse("acme").unwrap()) {
                    Ok(()) => {
                        done.fetch_add(1, Ordering::SeqCst);
                        Answer::Deleted
                    }
                    Err(_) => Answer::Refused(Refusal::Overdue),
                }
            };
            writes.answer(node(), terms, work).await
        }
    }

    #[tokio::test]
    async fn a_write_that_is_asked_for_again_is_done_once_and_its_outcome_told_twice() {
        let (writes, work) = (ForwardedWrites::new(), Work::new());
        let terms = terms(&writes, 7, in_a_while());
        let both = async { tokio::join!(work.ask(&writes, terms), work.ask(&writes, terms)) };
        work.go.notify_one();
        assert_eq!(both.await, (Answer::Deleted, Answer::Deleted));
        assert_eq!(work.ask(&writes, terms).await, Answer::Deleted);
        assert_eq!(work.times(), 1);
        work.go.notify_one();
        assert_eq!(work.ask(&writes, Terms { key: 8, ..terms }).await, Answer::Deleted);
        assert_eq!(work.times(), 2, "another write");
    }

    #[tokio::test]
    async fn what_takes_longer_is_gone_on_with_while_it_is_asked_for() {
        let (writes, work) = (ForwardedWrites::new(), Work::new());
        let brief = |milliseconds| terms(&writes, 7, millis(uptime() + MARGIN) + milliseconds);
        assert_eq!(work.ask(&writes, brief(50)).await, Answer::AtWork);
        assert_eq!(work.ask(&writes, brief(50)).await, Answer::AtWork);
        work.go.notify_one();
        assert_eq!(work.ask(&writes, brief(5000)).await, Answer::Deleted);
        assert_eq!(work.times(), 1);
    }

    #[tokio::test]
    async fn nothing_begins_after_its_end_nor_for_somebody_who_has_gone() {
        let (writes, work) = (ForwardedWrites::new(), Work::new());
        assert_eq!(work.ask(&writes, terms(&writes, 1, millis(uptime()))).await, Answer::Refused(Refusal::Overdue));
        // Whoever asked hangs up before it has begun.
        let gone = terms(&writes, 2, in_a_while());
        assert!(tokio::time::timeout(Duration::from_millis(50), work.ask(&writes, gone)).await.is_err());
        work.go.notify_one();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((work.times(), writes.lock().attempts.len()), (0, 0));
        // Asked for again, it is done: the word from before is still there for it.
        assert_eq!(work.ask(&writes, gone).await, Answer::Deleted);
        assert_eq!(work.times(), 1);
    }

    #[tokio::test]
    async fn a_process_that_has_started_anew_tells_so_and_does_nothing() {
        let (writes, work) = (ForwardedWrites::new(), Work::new());
        let former = Terms { instance: writes.instance.wrapping_add(1), key: 1, until_ms: in_a_while() };
        work.go.notify_one();
        let Answer::Clock { instance, now_ms } = work.ask(&writes, former).await else { panic!("it was done") };
        assert!(instance == writes.instance && now_ms <= millis(uptime()));
        assert_eq!(work.times(), 0);
    }

    #[test]
    fn outcomes_are_forgotten_after_a_while() {
        let mut state = State::default();
        let (_tell, outcome) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let task = runtime.spawn(async {}).abort_handle();
        let (window, waiting) = (WriteWindow::open(), AtomicUsize::new(0));
        let attempt = Attempt { asked_ms: AtomicU64::new(5000), window, outcome, task, waiting };
        state.attempts.insert((node(), 1), Arc::new(attempt));
        state.asked.extend([1, 5].map(|second| (Duration::from_secs(second), (node(), 1))));
        state.sweep(Duration::from_secs(4) + KEPT_FOR);
        assert_eq!((state.attempts.len(), state.asked.len()), (1, 1), "it was asked for again");
        state.sweep(Duration::from_secs(6) + KEPT_FOR);
        assert_eq!((state.attempts.len(), state.asked.len()), (0, 0));
    }
}
