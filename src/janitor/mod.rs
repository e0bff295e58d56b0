//! Keeps the region clean without ever stopping it: one recurring task per file.
//!
//! Every task is idempotent, takes no input and may be killed anywhere: what it did not finish, its next run does.
//!
//! | task | rhythm | what it does |
//! | --- | --- | --- |
//! | [`image_gc`] | 1 h per repository | deletes what retention policies say, and notes why the rest stays |
//! | [`manifest_validation`] | 24 h per manifest | whether manifests are what they should be |
//! | [`mount_sweep`] | 1 h per repository | takes out blobs that no manifest there refers to |
//! | [`blob_sweep`] | 1 h per account | deletes blobs that no repository has |
//! | [`blob_validation`] | 7 d per blob | hashes blobs again, and has bad ones fetched from another region |
//! | [`storage_sweep`] | at the start, then 6 h | removes stored bytes that no row names: what a crash left |
//! | [`abandoned_uploads`] | 1 h | ends upload sessions that nobody touched for long |
//! | [`manifest_sync`] | 1 h | compares copies of other regions' accounts with their primaries, and hands over pull times |
//! | [`account_deletion`] | 1 min | empties accounts that are being deleted, and gives their names back |
//! | [`managed_accounts`] | 1 min | makes and keeps accounts as a declarative file asks for them |
//! | [`audit_write`] | 200 ms | writes the events of the audit log gathered in memory |
//! | [`audit_export`] | 1 s | sends them on to a file or a webhook |
//! | `audit_expire` | 1 h | removes those that are past their time |
//! | `events_trim` | 1 min | removes old events of the accounts' logs |
//! | [`idle_uploads`] | 1 min | closes the files of sessions that wait for their client |
//! | [`pull_times`] | 10 s, 2 min | writes the pull times gathered in memory, and tells primaries in other regions |
//! | [`pulled_blobs`] | 1 min | evicts what merely passed through, when there is too much of it |
//!
//! Claims need no announcing: they are decided in the federation's replicated log, which every node has, and an account that
//! was made before it had a claim gets one with its next push.
//!
//! What is looked at one by one has its due time in the database, spread by chance, and is taken with a lease that ends by
//! itself. A bounded number of tasks works at a time, and all of them together read no more a second than the I/O budget.

pub mod abandoned_uploads;
pub mod account_deletion;
pub mod audit_export;
pub mod audit_write;
pub mod blob_sweep;
pub mod blob_validation;
mod budget;
pub mod idle_uploads;
pub mod image_gc;
pub mod managed_accounts;
pub mod manifest_sync;
pub mod manifest_validation;
pub mod mount_sweep;
mod nothing_here;
pub mod pull_times;
pub mod pulled_blobs;
mod report;
mod scrub;
pub mod storage_sweep;
mod task;
#[cfg(test)]
mod tests;
mod work;

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::registry::{Accounts, Registry, RegistryError};

pub use audit_export::{AuditExportOptions, Webhook};
pub use managed_accounts::ManagedAccountsOptions;
pub use report::{DeletingAccount, JanitorStatus, LINES_MAX, RunReport, ScrubProgress, TaskStatus};
pub use task::Task;
pub use work::{JanitorError, JanitorWork};

/// How long events of the audit log wait in memory.
const AUDIT_WRITE_INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks at how much merely passed through.
const PULLED_BLOBS_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks for old events.
const EVENTS_TRIM_INTERVAL: Duration = Duration::from_secs(60);
const AUDIT_EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);
/// How often it is looked for what is due: as often as this part of the rhythm, within bounds.
const LOOKS_PER_INTERVAL: u32 = 20;
const LOOK_MIN: Duration = Duration::from_millis(50);
const LOOK_MAX: Duration = Duration::from_secs(30);

/// The rhythms of the tasks.
#[derive(Debug, Clone)]
pub struct JanitorOptions {
    /// Between two looks for abandoned uploads.
    pub abandoned_uploads_interval: Duration,
    /// Between two looks for uploads that are held open in vain.
    pub idle_uploads_interval: Duration,
    /// Between two storage sweeps.
    pub storage_sweep_interval: Duration,
    /// Between two looks at a repository by retention.
    pub image_gc_interval: Duration,
    /// Between two looks at a manifest.
    pub manifest_validation_interval: Duration,
    /// Between two looks at a blob's bytes.
    pub blob_validation_interval: Duration,
    /// Between two sweeps of a repository's mounts.
    pub mount_sweep_interval: Duration,
    /// Between two sweeps of an account's blobs.
    pub blob_sweep_interval: Duration,
    /// Between two comparisons of copies with their primaries.
    pub manifest_sync_interval: Duration,
    /// Between two looks for accounts that are being deleted.
    pub account_deletion_interval: Duration,
    /// Between two looks at the file of managed accounts.
    pub managed_accounts_interval: Duration,
    /// Between two times that primaries in other regions are told of pulls.
    pub pulls_told_interval: Duration,
    /// Which accounts are managed.
    pub managed_accounts: ManagedAccountsOptions,
    /// How long a blob stays that no manifest refers to: for as long a client may count on what it was told is there.
    pub grace: Duration,
    /// How many bytes a second all tasks together may read.
    pub io_budget_bytes_per_second: u64,
    /// How many tasks work at a time.
    pub tasks_max: usize,
    /// How long events of the audit log are kept.
    pub audit_retention: Duration,
    /// Between two looks for events that have not been sent on.
    pub audit_export_interval: Duration,
    /// Where they are sent.
    pub audit_export: AuditExportOptions,
}

impl Default for JanitorOptions {
    fn default() -> Self {
        Self {
            abandoned_uploads_interval: Duration::from_secs(3600),
            idle_uploads_interval: Duration::from_secs(60),
            storage_sweep_interval: Duration::from_secs(6 * 3600),
            image_gc_interval: Duration::from_secs(3600),
            manifest_validation_interval: Duration::from_secs(24 * 3600),
            blob_validation_interval: Duration::from_secs(7 * 24 * 3600),
            mount_sweep_interval: Duration::from_secs(3600),
            blob_sweep_interval: Duration::from_secs(3600),
            manifest_sync_interval: Duration::from_secs(3600),
            account_deletion_interval: Duration::from_secs(60),
            managed_accounts_interval: Duration::from_secs(60),
            pulls_told_interval: Duration::from_secs(120),
            managed_accounts: ManagedAccountsOptions::default(),
            grace: Duration::from_secs(4 * 3600),
            io_budget_bytes_per_second: 64 << 20,
            tasks_max: 2,
            audit_retention: Duration::from_secs(90 * 24 * 3600),
            audit_export_interval: Duration::from_secs(1),
            audit_export: AuditExportOptions::default(),
        }
    }
}

/// The tasks at work. Dropping it aborts them.
pub struct Janitor {
    tasks: JoinSet<()>,
    work: JanitorWork,
}

impl Janitor {
    /// Starts all tasks; each runs once soon. Without `accounts`, none is deleted or managed.
    pub fn spawn(registry: Registry, accounts: Option<Accounts>, options: &JanitorOptions) -> Self {
        let work = JanitorWork::new(registry.clone(), accounts, options.clone());
        let mut janitor = Self { tasks: JoinSet::new(), work };
        for task in Task::ALL {
            match task.care() {
                Some(_) => janitor.tend(task),
                None => janitor.repeat(task),
            }
        }
        let pull_times_interval = registry.options().pull_times_interval;
        janitor.recur("idle_uploads", options.idle_uploads_interval, &registry, idle_uploads::run);
        janitor.recur("pull_times", pull_times_interval, &registry, pull_times::run);
        janitor.recur("pulls_told", options.pulls_told_interval, &registry, pull_times::tell);
        janitor.recur("pulled_blobs", PULLED_BLOBS_INTERVAL, &registry, pulled_blobs::run);
        let trim = |registry: Registry| async move { registry.trim_events().await };
        janitor.recur("events_trim", EVENTS_TRIM_INTERVAL, &registry, trim);
        janitor.recur("audit_write", AUDIT_WRITE_INTERVAL, &registry, audit_write::run);
        let retention_seconds = i64::try_from(options.audit_retention.as_secs()).unwrap_or(i64::MAX / 4000);
        let expire = move |registry: Registry| async move { registry.expire_audit(retention_seconds).await };
        janitor.recur("audit_expire", AUDIT_EXPIRE_INTERVAL, &registry, expire);
        if options.audit_export.file.is_some() || options.audit_export.webhook.is_some() {
            let (export, http) = (options.audit_export.clone(), reqwest::Client::new());
            let run = move |registry| audit_export::run(registry, export.clone(), http.clone());
            janitor.recur("audit_export", options.audit_export_interval, &registry, run);
        }
        janitor
    }

    /// Its work, for operators who ask for some of it.
    pub fn work(&self) -> &JanitorWork {
        &self.work
    }

    /// Stops all tasks, in the middle of their work where they are in it.
    pub async fn stop(mut self) {
        self.work.stop().cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Looks again and again for what is due of a task.
    fn tend(&mut self, task: Task) {
        let (work, stop) = (self.work.clone(), self.work.stop().clone());
        let pause = (work.interval(task) / LOOKS_PER_INTERVAL).clamp(LOOK_MIN, LOOK_MAX);
        self.tasks.spawn(async move {
            let looking = async {
                loop {
                    // Once more at once, while there is more; but not while it fails, which is noted there.
                    if work.tend_due(task).await.is_ok_and(|count| count > 0) {
                        continue;
                    }
                    if let Err(error) = work.measure(task).await {
                        tracing::debug!(task = task.as_str(), %error, "what is due cannot be counted");
                    }
                    tokio::time::sleep(pause).await;
                }
            };
            stop.run_until_cancelled(looking).await;
        });
    }

    /// Runs a task over all again and again.
    fn repeat(&mut self, task: Task) {
        let (work, stop) = (self.work.clone(), self.work.stop().clone());
        let mut rhythm = tokio::time::interval(work.interval(task).max(Duration::from_millis(1)));
        rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.tasks.spawn(async move {
            let running = async {
                loop {
                    rhythm.tick().await;
                    // What came of it is noted there.
                    let _ = work.run(task, None, false).await;
                }
            };
            stop.run_until_cancelled(running).await;
        });
    }

    fn recur<F, Fut>(&mut self, task: &'static str, interval: Duration, registry: &Registry, run: F)
    where
        F: Fn(Registry) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), RegistryError>> + Send,
    {
        let (registry, stop) = (registry.clone(), self.work.stop().clone());
        self.tasks.spawn(async move {
            let mut rhythm = tokio::time::interval(interval.max(Duration::from_millis(1)));
            rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let work = async {
                loop {
                    rhythm.tick().await;
                    let outcome = match run(registry.clone()).await {
                        Ok(()) => "success",
                        Err(error) => {
                            let error = &error as &dyn std::error::Error;
                            tracing::error!(task, error, "a janitor task failed and will be tried again");
                            "failure"
                        }
                    };
                    metrics::counter!("keppel_janitor_runs_total", "task" => task, "outcome" => outcome).increment(1);
                }
            };
            // Tasks may be dropped anywhere, which is what stopping does.
            stop.run_until_cancelled(work).await;
        });
    }
}
