//! Who goes first where several transfers want the same link.
//!
//! Each priority has places of its own, so that what can wait never takes one from what somebody waits for. A transfer
//! that turns out to be wanted sooner moves up while it runs.

use tokio::sync::{Semaphore, SemaphorePermit, watch};

/// How soon a blob from elsewhere is wanted. The greater one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Nobody waits for it: backfill, healing, synchronisation.
    Background,
    /// A push waits for it.
    Push,
    /// A client is pulling it.
    Pull,
}

/// Transfers that run at the same time. Others wait, and their clients with them.
pub(super) struct Places {
    background: Semaphore,
    push: Semaphore,
    pull: Semaphore,
}

impl Default for Places {
    fn default() -> Self {
        Self { background: Semaphore::new(4), push: Semaphore::new(8), pull: Semaphore::new(16) }
    }
}

impl Places {
    fn of(&self, priority: Priority) -> &Semaphore {
        match priority {
            Priority::Background => &self.background,
            Priority::Push => &self.push,
            Priority::Pull => &self.pull,
        }
    }

    /// Waits for a place, in the line of the priority that the transfer has meanwhile. Without a place it is shut down.
    ///
    /// Cancel safety: dropping it leaves the line.
    pub(super) async fn enter(&self, mut priority: watch::Receiver<Priority>) -> Option<SemaphorePermit<'_>> {
        loop {
            let now = *priority.borrow_and_update();
            tokio::select! {
                permit = self.of(now).acquire() => return permit.ok(),
                Ok(()) = priority.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_can_wait_takes_no_place_from_a_pull_and_moves_up_when_it_is_pulled() {
        let places = Places::default();
        let background = watch::Sender::new(Priority::Background);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(places.enter(background.subscribe()).await.unwrap());
        }
        let waiting = watch::Sender::new(Priority::Background);
        let enter = places.enter(waiting.subscribe());
        tokio::pin!(enter);
        tokio::select! {
            _ = &mut enter => panic!("there were places for four"),
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
        let pull = watch::Sender::new(Priority::Pull);
        held.push(places.enter(pull.subscribe()).await.unwrap());
        waiting.send_replace(Priority::Pull);
        held.push(enter.await.unwrap());
        assert_eq!(held.len(), 6);
    }
}
