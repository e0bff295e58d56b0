//! Which accounts of other regions are followed, how far they are, and for which of them this node may answer by itself.
//!
//! A copy is *fresh* while the lease of its primary lasts and exactly what that has confirmed is here: neither less nor
//! more. Whoever answers from a copy looks at it before reading and after, and both must show the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, NodeId};
use tokio::sync::Notify;

use super::backfills::BackfillStatus;
use crate::metadata::{Cursor, FollowRow, FollowState, Told};
use crate::model::uptime;
use crate::registry::feed::messages::{ListPlace, Place};

/// The copies of accounts of other regions.
#[derive(Default)]
pub(in crate::registry) struct Copies {
    state: Mutex<State>,
    /// Whether there are any, for those who must not wait for the others.
    are_any: AtomicBool,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    copies: HashMap<AccountName, Copy>,
    /// Changes of places so far.
    changes: u64,
    /// Until when each node's lease lasts, as uptime.
    leases: HashMap<NodeId, Duration>,
}

struct Copy {
    /// The last change of its place.
    changed: u64,
    state: FollowState,
    cursor: Cursor,
    /// While it is being listed: where, and the end of the log at the beginning.
    listing: Option<(ListPlace, Cursor)>,
    /// Who tells what is new.
    source: Option<NodeId>,
    /// Whose log the place on disk is of.
    written_of: Option<NodeId>,
    confirmed: Option<u64>,
    head: u64,
    /// When it was last known to be all there was.
    exact_at: Option<Duration>,
    /// It is to be listed from the beginning, whatever its place is.
    wants_listing: bool,
    /// All of it was here at some time since the process started.
    was_whole: bool,
    /// What the manifests have together that are known to be missing, in bytes, as the primary told last.
    backlog: Option<u64>,
    /// Under which claim what is here was told.
    told: Told,
}

/// A copy that was fresh when it was looked at. Two that are equal enclose a time in which nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) struct Fresh(u64);

/// How far a followed account is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStatus {
    /// The account.
    pub account: AccountName,
    /// Who tells what is new, if anybody does.
    pub source: Option<NodeId>,
    /// How much of it is here.
    pub state: FollowState,
    /// Events that are known to have happened and are not here yet; `None` while it is being listed.
    pub behind_events: Option<u64>,
    /// What the manifests in these events have together, in bytes, as far as the primary has told.
    pub behind_bytes: Option<u64>,
    /// How far blobs are fetched ahead, where everything is to be here.
    pub backfill: Option<BackfillStatus>,
    /// How long ago the copy was last known to be all there was; `None`: not since this node started.
    pub behind: Option<Duration>,
    /// Whether this node answers for it by itself.
    pub is_fresh: bool,
}

/// How far the copies of one node's accounts are behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyLag {
    /// Accounts of the node that are followed.
    pub accounts: u64,
    /// Those of them that are answered for here without a question.
    pub fresh: u64,
    /// Events that are known to have happened and are not here yet, of those that are not being listed.
    pub events: u64,
    /// Bytes of manifests that these events brought, as far as is known, and of blobs that are to be fetched ahead.
    pub bytes: u64,
    /// How long ago the copy that is furthest behind was all there was, as far as that is known.
    pub behind: Duration,
}

impl CopyLag {
    /// Of the copies that `node` is the source of.
    pub fn of(node: NodeId, copies: &[CopyStatus]) -> Self {
        let mut lag = Self::default();
        for copy in copies.iter().filter(|copy| copy.source == Some(node)) {
            lag.accounts += 1;
            lag.fresh += u64::from(copy.is_fresh);
            lag.events += copy.behind_events.unwrap_or_default();
            lag.bytes += copy.behind_bytes.unwrap_or_default();
            lag.bytes += copy.backfill.map_or(0, |backfill| backfill.missing_bytes);
            lag.behind = lag.behind.max(copy.behind.unwrap_or_default());
        }
        lag
    }
}

impl Copies {
    /// The account's content is used here: it is followed from now on.
    /// `claim`: which claim of the name it is.
    pub(in crate::registry) fn want(&self, account: &AccountName, claim: u64) {
        let mut state = self.lock();
        if !state.copies.contains_key(account) {
            let (name, cursor) = (account.clone(), Cursor::default());
            let row = FollowRow { account: name, state: FollowState::Pulled, cursor, source: None };
            let copy = Copy { told: Told { epoch: 0, claim }, ..Copy::new(&row, state.change()) };
            self.are_any.store(true, Ordering::SeqCst);
            state.copies.insert(row.account.clone(), copy);
            drop(state);
            self.wanted.notify_one();
        }
    }

    /// Takes in what was followed before a restart.
    pub(super) fn recall(&self, rows: &[FollowRow]) {
        let mut state = self.lock();
        for row in rows {
            let change = state.change();
            self.are_any.store(true, Ordering::SeqCst);
            state.copies.entry(row.account.clone()).or_insert_with(|| Copy::new(row, change));
        }
    }

    /// What is here of the account is on disk as told under this claim.
    pub(super) fn set_told(&self, account: &AccountName, told: Told) {
        if let Some(copy) = self.lock().copies.get_mut(account) {
            copy.told = told;
        }
    }

    /// Under which claim what is here of the account was told; `None`: it is not followed.
    pub(in crate::registry) fn told(&self, account: &AccountName) -> Option<Told> {
        self.lock().copies.get(account).map(|copy| copy.told)
    }

    /// Waits until another account is wanted. Cancel-safe.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether any account of another region is followed. Takes no lock.
    pub(in crate::registry) fn are_any(&self) -> bool {
        self.are_any.load(Ordering::SeqCst)
    }

    pub(in crate::registry) fn forget(&self, account: &AccountName) {
        let mut state = self.lock();
        state.copies.remove(account);
        self.are_any.store(!state.copies.is_empty(), Ordering::SeqCst);
    }

    /// All accounts that are followed, each with its place.
    pub(super) fn places(&self) -> Vec<(AccountName, Place)> {
        self.lock().copies.iter().map(|(account, copy)| (account.clone(), copy.place())).collect()
    }

    /// Those whose places have changed since a number of changes, and how many there were by now.
    pub(super) fn places_since(&self, changes: u64) -> (u64, Vec<(AccountName, Place)>) {
        let state = self.lock();
        let changed = state.copies.iter().filter(|(_, copy)| copy.changed > changes);
        (state.changes, changed.map(|(account, copy)| (account.clone(), copy.place())).collect())
    }

    /// The account's place and, where it is being listed, where its events begin.
    pub(super) fn place(&self, account: &AccountName) -> Option<(Place, Option<Cursor>)> {
        let state = self.lock();
        let copy = state.copies.get(account)?;
        let under_way = copy.listing.as_ref().filter(|_| !copy.wants_listing);
        let base = under_way.filter(|(place, _)| *place != ListPlace::beginning()).map(|(_, base)| *base);
        Some((copy.place(), base))
    }

    /// Has the account listed from the beginning: what is here of it is not what the primary has.
    pub(super) fn relist(&self, account: &AccountName) {
        if let Some(copy) = self.lock().moving(account) {
            copy.wants_listing = true;
            copy.confirmed = None;
        }
    }

    /// Some of a listing has come.
    pub(super) fn relisted(&self, account: &AccountName) {
        if let Some(copy) = self.lock().moving(account) {
            copy.wants_listing = false;
        }
    }

    /// Places of a node's accounts that are known to be behind.
    pub(super) fn behind(&self, node: NodeId) -> Vec<(AccountName, u64)> {
        let state = self.lock();
        let behind = state.copies.iter().filter(|(_, copy)| {
            copy.source == Some(node) && copy.state == FollowState::Following && copy.head > copy.cursor.sequence
        });
        behind.map(|(account, copy)| (account.clone(), copy.cursor.sequence)).collect()
    }

    /// What the manifests that are missing have together, in bytes.
    pub(super) fn set_backlog(&self, account: &AccountName, bytes: u64) {
        if let Some(copy) = self.lock().copies.get_mut(account) {
            copy.backlog = Some(bytes);
        }
    }

    /// Whether exactly this place has been reached.
    pub(in crate::registry) fn is_at(&self, account: &AccountName, cursor: Cursor) -> bool {
        let state = self.lock();
        let copy = state.copies.get(account);
        copy.is_some_and(|copy| {
            copy.state == FollowState::Following
                && copy.listing.is_none()
                && !copy.wants_listing
                && copy.cursor == cursor
        })
    }

    /// Whether it is on disk that exactly this place in a node's log has been reached.
    pub(super) fn is_written(&self, account: &AccountName, node: NodeId, cursor: Cursor) -> bool {
        let is_of = self.lock().copies.get(account).is_some_and(|copy| copy.written_of == Some(node));
        is_of && self.is_at(account, cursor)
    }

    /// Whether all of the account was here at some time: what is here may be out of date, or be listed anew just now.
    pub(in crate::registry) fn was_whole(&self, account: &AccountName) -> bool {
        self.lock().copies.get(account).is_some_and(|copy| copy.was_whole)
    }

    /// Whether all of the account is here up to its place.
    pub(in crate::registry) fn is_complete(&self, account: &AccountName) -> bool {
        let state = self.lock();
        state.copies.get(account).is_some_and(|copy| copy.state == FollowState::Following && !copy.wants_listing)
    }

    /// A session with a node begins: nothing that it promised before counts any more.
    pub(super) fn begin_session(&self, node: NodeId) {
        let mut state = self.lock();
        state.leases.remove(&node);
        for copy in state.copies.values_mut().filter(|copy| copy.source == Some(node)) {
            copy.confirmed = None;
        }
    }

    /// The node is asked about these accounts no longer, so its lease covers them no longer, even where it is their primary
    /// once more before anything else is known of them.
    pub(super) fn drop_from_session(&self, node: NodeId, accounts: &[AccountName]) {
        let mut state = self.lock();
        for account in accounts {
            if let Some(copy) = state.copies.get_mut(account).filter(|copy| copy.source == Some(node)) {
                copy.confirmed = None;
            }
        }
    }

    /// The node's lease lasts until this uptime.
    pub(super) fn renew(&self, node: NodeId, until: Duration) {
        let mut state = self.lock();
        let lease = state.leases.entry(node).or_default();
        *lease = (*lease).max(until);
    }

    /// The copy is about to change: nothing of it counts as fresh until [`Self::moved`].
    pub(super) fn change(&self, account: &AccountName, node: NodeId) {
        if let Some(copy) = self.lock().copies.get_mut(account) {
            copy.confirmed = None;
            copy.source = Some(node);
        }
    }

    /// All up to `cursor` is on disk.
    pub(super) fn moved(&self, account: &AccountName, cursor: Cursor, head: u64, confirmed: Option<u64>) {
        if let Some(copy) = self.lock().moving(account) {
            copy.state = FollowState::Following;
            copy.written_of = copy.source;
            copy.was_whole = true;
            copy.listing = None;
            copy.cursor = cursor;
            copy.head = head.max(cursor.sequence);
            copy.confirmed = confirmed;
            if copy.head == cursor.sequence {
                copy.exact_at = Some(uptime());
            }
        }
    }

    /// The copy is being listed: from here on, and its events begin at `base`.
    pub(super) fn listed(&self, account: &AccountName, next: ListPlace, base: Cursor) {
        if let Some(copy) = self.lock().moving(account) {
            copy.state = FollowState::Listing;
            copy.listing = Some((next, base));
            copy.confirmed = None;
        }
    }

    /// Whether this node may answer for the account by itself, as far as `primary` is concerned.
    pub(in crate::registry) fn fresh(&self, account: &AccountName, primary: NodeId) -> Option<Fresh> {
        let state = self.lock();
        let copy = state.copies.get(account)?;
        let until = state.leases.get(&primary)?;
        (copy.is_confirmed() && copy.source == Some(primary) && uptime() < *until)
            .then_some(Fresh(copy.cursor.sequence))
    }

    /// The same for all of these accounts together: one that may not be answered for is enough.
    pub(in crate::registry) fn all_fresh<'a>(
        &self,
        mut accounts: impl Iterator<Item = &'a AccountName>,
        primary: NodeId,
    ) -> Option<Vec<Fresh>> {
        accounts.try_fold(Vec::new(), |mut all, account| {
            all.push(self.fresh(account, primary)?);
            Some(all)
        })
    }

    /// How far the accounts are.
    pub(super) fn status(&self) -> Vec<CopyStatus> {
        let (now, state) = (uptime(), self.lock());
        let status = |(account, copy): (&AccountName, &Copy)| {
            let lease = copy.source.and_then(|source| state.leases.get(&source));
            let is_fresh = copy.is_confirmed() && lease.is_some_and(|until| now < *until);
            let is_exact = copy.head == copy.cursor.sequence && lease.is_some_and(|until| now < *until);
            let behind = match is_exact {
                true => Some(Duration::ZERO),
                false => copy.exact_at.map(|at| now.saturating_sub(at)),
            };
            let events = copy.head.saturating_sub(copy.cursor.sequence);
            let behind_bytes = match events {
                0 => Some(0),
                _ => copy.backlog,
            };
            CopyStatus {
                account: account.clone(),
                source: copy.source,
                state: copy.state,
                behind_events: (copy.state == FollowState::Following).then_some(events),
                behind_bytes: behind_bytes.filter(|_| copy.state == FollowState::Following),
                backfill: None,
                behind,
                is_fresh,
            }
        };
        let mut all: Vec<CopyStatus> = state.copies.iter().map(status).collect();
        all.sort_by(|a, b| a.account.cmp(&b.account));
        all
    }

    /// How far an account is; `None`: it is not followed.
    pub(in crate::registry) fn status_of(&self, account: &AccountName) -> Option<CopyStatus> {
        self.status().into_iter().find(|status| status.account == *account)
    }

    /// The node has answered: what it did not mention has not changed.
    pub(super) fn heard(&self, node: NodeId) {
        let now = uptime();
        for copy in self.lock().copies.values_mut().filter(|copy| copy.source == Some(node)) {
            if copy.state == FollowState::Following && copy.head == copy.cursor.sequence {
                copy.exact_at = Some(now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The number of the next change.
    fn change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    /// A copy whose place is about to change.
    fn moving(&mut self, account: &AccountName) -> Option<&mut Copy> {
        let change = self.change();
        let copy = self.copies.get_mut(account)?;
        copy.changed = change;
        Some(copy)
    }
}

impl Copy {
    fn new(row: &FollowRow, changed: u64) -> Self {
        Self {
            changed,
            state: row.state,
            cursor: row.cursor,
            listing: None,
            source: None,
            written_of: row.source,
            confirmed: None,
            head: row.cursor.sequence,
            exact_at: None,
            wants_listing: false,
            was_whole: row.state == FollowState::Following,
            backlog: None,
            told: Told::default(),
        }
    }

    fn place(&self) -> Place {
        if self.wants_listing {
            return Place::Listing(ListPlace::beginning());
        }
        match (&self.listing, self.state) {
            (Some((place, _)), _) => Place::Listing(place.clone()),
            (None, FollowState::Following) => Place::At(self.cursor),
            // A listing that a restart interrupted begins again.
            (None, FollowState::Pulled | FollowState::Listing) => Place::Listing(ListPlace::beginning()),
        }
    }

    fn is_confirmed(&self) -> bool {
        self.state == FollowState::Following && !self.wants_listing && self.confirmed == Some(self.cursor.sequence)
    }
}

#[cfg(test)]
mod tests;
