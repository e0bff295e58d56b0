//! Tells other regions what changes in the accounts of this one, and acknowledges a change when it is safe to.
//!
//! A region that follows asks again and again, with its place in the log of each account; the answer waits until there is
//! something new. The next question says what has been applied and renews the asker's *lease*: while it holds one, it
//! answers by itself, and so a write here waits until everyone who holds one has the event ([`Inner::settled`]). Reads
//! here wait in the same way, and followers show an event only once they are told that it is everywhere: else somebody
//! who has seen the new could be shown the old in another region.
//!
//! The asker's lease covers all accounts that it follows here. So when this node learns that it is the primary of one no
//! longer, it says so before it renews another lease: [`Inner::withdraw_lost`] runs before the authority that is needed for
//! that is renewed. What an answer carries is shared out: each account gets a part, those first that somebody waits for.
//!
//! Invariants: those of `holders`; a node is on disk as a holder before it is granted anything, and so a restart knows for
//! whom to wait. Deliberately absent: blobs.

mod holders;
pub(super) mod messages;
mod outgoing;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, NodeId};
use tokio::sync::Notify;

use self::holders::{Holders, Settled};
use self::messages::{FollowAnswer, FollowRequest, News, NewsKind, Place};
use self::outgoing::{ANSWER_BYTES, Found, Room};
use super::{Inner, Registry, RegistryError};
use crate::metadata::{EventHead, Stage, WriteTransaction};
use crate::model::policy::Ack;
use crate::model::uptime;

/// What an account gets of an answer at the least, in bytes, while there is room at all.
const SHARE_BYTES_MIN: usize = 64 << 10;
/// Accounts that are looked at for one answer.
const ACCOUNTS_PER_LOOK: usize = 256;
/// Nodes whose leases a restart remembers; a federation has fewer.
const HOLDERS_MAX: usize = 10_000;
/// Events that are trimmed in one transaction.
const TRIMMED_BATCH: usize = 1000;
/// Accounts that are looked at in one step.
const ACCOUNTS_STEP: usize = 100;

/// The followers of this node's accounts.
pub(super) struct Feed {
    lease: Duration,
    holders: Mutex<Holders>,
    /// Something was confirmed, or a lease ended.
    moved: Notify,
    /// Until when this node may speak for its accounts, as uptime in milliseconds.
    authority_until_ms: AtomicU64,
    /// Accounts that ask for copies, each with its last write that is not known to have them yet.
    spreading: Mutex<HashMap<AccountName, u64>>,
}

impl Feed {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            lease,
            holders: Mutex::new(Holders::new(lease)),
            moved: Notify::new(),
            authority_until_ms: AtomicU64::new(u64::MAX),
            spreading: Mutex::default(),
        }
    }

    /// Logs have grown. Called by the writer, before anybody is answered.
    pub(super) fn advance(&self, heads: &[EventHead]) {
        let now = uptime();
        {
            let mut holders = self.holders();
            heads.iter().for_each(|head| holders.advance(&head.account, head.cursor, now));
        }
        self.moved.notify_waiters();
    }

    /// Whether a majority of the federation stood behind this node's view within the lease time. Two loads: asked at
    /// every pull.
    pub(super) fn has_authority(&self) -> bool {
        // Whoever sees it renewed sees what was withdrawn before.
        let until = self.authority_until_ms.load(Ordering::Acquire);
        until == u64::MAX || u128::from(until) > uptime().as_millis()
    }

    /// Everything up to this event is in as many regions as its account asks for.
    pub(super) fn has_spread(&self, account: &AccountName, sequence: u64) {
        let mut spreading = self.spreading();
        if spreading.get(account).is_some_and(|last| *last <= sequence) {
            spreading.remove(account);
        }
    }

    fn spreading(&self) -> MutexGuard<'_, HashMap<AccountName, u64>> {
        self.spreading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Ends what other nodes were promised about an account, and waits until they know or their leases have run out.
    ///
    /// Cancel safety: the account stays revoked.
    pub(super) async fn revoke_leases(&self, account: &AccountName) {
        self.feed.holders().revoke(account, uptime());
        loop {
            let mut moved = std::pin::pin!(self.feed.moved.notified());
            moved.as_mut().enable();
            let Some(until) = self.feed.holders().former_until(uptime()) else { break };
            let left = until.saturating_sub(uptime()) + Duration::from_millis(1);
            let _ = tokio::time::timeout(left, moved).await;
        }
        self.feed.moved.notify_waiters();
    }

    /// Leases of an account are granted to nobody: it may have been handed over before a restart.
    pub(super) fn withhold_leases(&self, account: &AccountName) {
        self.feed.holders().withhold(account);
    }

    /// Ends what other nodes were promised about accounts that are not this node's any more: they are told with the next
    /// answer, and their leases are not renewed before.
    pub(super) fn withdraw_lost(&self) {
        let followed = self.feed.holders().followed();
        let lost: Vec<AccountName> = followed.into_iter().filter(|account| !self.claims.is_primary(account)).collect();
        let mut holders = self.feed.holders();
        lost.iter().for_each(|account| holders.withdraw(account));
    }

    /// The same for one account.
    pub(super) fn withdraw_leases(&self, account: &AccountName) {
        self.feed.holders().withdraw(account);
    }

    /// Leases of an account may be granted again.
    pub(super) fn allow_leases(&self, account: &AccountName) {
        self.feed.holders().allow(account);
    }

    /// For how long the promises of a primary may last that knows nothing of having a successor, counted from when it has
    /// one: its own answers for a lease time, and then the leases that it granted at the end of that.
    pub(super) fn promises_last(&self) -> Duration {
        let lease = self.feed.lease;
        lease * 2 + lease / 10 + Duration::from_millis(50)
    }

    /// Nothing of an account is acknowledged, or shown without a mark, before its former primary's promises have run out.
    pub(super) fn keep_quiet(&self, account: &AccountName, lasting: Duration) {
        self.feed.holders().keep_quiet(account, uptime() + lasting);
    }

    /// Whether a former primary of the account may have promised something still.
    pub(super) fn is_quiet(&self, account: &AccountName) -> bool {
        self.feed.holders().quiet_until(account, uptime()).is_some()
    }

    /// Waits until everything that has happened in an account is with everyone who may answer for it. Ends with the last
    /// lease at the latest.
    ///
    /// Cancel safety: safe.
    pub(super) async fn settled(&self, account: &AccountName) {
        let sequence = self.feed.holders().head(account);
        let began = uptime();
        loop {
            let mut moved = std::pin::pin!(self.feed.moved.notified());
            moved.as_mut().enable();
            let settled = self.feed.holders().settled(account, sequence, uptime());
            let until = match settled {
                Settled::Yes => break,
                // What another primary may have promised is not theirs to do without.
                Settled::NotBefore(_) if self.is_acknowledged_at_primary(account) && !self.is_quiet(account) => break,
                Settled::NotBefore(until) => until,
            };
            self.feed.holders().await_event(account, sequence);
            let _ = tokio::time::timeout(until.saturating_sub(uptime()), moved).await;
        }
        let waited = uptime().saturating_sub(began);
        if waited > Duration::from_millis(1) {
            metrics::histogram!("keppel_feed_settle_seconds").record(waited.as_secs_f64());
        }
    }

    /// Whether an account's owners chose not to wait for other regions.
    fn is_acknowledged_at_primary(&self, account: &AccountName) -> bool {
        let policies = self.claims.rules(account).and_then(|rules| rules.policies);
        policies.is_some_and(|policies| policies.ack() == Ack::Primary)
    }

    /// Waits until these nodes have everything of an account up to an event on their disks; gives those that had not by
    /// the deadline.
    ///
    /// Cancel safety: safe.
    pub(super) async fn applied_by(
        &self,
        account: &AccountName,
        sequence: u64,
        nodes: &[NodeId],
        deadline: Duration,
    ) -> Vec<NodeId> {
        let until = uptime() + deadline;
        loop {
            let mut moved = std::pin::pin!(self.feed.moved.notified());
            moved.as_mut().enable();
            let lacking = {
                let mut holders = self.feed.holders();
                let lacking = nodes.iter().filter(|node| !holders.has_applied(**node, account, sequence));
                let lacking = lacking.copied().collect::<Vec<_>>();
                holders.await_event(account, sequence);
                lacking
            };
            let left = until.saturating_sub(uptime());
            if lacking.is_empty() || left.is_zero() {
                return lacking;
            }
            let _ = tokio::time::timeout(left, moved).await;
        }
    }

    /// To be asked in the transaction of a write, at its end: gives its place in the log, and notes that whoever sees it may
    /// lose it again with this node, until it has the copies that its account asks for.
    pub(super) fn note_spreading(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
    ) -> Result<u64, RegistryError> {
        let sequence = transaction.get_event_head(account)?.map_or(0, |(_, head)| head.sequence);
        if self.copies_wanted(account) > 1 {
            self.feed.spreading().insert(account.clone(), sequence);
        }
        Ok(sequence)
    }

    /// Waits until what is here of an account is in as many regions as it asks for, but no longer than a lease lasts. Gives
    /// whether it is: else what is shown could be gone when this node is.
    ///
    /// Cancel safety: safe.
    pub(super) async fn is_spread(&self, account: &AccountName) -> bool {
        let Some(sequence) = self.feed.spreading().get(account).copied() else { return true };
        let (until, others) = (uptime() + self.feed.lease, usize::from(self.copies_wanted(account)).saturating_sub(1));
        loop {
            let mut moved = std::pin::pin!(self.feed.moved.notified());
            moved.as_mut().enable();
            if self.feed.holders().count_applied(account, sequence) >= others {
                self.feed.has_spread(account, sequence);
                return true;
            }
            let left = until.saturating_sub(uptime());
            if left.is_zero() {
                return false;
            }
            let _ = tokio::time::timeout(left, moved).await;
        }
    }

    /// Whether this node may speak for its accounts without a mark; asks the majority where that is not known.
    pub(super) async fn confirm_authority(&self) -> bool {
        if self.feed.has_authority() {
            return true;
        }
        let confirmed = self.claims.confirm_majority().await;
        self.refresh_authority();
        confirmed
    }

    fn refresh_authority(&self) {
        // What was decided before that moment shows here by now: so whatever is no longer ours is dropped first.
        let asked_at = self.claims.majority_asked_at();
        self.notice_successors();
        // Counted from then, however long this took, or the machine slept meanwhile.
        let until = asked_at.map_or(Duration::ZERO, |at| at.saturating_add(self.feed.lease)).as_millis();
        self.feed.authority_until_ms.store(u64::try_from(until).unwrap_or(u64::MAX - 1), Ordering::Release);
    }
}

impl Registry {
    /// Whether what this node knows of accounts was confirmed by a majority of the federation within the time of a lease;
    /// asks where it was not.
    ///
    /// Cancel safety: may be dropped.
    pub async fn is_confirmed(&self) -> bool {
        self.inner.confirm_authority().await
    }

    /// Remembers whom a former process may have granted leases, so that nothing is acknowledged behind their backs.
    /// Called once, before the registry serves.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn recall_leases(&self) -> Result<(), RegistryError> {
        let read = self.inner.metadata.read(|reader| reader.list_lease_holders(HOLDERS_MAX));
        let former = read.await.map_err(RegistryError::Metadata)?;
        let (now, mut holders) = (uptime(), self.inner.feed.holders());
        for (node, lease_ms) in former {
            holders.recall(node, Duration::from_millis(lease_ms).max(self.inner.feed.lease), now);
        }
        Ok(())
    }

    /// Ends leases that have run out, and looks whether this node may still speak for its accounts. To be called several
    /// times within the lease time.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn tend_leases(&self) -> Result<(), RegistryError> {
        self.inner.refresh_authority();
        if self.inner.feed.holders().sweep(uptime()) {
            self.inner.feed.moved.notify_waiters();
        }
        let recorded = self.inner.metadata.read(|reader| reader.list_lease_holders(HOLDERS_MAX)).await;
        let recorded = recorded.map_err(RegistryError::Metadata)?;
        let holding = self.inner.feed.holders().nodes();
        if recorded.iter().all(|(node, _)| holding.contains(node)) {
            return Ok(());
        }
        let inner = self.inner.clone();
        let forgotten = self.inner.metadata.write(move |transaction| {
            for (node, _) in recorded {
                // One that has come back in between is written down after this.
                if !inner.feed.holders().nodes().contains(&node) {
                    transaction.delete_lease_holder(node)?;
                }
            }
            Ok(())
        });
        forgotten.await
    }

    /// Takes away old events, all but those that the options keep.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn trim_events(&self) -> Result<(), RegistryError> {
        let kept_max = self.inner.options.events_kept_max;
        let kept_seconds = i64::try_from(self.inner.options.events_kept_for.as_secs()).unwrap_or(i64::MAX / 2);
        let kept_since = self.inner.clock.now().saturating_sub(kept_seconds);
        let mut after: Option<AccountName> = None;
        loop {
            let last = after.clone();
            let accounts = self.inner.metadata.read(move |reader| reader.list_accounts(last.as_ref(), ACCOUNTS_STEP));
            let accounts = accounts.await.map_err(RegistryError::Metadata)?;
            let Some(last) = accounts.last() else { return Ok(()) };
            after = Some(last.clone());
            for account in accounts {
                while self.trim_some(account.clone(), kept_max, kept_since).await? == TRIMMED_BATCH {}
            }
        }
    }

    async fn trim_some(&self, account: AccountName, kept_max: u64, kept_since: i64) -> Result<usize, RegistryError> {
        let trimmed = self.inner.metadata.write(move |transaction| match transaction.get_account(&account)? {
            Some(id) => transaction.trim_events(id, kept_max, kept_since, TRIMMED_BATCH),
            None => Ok(0),
        });
        trimmed.await.map_err(RegistryError::Metadata)
    }

    /// Answers a node that follows accounts of this one. Waits for news as long as the node asks, but no longer than half
    /// the lease time.
    ///
    /// Cancel safety: what was found new is found again in the node's next session.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn follow(&self, node: NodeId, request: FollowRequest) -> Result<FollowAnswer, RegistryError> {
        let (inner, arrived) = (&self.inner, uptime());
        let may_grant = inner.feed.has_authority();
        let (id, is_first) = (request.session, request.is_first);
        let wait = Duration::from_millis(request.wait_ms.into()).min(inner.feed.lease / 2);
        let taken = inner.feed.holders().take(node, request, may_grant, arrived);
        inner.feed.moved.notify_waiters();
        let Some(wake) = taken else { return Ok(FollowAnswer::UnknownSession) };
        let lease = if may_grant { inner.feed.lease } else { Duration::ZERO };
        let lease_ms = u32::try_from(lease.as_millis()).unwrap_or(u32::MAX);
        if is_first && may_grant {
            let recorded = inner.metadata.write(move |transaction| transaction.put_lease_holder(node, lease_ms.into()));
            recorded.await.map_err(RegistryError::Metadata)?;
        }
        loop {
            let Some(turn) = inner.feed.holders().take_turn(node, id) else {
                return Ok(FollowAnswer::UnknownSession);
            };
            let not_primary = |account| News { account, what: NewsKind::NotPrimary };
            let mut news: Vec<News> = turn.withdrawn.into_iter().map(not_primary).collect();
            if !turn.places.is_empty() || !news.is_empty() {
                news.extend(inner.look(node, id, turn.places).await?);
                if !news.is_empty() {
                    let lease_ms = if turn.is_all { lease_ms } else { 0 };
                    return Ok(FollowAnswer::News { lease_ms, news });
                }
                continue;
            }
            let left = wait.saturating_sub(uptime().saturating_sub(arrived));
            if left.is_zero() || tokio::time::timeout(left, wake.notified()).await.is_err() {
                return Ok(FollowAnswer::News { lease_ms, news: Vec::new() });
            }
        }
    }
}

impl Inner {
    /// What is new in accounts, for a node at these places.
    async fn look(
        self: &Arc<Self>,
        node: NodeId,
        id: u64,
        mut places: Vec<(AccountName, Place)>,
    ) -> Result<Vec<News>, RegistryError> {
        let left = places.split_off(places.len().min(ACCOUNTS_PER_LOOK));
        self.feed.holders().stir(node, id, left.into_iter().map(|(account, _)| account));
        let mut news = Vec::new();
        places.retain(|(account, _)| {
            // What a mirror holds says nothing about what there is outside.
            let is_ours = self.claims.is_primary(account)
                && self.external_source(account).is_none()
                && self.refuse_former(account).is_ok()
                && self.primacies.stage(account) != Some(Stage::Coming);
            if !is_ours {
                self.feed.holders().refuse(node, account, uptime());
                news.push(News { account: account.clone(), what: NewsKind::NotPrimary });
            }
            is_ours
        });
        let reading = self.metadata.read(move |reader| {
            let (mut room, mut found, mut left) = (ANSWER_BYTES, Vec::new(), Vec::new());
            let mut to_come = places.len();
            for (account, place) in places {
                // What the others do not need is for those that come last.
                let share = (room / to_come).max(SHARE_BYTES_MIN).min(room);
                to_come -= 1;
                if share == 0 {
                    left.push(account);
                    continue;
                }
                let mut part = Room::of(share);
                found.push((outgoing::find(reader, &account, &place, &mut part)?, account));
                room = room.saturating_sub(part.used);
            }
            Ok::<_, RegistryError>((found, left))
        });
        let (found, left) = reading.await?;
        {
            let mut holders = self.feed.holders();
            holders.stir(node, id, left);
            holders.serve(node, id, found.iter().map(|(_, account)| account));
        }
        for (found, account) in found {
            news.extend(self.tell(node, id, account, found));
        }
        self.feed.moved.notify_waiters();
        Ok(news)
    }

    fn tell(&self, node: NodeId, id: u64, account: AccountName, found: Found) -> Option<News> {
        let what = match found {
            Found::Events { changes, upto, head } => {
                // While an account is handed over, whoever gets it has to hear of everything, and nobody answers for it.
                let is_settled = matches!(self.primacies.stage(&account), None | Some(Stage::Held | Stage::Taken));
                let standing = self.feed.holders().stand(node, id, &account, (upto, head), is_settled, uptime())?;
                if changes.is_empty() && upto == head && standing.is_known {
                    return None;
                }
                NewsKind::Events { changes, upto, head: head.sequence, confirmed: standing.confirmed }
            }
            Found::Page { slices, next, base } => NewsKind::Page { slices, next, base },
            Found::Resync => NewsKind::Resync,
            Found::TooLarge => {
                tracing::warn!(%account, peer = %node, "a manifest is too large to be sent: the account is not followed");
                self.feed.holders().refuse(node, &account, uptime());
                NewsKind::NotPrimary
            }
        };
        Some(News { account, what })
    }
}
