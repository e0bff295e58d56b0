//! One fetch of a blob from a registry outside, however many clients wait for it.
//!
//! The bytes are written and hashed as they come, and clients read what is written. There is no tree of hashes to check
//! parts against, so nobody gets the last bytes of what they asked for before the digest of the whole is right. When the
//! registry breaks off, it is asked for the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use keppel_federation::vocabulary::{Digest, RepositoryName, StorageKey, UploadId};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use super::Mirror;
use crate::external::{ExternalBlob, ExternalError};
use crate::metadata::UploadRow;
use crate::registry::elsewhere::Berth;
use crate::registry::{BlobInfo, Inner, Registry, RegistryError};
use crate::storage::{AppendError, PIECE_BYTES, Upload, UploadReader};

/// Flights at a time. Others wait, and their clients with them.
const FLIGHTS_MAX: usize = 16;
/// How often a registry that breaks off is asked for the rest without having sent anything in between.
const RETRIES_MAX: u32 = 4;
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// What a registry has to send within the time that a body may stand still, unless that is the end: less is no use.
const WINDOW_BYTES_MIN: u64 = 16 << 10;

type Place = (RepositoryName, Digest);

/// The flights under way.
pub(in crate::registry) struct ExternalFlights {
    known: Mutex<HashMap<Place, Weak<ExternalFlight>>>,
    permits: Semaphore,
}

impl Default for ExternalFlights {
    fn default() -> Self {
        Self { known: Mutex::default(), permits: Semaphore::new(FLIGHTS_MAX) }
    }
}

/// How far a flight has come.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// Nothing is known of the blob yet.
    Asked,
    /// So much of it is written.
    Arrived { size_bytes: u64, arrived_bytes: u64 },
    /// All of it is stored and recorded, and its digest is right.
    Stored { size_bytes: u64 },
    /// It ended otherwise.
    Failed(Failure),
}

/// Why a flight failed.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Absent,
    External(ExternalError),
    StorageFull,
    /// Our own trouble, which is logged.
    Interrupted,
}

impl From<ExternalError> for Failure {
    fn from(error: ExternalError) -> Self {
        Self::External(error)
    }
}

/// One fetch.
pub(in crate::registry) struct ExternalFlight {
    mirror: Mirror,
    repository: RepositoryName,
    digest: Digest,
    pub(super) progress: watch::Sender<Progress>,
    reader: OnceLock<UploadReader>,
    /// Its place among those that clients pull, while its bytes are not here.
    berth: Mutex<Option<Berth>>,
}

impl Registry {
    /// Begins to fetch a blob from outside, or joins those who wait for it.
    pub(in crate::registry) fn fly(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Arc<ExternalFlight> {
        self.join_or_fly(mirror, repository, digest, None)
    }

    /// The same for a client, who waits until there is room for one more.
    ///
    /// # Errors
    /// [`RegistryError::TooManyTransfers`].
    pub(in crate::registry) async fn fly_for_client(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<ExternalFlight>, RegistryError> {
        let place = (repository.clone(), *digest);
        let under_way = {
            let known = self.inner.external.flights.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&place).and_then(Weak::upgrade).filter(|flight| !flight.has_failed())
        };
        if let Some(flight) = under_way {
            return Ok(flight);
        }
        let berth = self.inner.flights.enter_for_client(&repository.account()).await?;
        Ok(self.join_or_fly(mirror, repository, digest, Some(berth)))
    }

    fn join_or_fly(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        digest: &Digest,
        berth: Option<Berth>,
    ) -> Arc<ExternalFlight> {
        let place = (repository.clone(), *digest);
        let mut known = self.inner.external.flights.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = known.get(&place).and_then(Weak::upgrade).filter(|flight| !flight.has_failed()) {
            return flight;
        }
        known.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(ExternalFlight {
            mirror: mirror.clone(),
            repository: place.0.clone(),
            digest: place.1,
            progress: watch::Sender::new(Progress::Asked),
            reader: OnceLock::new(),
            berth: Mutex::new(berth),
        });
        known.insert(place, Arc::downgrade(&flight));
        tokio::spawn(run(self.inner.clone(), flight.clone()));
        flight
    }

    /// Lets go of a flight whose blob was stored, for what it stored was damaged since.
    pub(in crate::registry) fn forget_stored_from_outside(&self, repository: &RepositoryName, digest: &Digest) {
        let place = (repository.clone(), *digest);
        let mut known = self.inner.external.flights.known.lock().unwrap_or_else(PoisonError::into_inner);
        let flight = known.get(&place).and_then(Weak::upgrade);
        if flight.is_some_and(|flight| matches!(*flight.progress.borrow(), Progress::Stored { .. })) {
            known.remove(&place);
        }
    }

    /// A blob that another region asks for: one that is stored here, or that comes here from outside within `patience`.
    ///
    /// Cancel safety: a fetch that has begun goes on.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], [`RegistryError::BlobOnTheWay`], [`RegistryError::External`], or our own trouble.
    pub async fn load_blob_for_region(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        patience: Duration,
    ) -> Result<BlobInfo, RegistryError> {
        let known = self.load_local_blob(repository, digest).await;
        let Err(RegistryError::BlobUnknown { .. }) = known else { return known };
        let Some(mirror) = self.inner.mirror(&repository.account()) else {
            return match self.is_elsewhere(&repository.account()) {
                true => known,
                // The primary may have taken the account over without it.
                false => self.load_missing_for_region(repository, digest, patience).await,
            };
        };
        if let Some(blob) = self.mount_from_account(&mirror, repository, digest).await? {
            return Ok(blob);
        }
        let flight = self.fly(&mirror, repository, digest);
        match timeout(patience, flight.stored()).await {
            Ok(stored) => stored?,
            Err(_) => return Err(RegistryError::BlobOnTheWay { digest: *digest }),
        }
        self.load_local_blob(repository, digest).await
    }

    /// A blob that the account has from another repository: the registry outside is asked whether this one has it, too,
    /// and then nothing has to be sent.
    pub(in crate::registry) async fn mount_from_account(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<BlobInfo>, RegistryError> {
        let (account, wanted) = (repository.account(), *digest);
        let held = self.inner.metadata.read(move |reader| match reader.get_account(&account)? {
            Some(account) => Ok(reader.get_account_blob(account, &wanted)?.filter(|blob| blob.is_sound)),
            None => Ok(None),
        });
        if held.await.map_err(RegistryError::Metadata)?.is_none() {
            return Ok(None);
        }
        if mirror.blob_size_bytes(repository, digest).await?.is_none() {
            return Err(RegistryError::BlobUnknown { digest: *digest });
        }
        let (inner, name) = (self.inner.clone(), repository.clone());
        let mounted = self.inner.metadata.write(move |transaction| {
            let account = inner.account_for_push(transaction, &name.account())?;
            let blob = transaction.get_account_blob(account, &wanted)?.filter(|blob| blob.is_sound);
            let Some(blob) = blob else { return Ok(false) };
            let now = inner.clock.now();
            let id = transaction.ensure_repository(account, &name, now)?;
            transaction.ensure_mount(id, blob.id, now)?;
            Ok::<_, RegistryError>(true)
        });
        match mounted.await? {
            true => self.load_local_blob(repository, digest).await.map(Some),
            false => Ok(None),
        }
    }
}

impl Mirror {
    /// The size of a blob outside; `None`: there is none.
    pub(in crate::registry) async fn blob_size_bytes(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, RegistryError> {
        let asked = self.client.blob_size_bytes(&self.origin, repository.path(), digest).await;
        asked.map_err(|error| self.failed(error))
    }
}

impl ExternalFlight {
    /// The size of the blob, as soon as it is known.
    ///
    /// # Errors
    /// Why there is none.
    pub(in crate::registry) async fn size_bytes(&self) -> Result<u64, RegistryError> {
        let mut progress = self.progress.subscribe();
        let known = progress.wait_for(|progress| !matches!(progress, Progress::Asked)).await;
        match known.as_deref() {
            Ok(Progress::Arrived { size_bytes, .. } | Progress::Stored { size_bytes }) => Ok(*size_bytes),
            Ok(Progress::Failed(failure)) => Err(self.error(failure)),
            Ok(Progress::Asked) | Err(_) => Err(RegistryError::Interrupted),
        }
    }

    /// Waits until the blob is stored.
    ///
    /// # Errors
    /// Why it was not.
    pub(in crate::registry) async fn stored(&self) -> Result<(), RegistryError> {
        let mut progress = self.progress.subscribe();
        let ended =
            progress.wait_for(|progress| matches!(progress, Progress::Stored { .. } | Progress::Failed(_))).await;
        match ended.as_deref() {
            Ok(Progress::Stored { .. }) => Ok(()),
            Ok(Progress::Failed(failure)) => Err(self.error(failure)),
            Ok(Progress::Asked | Progress::Arrived { .. }) | Err(_) => Err(RegistryError::Interrupted),
        }
    }

    fn has_failed(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Failed(_))
    }

    pub(super) fn error(&self, failure: &Failure) -> RegistryError {
        match failure {
            Failure::Absent => RegistryError::BlobUnknown { digest: self.digest },
            Failure::External(error) => self.mirror.failed(error.clone()),
            Failure::StorageFull => RegistryError::StorageFull,
            Failure::Interrupted => RegistryError::Interrupted,
        }
    }

    /// What is written of the blob.
    pub(super) fn reader(&self) -> Result<&UploadReader, RegistryError> {
        self.reader.get().ok_or(RegistryError::Interrupted)
    }

    async fn open(&self, offset: u64) -> Result<ExternalBlob, Failure> {
        let Mirror { client, origin, .. } = &self.mirror;
        let opened = client.blob(origin, self.repository.path(), &self.digest, offset).await?;
        opened.ok_or(Failure::Absent)
    }

    async fn fetch_and_store(&self, inner: &Arc<Inner>) -> Result<u64, Failure> {
        let blob = self.open(0).await?;
        let limit_bytes = inner.options.blob_size_max_bytes;
        if blob.size_bytes > limit_bytes {
            let reason = format!("a blob has {} bytes, and {limit_bytes} is the most here", blob.size_bytes);
            return Err(ExternalError::unusable(reason).into());
        }
        let size_bytes = blob.size_bytes;
        let (repository, algorithm) = (self.repository.clone(), self.digest.algorithm());
        let row = UploadRow { id: UploadId::random(), repository, algorithm };
        let _shield = inner.in_progress.upload(&row.id);
        let mut upload = inner.begin(&row).await.map_err(own_trouble)?;
        let reader = upload.reader().map_err(|error| own_trouble(error.into()))?;
        let _ = self.reader.set(reader);
        match self.receive(&mut upload, blob).await {
            Ok(()) => match inner.store(upload, &self.repository, self.digest, None).await {
                Ok(()) => {
                    inner.note_pulled(&self.repository, &self.digest, &StorageKey::from(&row.id)).await;
                    Ok(size_bytes)
                }
                Err(RegistryError::DigestMismatch { actual, .. }) => {
                    metrics::counter!("keppel_external_wrong_total").increment(1);
                    let reason = format!("its bytes for {} have the digest {actual}", self.digest);
                    Err(ExternalError::unusable(reason).into())
                }
                Err(error) => Err(own_trouble(error)),
            },
            Err(failure) => {
                if let Err(left) = upload.discard().await {
                    tracing::warn!(error = &left as &dyn std::error::Error, "a broken fetch could not be removed");
                }
                Err(failure)
            }
        }
    }

    /// Writes all of the blob, asking again for what is missing when the registry breaks off.
    async fn receive(&self, upload: &mut Upload, blob: ExternalBlob) -> Result<(), Failure> {
        let stall_timeout = self.mirror.client.stall_timeout();
        let size_bytes = blob.size_bytes;
        let mut arrived_bytes = 0;
        self.progress.send_replace(Progress::Arrived { size_bytes, arrived_bytes });
        let (mut bytes, mut skipped_bytes, mut tries, mut pause) = (blob.bytes, 0, 0, PAUSE_MIN);
        let mut window = (Instant::now(), 0);
        while arrived_bytes < size_bytes {
            let left_bytes = size_bytes - arrived_bytes;
            let error = match next_batch(&mut bytes, skipped_bytes, left_bytes, stall_timeout).await {
                Ok(batch) if batch.is_empty() => ExternalError::unreachable("it broke off in the middle of a blob"),
                Ok(batch) => {
                    let batch_bytes: u64 = batch.iter().map(|piece| piece.len() as u64).sum();
                    append(upload, batch).await?;
                    metrics::counter!("keppel_external_received_bytes_total").increment(batch_bytes);
                    arrived_bytes += batch_bytes;
                    self.progress.send_replace(Progress::Arrived { size_bytes, arrived_bytes });
                    (skipped_bytes, tries, pause) = (0, 0, PAUSE_MIN);
                    if window.0.elapsed() < stall_timeout {
                        continue;
                    }
                    let is_slow = arrived_bytes - window.1 < WINDOW_BYTES_MIN && arrived_bytes < size_bytes;
                    window = (Instant::now(), arrived_bytes);
                    match is_slow {
                        true => return Err(ExternalError::unreachable("it is too slow").into()),
                        false => continue,
                    }
                }
                Err(error) => error,
            };
            tries += 1;
            if tries > RETRIES_MAX {
                return Err(error.into());
            }
            sleep(pause).await;
            pause *= 2;
            match self.open(arrived_bytes).await {
                Ok(rest) if rest.size_bytes != size_bytes => {
                    return Err(ExternalError::unusable("a blob changes its size").into());
                }
                Ok(rest) => {
                    metrics::counter!("keppel_external_resumed_total").increment(1);
                    (bytes, skipped_bytes) = (rest.bytes, arrived_bytes - rest.offset.min(arrived_bytes));
                }
                // What it does not want to give it will not give in a moment, either.
                Err(Failure::External(ExternalError::Unreachable { .. })) => bytes = stream::empty().boxed(),
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

/// What has arrived since the last time, waiting for something; none at the end.
async fn next_batch(
    bytes: &mut BoxStream<'static, Result<Bytes, ExternalError>>,
    mut skipped_bytes: u64,
    left_bytes: u64,
    stall_timeout: Duration,
) -> Result<Vec<Bytes>, ExternalError> {
    let (mut batch, mut batch_bytes) = (Vec::new(), 0);
    loop {
        let next = match batch.is_empty() {
            true => match timeout(stall_timeout, bytes.next()).await {
                Ok(next) => next,
                Err(_) => return Err(ExternalError::unreachable(format!("nothing came for {stall_timeout:?}"))),
            },
            false => match bytes.next().now_or_never() {
                Some(Some(Ok(piece))) => Some(Ok(piece)),
                // An error comes again, or the end does, when there is nothing else to tell.
                Some(Some(Err(_)) | None) | None => return Ok(batch),
            },
        };
        let mut piece = match next {
            Some(piece) => piece?,
            None => return Ok(batch),
        };
        let skip = skipped_bytes.min(piece.len() as u64);
        skipped_bytes -= skip;
        piece = piece.slice(skip as usize..);
        piece.truncate(usize::try_from(left_bytes - batch_bytes).unwrap_or(usize::MAX));
        if !piece.is_empty() {
            batch_bytes += piece.len() as u64;
            batch.push(piece);
        }
        if batch_bytes == left_bytes || batch_bytes >= PIECE_BYTES as u64 {
            return Ok(batch);
        }
    }
}

async fn append(upload: &mut Upload, batch: Vec<Bytes>) -> Result<(), Failure> {
    let pieces = stream::iter(batch.into_iter().map(Ok::<_, std::convert::Infallible>));
    match upload.append(pieces, u64::MAX).await {
        Ok(_) => Ok(()),
        Err(AppendError::Storage(error)) => Err(own_trouble(error.into())),
        Err(AppendError::Body(never)) => match never {},
        Err(AppendError::TooLarge { .. }) => Err(Failure::Interrupted),
    }
}

fn own_trouble(error: RegistryError) -> Failure {
    match error {
        RegistryError::StorageFull => Failure::StorageFull,
        error => {
            tracing::error!(error = &error as &dyn std::error::Error, "a blob from outside cannot be stored");
            Failure::Interrupted
        }
    }
}

async fn run(inner: Arc<Inner>, flight: Arc<ExternalFlight>) {
    let outcome = match inner.external.flights.permits.acquire().await {
        Ok(_permit) => flight.fetch_and_store(&inner).await,
        Err(_) => Err(Failure::Interrupted),
    };
    let (repository, digest) = (&flight.repository, &flight.digest);
    let progress = match outcome {
        Ok(size_bytes) => Progress::Stored { size_bytes },
        Err(failure) => {
            let upstream = flight.mirror.origin.url();
            match &failure {
                Failure::External(error) => {
                    tracing::warn!(%error, %repository, %digest, upstream, "a blob was not had from outside");
                }
                Failure::StorageFull => {
                    tracing::warn!(%repository, %digest, "there is no room for a blob from outside")
                }
                Failure::Absent | Failure::Interrupted => {}
            }
            Progress::Failed(failure)
        }
    };
    flight.progress.send_replace(progress);
    flight.berth.lock().unwrap_or_else(PoisonError::into_inner).take();
}
