//! Hands writes to the primary of their account so that each is done once at most, and never after its client was told that
//! it was not. The other side is [`super::forwarded`].

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keppel_federation::content::Urgency;
use keppel_federation::transport::TransportError;
use keppel_federation::vocabulary::{NodeId, RepositoryName};
use tokio::time::Instant;

use super::messages::{Answer, MessageError, Question, Refusal, Terms, decode, encode, kind_of};
use super::refusals::{confused, reason_of, refused};
use super::upstream::FederationUpstream;
use crate::model::uptime;
use crate::registry::{Primary, RegistryError};

/// How long after a question the primary may begin to act on it, to which comes the time it takes to get there on a slow
/// line. Shorter than a silent connection lives, so that its end has mostly passed when nothing more can be heard.
const BEGUN_WITHIN: Duration = Duration::from_secs(8);
const SLOW_LINE_BYTES: u32 = 128 << 10;
/// How much longer a question waits for its answer, which is given before the time to begin is over.
const ANSWERED_AFTER: Duration = Duration::from_secs(2);
/// How long a write whose answer stayed out is asked about, before its client is told that nothing is known of it. The
/// primary keeps outcomes for longer than this and one question together.
const DOUBT_PATIENCE: Duration = Duration::from_secs(12);
/// After that nobody may ask any more, even if this process stood still for a while.
const DOUBT_MAX: Duration = Duration::from_secs(45);
/// How long a node is asked that knows nothing of all this.
const OLDER_DEADLINE: Duration = Duration::from_secs(50);
/// Between two questions about it.
const DOUBT_PAUSE: Duration = Duration::from_millis(300);
/// How far apart the clocks of two machines may go: one part in so many.
const DRIFT: u32 = 1000;
/// After so long the time of a primary is asked for again.
const CLOCK_FRESH_FOR: Duration = Duration::from_secs(15 * 60);
/// Answers with another clock than the one expected, in a row.
const CLOCKS_MAX: usize = 3;

/// The clocks of other nodes, as they were told last.
#[derive(Default)]
pub(super) struct Clocks(Mutex<HashMap<NodeId, Clock>>);

/// What another process calls itself, and its uptime when this was told, which was before `heard_at` in ours.
#[derive(Debug, Clone, Copy)]
struct Clock {
    instance: u64,
    now: Duration,
    heard_at: Duration,
}

impl Clock {
    /// The uptime there at `at` in ours; rather too early than too late.
    fn there(&self, at: Duration) -> Duration {
        let passed = at.saturating_sub(self.heard_at);
        (self.now + passed).saturating_sub(passed / DRIFT)
    }

    fn is_fresh(&self, at: Duration) -> bool {
        at.saturating_sub(self.heard_at) < CLOCK_FRESH_FOR
    }
}

impl Clocks {
    fn get(&self, node: NodeId) -> Option<Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied()
    }

    fn put(&self, node: NodeId, clock: Clock) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, clock);
    }
}

/// A write on its way.
struct Letter<'a> {
    at: &'a Primary,
    repository: &'a RepositoryName,
    question: &'a Question,
    key: u64,
    /// The process that may be at it.
    held_by: Option<u64>,
    /// When the primary was heard of last, and since when it has not been, as uptimes.
    heard_at: Duration,
    doubtful_since: Option<Duration>,
    /// When the last question may not be acted on any more, as our uptime.
    over_at: Duration,
}

/// What came of one question.
enum Asked {
    Answer(Box<Answer>),
    /// It told which process it is, and what time it has, instead of acting on the question.
    Clock(u64),
    /// It was not asked, since it may have forgotten what became of the write.
    TooLate,
    /// It is of a version that does not know this kind of question.
    TooOld,
    /// It was not acted on.
    NotSent(String),
    /// Nothing is known.
    Silence(String),
}

impl FederationUpstream {
    /// Has the primary carry out a write. It may take `patience`, as long as the primary says that it is at it; a primary
    /// that is silent is asked again for some seconds, about the same write.
    ///
    /// Cancel safety: dropped, the write may be carried out for some seconds more.
    pub(super) async fn forward(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        question: &Question,
        patience: Duration,
    ) -> Result<Answer, RegistryError> {
        let (start, now) = (Instant::now(), uptime());
        let (key, heard_at, over_at) = (rand::random(), now, now);
        let mut letter =
            Letter { at, repository, question, key, held_by: None, heard_at, doubtful_since: None, over_at };
        let mut clocks = 0;
        loop {
            match self.send(&mut letter).await {
                Asked::Answer(answer) => match *answer {
                    Answer::AtWork if start.elapsed() < patience => {
                        letter.heard();
                        clocks = 0;
                    }
                    Answer::AtWork => {
                        return Err(letter.give_up(format!("it has been at work on this for {patience:?}")).await);
                    }
                    // Nothing was begun there: the next question may.
                    Answer::Refused(Refusal::Overdue) if start.elapsed() < patience => {
                        letter.heard();
                        tokio::time::sleep(DOUBT_PAUSE).await;
                    }
                    Answer::Refused(refusal) => {
                        let unreachable = |reason: String| letter.unreachable(reason);
                        return Err(refused(refusal, repository, question, &unreachable));
                    }
                    answer => return Ok(answer),
                },
                Asked::Clock(instance) if letter.held_by.is_some_and(|held_by| held_by != instance) => {
                    return Err(letter.give_up("it has started anew before it answered".into()).await);
                }
                Asked::Clock(_) if clocks < CLOCKS_MAX => clocks += 1,
                Asked::Clock(_) => return Err(confused(at, repository)),
                Asked::TooLate => return Err(letter.give_up("it was silent for too long".into()).await),
                Asked::TooOld => return self.ask(at, repository, question, patience.min(OLDER_DEADLINE)).await,
                Asked::NotSent(reason) if letter.held_by.is_none() => return Err(letter.unreachable(reason)),
                Asked::NotSent(reason) | Asked::Silence(reason) => {
                    if letter.is_hopeless() {
                        return Err(letter.give_up(reason).await);
                    }
                    tokio::time::sleep(DOUBT_PAUSE).await;
                }
            }
        }
    }

    async fn send(&self, letter: &mut Letter<'_>) -> Asked {
        let node = letter.at.node;
        let asked_at = uptime();
        if letter.held_by.is_some() && asked_at.saturating_sub(letter.heard_at) > DOUBT_MAX {
            return Asked::TooLate;
        }
        let known = self.clocks.get(node).filter(|clock| clock.is_fresh(asked_at));
        let Some(clock) = known else { return self.learn_clock(node).await };
        // Both counted from one moment, so that a pause in between makes it too early at worst.
        let question = encode(letter.question).to_vec();
        let begun_within = BEGUN_WITHIN + Duration::from_secs_f64(question.len() as f64 / f64::from(SLOW_LINE_BYTES));
        let over_at = asked_at + begun_within;
        let until = clock.there(over_at);
        let terms = Terms { instance: clock.instance, key: letter.key, until_ms: millis(until) };
        let question = encode(&Question::Write { terms, question });
        letter.over_at = over_at;
        metrics::counter!("keppel_questions_total", "kind" => kind_of(letter.question)).increment(1);
        let within = begun_within + ANSWERED_AFTER;
        let asked = self.understand(node, self.federation.ask_on(Urgency::Prompt, node, question, within).await);
        if !matches!(asked, Asked::NotSent(_) | Asked::TooOld | Asked::Clock(_)) {
            letter.held_by = Some(clock.instance);
        }
        asked
    }

    async fn learn_clock(&self, node: NodeId) -> Asked {
        let within = BEGUN_WITHIN + ANSWERED_AFTER;
        let asked = self.federation.ask_on(Urgency::Prompt, node, encode(&Question::Clock), within).await;
        match self.understand(node, asked) {
            // This question changes nothing, whether it arrived or not.
            Asked::Silence(reason) => Asked::NotSent(reason),
            Asked::Answer(_) => Asked::NotSent("its answer does not fit the question".into()),
            other => other,
        }
    }

    fn understand(&self, node: NodeId, asked: Result<bytes::Bytes, TransportError>) -> Asked {
        let answer = match asked {
            Ok(answer) => answer,
            Err(TransportError::Refused { reason, .. }) if reason == MessageError::Unreadable.to_string() => {
                return Asked::TooOld;
            }
            // A connection that ends with a refusal may have carried the question before.
            Err(
                error @ (TransportError::Unreachable { .. }
                | TransportError::Timeout { .. }
                | TransportError::Refused { .. }),
            ) => return Asked::Silence(reason_of(&error)),
            Err(
                error @ (TransportError::UnknownNode(_)
                | TransportError::NotConnected { .. }
                | TransportError::TooLarge { .. }),
            ) => return Asked::NotSent(reason_of(&error)),
        };
        match decode(&answer) {
            Ok(Answer::Clock { instance, now_ms }) => {
                let now = Duration::from_millis(now_ms);
                self.clocks.put(node, Clock { instance, now, heard_at: uptime() });
                Asked::Clock(instance)
            }
            Ok(answer) => Asked::Answer(Box::new(answer)),
            Err(error) => Asked::Silence(error.to_string()),
        }
    }
}

impl Letter<'_> {
    fn heard(&mut self) {
        self.heard_at = uptime();
        self.doubtful_since = None;
    }

    /// Whether it has been silent for too long.
    fn is_hopeless(&mut self) -> bool {
        let now = uptime();
        now.saturating_sub(*self.doubtful_since.get_or_insert(now)) > DOUBT_PATIENCE
    }

    fn unreachable(&self, reason: String) -> RegistryError {
        let (account, region) = (self.repository.account(), self.at.region.clone());
        RegistryError::PrimaryUnreachable { account, region, reason }
    }

    /// The error for the client, when nothing can be begun there any more.
    async fn give_up(&self, reason: String) -> RegistryError {
        let left = self.over_at.saturating_sub(uptime());
        if !left.is_zero() {
            tokio::time::sleep(left).await;
        }
        self.unreachable(format!("{reason}; whether this was done is not known"))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_elsewhere_is_rather_told_too_early_than_too_late() {
        let second = Duration::from_secs;
        let clock = Clock { instance: 1, now: second(100), heard_at: second(5000) };
        assert_eq!(clock.there(second(5000)), second(100));
        assert_eq!(clock.there(second(5100)), second(200) - Duration::from_millis(100));
        // A clock that runs as much slower as is allowed for is not ahead of what is thought.
        assert!(clock.there(second(5100)) <= second(100) + second(100).mul_f64(0.9991));
        assert!(clock.is_fresh(second(5100)) && !clock.is_fresh(second(50_000)));
    }
}
