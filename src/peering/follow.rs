//! Follows other regions' changes: one conversation with each node that is primary of accounts used here.
//!
//! A question carries the places in the accounts' logs; its answer comes when there is something new, or after a while.
//! What comes is applied before the next question, which says so and renews the lease. There is one question at a time,
//! so that a region that cannot keep up slows nobody but itself. After any failure a new session begins with all places:
//! nothing has to be remembered on the way. A node that is too old to be followed is asked again now and then; until then
//! pulls ask it one by one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keppel_federation::Federation;
use keppel_federation::transport::TransportError;
use keppel_federation::vocabulary::{AccountName, NodeId};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::content::BACKLOGS_MAX;
use super::ending::Endings;
use super::messages::{Answer, Question, decode, encode};
use super::refusals::reason_of;
use super::succession::{self, Roles};
use crate::model::uptime;
use crate::registry::{CopyLag, FollowAnswer, FollowRequest, NewsKind, Place, Registry, RegistryError};

/// How often leases are tended and accounts are looked through, at the least.
const TEND_INTERVAL: Duration = Duration::from_millis(500);
/// How often accounts are looked for that have a replica here.
const REPLICAS_INTERVAL: Duration = Duration::from_secs(10);
/// Accounts that are looked through in one step.
const ACCOUNTS_STEP: usize = 1000;
/// How long an answer may take beyond the time for which it waits for news.
const ANSWER_PATIENCE: Duration = Duration::from_secs(4);
/// Between two questions how many bytes are not here yet.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(1);
/// How often the gauges are set.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// When a node is asked again that refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// When an account is tried again whose node said that it is not the primary.
const NOT_PRIMARY_PAUSE: Duration = Duration::from_secs(2);
/// When an account is tried again that could not be applied.
const FAILED_PAUSE: Duration = Duration::from_secs(30);

/// The conversations. Dropping it ends them.
pub struct Follower {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Follower {
    /// Begins to follow; `lease` is the time for which other regions grant leases.
    pub fn spawn(federation: Federation, registry: Registry, lease: Duration) -> Self {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared { federation, registry, lease, accounts: Mutex::default() });
        let stopped = stop.clone();
        // Dropped anywhere, the work leaves nothing half-done: what was queued for the disk is written.
        let task = tokio::spawn(async move {
            let _ = stopped.run_until_cancelled(run(shared)).await;
        });
        Self { task, stop }
    }

    /// Ends all conversations, in the middle of what they do.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Shared {
    federation: Federation,
    registry: Registry,
    lease: Duration,
    /// What is to be followed of each node. The same sets as before, where nothing has changed.
    accounts: Mutex<HashMap<NodeId, Arc<BTreeSet<AccountName>>>>,
}

/// Tends the leases and keeps a conversation with each node that there is something to follow of.
async fn run(shared: Arc<Shared>) {
    let mut conversations = JoinSet::new();
    let mut talking = BTreeSet::new();
    let (mut roles, mut endings) = (Roles::default(), Endings::default());
    let mut replicas_at = Instant::now();
    let interval = TEND_INTERVAL.min(shared.lease / 8);
    loop {
        if let Err(error) = shared.registry.tend_leases().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "leases could not be tended");
        }
        if replicas_at <= Instant::now() {
            replicas_at = Instant::now() + REPLICAS_INTERVAL;
            shared.want_replicas();
        }
        succession::tend(&shared.federation, &shared.registry, &mut roles);
        let (nodes, over) = shared.plan();
        endings.tend(&shared.federation, &shared.registry, over);
        for node in nodes {
            if talking.insert(node) {
                let shared = shared.clone();
                conversations.spawn(async move {
                    Conversation::new(shared, node).run().await;
                    node
                });
            }
        }
        while let Some(ended) = conversations.try_join_next() {
            match ended {
                Ok(node) => drop(talking.remove(&node)),
                Err(error) => {
                    tracing::error!(%error, "following another region ended unexpectedly");
                    // Which one it was is not told: all begin anew.
                    conversations.abort_all();
                    while conversations.join_next().await.is_some() {}
                    talking.clear();
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = shared.registry.copy_wanted() => {}
        }
    }
}

impl Shared {
    /// Accounts of which this node has a replica are followed whether or not anybody pulls from them.
    fn want_replicas(&self) {
        let (state, node) = (self.federation.state(), self.federation.node());
        let mut after: Option<AccountName> = None;
        loop {
            let accounts = state.accounts_after(after.as_ref(), ACCOUNTS_STEP);
            let Some(last) = accounts.last() else { return };
            after = Some(last.name.clone());
            let here = accounts.iter().filter(|account| account.owner != node && account.replicas.contains_key(&node));
            here.for_each(|account| self.registry.want_copy(&account.name));
        }
    }

    /// Sorts the followed accounts by their primaries; gives these, and the accounts that seem to be no longer to be followed.
    fn plan(&self) -> (Vec<NodeId>, Vec<AccountName>) {
        let (state, node) = (self.federation.state(), self.federation.node());
        let mut accounts: HashMap<NodeId, BTreeSet<AccountName>> = HashMap::new();
        let mut over = Vec::new();
        for (account, _) in self.registry.copy_places() {
            match state.account(&account) {
                // What was recorded here before it became a copy is sorted out first, and the other way round.
                Some(_) if self.registry.is_between_roles(&account) => {}
                Some(claimed) if claimed.owner == node || self.registry.is_of_former_account(&account) => {
                    over.push(account);
                }
                Some(claimed) => drop(accounts.entry(claimed.owner).or_default().insert(account)),
                // A node that has just joined does not know yet what there is.
                None if state.member(node).is_none() => {}
                None => over.push(account),
            }
        }
        let nodes = accounts.keys().copied().collect();
        {
            let mut planned = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
            planned.retain(|node, _| accounts.contains_key(node));
            for (node, accounts) in accounts {
                let known = planned.entry(node).or_default();
                if **known != accounts {
                    *known = Arc::new(accounts);
                }
            }
        }
        (nodes, over)
    }

    fn accounts_of(&self, node: NodeId) -> Arc<BTreeSet<AccountName>> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.get(&node).cloned().unwrap_or_default()
    }
}

/// The conversation with one node.
struct Conversation {
    shared: Arc<Shared>,
    node: NodeId,
    session: Option<Session>,
    last_id: u64,
    /// Accounts that are left alone until then.
    put_off: HashMap<AccountName, Instant>,
    pause: Duration,
    /// It is not asked before this how many bytes are not here yet.
    backlog_at: Instant,
    /// The gauges are not set before this.
    measure_at: Instant,
}

struct Session {
    id: u64,
    is_first: bool,
    told: HashMap<AccountName, Place>,
    /// What is followed of the node, as it was told.
    accounts: Arc<BTreeSet<AccountName>>,
    /// Changes of places up to this one were looked at.
    seen: u64,
    /// What is to be followed has changed, or is put off, or no longer: all places are looked at.
    is_whole: bool,
}

impl Conversation {
    fn new(shared: Arc<Shared>, node: NodeId) -> Self {
        let (put_off, now) = (HashMap::new(), Instant::now());
        Self { shared, node, session: None, last_id: 0, put_off, pause: PAUSE_MIN, backlog_at: now, measure_at: now }
    }

    /// Goes on until there is nothing to follow any more.
    async fn run(mut self) {
        loop {
            let accounts = self.shared.accounts_of(self.node);
            if accounts.is_empty() {
                return;
            }
            let asked = self.ask(accounts).await;
            if asked.is_ok() {
                self.ask_backlog().await;
            }
            if self.measure_at <= Instant::now() {
                self.measure_at = Instant::now() + MEASURE_INTERVAL;
                self.measure();
            }
            let pause = match asked {
                Ok(()) => {
                    self.pause = PAUSE_MIN;
                    continue;
                }
                Err(Trouble::Again) => {
                    let longer = (self.pause * 2).min(PAUSE_MAX);
                    std::mem::replace(&mut self.pause, longer)
                }
                Err(Trouble::Refused(reason)) => {
                    tracing::debug!(peer = %self.node, reason, "a node cannot be followed");
                    REFUSED_PAUSE
                }
            };
            self.session = None;
            tokio::time::sleep(pause).await;
        }
    }

    /// One question and its answer, applied.
    async fn ask(&mut self, accounts: Arc<BTreeSet<AccountName>>) -> Result<(), Trouble> {
        let (registry, wait) = (self.shared.registry.clone(), self.shared.lease / 5);
        let (now, was_put_off) = (Instant::now(), self.put_off.len());
        self.put_off.retain(|_, until| *until > now);
        let put_off = &self.put_off;
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                // Whatever was promised before is void once the node hears of the new session.
                registry.begin_copy_session(self.node);
                self.last_id = session_id().max(self.last_id + 1);
                self.session.insert(Session::new(self.last_id))
            }
        };
        session.is_whole |= put_off.len() != was_put_off || !Arc::ptr_eq(&session.accounts, &accounts);
        session.accounts = accounts.clone();
        let (seen, mut places) = registry.copy_places_since(if session.is_whole { 0 } else { session.seen });
        places.retain(|(account, _)| accounts.contains(account) && !put_off.contains_key(account));
        session.seen = seen;
        let request = session.request(places, wait);
        registry.drop_from_copy_session(self.node, &request.dropped);
        let sent = uptime();
        let question = encode(&Question::Follow(request));
        metrics::counter!("keppel_questions_total", "kind" => "follow").increment(1);
        let answer = self.shared.federation.ask(self.node, question, wait + ANSWER_PATIENCE).await;
        let answer = answer.map_err(|error| match error {
            TransportError::Refused { .. } => Trouble::Refused(reason_of(&error)),
            _ => Trouble::Again,
        })?;
        let (lease_ms, news) = match decode(&answer) {
            Ok(Answer::Followed(FollowAnswer::News { lease_ms, news })) => (lease_ms, news),
            Ok(Answer::Followed(FollowAnswer::UnknownSession)) => return Err(Trouble::Again),
            Ok(_) => return Err(Trouble::Refused("its answer does not fit the question".into())),
            Err(error) => return Err(Trouble::Refused(error.to_string())),
        };
        for news in news {
            let (account, not_primary) = (news.account.clone(), matches!(news.what, NewsKind::NotPrimary));
            // What was not asked for would find no place.
            if !accounts.contains(&account) {
                continue;
            }
            if matches!(news.what, NewsKind::Page { .. } | NewsKind::Resync)
                && let Some(epoch) = registry.copy_of_before(&account, self.node)
            {
                // Listed from the beginning, and not before it is known what that may take away.
                if let Some(pause) = self.settle(&account, epoch).await {
                    self.put_off.insert(account, Instant::now() + pause);
                }
                continue;
            }
            let applied = registry.apply_news(self.node, news).await;
            let pause = match applied {
                Ok(()) if not_primary => NOT_PRIMARY_PAUSE,
                Ok(()) => continue,
                Err(error) => self.report(&account, &error),
            };
            // The node is told with the next question, and waits for this account no longer.
            self.put_off.insert(account, Instant::now() + pause);
            if let Some(session) = &mut self.session {
                session.is_whole = true;
            }
        }
        if lease_ms > 0 {
            registry.renew_copy_lease(self.node, sent + Duration::from_millis(lease_ms.into()));
        }
        Ok(())
    }

    /// Finds out whether the primary had all that another one told before in this epoch. Gives how long the account is to be
    /// left alone when that cannot be said now.
    async fn settle(&self, account: &AccountName, epoch: u64) -> Option<Duration> {
        let Shared { federation, registry, .. } = &*self.shared;
        let Some(place) = succession::find_place(federation, registry, account, epoch + 1).await else {
            return Some(NOT_PRIMARY_PAUSE);
        };
        let settled = registry.settle_copy(account, self.node, place).await;
        settled.err().map(|error| self.report(account, &error))
    }

    /// Asks how much is not here yet of accounts that are behind, now and then.
    async fn ask_backlog(&mut self) {
        let mut places = self.shared.registry.copies_behind(self.node);
        if places.is_empty() || self.backlog_at > Instant::now() {
            return;
        }
        self.backlog_at = Instant::now() + BACKLOG_INTERVAL;
        places.truncate(BACKLOGS_MAX);
        let question = encode(&Question::Backlog { places: places.clone() });
        // A node that does not know the question leaves the bytes unknown, no more.
        if let Ok(answer) = self.shared.federation.ask(self.node, question, ANSWER_PATIENCE).await
            && let Ok(Answer::Backlog(bytes)) = decode(&answer)
        {
            for ((account, _), bytes) in places.iter().zip(bytes) {
                self.shared.registry.set_copy_backlog(account, bytes);
            }
        }
    }

    fn report(&self, account: &AccountName, error: &RegistryError) -> Duration {
        let error = error as &dyn std::error::Error;
        tracing::warn!(error, %account, peer = %self.node, "what a region tells of an account cannot be applied");
        FAILED_PAUSE
    }

    /// Sets the gauges of how far this node's copies are behind.
    fn measure(&self) {
        let state = self.shared.federation.state();
        let region = state.member(self.node).map(|member| member.region.to_string()).unwrap_or_default();
        let lag = CopyLag::of(self.node, &self.shared.registry.copy_status());
        metrics::gauge!("keppel_copy_lag_events", "region" => region.clone()).set(lag.events as f64);
        metrics::gauge!("keppel_copy_lag_bytes", "region" => region.clone()).set(lag.bytes as f64);
        metrics::gauge!("keppel_copy_lag_seconds", "region" => region.clone()).set(lag.behind.as_secs_f64());
        metrics::gauge!("keppel_copies", "region" => region.clone()).set(lag.accounts as f64);
        metrics::gauge!("keppel_copies_fresh", "region" => region).set(lag.fresh as f64);
    }
}

impl Session {
    fn new(id: u64) -> Self {
        Self { id, is_first: true, told: HashMap::new(), accounts: Arc::default(), seen: 0, is_whole: true }
    }

    /// The next question, with what has changed since the one before. `places`: all, or, unless [`Self::is_whole`], some
    /// among which all are that have changed.
    fn request(&mut self, places: Vec<(AccountName, Place)>, wait: Duration) -> FollowRequest {
        let mut dropped: Vec<AccountName> = Vec::new();
        if std::mem::take(&mut self.is_whole) {
            let followed: BTreeSet<&AccountName> = places.iter().map(|(account, _)| account).collect();
            self.told.retain(|account, _| {
                let stays = followed.contains(account);
                if !stays {
                    dropped.push(account.clone());
                }
                stays
            });
        }
        let mut changed = places;
        changed.retain(|(account, place)| self.told.get(account) != Some(place));
        self.told.extend(changed.iter().cloned());
        FollowRequest {
            session: self.id,
            is_first: std::mem::replace(&mut self.is_first, false),
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            places: changed,
            dropped,
        }
    }
}

/// Why a question came to nothing.
enum Trouble {
    /// A new session may help.
    Again,
    /// The node does not answer such questions.
    Refused(String),
}

/// Grows with every start of this process, as long as the clock does.
fn session_id() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keppel_federation::vocabulary::Digest;

    fn listing(after: &str) -> Place {
        let digest = Digest::from_sha256([1; 32]);
        Place::Listing(crate::registry::ListPlace::Manifests { repository: after.into(), after: Some(digest) })
    }

    #[test]
    fn a_session_tells_all_places_first_and_then_what_changed() {
        let account = |name: &str| AccountName::parse(name).unwrap();
        let mut session = Session::new(3);
        let places = vec![(account("acme"), listing("a")), (account("other"), listing("b"))];
        let first = session.request(places.clone(), Duration::from_secs(1));
        assert_eq!((first.session, first.is_first, first.wait_ms, &first.places), (3, true, 1000, &places));
        let next = vec![(account("acme"), listing("a")), (account("more"), listing("c"))];
        session.is_whole = true;
        let second = session.request(next.clone(), Duration::from_secs(1));
        assert_eq!((second.is_first, &second.places[..], second.dropped), (false, &next[1..], vec![account("other")]));
        let third = session.request(next, Duration::from_secs(1));
        assert!(third.places.is_empty() && third.dropped.is_empty());
        // Only some were looked at: the others are followed all the same.
        let some = vec![(account("acme"), listing("d"))];
        let fourth = session.request(some.clone(), Duration::from_secs(1));
        assert!(fourth.places == some && fourth.dropped.is_empty());
    }
}
