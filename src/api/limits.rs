//! Limits on how often an account may be asked for something: one leaky bucket for each account and action.
//!
//! A bucket is one number, the time at which it will be empty (the generic cell rate algorithm). One that is empty is as
//! good as none, so that they can be forgotten at any time, and memory stays within bounds. Times are counted in fractions of
//! a nanosecond of which everything is a whole number, so that nothing is lost where a window does not divide evenly.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use serde_json::{Value, json};

const ACTION: HeaderName = HeaderName::from_static("x-ratelimit-action");
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// The most buckets that are kept. Accounts beyond share one for each action.
const BUCKETS_MAX: usize = 65_536;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Action {
    BlobPulls,
    BlobPushes,
    ManifestPulls,
    ManifestPushes,
    /// In bytes, not in requests.
    AnycastBlobPullBytes,
    TrivyReportRetrievals,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::BlobPulls => "blob_pulls",
            Self::BlobPushes => "blob_pushes",
            Self::ManifestPulls => "manifest_pulls",
            Self::ManifestPushes => "manifest_pushes",
            Self::AnycastBlobPullBytes => "anycast_blob_pull_bytes",
            Self::TrivyReportRetrievals => "trivy_report_retrievals",
        }
    }
}

/// How often something may be done: `limit` times in a window, and `burst` times at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// How often in a window; of bytes, how many.
    pub limit: u64,
    /// The window.
    pub window: Window,
    /// How often at once.
    pub burst: u64,
}

/// The time that a limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
}

impl Window {
    /// As it is written.
    fn as_str(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Minute => "m",
            Self::Hour => "h",
        }
    }

    fn nanoseconds(self) -> u128 {
        let seconds = match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        };
        seconds * 1_000_000_000
    }
}

impl RateLimit {
    /// How many steps a bucket takes to lose so much; what no number has room for is as good as for ever.
    fn steps_for(&self, amount: u64) -> Steps {
        u128::from(amount).saturating_mul(self.window.nanoseconds())
    }

    /// How much a bucket loses in so many steps, not counting what it has not lost all of.
    fn amount_in(&self, steps: Steps) -> u64 {
        u64::try_from(steps / self.window.nanoseconds()).unwrap_or(u64::MAX)
    }

    /// How many steps there are in a time.
    fn steps_in(&self, time: Duration) -> Steps {
        time.as_nanos().saturating_mul(u128::from(self.limit))
    }

    /// How long so many steps take, in seconds, rounded up.
    fn seconds_of(&self, steps: Steps) -> u64 {
        let second = u128::from(self.limit.max(1)) * 1_000_000_000;
        u64::try_from(steps.div_ceil(second)).unwrap_or(u64::MAX)
    }
}

/// Nanoseconds divided by how often something may be done in a window: what is done once takes a bucket as many of them as
/// the window has nanoseconds.
type Steps = u128;

impl std::str::FromStr for RateLimit {
    type Err = ();

    /// Reads `1000/m`, perhaps with ` burst 200`; without, all of a window may come at once.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split_whitespace();
        let (limit, window) = words.next().and_then(|word| word.split_once('/')).ok_or(())?;
        let limit = limit.parse().ok().filter(|limit| *limit > 0).ok_or(())?;
        let window = match window {
            "s" => Window::Second,
            "m" => Window::Minute,
            "h" => Window::Hour,
            _ => return Err(()),
        };
        let burst = match (words.next(), words.next(), words.next()) {
            (None, _, _) => limit,
            (Some("burst"), Some(burst), None) => burst.parse().ok().filter(|burst| *burst > 0).ok_or(())?,
            _ => return Err(()),
        };
        Ok(Self { limit, window, burst })
    }
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} burst {}", self.limit, self.window.as_str(), self.burst)
    }
}

/// The limits that are in force; `None`: without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitOptions {
    /// Downloads of blobs.
    pub blob_pulls: Option<RateLimit>,
    /// Uploads of blobs.
    pub blob_pushes: Option<RateLimit>,
    /// Downloads of manifests.
    pub manifest_pulls: Option<RateLimit>,
    /// Uploads of manifests.
    pub manifest_pushes: Option<RateLimit>,
    /// Bytes of blobs that are handed out here of an account that this region holds nothing of for good.
    pub anycast_blob_pull_bytes: Option<RateLimit>,
    /// Reports on vulnerabilities.
    pub trivy_report_retrievals: Option<RateLimit>,
}

impl LimitOptions {
    fn of(&self, action: Action) -> Option<RateLimit> {
        match action {
            Action::BlobPulls => self.blob_pulls,
            Action::BlobPushes => self.blob_pushes,
            Action::ManifestPulls => self.manifest_pulls,
            Action::ManifestPushes => self.manifest_pushes,
            Action::AnycastBlobPullBytes => self.anycast_blob_pull_bytes,
            Action::TrivyReportRetrievals => self.trivy_report_retrievals,
        }
    }

    fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

/// What a limit says to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    action: Action,
    rate: RateLimit,
    remaining: u64,
    /// Until nothing is left of what was done, in seconds.
    reset_seconds: u64,
    /// Until one more may be done, in seconds; `None`: it may now.
    pub(super) retry_seconds: Option<u64>,
}

impl Standing {
    /// What is limited.
    pub(super) fn action(&self) -> &'static str {
        self.action.as_str()
    }

    /// How often it may be done.
    pub(super) fn rate(&self) -> RateLimit {
        self.rate
    }

    /// All of that for a refusal's document.
    pub(super) fn detail(&self, account: &str) -> Value {
        let RateLimit { limit, window, burst } = self.rate;
        json!({
            "account": account, "action": self.action(), "limit": limit, "window": window.as_str(), "burst": burst,
            "retry_after": self.retry_seconds,
        })
    }

    /// Sets the headers of the contract, unless another limit has them set.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap) {
        if headers.contains_key(ACTION) {
            return;
        }
        headers.insert(ACTION, HeaderValue::from_static(self.action.as_str()));
        headers.insert(LIMIT, self.rate.limit.into());
        headers.insert(REMAINING, self.remaining.into());
        headers.insert(RESET, self.reset_seconds.into());
        if let Some(seconds) = self.retry_seconds {
            headers.insert(RETRY_AFTER, seconds.into());
        }
    }
}

/// The buckets.
pub(super) struct Limits {
    options: LimitOptions,
    start: Instant,
    /// By account and action: when the bucket is empty.
    buckets: Mutex<HashMap<(Box<str>, Action), Steps>>,
}

impl Limits {
    /// `None`: nothing is limited, and nothing costs anything.
    pub(super) fn new(options: LimitOptions) -> Option<Self> {
        (!options.is_off()).then(|| Self { options, start: Instant::now(), buckets: Mutex::default() })
    }

    /// Counts a request; `None`: what it does is not limited.
    pub(super) fn count(&self, account: &str, action: Action) -> Option<Standing> {
        self.count_at(account, action, 1, self.start.elapsed())
    }

    /// Counts so many of what is not counted in requests. More than fits at once waits for an empty bucket, and whoever
    /// comes next until that much is gone: so it is late, and not impossible.
    pub(super) fn count_many(&self, account: &str, action: Action, amount: u64) -> Option<Standing> {
        self.count_at(account, action, amount, self.start.elapsed())
    }

    fn count_at(&self, account: &str, action: Action, amount: u64, time: Duration) -> Option<Standing> {
        let rate = self.options.of(action)?;
        let now = rate.steps_in(time);
        let full = rate.steps_for(rate.burst);
        let (cost, needed) = (rate.steps_for(amount), rate.steps_for(amount.min(rate.burst)));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX {
            let is_full = |action, empty_at| self.options.of(action).is_some_and(|rate| empty_at > rate.steps_in(time));
            buckets.retain(|(_, action), empty_at| is_full(*action, *empty_at));
        }
        let known = buckets.len() < BUCKETS_MAX || buckets.contains_key(&(account.into(), action));
        let bucket = buckets.entry((if known { account.into() } else { "".into() }, action)).or_default();
        let from = (*bucket).max(now);
        let fits = from.saturating_add(needed) <= now.saturating_add(full);
        if fits {
            *bucket = from.saturating_add(cost);
        }
        let level = bucket.saturating_sub(now);
        let remaining = rate.amount_in(full.saturating_sub(level)).min(rate.burst);
        let wait = || from.saturating_add(needed).saturating_sub(now.saturating_add(full));
        let retry_seconds = (!fits).then(|| rate.seconds_of(wait()).max(1));
        Some(Standing { action, rate, remaining, reset_seconds: rate.seconds_of(level), retry_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(text: &str) -> Limits {
        Limits::new(LimitOptions { blob_pulls: Some(text.parse().unwrap()), ..LimitOptions::default() }).unwrap()
    }

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let limits = limits("60/m burst 3");
        let count = |time| limits.count_at("acme", Action::BlobPulls, 1, at(time)).unwrap();
        let left: Vec<u64> = (0..3).map(|_| count(0).remaining).collect();
        assert_eq!(left, [2, 1, 0]);
        let refused = count(500);
        assert_eq!(
            (refused.retry_seconds, refused.remaining, refused.reset_seconds, refused.rate.limit),
            (Some(1), 0, 3, 60)
        );
        assert_eq!(count(1000).retry_seconds, None, "what was refused was not counted");
        assert!(count(1000).retry_seconds.is_some());
        assert_eq!(limits.count_at("other", Action::BlobPulls, 1, at(1000)).unwrap().remaining, 2);
        assert_eq!(limits.count_at("acme", Action::BlobPushes, 1, at(0)), None);
        assert_eq!(count(100_000).remaining, 2);
        let mut headers = HeaderMap::new();
        refused.set_headers(&mut headers);
        assert_eq!(headers["x-ratelimit-action"], "blob_pulls");
        assert_eq!(headers["retry-after"], "1");
        assert!(Limits::new(LimitOptions::default()).is_none());
    }

    #[test]
    fn what_is_larger_than_a_burst_is_let_through_and_makes_the_next_wait_for_it() {
        let rate = Some("1000/s burst 500".parse().unwrap());
        let limits = Limits::new(LimitOptions { anycast_blob_pull_bytes: rate, ..LimitOptions::default() }).unwrap();
        let count = |amount, time| limits.count_at("acme", Action::AnycastBlobPullBytes, amount, at(time)).unwrap();
        assert_eq!((count(200, 0).remaining, count(200, 0).remaining), (300, 100));
        assert_eq!(count(200, 0).retry_seconds, Some(1), "there is room for 100");
        assert_eq!(count(10_000, 100).retry_seconds, Some(1), "the bucket is not empty");
        let large = count(10_000, 400);
        assert_eq!((large.retry_seconds, large.remaining, large.reset_seconds), (None, 0, 10));
        assert_eq!(count(1, 8_000).retry_seconds, Some(2));
        assert_eq!(count(1, 10_000).retry_seconds, None);
        let fast = "1000000000000/h burst 18446744073709551615".parse().unwrap();
        let options = LimitOptions { anycast_blob_pull_bytes: Some(fast), ..LimitOptions::default() };
        let standing =
            Limits::new(options).unwrap().count_at("a", Action::AnycastBlobPullBytes, 1 << 40, at(0)).unwrap();
        assert_eq!(standing.retry_seconds, None, "nothing overflows");
    }

    #[test]
    fn memory_stays_within_its_bounds_and_strangers_beyond_share() {
        let limits = limits("1/h burst 2");
        for number in 0..BUCKETS_MAX + 10 {
            limits.count_at(&number.to_string(), Action::BlobPulls, 1, at(0)).unwrap();
        }
        assert_eq!(limits.buckets.lock().unwrap().len(), BUCKETS_MAX + 1);
        assert!(limits.count_at("yet another", Action::BlobPulls, 1, at(0)).unwrap().retry_seconds.is_some());
        let later = at(3 * 3600 * 1000);
        assert!(limits.count_at("yet another", Action::BlobPulls, 1, later).unwrap().retry_seconds.is_none());
        assert_eq!(limits.buckets.lock().unwrap().len(), 1, "buckets that are empty are forgotten");
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        for text in ["1000/m burst 200", "1/s burst 1", "5/h burst 7"] {
            assert_eq!(text.parse::<RateLimit>().unwrap().to_string(), text);
        }
        assert_eq!("10/s".parse::<RateLimit>().unwrap().burst, 10);
        for bad in ["", "10", "10/d", "0/s", "10/s burst", "10/s burst 0", "10/s burst 1 x", "10/s bursts 1", "-1/s"] {
            assert!(bad.parse::<RateLimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_left_is_told_exactly_where_the_window_does_not_divide_evenly() {
        let limits = limits("3/s burst 2");
        let count = |time| limits.count_at("acme", Action::BlobPulls, 1, time).unwrap();
        assert_eq!((count(at(0)).remaining, count(at(0)).remaining), (1, 0));
        assert!(count(Duration::from_nanos(333_333_333)).retry_seconds.is_some(), "a third of a second is not over");
        assert_eq!(count(Duration::from_nanos(333_333_334)).retry_seconds, None);
        assert_eq!(count(at(10_000)).remaining, 1);
    }

    /// A bucket as it is drawn: what is in it, which runs out at the rate. Counts in fractions of requests whose denominator
    /// is the window.
    struct Drawn {
        rate: RateLimit,
        content: u128,
        looked: u64,
    }

    impl Drawn {
        fn full(&self) -> u128 {
            u128::from(self.rate.burst) * self.rate.window.nanoseconds()
        }

        fn wait_until(&mut self, nanoseconds: u64) {
            let lost = u128::from(nanoseconds - self.looked) * u128::from(self.rate.limit);
            (self.content, self.looked) = (self.content.saturating_sub(lost), nanoseconds);
        }

        fn take(&mut self) -> bool {
            let fits = self.content + self.rate.window.nanoseconds() <= self.full();
            self.content += if fits { self.rate.window.nanoseconds() } else { 0 };
            fits
        }

        /// How often one can take now.
        fn left(&self) -> u64 {
            let mut copy = Self { ..*self };
            (0..).take_while(|_| copy.take()).count() as u64
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_a_bucket_holds(limit in 1u64..100, burst in 1u64..30, window in 0usize..3,
                steps in prop::collection::vec((0u32..3, 0u64..2_000_000_000), 1..100)) {
            let limits = limits(&format!("{limit}/{} burst {burst}", ["s", "m", "h"][window]));
            let rate = limits.options.blob_pulls.unwrap();
            let mut drawn = Drawn { rate, content: 0, looked: 0 };
            let mut now = 0;
            for (kind, step) in steps {
                // At once, after just what one costs, or some time later.
                now += [0, u64::try_from(rate.window.nanoseconds()).unwrap() / limit + step % 2, step][kind as usize];
                drawn.wait_until(now);
                let fits = drawn.take();
                let told = limits.count_at("a", Action::BlobPulls, 1, Duration::from_nanos(now)).unwrap();
                prop_assert_eq!(told.retry_seconds.is_none(), fits);
                prop_assert_eq!(told.remaining, drawn.left());
                let (second, level) = (u128::from(limit) * 1_000_000_000, drawn.content);
                prop_assert!(u128::from(told.reset_seconds) * second >= level);
                prop_assert!(u128::from(told.reset_seconds) * second < level + second);
                if let Some(seconds) = told.retry_seconds {
                    let mut later = Drawn { ..drawn };
                    later.wait_until(now + seconds * 1_000_000_000);
                    prop_assert!(later.take(), "whoever waits as told is let through");
                }
            }
        }

        #[test]
        fn no_more_is_let_through_than_burst_and_rate_allow(limit in 1u64..50, burst in 1u64..20, steps in prop::collection::vec(0u64..400, 1..200)) {
            let limits = limits(&format!("{limit}/s burst {burst}"));
            let (mut now, mut let_through) = (0, 0u64);
            for step in &steps {
                now += step;
                let standing = limits.count_at("a", Action::BlobPulls, 1, at(now)).unwrap();
                prop_assert!(standing.remaining <= burst);
                let_through += u64::from(standing.retry_seconds.is_none());
            }
            prop_assert!(let_through <= burst + now * limit / 1000 + 1);
        }
    }
}
