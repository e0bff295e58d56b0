//! Keeps the region clean without ever stopping it: one recurring task per file.
//!
//! Every task is idempotent, takes no input and may be killed anywhere: what it did not finish, its next run does.
//!
//! | task | rhythm | what it does |
//! | --- | --- | --- |
//! | [`abandoned_uploads`] | 1 h | ends upload sessions that nobody touched for long |
//! | [`audit_write`] | 200 ms | writes the events of the audit log gathered in memory |
//! | [`audit_export`] | 1 s | sends them on to a file or a webhook |
//! | `audit_expire` | 1 h | removes those that are past their time |
//! | [`idle_uploads`] | 1 min | closes the files of sessions that wait for their client |
//! | [`pull_times`] | 10 s | writes the pull times gathered in memory |
//! | [`storage_sweep`] | at the start, then 6 h | removes stored bytes that no row names: what a crash left |
//!
//! Deliberately absent: rules about what is garbage among what has a row (retention); that is for a later task.

pub mod abandoned_uploads;
pub mod audit_export;
pub mod audit_write;
pub mod idle_uploads;
pub mod pull_times;
pub mod storage_sweep;

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::registry::{Registry, RegistryError};

pub use audit_export::{AuditExportOptions, Webhook};

/// How long events of the audit log wait in memory.
const AUDIT_WRITE_INTERVAL: Duration = Duration::from_millis(200);
const AUDIT_EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);

/// The rhythms of the tasks.
#[derive(Debug, Clone)]
pub struct JanitorOptions {
    /// Between two looks for abandoned uploads.
    pub abandoned_uploads_interval: Duration,
    /// Between two looks for uploads that are held open in vain.
    pub idle_uploads_interval: Duration,
    /// Between two storage sweeps.
    pub storage_sweep_interval: Duration,
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
            audit_retention: Duration::from_secs(90 * 24 * 3600),
            audit_export_interval: Duration::from_secs(1),
            audit_export: AuditExportOptions::default(),
        }
    }
}

/// The tasks at work. Dropping it aborts them.
pub struct Janitor {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Janitor {
    /// Starts all tasks; each runs once soon.
    pub fn spawn(registry: Registry, options: &JanitorOptions) -> Self {
        let mut janitor = Self { tasks: JoinSet::new(), stop: CancellationToken::new() };
        let pull_times_interval = registry.options().pull_times_interval;
        janitor.recur("storage_sweep", options.storage_sweep_interval, &registry, storage_sweep::run);
        janitor.recur("abandoned_uploads", options.abandoned_uploads_interval, &registry, abandoned_uploads::run);
        janitor.recur("idle_uploads", options.idle_uploads_interval, &registry, idle_uploads::run);
        janitor.recur("pull_times", pull_times_interval, &registry, pull_times::run);
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

    /// Stops all tasks, in the middle of their work where they are in it.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    fn recur<F, Fut>(&mut self, task: &'static str, interval: Duration, registry: &Registry, run: F)
    where
        F: Fn(Registry) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), RegistryError>> + Send,
    {
        let (registry, stop) = (registry.clone(), self.stop.clone());
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
