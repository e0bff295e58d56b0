//! Who follows which accounts, who holds a lease, and which events are everywhere. Pure: the time comes from outside, as
//! the machine's uptime.
//!
//! Invariants: an event is confirmed only when everyone who holds a lease of its account has applied it, or their lease
//! has run out here, where it is counted from the arrival of the request that renewed it, and longer than there. An
//! account is granted only to who is being sent all of it; whoever is granted is waited for from that moment on, until it
//! is known to have heard that it is not granted any more. A lease is renewed only for who has been told of every account
//! that this node has lost.

mod turns;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, NodeId};
use tokio::sync::Notify;

use super::messages::{FollowRequest, Place};
use crate::metadata::Cursor;

/// What is known of followers.
pub(super) struct Holders {
    lease: Duration,
    sessions: HashMap<NodeId, Session>,
    accounts: HashMap<AccountName, Watched>,
    /// Nodes that may hold leases that they do not renew: from before this process started, or revoked; and until when.
    former: HashMap<NodeId, Duration>,
    /// Accounts that nobody is granted: they are being handed over, or may be.
    ungranted: HashSet<AccountName>,
    /// Accounts that another node was primary of, whose promises may last until then: nothing is everywhere before.
    quiet: HashMap<AccountName, Duration>,
}

struct Session {
    id: u64,
    with_lease: bool,
    lease_until: Duration,
    heard: Duration,
    held: HashMap<AccountName, Held>,
    /// Accounts in which something may be new to it.
    stirred: HashSet<AccountName>,
    /// Accounts that it followed and this node has lost, of which it has not been told.
    withdrawn: BTreeSet<AccountName>,
    /// Accounts that it was told not to answer for. Its next question says that it knows.
    ending: HashSet<AccountName>,
    /// Answers so far.
    turn: u64,
    wake: Arc<Notify>,
}

struct Held {
    place: Place,
    granted: bool,
    /// The answer in which there was room for it last.
    served: u64,
    /// Since when it is not sent all there is.
    behind_since: Option<Duration>,
    /// The end of the log and the confirmed event that it was told of last.
    told: Option<(u64, Option<u64>)>,
}

/// An account that somebody follows.
#[derive(Default)]
struct Watched {
    /// Its newest event, once that was looked up.
    head: Option<Cursor>,
    /// Everything up to this event is everywhere.
    confirmed: u64,
    /// Somebody waits until everything up to this event is with those who hold it.
    awaited: u64,
    followers: HashSet<NodeId>,
}

impl Held {
    fn new(place: Place) -> Self {
        Self { place, granted: false, served: 0, behind_since: None, told: None }
    }
}

/// What a follower is told of a place that it will reach.
pub(super) struct Standing {
    pub(super) confirmed: Option<u64>,
    /// Whether it was told just that before.
    pub(super) is_known: bool,
}

/// Whether all is everywhere that happened so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Yes,
    /// Not before something moves, or this time comes.
    NotBefore(Duration),
}

impl Session {
    fn forget(&mut self, account: &AccountName) {
        self.held.remove(account);
        self.stirred.remove(account);
        self.withdrawn.remove(account);
        self.ending.remove(account);
    }
}

impl Holders {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            lease,
            sessions: HashMap::new(),
            accounts: HashMap::new(),
            former: HashMap::new(),
            ungranted: HashSet::new(),
            quiet: HashMap::new(),
        }
    }

    /// How much longer a lease counts here than at its holder: clocks may run at different speeds.
    fn counted(&self, lease: Duration) -> Duration {
        lease + lease / 50 + Duration::from_millis(10)
    }

    /// A node may hold a lease of this length since before `now`.
    pub(super) fn recall(&mut self, node: NodeId, lease: Duration, now: Duration) {
        self.former.insert(node, now + self.counted(lease));
    }

    /// Nobody is granted an account from now on, and who was has to begin a new session, which voids all that was promised
    /// in the one before. Until then, or until their leases end, [`Self::former_until`] says so.
    pub(super) fn revoke(&mut self, account: &AccountName, now: Duration) {
        self.sweep(now);
        self.withhold(account);
        let is_granted = |session: &Session| session.held.get(account).is_some_and(|held| held.granted);
        let granted = self.sessions.iter().filter(|(_, session)| is_granted(session));
        let granted: Vec<(NodeId, Duration)> = granted.map(|(node, session)| (*node, session.lease_until)).collect();
        for (node, until) in &granted {
            // First, so that nothing counts as confirmed because the session ends.
            self.former.insert(*node, *until);
        }
        for (node, _) in granted {
            self.end(node, now);
        }
    }

    /// Nobody is granted an account from now on.
    pub(super) fn withhold(&mut self, account: &AccountName) {
        self.ungranted.insert(account.clone());
    }

    /// The account may be granted again.
    pub(super) fn allow(&mut self, account: &AccountName) {
        self.ungranted.remove(account);
    }

    /// Until when leases may last that are not renewed any more; `None`: there are none.
    pub(super) fn former_until(&mut self, now: Duration) -> Option<Duration> {
        self.sweep(now);
        self.former.values().max().copied()
    }

    /// Another node was primary of an account, and its promises may last until then.
    pub(super) fn keep_quiet(&mut self, account: &AccountName, until: Duration) {
        let known = self.quiet.entry(account.clone()).or_default();
        *known = (*known).max(until);
    }

    /// Until when an account's former primary may have promised something; `None`: not any more.
    pub(super) fn quiet_until(&self, account: &AccountName, now: Duration) -> Option<Duration> {
        self.quiet.get(account).copied().filter(|until| *until > now)
    }

    /// Takes a request that arrived at `now`; `may_grant`: whether leases may be granted now. Gives what wakes the
    /// session; `None` when it is unknown.
    pub(super) fn take(
        &mut self,
        node: NodeId,
        request: FollowRequest,
        may_grant: bool,
        now: Duration,
    ) -> Option<Arc<Notify>> {
        self.sweep(now);
        if request.is_first {
            if self.sessions.get(&node).is_some_and(|session| session.id >= request.session) {
                // It was overtaken by a later one.
                return None;
            }
            self.end(node, now);
            if self.former.remove(&node).is_some() && self.former.is_empty() {
                self.settle_all(now);
            }
            let session = Session {
                id: request.session,
                with_lease: may_grant,
                lease_until: now,
                heard: now,
                held: HashMap::new(),
                stirred: HashSet::new(),
                withdrawn: BTreeSet::new(),
                ending: HashSet::new(),
                turn: 0,
                wake: Arc::default(),
            };
            self.sessions.insert(node, session);
        }
        let until = now + self.counted(self.lease);
        let session = self.sessions.get_mut(&node).filter(|session| session.id == request.session)?;
        if may_grant && !session.with_lease {
            // A session without leases makes way for one with them.
            self.end(node, now);
            return None;
        }
        session.heard = now;
        if may_grant {
            session.lease_until = until;
        }
        let wake = session.wake.clone();
        let mut changed: Vec<AccountName> = session.ending.drain().collect();
        for account in &changed {
            // There is one question at a time: so this one was sent after the answer before was taken in.
            if let Some(held) = session.held.get_mut(account) {
                held.granted = false;
            }
        }
        for (account, place) in request.places {
            let held = session.held.entry(account.clone()).or_insert_with(|| Held::new(place.clone()));
            // Whoever asks for a listing has given up the grant before.
            held.granted &= matches!(place, Place::At(_));
            held.place = place;
            session.stirred.insert(account.clone());
            self.accounts.entry(account.clone()).or_default().followers.insert(node);
            changed.push(account);
        }
        for account in &request.dropped {
            session.forget(account);
        }
        for account in request.dropped {
            self.leave(node, &account);
            changed.push(account);
        }
        for account in changed {
            self.settle(&account, now);
        }
        Some(wake)
    }

    /// A follower is about to be sent everything up to `upto`, of a log whose end was just read to be `head`. With all of
    /// it the account is granted, unless `is_settled` says that this node may not be its primary for long; who was sent less
    /// for a lease time is granted it no more. `None` when the session has ended or has moved on.
    pub(super) fn stand(
        &mut self,
        node: NodeId,
        id: u64,
        account: &AccountName,
        (upto, head): (Cursor, Cursor),
        is_settled: bool,
        now: Duration,
    ) -> Option<Standing> {
        self.sweep(now);
        let watched = self.accounts.get_mut(account)?;
        if watched.head.is_none_or(|known| known.sequence < head.sequence) {
            watched.head = Some(head);
        }
        self.settle(account, now);
        let may_grant = is_settled && self.former.is_empty() && !self.ungranted.contains(account);
        let session = self.sessions.get_mut(&node).filter(|session| session.id == id)?;
        let held = session.held.get_mut(account)?;
        let may_grant = may_grant && !session.withdrawn.contains(account);
        held.granted |= may_grant && session.with_lease && session.lease_until >= now && upto == head;
        match upto == head {
            true => held.behind_since = None,
            false => {
                let since = *held.behind_since.get_or_insert(now);
                if held.granted && now >= since + self.lease {
                    session.ending.insert(account.clone());
                }
            }
        }
        let watched = self.accounts.get(account)?;
        let is_granted = held.granted && !session.ending.contains(account);
        let confirmed = is_granted.then_some(watched.confirmed);
        let end = watched.head.map_or(0, |head| head.sequence);
        let told = Some((end, confirmed));
        let is_known = held.told == told;
        held.told = told;
        Some(Standing { confirmed, is_known })
    }

    /// An account is not to be followed here.
    pub(super) fn refuse(&mut self, node: NodeId, account: &AccountName, now: Duration) {
        if let Some(session) = self.sessions.get_mut(&node) {
            session.forget(account);
        }
        self.leave(node, account);
        self.settle(account, now);
    }

    /// A log has grown. Gives whether somebody waits for that.
    pub(super) fn advance(&mut self, account: &AccountName, head: Cursor, now: Duration) {
        let Some(watched) = self.accounts.get_mut(account) else { return };
        watched.head = Some(head);
        for follower in &watched.followers {
            if let Some(session) = self.sessions.get_mut(follower) {
                session.stirred.insert(account.clone());
                session.wake.notify_one();
            }
        }
        self.settle(account, now);
    }

    /// The newest event of an account, if anybody follows it.
    pub(super) fn head(&self, account: &AccountName) -> u64 {
        self.accounts.get(account).and_then(|watched| watched.head).map_or(0, |head| head.sequence)
    }

    /// Whether a follower has everything up to an event on its disk. Its place counts only once it was looked up in the
    /// log that is here: it may come from another one.
    pub(super) fn has_applied(&self, node: NodeId, account: &AccountName, sequence: u64) -> bool {
        let held = self.sessions.get(&node).and_then(|session| session.held.get(account));
        held.is_some_and(|held| {
            held.told.is_some() && matches!(held.place, Place::At(cursor) if cursor.sequence >= sequence)
        })
    }

    /// How many followers have everything up to an event on their disks.
    pub(super) fn count_applied(&self, account: &AccountName, sequence: u64) -> usize {
        self.sessions.keys().filter(|node| self.has_applied(**node, account, sequence)).count()
    }

    /// Whether everything up to an event is everywhere.
    pub(super) fn settled(&mut self, account: &AccountName, sequence: u64, now: Duration) -> Settled {
        self.sweep(now);
        if let Some(until) = self.quiet_until(account, now) {
            return Settled::NotBefore(until);
        }
        if let Some(until) = self.former.values().min() {
            return Settled::NotBefore(*until);
        }
        let Some(watched) = self.accounts.get(account) else { return Settled::Yes };
        if watched.confirmed >= sequence {
            return Settled::Yes;
        }
        let holders = watched.followers.iter().filter_map(|node| self.sessions.get(node));
        let granted = holders.filter(|session| session.held.get(account).is_some_and(|held| held.granted));
        match granted.map(|session| session.lease_until).min() {
            Some(until) => Settled::NotBefore(until + Duration::from_millis(1)),
            None => Settled::Yes,
        }
    }

    /// Ends what has run out. Gives whether anything did.
    pub(super) fn sweep(&mut self, now: Duration) -> bool {
        let silence = self.counted(self.lease);
        let over = |session: &Session| match session.with_lease {
            true => session.lease_until < now,
            false => session.heard + silence < now,
        };
        let over: Vec<NodeId> = self.sessions.iter().filter(|(_, s)| over(s)).map(|(node, _)| *node).collect();
        for node in &over {
            self.end(*node, now);
        }
        let before = self.former.len();
        self.former.retain(|_, until| *until >= now);
        if before > 0 && self.former.is_empty() {
            self.settle_all(now);
        }
        let loud = self.quiet.extract_if(|_, until| *until <= now).map(|(account, _)| account);
        let loud: Vec<AccountName> = loud.collect();
        for account in &loud {
            self.settle(account, now);
            self.stir_followers(account);
        }
        !over.is_empty() || before != self.former.len() || !loud.is_empty()
    }

    /// The nodes that hold a lease or may.
    pub(super) fn nodes(&self) -> HashSet<NodeId> {
        self.sessions.keys().chain(self.former.keys()).copied().collect()
    }

    fn end(&mut self, node: NodeId, now: Duration) {
        let Some(session) = self.sessions.remove(&node) else { return };
        session.wake.notify_one();
        for account in session.held.into_keys() {
            self.leave(node, &account);
            self.settle(&account, now);
        }
    }

    fn leave(&mut self, node: NodeId, account: &AccountName) {
        if let Some(watched) = self.accounts.get_mut(account) {
            watched.followers.remove(&node);
            if watched.followers.is_empty() {
                self.accounts.remove(account);
            }
        }
    }

    fn settle_all(&mut self, now: Duration) {
        let accounts: Vec<AccountName> = self.accounts.keys().cloned().collect();
        for account in accounts {
            self.settle(&account, now);
            self.stir_followers(&account);
        }
    }

    /// Moves the confirmed event forward as far as it may go.
    fn settle(&mut self, account: &AccountName, now: Duration) {
        if !self.former.is_empty() || self.quiet.contains_key(account) {
            return;
        }
        let Some(watched) = self.accounts.get_mut(account) else { return };
        let Some(head) = watched.head else { return };
        let mut everywhere = head.sequence;
        for node in &watched.followers {
            let Some(session) = self.sessions.get(node).filter(|session| session.lease_until >= now) else { continue };
            if let Some(Held { granted: true, place: Place::At(cursor), .. }) = session.held.get(account) {
                everywhere = everywhere.min(cursor.sequence);
            }
        }
        if everywhere > watched.confirmed {
            watched.confirmed = everywhere;
            self.stir_followers(account);
        }
    }

    /// Those who hold the account are told.
    fn stir_followers(&mut self, account: &AccountName) {
        let Some(watched) = self.accounts.get(account) else { return };
        for node in &watched.followers {
            if let Some(session) = self.sessions.get_mut(node)
                && session.held.contains_key(account)
            {
                session.stirred.insert(account.clone());
                session.wake.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests;
