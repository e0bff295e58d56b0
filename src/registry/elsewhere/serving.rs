//! What other nodes get of a blob: from what is stored here, or from a flight that is under way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use keppel_federation::vocabulary::{Digest, NodeId, RepositoryName};
use tokio::time::Instant;

use super::Elsewhere;
use super::flight::{Flight, Progress};
use super::upstream::{BlobOpening, RemoteBlob};
use crate::registry::{Priority, Registry, RegistryError};
use crate::storage::{BEGINNING_BYTES, GROUP_BYTES, prove_beginning};

/// How long a node that is led waits for the first group, where it takes no less.
const LED_WAIT: Duration = Duration::from_secs(2);

impl Registry {
    /// What a blob is, for another node, with its beginning. `patience`: how long to wait for one from outside. Whoever
    /// asks is taken for a holder from then on.
    ///
    /// Cancel safety: a transfer that this began goes on.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], [`RegistryError::BlobOnTheWay`], [`RegistryError::PrimaryUnreachable`], or our own
    /// trouble.
    pub async fn open_blob_for(
        &self,
        asker: NodeId,
        repository: &RepositoryName,
        digest: &Digest,
        opening: BlobOpening,
        patience: Duration,
    ) -> Result<RemoteBlob, RegistryError> {
        let here = self.open_blob_here(asker, repository, digest, opening, patience).await;
        let Err(unknown @ RegistryError::BlobUnknown { .. }) = here else { return here };
        match self.inner.elsewhere(&repository.account()) {
            // Whoever may be waiting for the asker has nothing to give.
            Some(elsewhere) if opening.to_lead => {
                let flight = self.lead(elsewhere, repository, digest).await?;
                let head = flight.head()?;
                let (beginning, proof) = match opening.beginning_bytes {
                    0 => (Bytes::new(), Vec::new()),
                    BEGINNING_BYTES => (head.beginning.clone(), head.proof.clone()),
                    // An older node, which takes whole groups only.
                    more => {
                        (self.read_blob_for(repository, digest, 0..more, LED_WAIT).await?.concat().into(), Vec::new())
                    }
                };
                Ok(RemoteBlob {
                    size_bytes: flight.size_bytes(),
                    root: head.root,
                    tree: if opening.with_tree { head.tree.clone() } else { Bytes::new() },
                    beginning,
                    proof,
                    holders: Vec::new(),
                })
            }
            Some(_) => Err(unknown),
            // The primary's own bytes are lost or wrong. That they are not there is no answer for another region.
            None => match self.load_damaged_blob(repository, digest, true).await? {
                Some(_) => Err(RegistryError::BlobOnTheWay { digest: *digest }),
                None => Err(unknown),
            },
        }
    }

    async fn open_blob_here(
        &self,
        asker: NodeId,
        repository: &RepositoryName,
        digest: &Digest,
        opening: BlobOpening,
        patience: Duration,
    ) -> Result<RemoteBlob, RegistryError> {
        let holders = &self.inner.holders;
        let blob = self.load_blob_for_region(repository, digest, patience).await?;
        let (outboard, root) = self.load_outboard(&blob).await?;
        let is_proved = opening.beginning_bytes == BEGINNING_BYTES;
        let wanted_bytes = if is_proved { GROUP_BYTES } else { opening.beginning_bytes };
        let end = blob.size_bytes.min(wanted_bytes);
        let mut beginning = match end {
            0 => Vec::new(),
            end => self.read_local(repository, digest, 0..end).await?.concat(),
        };
        if beginning.len() as u64 != end {
            return Err(RegistryError::BlobUnknown { digest: *digest });
        }
        let mut proof = Vec::new();
        if is_proved {
            proof = prove_beginning(&beginning);
            beginning.truncate(BEGINNING_BYTES as usize);
        }
        let named = holders.named(digest, asker);
        holders.note(digest, asker);
        Ok(RemoteBlob {
            size_bytes: blob.size_bytes,
            root,
            tree: if opening.with_tree { outboard.pairs } else { Bytes::new() },
            beginning: beginning.into(),
            proof,
            holders: named,
        })
    }

    /// A part of a blob for another node, in pieces. What is still on its way here is waited for.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], [`RegistryError::BlobOnTheWay`], or our own trouble.
    pub async fn read_blob_for(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
        wait: Duration,
    ) -> Result<Vec<Bytes>, RegistryError> {
        match self.read_local(repository, digest, range.clone()).await {
            Err(unknown @ RegistryError::BlobUnknown { .. }) => {
                let flight = self.inner.flights.under_way(repository, digest).ok_or(unknown)?;
                match read_in_flight(&flight, range.clone(), wait).await? {
                    Some(bytes) => Ok(bytes),
                    None => self.read_local(repository, digest, range).await,
                }
            }
            read => read,
        }
    }

    /// The flight that another node may have its parts of.
    async fn lead(
        &self,
        elsewhere: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Arc<Flight>, RegistryError> {
        let inner = &self.inner;
        inner.forget_if_gone(repository, digest).await;
        let flight = inner.flights.lead(elsewhere, repository, digest).await?;
        flight.start(inner, Priority::Pull);
        inner.want_copy(&repository.account());
        Ok(flight)
    }

    async fn read_local(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, RegistryError> {
        let blob = self.load_local_blob(repository, digest).await?;
        let range = range.start.min(blob.size_bytes)..range.end.min(blob.size_bytes);
        self.open_blob(&blob, range).await?.try_collect().await
    }
}

/// Waits for a part and reads it. `None`: all of the blob is stored by now.
async fn read_in_flight(
    flight: &Flight,
    range: Range<u64>,
    wait: Duration,
) -> Result<Option<Vec<Bytes>>, RegistryError> {
    let (mut progress, until) = (flight.progress.subscribe(), Instant::now() + wait);
    let mut range = range;
    loop {
        if flight.head().is_ok() {
            // Who asks may be wrong about the size.
            range = range.start.min(flight.size_bytes())..range.end.min(flight.size_bytes());
        }
        let now = progress.borrow_and_update().clone();
        match now {
            Progress::Stored => return Ok(None),
            Progress::Arrived(arrived) if arrived >= range.end && flight.head().is_ok() => break,
            Progress::Right => break,
            Progress::Arrived(_) => {}
            Progress::NotKept(_) | Progress::Wrong => return Err(RegistryError::BlobUnknown { digest: flight.digest }),
        }
        match tokio::time::timeout_at(until, progress.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(RegistryError::Interrupted),
            Err(_) => return Err(RegistryError::BlobOnTheWay { digest: flight.digest }),
        }
    }
    let (mut pieces, mut at) = (Vec::new(), range.start);
    while at < range.end {
        let piece = flight.read_arrived(at, range.end - at).await;
        let piece = piece.ok_or(RegistryError::BlobOnTheWay { digest: flight.digest })?;
        at += piece.len() as u64;
        pieces.push(piece);
    }
    Ok(Some(pieces))
}
