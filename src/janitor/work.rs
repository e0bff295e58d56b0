//! What all tasks share, and how one of them is run: because it is due, or because an operator asks for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, RepositoryName};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metadata::{Care, CareItem, MetadataError};
use crate::registry::{Accounts, Registry, RegistryError};

use super::budget::IoBudget;
use super::report::{DeletingAccount, JanitorStatus, RunReport, ScrubProgress, TaskStatus};
use super::{JanitorOptions, Task};
use super::{
    abandoned_uploads, account_deletion, blob_sweep, blob_validation, image_gc, managed_accounts, manifest_sync,
    manifest_validation, mount_sweep, scrub, storage_sweep,
};

/// How long something waits after it could not be looked at.
const RETRY: Duration = Duration::from_secs(300);
/// Accounts or repositories that are listed together.
const PAGE: usize = 500;
/// Scrubs whose end is remembered.
const SCRUBS_MAX: usize = 100;

/// Why an operator's wish was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum JanitorError {
    /// There is no such account.
    #[error("there is no account {0}")]
    AccountUnknown(AccountName),
    /// There is one, of which this region has nothing.
    #[error("this region has nothing of account {account}, whose primary is in region {region}")]
    NothingHere {
        /// The account.
        account: AccountName,
        /// Where its primary is.
        region: String,
    },
    /// The task is about no single account.
    #[error("task {} is not about one account: leave --account out", .0.as_str())]
    NotPerAccount(Task),
    /// The task cannot tell what it would do.
    #[error("task {} has no dry run", .0.as_str())]
    NoDryRun(Task),
    /// Such a run is under way.
    #[error("account {0} is being scrubbed already")]
    Busy(AccountName),
    /// Our own trouble.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The janitor's work. Clones share it.
#[derive(Clone)]
pub struct JanitorWork {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    registry: Registry,
    pub(super) accounts: Option<Accounts>,
    options: JanitorOptions,
    budget: IoBudget,
    permits: Semaphore,
    statuses: Mutex<HashMap<Task, TaskStatus>>,
    scrubs: Mutex<BTreeMap<AccountName, ScrubProgress>>,
    stop: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

impl JanitorWork {
    /// Work on this registry; without `accounts`, none is deleted or managed.
    pub fn new(registry: Registry, accounts: Option<Accounts>, options: JanitorOptions) -> Self {
        let budget = IoBudget::new(options.io_budget_bytes_per_second);
        let permits = Semaphore::new(options.tasks_max.max(1));
        let (statuses, scrubs) = (Mutex::default(), Mutex::default());
        let stop = CancellationToken::new();
        Self { inner: Arc::new(Inner { registry, accounts, options, budget, permits, statuses, scrubs, stop }) }
    }

    /// Ends the scrubs that run, and with its child tokens all that recurs.
    pub(super) fn stop(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(super) fn budget(&self) -> &IoBudget {
        &self.inner.budget
    }

    /// Between two looks at the same thing, or two runs.
    pub(super) fn interval(&self, task: Task) -> Duration {
        let options = &self.inner.options;
        match task {
            Task::ImageGc => options.image_gc_interval,
            Task::ManifestValidation => options.manifest_validation_interval,
            Task::MountSweep => options.mount_sweep_interval,
            Task::BlobSweep => options.blob_sweep_interval,
            Task::StorageSweep => options.storage_sweep_interval,
            Task::BlobValidation => options.blob_validation_interval,
            Task::AbandonedUploads => options.abandoned_uploads_interval,
            Task::ManifestSync => options.manifest_sync_interval,
            Task::AccountDeletion => options.account_deletion_interval,
            Task::ManagedAccounts => options.managed_accounts_interval,
        }
    }

    /// Takes some of what is due of a task, and looks at it. Gives how much that was; nothing of a task that has none.
    ///
    /// Cancel safety: what was taken is due again when its lease ends.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn tend_due(&self, task: Task) -> Result<usize, RegistryError> {
        let Some(care) = task.care() else { return Ok(0) };
        let _permit = self.inner.permits.acquire().await.map_err(|_| RegistryError::Interrupted)?;
        let (registry, interval) = (self.registry(), seconds(self.interval(task)));
        let before = registry.now().saturating_sub(interval);
        // A crash must not put the next look off by more than the rhythm has it.
        let lease = seconds(task.lease()).min(interval);
        let (leased, batch) = (before.saturating_add(lease), task.batch());
        let taken =
            registry.metadata().write(move |transaction| transaction.take_due(care, before, leased, batch)).await;
        let items = taken.map_err(|error: MetadataError| RegistryError::from(error))?;
        let count = items.len();
        if count == 0 {
            return Ok(0);
        }
        let mut looks = Vec::with_capacity(count);
        if task == Task::ManifestValidation {
            let manifests = items.iter().map(|item| item.manifest()).collect();
            let outcome = manifest_validation::run(registry, manifests).await;
            looks.extend(items.iter().map(|item| (*item, self.looked_at(interval, outcome.is_ok()))));
            self.note(task, &outcome);
        } else {
            for item in items {
                // One that cannot be looked at keeps no other from it.
                let outcome = self.tend(task, item).await;
                looks.push((item, self.looked_at(interval, outcome.is_ok())));
                self.note(task, &outcome);
            }
        }
        let noted = registry
            .metadata()
            .write(move |transaction| looks.iter().try_for_each(|(item, at)| transaction.put_cared(care, *item, *at)));
        noted.await.map_err(|error: MetadataError| RegistryError::from(error))?;
        Ok(count)
    }

    /// What is noted as the time of a look that ends now, so that the next one comes when it should.
    fn looked_at(&self, interval: i64, is_done: bool) -> i64 {
        let now = self.registry().now();
        match is_done {
            // Some a little earlier than others, so that what came together does not stay together.
            true => now.saturating_sub((interval as f64 * 0.1 * rand::random::<f64>()) as i64),
            false => now.saturating_sub(interval).saturating_add(seconds(RETRY).min(interval)),
        }
    }

    async fn tend(&self, task: Task, item: CareItem) -> Result<RunReport, RegistryError> {
        let registry = self.registry();
        match task {
            Task::ImageGc => {
                let name = registry.metadata().read(move |reader| reader.get_repository_name(item.repository())).await;
                match name.map_err(|error: MetadataError| RegistryError::from(error))? {
                    Some(name) => image_gc::run(registry, &name, false).await,
                    None => Ok(RunReport::default()),
                }
            }
            Task::MountSweep => mount_sweep::run(registry, item.repository(), self.grace(), false).await,
            Task::BlobSweep => {
                let name = registry.metadata().read(move |reader| reader.get_account_name(item.account())).await;
                match name.map_err(|error: MetadataError| RegistryError::from(error))? {
                    Some(name) => blob_sweep::run(registry, &name, item.account(), false).await,
                    None => Ok(RunReport::default()),
                }
            }
            Task::BlobValidation => blob_validation::run(registry, item.blob(), self.budget()).await,
            Task::ManifestValidation => manifest_validation::run(registry, vec![item.manifest()]).await,
            Task::StorageSweep
            | Task::AbandonedUploads
            | Task::ManifestSync
            | Task::AccountDeletion
            | Task::ManagedAccounts => Ok(RunReport::default()),
        }
    }

    fn grace(&self) -> i64 {
        seconds(self.inner.options.grace)
    }

    /// Runs a task now, over one account or over all.
    ///
    /// Cancel safety: what was done is done; the next run does the rest.
    ///
    /// # Errors
    /// [`JanitorError`].
    pub async fn run(
        &self,
        task: Task,
        account: Option<&AccountName>,
        dry_run: bool,
    ) -> Result<RunReport, JanitorError> {
        if dry_run && !matches!(task, Task::ImageGc | Task::MountSweep | Task::BlobSweep | Task::ManifestSync) {
            return Err(JanitorError::NoDryRun(task));
        }
        let outcome = match (task, account) {
            (Task::AbandonedUploads | Task::AccountDeletion | Task::ManagedAccounts, Some(_)) => {
                return Err(JanitorError::NotPerAccount(task));
            }
            (_, Some(account)) if task != Task::StorageSweep && !self.has_account(account).await? => {
                return self.of_nothing_here(task, account);
            }
            _ => self.run_over(task, account, dry_run).await,
        };
        if !dry_run {
            self.note(task, &outcome);
        }
        Ok(outcome?)
    }

    async fn run_over(
        &self,
        task: Task,
        account: Option<&AccountName>,
        dry_run: bool,
    ) -> Result<RunReport, RegistryError> {
        let registry = self.registry();
        match task {
            Task::StorageSweep => return storage_sweep::run_over(registry, account).await,
            Task::AbandonedUploads => return abandoned_uploads::run(registry.clone()).await,
            Task::ManifestSync => return manifest_sync::run(registry, account, dry_run).await,
            Task::AccountDeletion => {
                return match &self.inner.accounts {
                    Some(accounts) => account_deletion::run(accounts).await,
                    None => Ok(RunReport::default()),
                };
            }
            Task::ManagedAccounts => {
                return match &self.inner.accounts {
                    Some(accounts) => managed_accounts::run(accounts, &self.inner.options.managed_accounts).await,
                    None => Ok(RunReport::default()),
                };
            }
            Task::ImageGc | Task::ManifestValidation | Task::MountSweep | Task::BlobSweep | Task::BlobValidation => {}
        }
        let mut report = RunReport::default();
        let mut after = None;
        loop {
            let accounts = match account {
                Some(account) => vec![account.clone()],
                None => {
                    let from = after.clone();
                    let page = registry.metadata().read(move |reader| reader.list_accounts(from.as_ref(), PAGE)).await;
                    page.map_err(|error: MetadataError| RegistryError::from(error))?
                }
            };
            let Some(last) = accounts.last() else { return Ok(report) };
            after = Some(last.clone());
            for account in &accounts {
                report.add(self.run_over_account(task, account, dry_run).await?);
            }
            if account.is_some() {
                return Ok(report);
            }
        }
    }

    async fn run_over_account(
        &self,
        task: Task,
        account: &AccountName,
        dry_run: bool,
    ) -> Result<RunReport, RegistryError> {
        let (registry, mut report) = (self.registry(), RunReport::default());
        if let (Task::ImageGc, Some(region)) = (task, registry.primary_region(account)) {
            report.say(image_gc::decided_elsewhere(account, &region));
            return Ok(report);
        }
        if matches!(task, Task::BlobSweep | Task::BlobValidation) {
            let name = account.clone();
            let id = registry.metadata().read(move |reader| reader.get_account(&name)).await;
            let Some(id) = id.map_err(|error: MetadataError| RegistryError::from(error))? else { return Ok(report) };
            if task == Task::BlobSweep {
                return blob_sweep::run(registry, account, id, dry_run).await;
            }
            let mut after = None;
            loop {
                let page = registry.metadata().read(move |reader| reader.list_blobs(id, after.as_ref(), PAGE)).await;
                let page = page.map_err(|error: MetadataError| RegistryError::from(error))?;
                let Some(last) = page.last() else { return Ok(report) };
                after = Some(last.digest);
                for owned in page {
                    report.add(blob_validation::run(registry, owned.blob.id, self.budget()).await?);
                }
            }
        }
        for repository in self.repositories_of(account).await? {
            if task == Task::ImageGc {
                report.add(image_gc::run(registry, &repository, dry_run).await?);
                continue;
            }
            let name = repository.clone();
            let id = registry.metadata().read(move |reader| reader.get_repository(&name)).await;
            let Some(id) = id.map_err(|error: MetadataError| RegistryError::from(error))? else { continue };
            if task == Task::MountSweep {
                report.add(mount_sweep::run(registry, id, self.grace(), dry_run).await?);
                continue;
            }
            let (mut after, batch) = (None, task.batch());
            loop {
                let page = registry.metadata().read(move |reader| reader.list_images(id, after.as_ref(), batch)).await;
                let page = page.map_err(|error: MetadataError| RegistryError::from(error))?;
                let Some(last) = page.last() else { break };
                after = Some(last.digest);
                let manifests = page.iter().map(|image| image.id).collect();
                report.add(manifest_validation::run(registry, manifests).await?);
            }
        }
        Ok(report)
    }

    async fn has_account(&self, account: &AccountName) -> Result<bool, RegistryError> {
        let name = account.clone();
        let id = self.registry().metadata().read(move |reader| reader.get_account(&name)).await;
        Ok(id.map_err(|error: MetadataError| RegistryError::from(error))?.is_some())
    }

    /// The repositories of an account.
    pub(super) async fn repositories_of(&self, account: &AccountName) -> Result<Vec<RepositoryName>, RegistryError> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let (name, from) = (account.clone(), after.clone());
            let page = self.registry().metadata().read(move |reader| match reader.get_account(&name)? {
                Some(id) => reader.list_account_repositories(id, &from, PAGE),
                None => Ok(Vec::new()),
            });
            let page = page.await.map_err(|error: MetadataError| RegistryError::from(error))?;
            let Some(last) = page.last() else { return Ok(all) };
            after = last.full_name.clone();
            all.extend(page.iter().filter_map(|repository| RepositoryName::parse(&repository.full_name).ok()));
        }
    }

    /// Notes what came of a run.
    pub(super) fn note(&self, task: Task, outcome: &Result<RunReport, RegistryError>) {
        let name = task.as_str();
        let word = if outcome.is_ok() { "success" } else { "failure" };
        metrics::counter!("keppel_janitor_runs_total", "task" => name, "outcome" => word).increment(1);
        let mut statuses = lock(&self.inner.statuses);
        let status = statuses.entry(task).or_default();
        status.runs += 1;
        status.last_run_at = Some(self.registry().now());
        match outcome {
            Ok(report) => {
                status.last_error = None;
                status.changed += report.changed;
                status.reclaimed_bytes += report.reclaimed_bytes;
                metrics::counter!("keppel_janitor_changes_total", "task" => name).increment(report.changed);
                metrics::counter!("keppel_janitor_reclaimed_bytes_total", "task" => name)
                    .increment(report.reclaimed_bytes);
                metrics::counter!("keppel_janitor_faults_total", "task" => name).increment(report.faults);
            }
            Err(error) => {
                status.failures += 1;
                status.last_error = Some(error.to_string());
                let error = error as &dyn std::error::Error;
                tracing::error!(task = name, error, "a janitor task failed and will be tried again");
            }
        }
    }

    /// Notes in the metrics for how long something has been due.
    pub(super) async fn measure(&self, task: Task) -> Result<(), RegistryError> {
        if let Some(care) = task.care() {
            let (_, oldest) = self.due(task, care).await?;
            metrics::gauge!("keppel_janitor_oldest_due_seconds", "task" => task.as_str()).set(oldest as f64);
        }
        Ok(())
    }

    /// How many things are due, and for how long the first of them has been, in seconds.
    async fn due(&self, task: Task, care: Care) -> Result<(u64, u64), RegistryError> {
        let before = self.registry().now().saturating_sub(seconds(self.interval(task)));
        let counted = self.registry().metadata().read(move |reader| reader.count_due(care, before)).await;
        let counted = counted.map_err(|error: MetadataError| RegistryError::from(error))?;
        let oldest = counted.oldest.map_or(0, |oldest| before.saturating_sub(oldest).max(0));
        // What was never looked at has no time: it is due since it is known.
        let oldest = if counted.oldest == Some(0) { 0 } else { oldest };
        Ok((counted.items, u64::try_from(oldest).unwrap_or_default()))
    }

    /// How all tasks fare.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn status(&self) -> Result<JanitorStatus, RegistryError> {
        let mut status = JanitorStatus::default();
        for task in Task::ALL {
            let mut row = lock(&self.inner.statuses).get(&task).cloned().unwrap_or_default();
            row.task = task.as_str().to_owned();
            row.interval_seconds = self.interval(task).as_secs();
            if let Some(care) = task.care() {
                let (due, oldest) = self.due(task, care).await?;
                (row.due, row.oldest_due_seconds) = (Some(due), Some(oldest));
            }
            status.tasks.push(row);
        }
        let metadata = self.registry().metadata();
        let counted =
            metadata.read(|reader| Ok((reader.count_broken_blobs()?, reader.count_invalid_manifests()?))).await;
        (status.broken_blobs, status.invalid_manifests) =
            counted.map_err(|error: MetadataError| RegistryError::from(error))?;
        let Some(accounts) = &self.inner.accounts else { return Ok(status) };
        for (entry, _) in accounts.list(|entry| entry.is_ours && entry.deleting) {
            let name = entry.name.clone();
            let usage = metadata.read(move |reader| match reader.get_account(&name)? {
                Some(id) => reader.account_usage(id),
                None => Ok(None),
            });
            let usage = usage.await.map_err(|error: MetadataError| RegistryError::from(error))?.unwrap_or_default();
            let waits_for = (!entry.replicas.is_empty()).then(|| format!("replicas in {}", entry.replicas.join(", ")));
            let account = entry.name.to_string();
            let (manifests, size_bytes) = (usage.manifests, usage.size_bytes);
            status.deleting.push(DeletingAccount { account, manifests, size_bytes, waits_for });
        }
        Ok(status)
    }

    /// Begins to look at all that an account keeps here; see [`Self::scrub_progress`].
    ///
    /// # Errors
    /// [`JanitorError::AccountUnknown`], [`JanitorError::NothingHere`], [`JanitorError::Busy`], or our own trouble.
    pub async fn start_scrub(&self, account: &AccountName) -> Result<(), JanitorError> {
        if !self.has_account(account).await? {
            return Err(self.nothing_here(account));
        }
        {
            let mut scrubs = lock(&self.inner.scrubs);
            if scrubs.get(account).is_some_and(|progress| !progress.done) {
                return Err(JanitorError::Busy(account.clone()));
            }
            if scrubs.len() >= SCRUBS_MAX {
                scrubs.retain(|_, progress| !progress.done);
            }
            let progress = ScrubProgress { account: account.to_string(), ..ScrubProgress::default() };
            scrubs.insert(account.clone(), progress);
        }
        let (work, account) = (self.clone(), account.clone());
        tokio::spawn(async move {
            let tell = |change: &dyn Fn(&mut ScrubProgress)| {
                if let Some(progress) = lock(&work.inner.scrubs).get_mut(&account) {
                    change(progress);
                }
            };
            let error = match work.stop().run_until_cancelled(scrub::run(&work, &account, tell)).await {
                Some(outcome) => outcome.err().map(|error| error.to_string()),
                None => Some("the node is ending".to_owned()),
            };
            tell(&|progress| {
                progress.done = true;
                progress.error.clone_from(&error);
            });
        });
        Ok(())
    }

    /// How far the last scrub of an account has come.
    pub fn scrub_progress(&self, account: &AccountName) -> Option<ScrubProgress> {
        lock(&self.inner.scrubs).get(account).cloned()
    }
}
