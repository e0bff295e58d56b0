//! What an operator is told who asks about an account of which this region has nothing.

use keppel_federation::vocabulary::AccountName;

use super::report::RunReport;
use super::work::{JanitorError, JanitorWork};
use super::{Task, image_gc};

impl JanitorWork {
    /// What a task comes to over an account of which nothing is here.
    pub(super) fn of_nothing_here(&self, task: Task, account: &AccountName) -> Result<RunReport, JanitorError> {
        let mut report = RunReport::default();
        report.say(match (self.nothing_here(account), task) {
            (JanitorError::NothingHere { region, .. }, Task::ImageGc) => image_gc::decided_elsewhere(account, &region),
            (JanitorError::AccountUnknown(account), _) => return Err(JanitorError::AccountUnknown(account)),
            (reason, _) => reason.to_string(),
        });
        Ok(report)
    }

    /// Why nothing of an account is here.
    pub(super) fn nothing_here(&self, account: &AccountName) -> JanitorError {
        let loaded = self.inner.accounts.as_ref().and_then(|accounts| accounts.load(account).ok());
        match loaded {
            None => JanitorError::AccountUnknown(account.clone()),
            Some((entry, _)) => JanitorError::NothingHere { account: account.clone(), region: entry.region },
        }
    }
}
