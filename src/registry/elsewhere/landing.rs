//! A flight's bytes on this node's disk, where a crash or a long absence of all sources leaves them for the next flight.
//!
//! The upload of a large blob is recorded when it begins, with the root of what it will be; so its bytes stay where the
//! flight ends without them, and are swept like an abandoned session when nobody wants the blob any more. Whoever wants it
//! again takes them up: all that is there is checked against the blob's tree before anything is added to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use keppel_federation::vocabulary::{StorageKey, UploadId};
use tokio::task::JoinHandle;

use super::fetching;
use super::flight::{Flight, Progress};
use crate::metadata::{TransferRow, UploadRow};
use crate::registry::{Inner, RegistryError};
use crate::storage::{AppendError, GROUP_BYTES, StorageError, Upload, UploadReader};

/// Parts of one flight that are asked for and not yet written: memory for a link of 1 Gbit/s over 130 ms.
const PARTS_AHEAD: u64 = 32;
/// Smaller blobs are not worth a row.
const RESUMED_BYTES_MIN: u64 = 4 << 20;

/// An upload that begins, or goes on where it was broken off.
struct Landing {
    row: UploadRow,
    upload: Upload,
    /// Ends with whether the upload is recorded.
    recording: JoinHandle<bool>,
    /// Bytes at the end that are no whole group, and so could not be checked, with their place.
    tail: (u64, Bytes),
}

impl Flight {
    /// Fetches what is not here yet, and stores the blob.
    pub(super) async fn fetch_and_store(self: &Arc<Self>, inner: &Arc<Inner>) -> Result<(), RegistryError> {
        let known = match self.size_bytes() >= RESUMED_BYTES_MIN {
            true => self.take_up(inner).await,
            false => None,
        };
        match known {
            Some(landing) => self.land(inner, landing).await,
            None => {
                let (repository, algorithm) = (self.repository.clone(), self.digest.algorithm());
                let row = UploadRow { id: UploadId::random(), repository, algorithm };
                let _shield = inner.in_progress.upload(&row.id);
                let upload = inner.begin(&row).await?;
                let recording = tokio::spawn(record(inner.clone(), self.clone(), row.clone()));
                let landing = Landing { row, upload, recording, tail: (0, Bytes::new()) };
                self.land(inner, landing).await
            }
        }
    }

    async fn land(self: &Arc<Self>, inner: &Arc<Inner>, landing: Landing) -> Result<(), RegistryError> {
        let Landing { row, mut upload, recording, tail } = landing;
        let _shield = inner.in_progress.upload(&row.id);
        let (from, size_bytes) = (upload.size_bytes(), self.size_bytes());
        if let Ok(reader) = upload.reader() {
            let _ = self.written.set(reader);
        }
        if from > 0 {
            metrics::counter!("keppel_transfer_resumed_bytes_total").increment(from);
            self.progress.send_replace(Progress::Arrived(tail.0));
        }
        let (flight, is_torn) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let torn = is_torn.clone();
        let parts = fetching::parts(self.clone(), from..size_bytes, PARTS_AHEAD).map(move |part| {
            let (offset, part) = part?;
            // What of it is here already, which can only be so for the first.
            let here = from.saturating_sub(offset) as usize;
            let unchecked = tail.0.saturating_sub(offset) as usize;
            if here > 0 && part.get(unchecked..here) != Some(&tail.1[..]) {
                torn.store(true, Ordering::Relaxed);
                return Err(RegistryError::Interrupted);
            }
            flight.has_arrived(offset, &part);
            Ok(part.slice(here..))
        });
        let appended = upload.append(parts, size_bytes - from).await;
        let is_recorded = recording.await.unwrap_or(false);
        let error = match appended {
            Ok(_) => {
                let session = is_recorded.then_some(&row.id);
                let is_right = || drop(self.progress.send_replace(Progress::Right));
                let stored = inner.store_telling(upload, &self.repository, self.digest, session, is_right).await;
                match &stored {
                    Ok(()) => {
                        let key = StorageKey::from(&row.id);
                        inner.note_pulled(&self.repository, &self.digest, &key).await;
                    }
                    Err(_) if is_recorded => inner.forget_upload(&row).await,
                    Err(_) => {}
                }
                return stored;
            }
            Err(AppendError::Body(error)) => error,
            Err(AppendError::Storage(error)) => error.into(),
            Err(AppendError::TooLarge { .. }) => RegistryError::Interrupted,
        };
        let is_cut_off = matches!(error, RegistryError::PrimaryUnreachable { .. });
        if is_recorded && is_cut_off && !is_torn.load(Ordering::Relaxed) {
            return Err(error);
        }
        if let Err(left) = upload.discard().await {
            tracing::warn!(error = &left as &dyn std::error::Error, "a broken transfer could not be removed");
        }
        if is_recorded {
            inner.forget_upload(&row).await;
        }
        Err(error)
    }

    /// What a former flight left of the blob, if all of it is right.
    async fn take_up(self: &Arc<Self>, inner: &Arc<Inner>) -> Option<Landing> {
        let (name, digest) = (self.repository.clone(), self.digest);
        let known = inner.metadata.read(move |reader| reader.get_transfer(&name, &digest)).await;
        let TransferRow { upload: row, size_bytes, root } = known.ok().flatten()?;
        let _shield = inner.in_progress.upload(&row.id);
        let account = self.repository.account();
        // While another flight is at its end, this one begins anew.
        let upload = inner.storage.resume_upload(&account, &row.id, row.algorithm).await.ok()?;
        let is_same = self.head().is_ok_and(|head| head.root == root) && size_bytes == self.size_bytes();
        let checked = match &upload {
            Some(upload) if is_same && upload.size_bytes() <= size_bytes => self.check_landed(upload).await.ok(),
            _ => None,
        };
        match (upload, checked.flatten()) {
            (Some(upload), Some(tail)) => {
                let (id, size_bytes, digest) = (&row.id, upload.size_bytes(), &self.digest);
                tracing::info!(upload = %id, size_bytes, %digest, "a transfer goes on where it was broken off");
                let recording = tokio::spawn(record(inner.clone(), self.clone(), row.clone()));
                Some(Landing { row, upload, recording, tail })
            }
            (upload, _) => {
                drop(upload);
                inner.forget_upload(&row).await;
                None
            }
        }
    }

    /// Checks what is there against the tree; gives the end that is no whole group, with its place. `None`: it is not
    /// what it should be.
    async fn check_landed(&self, upload: &Upload) -> Result<Option<(u64, Bytes)>, StorageError> {
        let (reader, end, mut at) = (upload.reader()?, upload.size_bytes(), 0);
        while at < end {
            let group = read_fully(&reader, at, (end - at).min(GROUP_BYTES) as usize).await?;
            let is_whole = group.len() as u64 == GROUP_BYTES || end == self.size_bytes();
            if !is_whole {
                return Ok(Some((at, group)));
            }
            if !self.verifier().is_ok_and(|verifier| verifier.is_part(at, &group)) {
                return Ok(None);
            }
            at += group.len() as u64;
        }
        Ok(Some((end, Bytes::new())))
    }
}

async fn read_fully(reader: &UploadReader, at: u64, size_bytes: usize) -> Result<Bytes, StorageError> {
    let mut all = BytesMut::with_capacity(size_bytes);
    while all.len() < size_bytes {
        let bytes = reader.read(at + all.len() as u64, size_bytes - all.len()).await?;
        if bytes.is_empty() {
            break;
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}

/// Records the upload of a large blob, so that it can be taken up; gives whether it is recorded.
async fn record(inner: Arc<Inner>, flight: Arc<Flight>, row: UploadRow) -> bool {
    let (size_bytes, digest, now) = (flight.size_bytes(), flight.digest, inner.clock.now());
    let Ok(root) = flight.head().map(|head| head.root) else { return false };
    if size_bytes < RESUMED_BYTES_MIN {
        return false;
    }
    let transfer = TransferRow { upload: row, size_bytes, root };
    let recorded = inner.metadata.write(move |transaction| transaction.put_transfer(&transfer, &digest, now));
    let recorded: Result<(), crate::metadata::MetadataError> = recorded.await;
    if let Err(error) = &recorded {
        tracing::warn!(error = error as &dyn std::error::Error, %digest, "a transfer is not recorded");
    }
    recorded.is_ok()
}
