//! One transfer of a blob from another region, however many clients wait for it.
//!
//! A flight that nobody has started only knows the blob's size and hashes. Once started it fetches all parts, several at
//! a time, checks each, writes them, and keeps the last few in memory for the clients that keep up; it ends when the
//! blob is stored, whether or not anybody still waits.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use keppel_federation::vocabulary::{Digest, RepositoryName, StorageKey, UploadId};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use super::priority::{Places, Priority};
use super::{Elsewhere, RemoteBlob};
use crate::metadata::UploadRow;
use crate::registry::{Inner, RegistryError};
use crate::storage::{AppendError, GROUP_BYTES, Verifier};

/// What is asked for at a time: whole groups, so that it can be checked by itself.
pub(super) const PART_BYTES: u64 = 2 * GROUP_BYTES;
/// Parts of one flight that are asked for and not yet here: 1 Gbit/s over 130 ms.
const PARTS_AHEAD: usize = 32;
/// Parts of one flight kept in memory for clients that keep up.
const RECENT_MAX: usize = 16;
/// How long a part is asked for again while the other node cannot be reached.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a part is asked for again that came and was not right.
const WRONG_MAX: usize = 3;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

type Key = (RepositoryName, Digest);

/// The flights under way.
#[derive(Default)]
pub(in crate::registry) struct Flights {
    known: Mutex<HashMap<Key, Weak<Flight>>>,
    places: Places,
}

impl Flights {
    /// The flight of a blob into a repository, made and asked about if there is none. The other node is asked whether
    /// the repository has the blob; while the flight lives, nobody asks again.
    ///
    /// Cancel safety: dropping it leaves the flight to others who wait.
    ///
    /// # Errors
    /// What the other node says.
    pub(in crate::registry) async fn join(
        &self,
        source: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        let flight = {
            let key = (repository.clone(), *digest);
            let mut known = self.lock();
            // One that still asks another node is of no use: that node may not have the blob.
            let is_usable = |flight: &Arc<Flight>| {
                !flight.has_failed() && (flight.head.initialized() || flight.source.primary.node == source.primary.node)
            };
            match known.get(&key).and_then(Weak::upgrade).filter(is_usable) {
                Some(flight) => flight,
                None => {
                    known.retain(|_, flight| flight.strong_count() > 0);
                    let flight = Arc::new(Flight::new(source, key.clone()));
                    known.insert(key, Arc::downgrade(&flight));
                    flight
                }
            }
        };
        flight.load_head().await?;
        Ok(flight)
    }

    /// Lets go of a flight whose blob was stored, for what it stored was damaged since.
    pub(in crate::registry) fn forget_stored(&self, repository: &RepositoryName, digest: &Digest) {
        let key = (repository.clone(), *digest);
        let mut known = self.lock();
        let flight = known.get(&key).and_then(Weak::upgrade);
        if flight.is_some_and(|flight| *flight.progress.borrow() == Progress::Stored) {
            known.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<Flight>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a flight has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes from the beginning have arrived and are right.
    Arrived(u64),
    /// All of it is stored and recorded, and its digest is right.
    Stored,
    /// It could not be kept, but its bytes can be had part by part.
    NotKept(String),
    /// Every part fits the hashes that the other node gave, but the whole is not what the digest names.
    Wrong,
}

/// One transfer.
pub(in crate::registry) struct Flight {
    pub(super) source: Elsewhere,
    pub(in crate::registry) repository: RepositoryName,
    pub(in crate::registry) digest: Digest,
    head: OnceCell<RemoteBlob>,
    started: AtomicBool,
    priority: watch::Sender<Priority>,
    pub(super) progress: watch::Sender<Progress>,
    recent: Mutex<VecDeque<(u64, Bytes)>>,
}

impl Flight {
    fn new(source: Elsewhere, (repository, digest): Key) -> Self {
        Self {
            source,
            repository,
            digest,
            head: OnceCell::new(),
            started: AtomicBool::new(false),
            priority: watch::Sender::new(Priority::Background),
            progress: watch::Sender::new(Progress::Arrived(0)),
            recent: Mutex::default(),
        }
    }

    /// Asks once what the blob is; all who wait get the answer, and the next one asks again after a failure.
    async fn load_head(&self) -> Result<(), RegistryError> {
        let Elsewhere { primary, upstream } = &self.source;
        let ask = || async {
            let head = upstream.blob(primary, &self.repository, &self.digest, PART_BYTES).await?;
            let size_bytes = head.verifier.size_bytes();
            let fits =
                head.beginning.len() as u64 == size_bytes.min(PART_BYTES) && head.verifier.is_part(0, &head.beginning);
            match fits {
                true => Ok(head),
                false => Err(self.source.unusable(&self.repository, "the beginning of a blob does not fit its hashes")),
            }
        };
        self.head.get_or_try_init(ask).await.map(|_| ())
    }

    fn head(&self) -> Result<&RemoteBlob, RegistryError> {
        self.head.get().ok_or(RegistryError::Interrupted)
    }

    fn verifier(&self) -> Result<&Verifier, RegistryError> {
        self.head().map(|head| &head.verifier)
    }

    /// The size of the blob.
    pub(in crate::registry) fn size_bytes(&self) -> u64 {
        self.head.get().map_or(0, |head| head.verifier.size_bytes())
    }

    fn has_failed(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::NotKept(_) | Progress::Wrong)
    }

    /// Begins to fetch, unless that was begun before. One that was begun for less moves up to this priority.
    pub(in crate::registry) fn start(self: &Arc<Self>, inner: &Arc<Inner>, priority: Priority) {
        self.priority.send_if_modified(|now| {
            let moves_up = *now < priority;
            *now = priority.max(*now);
            moves_up
        });
        if !self.started.swap(true, Ordering::SeqCst) {
            tokio::spawn(run(inner.clone(), self.clone()));
        }
    }

    /// Waits until the blob is stored.
    ///
    /// # Errors
    /// Why it was not.
    pub(in crate::registry) async fn stored(&self) -> Result<(), RegistryError> {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|progress| !matches!(progress, Progress::Arrived(_))).await;
        match ended.as_deref() {
            Ok(Progress::Stored) => Ok(()),
            Ok(Progress::NotKept(reason)) => Err(self.source.unusable(&self.repository, reason)),
            Ok(Progress::Wrong) => Err(self.wrong()),
            Ok(Progress::Arrived(_)) | Err(_) => Err(RegistryError::Interrupted),
        }
    }

    pub(super) fn wrong(&self) -> RegistryError {
        let reason = format!("its bytes for {} have another digest", self.digest);
        self.source.unusable(&self.repository, &reason)
    }

    /// The part that begins at `offset`, if it is still in memory.
    pub(super) fn recent(&self, offset: u64) -> Option<Bytes> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().find(|(at, _)| *at == offset).map(|(_, bytes)| bytes.clone())
    }

    fn has_arrived(&self, offset: u64, part: &Bytes) {
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.push_back((offset, part.clone()));
            if recent.len() > RECENT_MAX {
                recent.pop_front();
            }
        }
        self.progress.send_replace(Progress::Arrived(offset + part.len() as u64));
    }

    /// The part that begins at `offset`, fetched and checked. Asks again while the other node cannot be reached.
    ///
    /// Cancel safety: dropping it abandons the question.
    pub(super) async fn fetch(&self, offset: u64) -> Result<Bytes, RegistryError> {
        let head = self.head()?;
        if offset == 0 {
            return Ok(head.beginning.clone());
        }
        let Elsewhere { primary, upstream } = &self.source;
        let range = offset..self.size_bytes().min(offset + PART_BYTES);
        let (start, mut pause, mut wrong) = (Instant::now(), PAUSE_MIN, 0);
        loop {
            let part = upstream.blob_part(primary, &self.repository, &self.digest, range.clone()).await;
            let error = match part {
                Ok(part) if part.len() as u64 == range.end - range.start && self.verifier()?.is_part(offset, &part) => {
                    metrics::counter!("keppel_transfer_received_bytes_total").increment(part.len() as u64);
                    return Ok(part);
                }
                Ok(_) => {
                    let labels = [("region", primary.region.clone())];
                    metrics::counter!("keppel_transfer_wrong_parts_total", &labels).increment(1);
                    wrong += 1;
                    self.source.unusable(&self.repository, "a part of a blob does not fit its hashes")
                }
                Err(error @ RegistryError::PrimaryUnreachable { .. }) => error,
                Err(error) => return Err(error),
            };
            if start.elapsed() > PATIENCE || wrong == WRONG_MAX {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// All parts from `offset` on, in order, several being fetched ahead.
    pub(super) fn parts(
        self: Arc<Self>,
        offsets: Range<u64>,
        ahead: usize,
    ) -> impl Stream<Item = Result<(u64, Bytes), RegistryError>> + Send + 'static {
        let starts = (offsets.start / PART_BYTES * PART_BYTES..offsets.end).step_by(PART_BYTES as usize);
        let fetch = move |offset| {
            let flight = self.clone();
            async move { flight.fetch(offset).await.map(|part| (offset, part)) }
        };
        stream::iter(starts).map(fetch).buffered(ahead)
    }

    async fn fetch_and_store(self: &Arc<Self>, inner: &Arc<Inner>) -> Result<(), RegistryError> {
        let (size_bytes, algorithm) = (self.size_bytes(), self.digest.algorithm());
        let row = UploadRow { id: UploadId::random(), repository: self.repository.clone(), algorithm };
        let _shield = inner.in_progress.upload(&row.id);
        let mut upload = inner.begin(&row).await?;
        let flight = self.clone();
        let parts = self.clone().parts(0..size_bytes, PARTS_AHEAD).map_ok(move |(offset, part)| {
            flight.has_arrived(offset, &part);
            part
        });
        match upload.append(parts, size_bytes).await {
            Ok(_) => {
                inner.store(upload, &self.repository, self.digest, None).await?;
                inner.note_pulled(&self.repository, &self.digest, &StorageKey::from(&row.id)).await;
                Ok(())
            }
            Err(error) => {
                if let Err(left) = upload.discard().await {
                    tracing::warn!(error = &left as &dyn std::error::Error, "a broken transfer could not be removed");
                }
                Err(match error {
                    AppendError::Body(error) => error,
                    AppendError::Storage(error) => error.into(),
                    AppendError::TooLarge { .. } => RegistryError::Interrupted,
                })
            }
        }
    }
}

async fn run(inner: Arc<Inner>, flight: Arc<Flight>) {
    let outcome = match inner.flights.places.enter(flight.priority.subscribe()).await {
        Some(_place) => flight.fetch_and_store(&inner).await,
        None => Err(RegistryError::Interrupted),
    };
    let (repository, digest) = (&flight.repository, &flight.digest);
    let progress = match outcome {
        Ok(()) => Progress::Stored,
        Err(error @ RegistryError::DigestMismatch { .. }) => {
            tracing::error!(%error, %repository, %digest, region = flight.source.primary.region, "a region gave wrong bytes");
            Progress::Wrong
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, %repository, %digest, "a blob from elsewhere is not kept");
            Progress::NotKept(error.to_string())
        }
    };
    flight.progress.send_replace(progress);
}
