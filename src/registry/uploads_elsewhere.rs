//! Upload sessions that another node holds. A client may be led to another region with each of its requests, by an anycast
//! address or since one went down; the name of a session tells the node that opened it, and what is sent in it goes on to
//! that node, piece by piece.
//!
//! Invariants: a piece that was acknowledged is on the holder's disk; pieces are given with their places, so that none counts
//! twice; a question goes one hop at most.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use keppel_federation::vocabulary::{Digest, RepositoryName, UploadId};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::elsewhere::{Primary, UploadStep, Upstream};
use super::uploads::{Expected, UploadBody, UploadStatus};
use super::{Inner, Registry, RegistryError};

/// Bytes that go to the holder at a time: enough for long lines, few enough to be held in memory.
const PIECE_BYTES: usize = 2 << 20;
/// Requests whose bodies are passed on at a time: each holds two pieces.
const PASSED_ON_MAX: usize = 16;
/// How long one waits for its place among them.
const PLACE_PATIENCE: Duration = Duration::from_secs(20);

/// Places for requests that are passed on.
pub(super) struct PassedOn(Semaphore);

impl Default for PassedOn {
    fn default() -> Self {
        Self(Semaphore::new(PASSED_ON_MAX))
    }
}

impl PassedOn {
    async fn place(&self) -> Result<SemaphorePermit<'_>, RegistryError> {
        let place = tokio::time::timeout(PLACE_PATIENCE, self.0.acquire()).await;
        place.ok().and_then(Result::ok).ok_or(RegistryError::TooManyUploads { limit: PASSED_ON_MAX })
    }
}

/// A session that another node holds.
pub(super) struct UploadElsewhere {
    holder: Primary,
    upstream: Arc<dyn Upstream>,
    repository: RepositoryName,
    id: UploadId,
}

impl Registry {
    /// Whether a session would be held by this node, if there is one.
    pub fn is_upload_here(&self, id: &UploadId) -> bool {
        self.inner.upload_holder(id).is_none()
    }
}

impl Inner {
    /// A name for a session that this node holds.
    pub(super) fn new_upload_id(&self) -> UploadId {
        self.upstream.get().map_or_else(UploadId::random, |upstream| UploadId::random_at(upstream.node()))
    }

    fn upload_holder(&self, id: &UploadId) -> Option<(Primary, Arc<dyn Upstream>)> {
        let upstream = self.upstream.get().filter(|upstream| !id.is_at(upstream.node()))?;
        Some((upstream.upload_holder(id)?, upstream.clone()))
    }

    /// The session, where another node holds it.
    pub(super) fn upload_elsewhere(&self, repository: &RepositoryName, id: &UploadId) -> Option<UploadElsewhere> {
        let (holder, upstream) = self.upload_holder(id)?;
        Some(UploadElsewhere { holder, upstream, repository: repository.clone(), id: id.clone() })
    }

    /// Sends a body to the node that holds the session; gives how far that is then.
    pub(super) async fn append_elsewhere(
        &self,
        there: &UploadElsewhere,
        expected: &Expected,
        mut body: impl UploadBody,
    ) -> Result<UploadStatus, RegistryError> {
        let _place = self.passed_on.place().await?;
        let limit_bytes = self.options.blob_size_max_bytes;
        if let Some(length) = expected.length
            && length > limit_bytes
        {
            return Err(RegistryError::BlobTooLarge { limit_bytes });
        }
        let (mut place, mut received, mut rest) = (expected.first, 0_u64, BytesMut::new());
        let mut piece = next_piece(&mut body, &mut rest).await;
        loop {
            received = received.saturating_add(piece.bytes.len() as u64);
            let is_too_much = expected.length.is_some_and(|declared| received > declared);
            if let (true, Some(declared)) = (is_too_much, expected.length) {
                return Err(RegistryError::SizeMismatch { declared, received });
            }
            let sending = there.append(place, piece.bytes);
            let (size_bytes, next) = match piece.end {
                // The next one is read while this one is on its way.
                None => {
                    let (sent, next) = tokio::join!(sending, next_piece(&mut body, &mut rest));
                    (sent?, next)
                }
                Some(end) => {
                    let size_bytes = sending.await?;
                    if let Some(cause) = end {
                        return Err(RegistryError::BodyBroken { cause });
                    }
                    return match expected.length {
                        Some(declared) if declared != received => {
                            Err(RegistryError::SizeMismatch { declared, received })
                        }
                        _ => Ok(UploadStatus { id: there.id.clone(), size_bytes }),
                    };
                }
            };
            (place, piece) = (Some(size_bytes), next);
        }
    }
}

impl UploadElsewhere {
    /// One step there; gives how far the session is then.
    async fn step(&self, step: UploadStep) -> Result<u64, RegistryError> {
        match self.upstream.step_upload(&self.holder, &self.repository, &self.id, step).await {
            Ok(size_bytes) => Ok(size_bytes.unwrap_or_default()),
            Err(RegistryError::PrimaryUnreachable { region, reason, .. }) => {
                Err(RegistryError::UploadOutOfReach { id: self.id.clone(), region, reason })
            }
            Err(error) => Err(error),
        }
    }

    async fn append(&self, offset: Option<u64>, bytes: Bytes) -> Result<u64, RegistryError> {
        self.step(UploadStep::Append { offset, bytes }).await
    }

    /// How far it is.
    pub(super) async fn status(&self) -> Result<UploadStatus, RegistryError> {
        let size_bytes = self.step(UploadStep::Status).await?;
        Ok(UploadStatus { id: self.id.clone(), size_bytes })
    }

    /// Ends it: what has arrived becomes a blob there, from where it is fetched for the manifest that refers to it.
    pub(super) async fn finish(&self, digest: &Digest) -> Result<(), RegistryError> {
        self.step(UploadStep::Finish(*digest)).await.map(drop)
    }

    /// Gives it up.
    pub(super) async fn cancel(&self) -> Result<(), RegistryError> {
        self.step(UploadStep::Cancel).await.map(drop)
    }
}

/// Some of a body.
struct Piece {
    bytes: Bytes,
    /// Whether it is the last one, and if so, what broke the body off.
    end: Option<Option<super::BodyError>>,
}

/// The next bytes of a body, as many as go together; what is too many is left in `rest`.
async fn next_piece(body: &mut impl UploadBody, rest: &mut BytesMut) -> Piece {
    while rest.len() < PIECE_BYTES {
        match body.next().await {
            Some(Ok(bytes)) => rest.extend_from_slice(&bytes),
            None => return Piece { bytes: rest.split().freeze(), end: Some(None) },
            Some(Err(cause)) => return Piece { bytes: rest.split().freeze(), end: Some(Some(cause.into())) },
        }
    }
    Piece { bytes: rest.split_to(PIECE_BYTES).freeze(), end: None }
}
