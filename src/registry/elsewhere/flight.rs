//! One transfer of a blob from other nodes, however many clients wait for it.
//!
//! A flight that nobody has started only knows the blob's size and hashes (`opening`). Once started it fetches all parts
//! from all who have them (`fetching`), writes them (`landing`), and keeps the last few in memory for the clients that keep
//! up; others read what is written. It ends when the blob is stored, whether or not anybody still waits.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use keppel_federation::vocabulary::{Digest, NodeId, RepositoryName};
use tokio::sync::{OnceCell, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Elsewhere;
use super::berths::Berth;
use super::fetching::Giver;
use super::links::Links;
use super::opening::Head;
use super::priority::Priority;
use super::standing::{Fault, Standing};
use super::upstream::Primary;
use crate::registry::{Inner, RegistryError};
use crate::storage::{UploadReader, Verifier};

/// Parts of one flight kept in memory for clients that keep up.
const RECENT_MAX: usize = 16;

/// What a flight brings, and where to.
pub(super) type Key = (RepositoryName, Digest);

/// How far a flight has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// So many bytes from the beginning have arrived and fit the hashes.
    Arrived(u64),
    /// All of it has arrived and its digest is right; it is being made durable and recorded.
    Right,
    /// All of that is done.
    Stored,
    /// It could not be kept, but its bytes can be had part by part.
    NotKept(String),
    /// Every part fits the hashes that the other node gave, but the whole is not what the digest names.
    Wrong,
}

type Rest = AbortOnDropHandle<Result<Bytes, RegistryError>>;

/// One transfer.
pub(in crate::registry) struct Flight {
    pub(super) source: Elsewhere,
    pub(in crate::registry) repository: RepositoryName,
    pub(in crate::registry) digest: Digest,
    /// Whether the blob may come from others than `source`.
    is_open_to_all: bool,
    pub(super) standing: Arc<Standing>,
    pub(super) links: Arc<Links>,
    /// Whether other nodes of the region wait for this one.
    pub(super) leads: watch::Sender<bool>,
    head: OnceCell<Head>,
    /// What follows the beginning in the first part, where it was asked for together with that, and of whom.
    rest: Mutex<Option<(NodeId, Rest)>>,
    pub(super) started: AtomicBool,
    /// Its place among those that clients pull, while its bytes are not here.
    berth: Mutex<Option<Berth>>,
    pub(super) priority: watch::Sender<Priority>,
    pub(super) progress: watch::Sender<Progress>,
    recent: Mutex<VecDeque<(u64, Bytes)>>,
    /// What is written of it.
    pub(super) written: OnceLock<UploadReader>,
}

impl Flight {
    pub(super) fn new(
        source: Elsewhere,
        (repository, digest): Key,
        standing: Arc<Standing>,
        links: Arc<Links>,
    ) -> Self {
        let primary = source.upstream.primary(&repository.account());
        Self {
            is_open_to_all: primary.is_some_and(|primary| primary.node == source.primary.node),
            source,
            repository,
            digest,
            standing,
            links,
            leads: watch::Sender::new(false),
            head: OnceCell::new(),
            rest: Mutex::default(),
            started: AtomicBool::new(false),
            berth: Mutex::default(),
            priority: watch::Sender::new(Priority::Background),
            progress: watch::Sender::new(Progress::Arrived(0)),
            recent: Mutex::default(),
            written: OnceLock::new(),
        }
    }

    /// Asks once what the blob is; all who wait get the answer, and the next one asks again after a failure.
    pub(super) async fn load_head(&self) -> Result<(), RegistryError> {
        self.head.get_or_try_init(|| self.open()).await.map(|_| ())
    }

    pub(super) fn head(&self) -> Result<&Head, RegistryError> {
        self.head.get().ok_or(RegistryError::Interrupted)
    }

    pub(super) fn verifier(&self) -> Result<&Verifier, RegistryError> {
        self.head().map(|head| &head.verifier)
    }

    /// The size of the blob.
    pub(in crate::registry) fn size_bytes(&self) -> u64 {
        self.head.get().map_or(0, |head| head.verifier.size_bytes())
    }

    /// Whether what has arrived may be passed on before all of it has.
    pub(super) fn is_confirmed(&self) -> bool {
        self.head.get().is_some_and(|head| head.is_confirmed)
    }

    pub(super) fn is_open_to_all(&self) -> bool {
        self.is_open_to_all
    }

    /// Who is known to have the blob, those left out that gave wrong answers of late. The primary always stays.
    pub(super) fn givers(&self) -> Vec<Giver> {
        let givers = self.head.get().into_iter().flat_map(|head| &head.givers);
        let is_good =
            |giver: &&Giver| giver.node.node == self.source.primary.node || self.standing.is_good(giver.node.node);
        let mut givers: Vec<Giver> = givers.filter(is_good).cloned().collect();
        if *self.leads.borrow() {
            // Whoever waits for us must not be waited for.
            givers.iter_mut().for_each(|giver| giver.wait = std::time::Duration::ZERO);
        }
        givers
    }

    pub(super) fn blame(&self, node: &Primary, fault: Fault) {
        self.standing.blame(node, fault, &self.digest);
    }

    /// A node answered, but not in a way that can be used.
    pub(super) fn unusable(&self, node: &Primary, reason: &str) -> RegistryError {
        RegistryError::PrimaryUnreachable {
            account: self.repository.account(),
            region: node.region.clone(),
            reason: reason.to_owned(),
        }
    }

    /// Keeps a place, unless it has one, or needs none any more.
    pub(super) fn take_berth(&self, berth: Berth) {
        let mut own = self.berth.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_none() && *self.progress.borrow() != Progress::Stored {
            *own = Some(berth);
        }
    }

    fn leave_berth(&self) {
        self.berth.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// One that still asks another node is of no use: that node may not have the blob.
    pub(super) fn is_usable_for(&self, source: &Elsewhere) -> bool {
        !self.has_failed() && (self.head.initialized() || self.source.primary.node == source.primary.node)
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::NotKept(_) | Progress::Wrong)
    }

    pub(super) fn refuse_if_wrong(&self) -> Result<(), RegistryError> {
        match *self.progress.borrow() {
            Progress::Wrong => Err(self.wrong()),
            _ => Ok(()),
        }
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
        let is_over = |progress: &Progress| !matches!(progress, Progress::Arrived(_) | Progress::Right);
        let ended = progress.wait_for(is_over).await;
        match ended.as_deref() {
            Ok(Progress::Stored) => Ok(()),
            Ok(Progress::NotKept(reason)) => Err(self.source.unusable(&self.repository, reason)),
            Ok(Progress::Wrong) => Err(self.wrong()),
            Ok(Progress::Arrived(_) | Progress::Right) | Err(_) => Err(RegistryError::Interrupted),
        }
    }

    pub(super) fn wrong(&self) -> RegistryError {
        let reason = format!("its bytes for {} have another digest", self.digest);
        self.source.unusable(&self.repository, &reason)
    }

    /// How many bytes are there where the parts make so many: the beginning comes before all parts.
    pub(super) fn with_beginning(&self, bytes: u64) -> u64 {
        bytes.max(self.head.get().map_or(0, |head| head.beginning.len() as u64))
    }

    /// How many bytes from the beginning have arrived.
    pub(super) fn arrived_bytes(&self) -> u64 {
        match *self.progress.borrow() {
            Progress::Arrived(bytes) => self.with_beginning(bytes),
            Progress::Right | Progress::Stored => self.size_bytes(),
            Progress::NotKept(_) | Progress::Wrong => 0,
        }
    }

    /// Bytes at `offset` that have arrived, `size_bytes` at most, from memory or from what is written. `None`: they are
    /// in neither.
    pub(super) async fn read_arrived(&self, offset: u64, size_bytes: u64) -> Option<Bytes> {
        let beginning = self.head.get().map(|head| &head.beginning);
        let beginning = beginning.filter(|bytes| offset < bytes.len() as u64);
        let in_memory = beginning.map(|bytes| bytes.slice(offset as usize..)).or_else(|| {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            let part = recent.iter().find(|(at, bytes)| (*at..at + bytes.len() as u64).contains(&offset));
            part.map(|(at, bytes)| bytes.slice((offset - at) as usize..))
        });
        let limit = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        match in_memory {
            Some(bytes) => Some(bytes.slice(..bytes.len().min(limit))),
            None => self.written.get()?.read(offset, limit).await.ok().filter(|bytes| !bytes.is_empty()),
        }
    }

    /// A part is about to be written.
    pub(super) fn has_arrived(&self, offset: u64, bytes: &Bytes) {
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.push_back((offset, bytes.clone()));
            if recent.len() > RECENT_MAX {
                recent.pop_front();
            }
        }
        self.progress.send_replace(Progress::Arrived(offset + bytes.len() as u64));
    }

    /// A part from one node, not verified.
    ///
    /// Cancel safety: dropping it abandons the question.
    pub(super) async fn fetch_from(&self, giver: &Giver, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let beginning = &self.head()?.beginning;
        let known = beginning.len() as u64;
        match range.start {
            0 if range.end == known => Ok(beginning.clone()),
            0 if known > 0 && range.end > known => {
                let rest = self.fetch_rest(giver, known..range.end).await?;
                let mut part = BytesMut::with_capacity(beginning.len() + rest.len());
                part.extend_from_slice(beginning);
                part.extend_from_slice(&rest);
                Ok(part.freeze())
            }
            _ => self.ask_for(giver, range).await,
        }
    }

    /// What follows the beginning is on its way already, if this is the node that gave the beginning.
    async fn fetch_rest(&self, giver: &Giver, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let expected = {
            let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
            rest.take_if(|(node, _)| *node == giver.node.node)
        };
        if let Some((_, rest)) = expected
            && let Ok(Ok(rest)) = rest.await
            && rest.len() as u64 == range.end - range.start
        {
            return Ok(rest);
        }
        self.ask_for(giver, range).await
    }

    /// What follows the beginning was asked for.
    pub(super) fn expect_rest(&self, node: NodeId, rest: Rest) {
        *self.rest.lock().unwrap_or_else(PoisonError::into_inner) = Some((node, rest));
    }

    async fn ask_for(&self, giver: &Giver, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let (upstream, repository) = (&self.source.upstream, &self.repository);
        let priority = *self.priority.borrow();
        let _place = self.links.enter(giver.node.node, priority, range.end - range.start).await;
        upstream.blob_part(&giver.node, repository, &self.digest, range, giver.wait, priority).await
    }
}

async fn run(inner: Arc<Inner>, flight: Arc<Flight>) {
    let outcome = match inner.flights.places().enter(flight.priority.subscribe()).await {
        Some(_place) => flight.fetch_and_store(&inner).await,
        None => Err(RegistryError::Interrupted),
    };
    let (repository, digest) = (&flight.repository, &flight.digest);
    let progress = match outcome {
        Ok(()) => Progress::Stored,
        Err(error @ RegistryError::DigestMismatch { .. }) => {
            tracing::error!(%error, %repository, %digest, region = flight.source.primary.region, "a region gave wrong bytes");
            flight.blame_for_wrong_whole();
            Progress::Wrong
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, %repository, %digest, "a blob from elsewhere is not kept");
            Progress::NotKept(error.to_string())
        }
    };
    let is_stored = progress == Progress::Stored;
    flight.progress.send_replace(progress);
    if is_stored {
        // Slow clients read what is stored.
        flight.leave_berth();
    }
}

impl Flight {
    /// The hashes were another blob's: whoever gave them is to blame.
    fn blame_for_wrong_whole(&self) {
        if let Some(giver) = self.head.get().and_then(|head| head.givers.first()) {
            self.blame(&giver.node, Fault::Wrong);
        }
    }
}
