use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many bytes a second all tasks together may read, so that pulls do not feel it. Clones share it.
#[derive(Clone)]
pub(super) struct IoBudget {
    bytes_per_second: u64,
    /// When the bytes taken so far will have been worth their time.
    paid_until: Arc<Mutex<Instant>>,
}

impl IoBudget {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_until: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Waits until bytes that were just read are within the budget.
    pub(super) async fn spend(&self, bytes: u64) {
        let until = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
            *paid_until = (*paid_until).max(Instant::now()) + cost;
            *paid_until
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_share_the_budget_and_save_nothing_up() {
        let budget = IoBudget::new(1000);
        let start = Instant::now();
        tokio::join!(budget.spend(500), budget.spend(1000));
        assert_eq!(start.elapsed(), Duration::from_millis(1500));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        budget.spend(2000).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
