//! What a registry does, without HTTP: pull, push, delete, list, upload.
//!
//! Invariants: bytes before row, row before answer; on deletion row before bytes. So a crash leaves at worst a file
//! that no row names, and the storage sweep removes it. Work that must not stop half-way when a client hangs up runs in
//! a task of its own.
//!
//! Deliberately absent: who may do what (auth), how other regions are reached (peering), HTTP (api).

mod account_book;
mod account_error;
mod accounts;
mod audit;
mod blob_storing;
mod blob_stream;
mod blobs;
mod catalog;
mod claims;
mod collecting;
mod configs;
mod contents;
mod deletion;
mod elsewhere;
mod emptying;
mod error;
mod external;
mod feed;
mod healing;
mod in_progress;
mod listing;
mod manifest_cache;
mod manifest_push;
mod own_rules;
mod platforms;
mod pull_times;
mod pulled;
mod pulls;
mod quotas;
mod referrers;
mod rules;
mod succession;
#[cfg(test)]
mod tests;
mod upload_room;
mod upload_sessions;
mod uploads;
mod uploads_elsewhere;
mod write_window;

pub use account_book::{AccountBook, AccountDecision, AccountEntry, PeerEntry, Undecided};
pub use account_error::AccountError;
pub use accounts::{Accounts, Requester};
pub use audit::{AuditEvent, to_cadf};
pub use blob_stream::BlobStream;
pub use blobs::BlobInfo;
pub use claims::{AccountClaims, ClaimRefusal, LocalClaims};
pub use collecting::image_facts;
pub use contents::ManifestEntry;
pub use elsewhere::{
    AccountSums, AccountsElsewhere, BackfillStatus, BlobOpening, CopyComparison, CopyDifference, CopyLag, CopyStatus,
    Deletion, GATHERED_MAX, ImageHolding, Primary, Priority, RemoteBlob, RemoteManifest, UploadStep, Upstream,
};
pub use emptying::AccountStep;
pub use error::{BodyError, RegistryError};
pub use external::FirstPull;
pub use feed::messages::{FollowAnswer, FollowRequest, ListPlace, News, NewsKind, Place};
pub use healing::Healing;
pub use listing::Page;
pub use manifest_push::{ManifestTarget, PutManifest};
pub use pulls::Manifest;
pub use quotas::{Quota, QuotaChange, QuotaReport};
pub use referrers::Referrer;
pub use rules::{AccountRules, TagChange};
pub use succession::{DivergentEntry, Handover, Progress, PushedAgain, Readiness};
pub use uploads::{UploadBody, UploadStatus};
pub use write_window::WriteWindow;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, ParseError, RepositoryName, StorageKey, UploadId};

use crate::metadata::{Metadata, WriteTransaction};
use crate::model::{Clock, uptime};
use crate::storage::Storage;
use audit::AuditLog;
use elsewhere::{Backfills, Copies, Elsewhere, Flights, Holders};
use external::External;
use feed::Feed;
use in_progress::InProgress;
use manifest_cache::ManifestCache;
use pull_times::PullTimes;
use pulled::PulledUses;
use succession::Primacies;
use tokio::sync::Semaphore;
use upload_room::OpenUploads;
use upload_sessions::UploadSessions;
use uploads_elsewhere::PassedOn;

/// How the registry behaves. Sizes are in bytes.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// The account of repository names that name none.
    pub default_account: Option<AccountName>,
    /// Whether the first push to an account makes it.
    pub create_accounts_on_push: bool,
    /// The largest manifest.
    pub manifest_size_max_bytes: u64,
    /// The largest blob.
    pub blob_size_max_bytes: u64,
    /// Whether an index may list manifests that the repository does not hold.
    pub sparse_indexes: bool,
    /// Upload sessions held open at once; an idle one is closed (not ended) to make room.
    pub uploads_max: usize,
    /// How long a session is held open without being touched. It can be continued after that, at the price of reading
    /// its bytes once more.
    pub upload_open_timeout: Duration,
    /// How long a session lives without being touched.
    pub upload_idle_timeout: Duration,
    /// Memory for small manifests.
    pub manifest_cache_bytes: u64,
    /// The longest page of a list.
    pub page_size_max: usize,
    /// How often pull times are written.
    pub pull_times_interval: Duration,
    /// Room for blobs that came here because they were pulled and can be had again; `None`: without end.
    pub pulled_blobs_max_bytes: Option<u64>,
    /// Blobs of other regions that clients have on their way here at a time; more wait for a while.
    pub pulled_transfers_max: usize,
    /// Bytes per second that are asked of one other node for what nobody waits for; `None`: no limit.
    pub background_bytes_per_second: Option<u64>,
    /// How long a tag of a registry outside holds before that is asked again.
    pub external_tag_freshness: Duration,
    /// How long something that a registry outside does not have is not looked for again.
    pub external_absence_freshness: Duration,
    /// How long other regions may answer for an account without hearing from its primary, and so how long a write waits
    /// for one that is silent.
    pub lease: Duration,
    /// Events kept per account.
    pub events_kept_max: u64,
    /// How long events are kept.
    pub events_kept_for: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            default_account: None,
            create_accounts_on_push: false,
            manifest_size_max_bytes: 4 << 20,
            blob_size_max_bytes: 1 << 40,
            sparse_indexes: false,
            uploads_max: 4096,
            upload_open_timeout: Duration::from_secs(300),
            upload_idle_timeout: Duration::from_secs(24 * 3600),
            manifest_cache_bytes: 32 << 20,
            page_size_max: 1000,
            pull_times_interval: Duration::from_secs(10),
            pulled_blobs_max_bytes: None,
            pulled_transfers_max: 512,
            background_bytes_per_second: None,
            external_tag_freshness: Duration::from_secs(60),
            external_absence_freshness: Duration::from_secs(10),
            lease: Duration::from_secs(5),
            events_kept_max: 100_000,
            events_kept_for: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// The registry of one region. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    options: RegistryOptions,
    metadata: Metadata,
    storage: Storage,
    clock: Arc<dyn Clock>,
    claims: Arc<dyn AccountClaims>,
    upstream: OnceLock<Arc<dyn Upstream>>,
    flights: Flights,
    holders: Holders,
    external: External,
    copies: Copies,
    backfills: Backfills,
    feed: Arc<Feed>,
    primacies: Primacies,
    /// When it was, as uptime.
    started: Duration,
    cache: ManifestCache,
    pull_times: PullTimes,
    pulled_uses: PulledUses,
    audit: AuditLog,
    sessions: UploadSessions,
    open_uploads: OpenUploads,
    passed_on: PassedOn,
    in_progress: InProgress,
    large_manifests: Semaphore,
}

/// Accounts whose tenants are looked up in one transaction.
const TENANTS_STEP: usize = 100;

impl Registry {
    /// A registry over metadata and storage that are open. `claims` says for which accounts it takes pushes.
    pub fn new(
        options: RegistryOptions,
        metadata: Metadata,
        storage: Storage,
        clock: Arc<dyn Clock>,
        claims: Arc<dyn AccountClaims>,
    ) -> Self {
        let feed = Arc::new(Feed::new(options.lease));
        let told = feed.clone();
        metadata.observe_events(move |heads| told.advance(heads));
        let inner = Inner {
            cache: ManifestCache::new(options.manifest_cache_bytes),
            pull_times: PullTimes::default(),
            pulled_uses: PulledUses::default(),
            audit: AuditLog::default(),
            sessions: UploadSessions::new(options.uploads_max),
            open_uploads: OpenUploads::default(),
            passed_on: PassedOn::default(),
            in_progress: InProgress::default(),
            external: External::new(&options),
            flights: Flights::new(options.background_bytes_per_second, options.pulled_transfers_max),
            large_manifests: Semaphore::new(manifest_push::LARGE_AT_ONCE),
            options,
            metadata,
            storage,
            clock,
            claims,
            upstream: OnceLock::new(),
            holders: Holders::default(),
            copies: Copies::default(),
            backfills: Backfills::default(),
            primacies: Primacies::default(),
            started: uptime(),
            feed,
        };
        Self { inner: Arc::new(inner) }
    }

    /// How it behaves.
    pub fn options(&self) -> &RegistryOptions {
        &self.inner.options
    }

    /// Reads a repository name as a client writes it; see [`RepositoryName::parse_with_default`].
    ///
    /// # Errors
    /// [`ParseError::Grammar`].
    pub fn parse_repository(&self, text: &str) -> Result<RepositoryName, ParseError> {
        RepositoryName::parse_with_default(text, self.inner.options.default_account.as_ref())
    }

    /// Makes accounts that the configuration names, with their storage spaces.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn ensure_accounts(&self, names: Vec<AccountName>) -> Result<(), RegistryError> {
        for name in &names {
            self.inner.storage.prepare_space(name).await?;
        }
        let (now, inner) = (self.inner.clock.now(), self.inner.clone());
        self.inner
            .metadata
            .write(move |transaction| {
                names.iter().try_for_each(|name| {
                    let account = transaction.ensure_account(name, now)?;
                    match inner.claims.rules(name) {
                        // What a copy holds is counted where the primary is.
                        Some(rules) if inner.elsewhere(name).is_none() => {
                            transaction.set_tenant(account, rules.tenant.as_str())
                        }
                        Some(_) | None => Ok(()),
                    }
                })
            })
            .await
            .map_err(RegistryError::Metadata)
    }

    /// Counts the accounts that are here for the tenants that they belong to.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn ensure_tenants(&self) -> Result<(), RegistryError> {
        let mut after = None;
        loop {
            let (last, inner) = (after.clone(), self.inner.clone());
            let names = self.inner.metadata.write(move |transaction| {
                let names = transaction.list_accounts(last.as_ref(), TENANTS_STEP)?;
                for name in &names {
                    let Some(account) = transaction.get_account(name)? else { continue };
                    // What an account holds is counted where its primary is.
                    match (inner.elsewhere(name), inner.claims.rules(name)) {
                        (Some(_), _) => transaction.set_tenant(account, "")?,
                        (None, Some(rules)) => transaction.set_tenant(account, rules.tenant.as_str())?,
                        (None, None) => {}
                    }
                }
                Ok::<_, RegistryError>(names)
            });
            match names.await?.pop() {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Whether the metadata answers.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn ready(&self) -> Result<(), RegistryError> {
        self.inner.metadata.read(|reader| reader.probe().map_err(RegistryError::from)).await
    }

    /// The time of day, for tasks that tidy up.
    pub fn now(&self) -> i64 {
        self.inner.clock.now()
    }

    /// What an account's owners decided, for tasks that tidy up.
    ///
    /// # Errors
    /// [`RegistryError::PoliciesUnusable`].
    pub fn policies(
        &self,
        account: &AccountName,
    ) -> Result<Option<Arc<crate::model::policy::CompiledPolicies>>, RegistryError> {
        Ok(self.inner.rules(account)?.and_then(|rules| rules.policies))
    }

    /// The metadata, for tasks that tidy up.
    pub fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    /// The storage, for tasks that tidy up.
    pub fn storage(&self) -> &Storage {
        &self.inner.storage
    }

    /// Whether bytes are just being stored under this key, and their row is still to come.
    pub fn is_being_stored(&self, key: &StorageKey) -> bool {
        self.inner.in_progress.has_blob(key)
    }

    /// Whether an upload is under way in this process.
    pub fn is_being_uploaded(&self, id: &UploadId) -> bool {
        self.inner.in_progress.has_upload(id) || self.inner.sessions.has(id)
    }
}

impl Inner {
    /// Whose the account of a push is; called before any byte is taken. `None`: ours. A free name is claimed when pushes
    /// may make accounts, or when the account was made here before it had a claim.
    async fn check_account(&self, repository: &RepositoryName) -> Result<Option<Elsewhere>, RegistryError> {
        let account = repository.account();
        self.refuse_mirror(&account)?;
        self.refuse_former(&account)?;
        let mut asked = self.claims.ensure_primary(&account, self.options.create_accounts_on_push).await;
        // A copy of an account that is gone is none that was made here.
        if asked == Err(ClaimRefusal::Unclaimed) && self.copies.told(&account).is_none() {
            let name = account.clone();
            if self.metadata.read(move |reader| reader.get_account(&name)).await?.is_some() {
                asked = self.claims.ensure_primary(&account, true).await;
            }
        }
        match asked {
            Ok(()) => {
                self.await_first_word(&account).await?;
                match self.elsewhere(&account) {
                    // It was news.
                    Some(elsewhere) => Ok(Some(elsewhere)),
                    None => self.refuse_when_full(&account).await.map(|()| None),
                }
            }
            Err(ClaimRefusal::Deleting) => Err(RegistryError::AccountDeleting { account }),
            Err(ClaimRefusal::Unclaimed) => Err(RegistryError::AccountUnknown { account }),
            Err(ClaimRefusal::Elsewhere { region }) => match self.elsewhere(&account) {
                Some(elsewhere) => Ok(Some(elsewhere)),
                None => Err(RegistryError::AccountElsewhere { account, region }),
            },
            Err(ClaimRefusal::Undecided { reason }) => Err(RegistryError::ClaimUndecided { account, reason }),
        }
    }

    /// The account's row, made when that is allowed: by a push, or because its content comes from elsewhere.
    fn account_for_push(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
    ) -> Result<crate::metadata::AccountId, RegistryError> {
        // It may have been marked since the push began; what came through would be left over.
        if self.claims.is_deleting(account) {
            return Err(RegistryError::AccountDeleting { account: account.clone() });
        }
        self.refuse_former(account)?;
        match self.elsewhere(account) {
            Some(_) => self.note_copy(transaction, account)?,
            None if self.external_source(account).is_some() => {}
            None => self.note_primacy(transaction, account)?,
        }
        match transaction.get_account(account)? {
            Some(id) => Ok(id),
            None if self.options.create_accounts_on_push || self.is_copy(account) => {
                Ok(transaction.ensure_account(account, self.clock.now())?)
            }
            None => Err(RegistryError::AccountUnknown { account: account.clone() }),
        }
    }
}

/// Runs work to its end even when the caller goes away, and gives its answer.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, RegistryError>> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::spawn(work).await.unwrap_or(Err(RegistryError::Interrupted))
}
