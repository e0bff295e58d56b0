//! The links to other nodes, which all flights share: how much is asked of each node at a time, and whose turn it is.
//!
//! A link takes a bounded number of questions for parts. Where something more urgent is under way on it, what can wait gets
//! one question at a time, so that it goes on but is in nobody's way. Transfers that nobody waits for also keep to a
//! budget of bytes per second on each link.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::NodeId;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::priority::Priority;

/// Questions for parts that one node has to answer at a time.
const QUESTIONS_MAX: usize = 96;

/// All links of this node.
#[derive(Default)]
pub(super) struct Links {
    links: Mutex<HashMap<NodeId, Link>>,
    left: Notify,
    /// Bytes per second on each link for what nobody waits for; `None`: no limit.
    budget: Option<u64>,
}

#[derive(Default)]
struct Link {
    /// By priority, the least first.
    under_way: [usize; 3],
    heard_at: Option<Instant>,
    /// Until when the budget is spent.
    spent_until: Option<Instant>,
}

impl Link {
    fn has_room(&self, priority: Priority) -> bool {
        let own = priority as usize;
        let more_urgent = self.under_way[own + 1..].iter().any(|questions| *questions > 0);
        // What waits for its budget takes no place from what is more urgent.
        let as_urgent: usize = self.under_way[own..].iter().sum();
        as_urgent < QUESTIONS_MAX && (!more_urgent || self.under_way[own] == 0)
    }
}

impl Links {
    pub(super) fn new(budget: Option<u64>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Waits until the node may be asked for a part of so many bytes; the place is kept as long as the guard.
    ///
    /// Cancel safety: dropping it leaves the line.
    pub(super) async fn enter(self: &Arc<Self>, node: NodeId, priority: Priority, bytes: u64) -> LinkPlace {
        let place = loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if let Some(place) = self.try_enter(node, priority) {
                break place;
            }
            left.await;
        };
        if let Some(wait_until) = self.spend(node, priority, bytes) {
            tokio::time::sleep_until(wait_until).await;
        }
        place
    }

    /// Waits until something may be asked of the node whose answer has bytes of a blob, where nobody waits for it. What they
    /// were is told to [`Self::charge`].
    ///
    /// Cancel safety: safe.
    pub(super) async fn await_budget(&self, node: NodeId, priority: Priority) {
        if self.budget.is_some() && priority == Priority::Background {
            let until = self.lock().get(&node).and_then(|link| link.spent_until);
            tokio::time::sleep_until(until.unwrap_or_else(Instant::now)).await;
        }
    }

    /// Takes bytes out of the budget that have come already.
    pub(super) fn charge(&self, node: NodeId, priority: Priority, bytes: u64) {
        self.spend(node, priority, bytes);
    }

    fn try_enter(self: &Arc<Self>, node: NodeId, priority: Priority) -> Option<LinkPlace> {
        let mut links = self.lock();
        let link = links.entry(node).or_default();
        if !link.has_room(priority) {
            return None;
        }
        link.under_way[priority as usize] += 1;
        Some(LinkPlace { links: self.clone(), node, priority })
    }

    /// Takes bytes out of the budget; gives when they may be sent.
    fn spend(&self, node: NodeId, priority: Priority, bytes: u64) -> Option<Instant> {
        let budget = self.budget.filter(|_| priority == Priority::Background)?.max(1);
        let now = Instant::now();
        let mut links = self.lock();
        let link = links.entry(node).or_default();
        let start = link.spent_until.map_or(now, |until| until.max(now));
        link.spent_until = Some(start + Duration::from_secs_f64(bytes as f64 / budget as f64));
        Some(start)
    }

    /// The node has answered.
    pub(super) fn heard(&self, node: NodeId) {
        self.lock().entry(node).or_default().heard_at = Some(Instant::now());
    }

    /// Whether the node answered anybody within this time.
    pub(super) fn was_heard_within(&self, node: NodeId, time: Duration) -> bool {
        let heard_at = self.lock().get(&node).and_then(|link| link.heard_at);
        heard_at.is_some_and(|at| at.elapsed() <= time)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that may be asked.
pub(super) struct LinkPlace {
    links: Arc<Links>,
    node: NodeId,
    priority: Priority,
}

impl Drop for LinkPlace {
    fn drop(&mut self) {
        if let Some(link) = self.links.lock().get_mut(&self.node) {
            link.under_way[self.priority as usize] -= 1;
        }
        self.links.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    #[tokio::test]
    async fn what_can_wait_goes_one_by_one_beside_a_pull() {
        let links = Arc::new(Links::default());
        let first = links.enter(node(1), Priority::Background, 1).await;
        let second = links.enter(node(1), Priority::Background, 1).await;
        let pull = links.enter(node(1), Priority::Pull, 1).await;
        assert!(links.try_enter(node(1), Priority::Background).is_none());
        drop(first);
        assert!(links.try_enter(node(1), Priority::Background).is_none(), "one is still under way");
        assert!(links.try_enter(node(1), Priority::Push).is_some(), "there is none of these");
        assert!(links.try_enter(node(2), Priority::Background).is_some(), "another link");
        drop(second);
        let third = links.try_enter(node(1), Priority::Background);
        assert!(third.is_some());
        let waiting = tokio::spawn({
            let links = links.clone();
            async move { links.enter(node(1), Priority::Background, 1).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(pull);
        drop(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn a_link_takes_so_many_questions() {
        let links = Arc::new(Links::default());
        let places: Vec<_> = (0..QUESTIONS_MAX).map(|_| links.try_enter(node(1), Priority::Pull).unwrap()).collect();
        assert!(links.try_enter(node(1), Priority::Pull).is_none());
        drop(places);
        assert!(links.try_enter(node(1), Priority::Pull).is_some());
    }

    #[tokio::test]
    async fn what_waits_for_its_budget_takes_no_place_from_a_pull() {
        let links = Arc::new(Links::new(Some(1)));
        let waiting = || links.try_enter(node(1), Priority::Background).unwrap();
        let places: Vec<_> = (0..QUESTIONS_MAX).map(|_| waiting()).collect();
        assert!(links.try_enter(node(1), Priority::Background).is_none());
        assert!(links.try_enter(node(1), Priority::Pull).is_some());
        drop(places);
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_with_the_answer_what_a_blob_is_counts_as_well() {
        let (links, start) = (Links::new(Some(1000)), Instant::now());
        links.await_budget(node(1), Priority::Background).await;
        links.charge(node(1), Priority::Background, 3000);
        links.await_budget(node(1), Priority::Pull).await;
        links.await_budget(node(2), Priority::Background).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        links.await_budget(node(1), Priority::Background).await;
        assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_keeps_to_its_budget() {
        let links = Arc::new(Links::new(Some(1000)));
        let start = Instant::now();
        assert!(links.spend(node(1), Priority::Background, 500).unwrap() <= Instant::now());
        let next = links.spend(node(1), Priority::Background, 1000).unwrap();
        assert!(next >= start + Duration::from_millis(500), "{:?}", next - start);
        let third = links.spend(node(1), Priority::Background, 1).unwrap();
        assert!(third >= start + Duration::from_millis(1500));
        assert!(links.spend(node(2), Priority::Background, 1).unwrap() <= Instant::now());
        assert_eq!(links.spend(node(1), Priority::Pull, 1 << 30), None);
    }
}
