//! Until when a write that another node handed over may begin.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, RepositoryName};

use super::RegistryError;
use super::elsewhere::Elsewhere;
use crate::model::uptime;

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const CLOSED: u8 = 2;

/// The time in which a write may begin to change something.
///
/// Whoever hands a write over tells a client that it failed when no answer came. From then on it must not be done any more,
/// however late it arrives or is worked on here: somebody may have seen that it was not done, and have written something
/// else. So the time is asked inside the transaction, by the one writer. A write of a client of this node has no such end.
///
/// Cheap to clone; all clones are of one write.
#[derive(Debug, Clone, Default)]
pub struct WriteWindow(Option<Arc<State>>);

#[derive(Debug)]
struct State {
    stage: AtomicU8,
    until_ms: AtomicU64,
}

impl WriteWindow {
    /// Without an end: for clients of this node.
    pub fn open() -> Self {
        Self(None)
    }

    /// Ends at this uptime of this machine.
    pub fn until(until: Duration) -> Self {
        Self(Some(Arc::new(State { stage: AtomicU8::new(WAITING), until_ms: AtomicU64::new(millis(until)) })))
    }

    /// Puts the end off to this uptime.
    pub fn extend(&self, until: Duration) {
        if let Some(state) = &self.0 {
            state.until_ms.fetch_max(millis(until), Ordering::AcqRel);
        }
    }

    /// Ends it now, unless the write has begun; gives whether it is sure that nothing was changed, nor will be.
    pub fn close(&self) -> bool {
        self.0.as_ref().is_some_and(|state| {
            let closed = state.stage.compare_exchange(WAITING, CLOSED, Ordering::AcqRel, Ordering::Acquire);
            closed.is_ok() || closed == Err(CLOSED)
        })
    }

    /// Refuses a write that another node handed over, and that is for a third one to do: two nodes that disagree about who
    /// is the primary would send it in circles, and its end would be another there.
    ///
    /// # Errors
    /// [`RegistryError::AccountElsewhere`].
    pub(super) fn refuse_passing_on(
        &self,
        repository: &RepositoryName,
        elsewhere: &Elsewhere,
    ) -> Result<(), RegistryError> {
        match self.0 {
            None => Ok(()),
            Some(_) => {
                let (account, region) = (repository.account(), elsewhere.primary.region.clone());
                Err(RegistryError::AccountElsewhere { account, region })
            }
        }
    }

    /// Begins, or goes on, with changing something. To be asked inside each transaction of the write.
    ///
    /// # Errors
    /// [`RegistryError::Overdue`].
    pub fn begin(&self, account: &AccountName) -> Result<(), RegistryError> {
        let Some(state) = &self.0 else { return Ok(()) };
        let is_over = millis(uptime()) >= state.until_ms.load(Ordering::Acquire);
        let begun = || state.stage.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire);
        if is_over || begun() == Err(CLOSED) {
            metrics::counter!("keppel_forwarded_writes_overdue_total").increment(1);
            return Err(RegistryError::Overdue { account: account.clone() });
        }
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(window: &WriteWindow) -> bool {
        window.begin(&AccountName::parse("acme").unwrap()).is_ok()
    }

    #[test]
    fn a_write_begins_only_before_the_end_and_only_while_somebody_waits() {
        let later = || uptime() + Duration::from_secs(60);
        assert!(begins(&WriteWindow::open()) && !WriteWindow::open().close());
        let late = WriteWindow::until(uptime());
        assert!(!begins(&late));
        late.extend(later());
        assert!(begins(&late), "the end was put off");
        assert!(!late.close(), "it has begun");
        assert!(begins(&late), "its next transaction");
        let given_up = WriteWindow::until(later());
        assert!(given_up.close() && given_up.close());
        given_up.extend(later());
        assert!(!begins(&given_up));
    }
}
