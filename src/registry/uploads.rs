//! Uploading blobs: in one request, or in a session of many.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use keppel_federation::vocabulary::{Algorithm, Digest, RepositoryName, UploadId};
use tokio::sync::OwnedMutexGuard;

use super::upload_room::Metered;
use super::upload_sessions::{Session, State};
use super::{BodyError, Inner, Registry, RegistryError, to_the_end};
use crate::metadata::UploadRow;
use crate::storage::{AppendError, StorageError, Upload};

/// How far an upload has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadStatus {
    /// The session.
    pub id: UploadId,
    /// The bytes received.
    pub size_bytes: u64,
}

/// A request's body on its way: its bytes piece by piece, or why it broke off.
pub trait UploadBody: Stream<Item = Result<Bytes, Self::Cause>> + Send + Unpin + 'static {
    /// Why it broke off.
    type Cause: Into<BodyError> + Send + 'static;
}

impl<S, E> UploadBody for S
where
    S: Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    E: Into<BodyError> + Send + 'static,
{
    type Cause = E;
}

impl Registry {
    /// Opens a session. It survives a restart of the program from the first chunk on.
    ///
    /// Source: OCI distribution-spec, "Pushing a blob in chunks".
    ///
    /// # Errors
    /// [`RegistryError::AccountUnknown`], [`RegistryError::TooManyUploads`], or our own trouble.
    pub async fn start_upload(
        &self,
        repository: &RepositoryName,
        algorithm: Algorithm,
    ) -> Result<UploadStatus, RegistryError> {
        let inner = &self.inner;
        inner.check_account(repository).await?;
        let row = UploadRow { id: inner.new_upload_id(), repository: repository.clone(), algorithm };
        let id = row.id.clone();
        inner.take_in(Session::begun(row, inner.clock.now()))?;
        Ok(UploadStatus { id, size_bytes: 0 })
    }

    /// How far a session has come. While another request writes to it: how far it had come before.
    ///
    /// # Errors
    /// [`RegistryError::UploadUnknown`], or our own trouble.
    pub async fn upload_status(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
    ) -> Result<UploadStatus, RegistryError> {
        if let Some(there) = self.inner.upload_elsewhere(repository, id) {
            return there.status().await;
        }
        let session = self.inner.session(repository, id).await?;
        let size_bytes = match session.hold() {
            Ok(state) if matches!(*state, State::Ended) => return Err(RegistryError::UploadUnknown { id: id.clone() }),
            Ok(state) => state.size_bytes(),
            Err(_) => session.durable_bytes(),
        };
        Ok(UploadStatus { id: id.clone(), size_bytes })
    }

    /// Appends a chunk. `range` is the first and last byte's place as the client announced them, `length` the size of
    /// the body where it did. When it answers, the bytes are on disk and the session is recorded.
    ///
    /// Cancel safety: not stopped by dropping; what arrives of the body stays in the session.
    ///
    /// Source: OCI distribution-spec, "Pushing a blob in chunks".
    ///
    /// # Errors
    /// [`RegistryError::UploadUnknown`], [`RegistryError::UploadBusy`], [`RegistryError::RangeOutOfOrder`],
    /// [`RegistryError::SizeMismatch`], [`RegistryError::BlobTooLarge`], [`RegistryError::BodyBroken`],
    /// [`RegistryError::StorageFull`] or [`RegistryError::QuotaExceeded`], which end the session and give its space back, or
    /// our own trouble.
    pub async fn append_upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
        range: Option<(u64, u64)>,
        length: Option<u64>,
        body: impl UploadBody,
    ) -> Result<UploadStatus, RegistryError> {
        let inner = self.inner.clone();
        if let Some(there) = inner.upload_elsewhere(repository, id) {
            return inner.append_elsewhere(&there, &Expected::new(range, length), body).await;
        }
        let session = inner.session(repository, id).await?;
        let mut state = session.hold()?;
        to_the_end(async move {
            let expected = Expected::new(range, length);
            let appended = inner.append_durably(&session, &mut state, &expected, body).await;
            inner.give_back_if_full(&session, &mut state, &appended).await;
            appended?;
            Ok(UploadStatus { id: session.row.id.clone(), size_bytes: state.size_bytes() })
        })
        .await
    }

    /// Ends a session, perhaps with a last chunk: its bytes become the blob `digest` of the repository. When it
    /// answers, the blob is on disk and recorded. A digest that does not match ends the session.
    ///
    /// Cancel safety: not stopped by dropping.
    ///
    /// Source: OCI distribution-spec, "Pushing a blob in chunks".
    ///
    /// # Errors
    /// Those of [`Self::append_upload`]; [`RegistryError::DigestMismatch`], [`RegistryError::AccountUnknown`].
    pub async fn finish_upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
        range: Option<(u64, u64)>,
        length: Option<u64>,
        body: impl UploadBody,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        if let Some(there) = inner.upload_elsewhere(repository, id) {
            inner.append_elsewhere(&there, &Expected::new(range, length), body).await?;
            return there.finish(digest).await;
        }
        let session = inner.session(repository, id).await?;
        let mut state = session.hold()?;
        let digest = *digest;
        to_the_end(async move {
            let expected = Expected::new(range, length);
            let appended = inner.append(&session, &mut state, &expected, body).await;
            inner.give_back_if_full(&session, &mut state, &appended).await;
            appended?;
            let upload = match std::mem::replace(&mut *state, State::Ended) {
                State::Open(upload) => *upload,
                State::Empty => inner.begin(&session.row).await?,
                State::Ended => return Err(RegistryError::UploadUnknown { id: session.row.id.clone() }),
            };
            let stored = inner.store(upload, &session.row.repository, digest, Some(&session.row.id)).await;
            if stored.is_err() {
                inner.forget_upload(&session.row).await;
            }
            inner.sessions.remove(&session.row.id);
            inner.open_uploads.end(&session.row.id);
            stored
        })
        .await
    }

    /// Stores a blob that comes in one request. When it answers, the blob is on disk and recorded.
    ///
    /// Cancel safety: not stopped by dropping.
    ///
    /// Source: OCI distribution-spec, "Single POST".
    ///
    /// # Errors
    /// Those of [`Self::finish_upload`] that are not about sessions.
    pub async fn put_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        length: Option<u64>,
        body: impl UploadBody,
    ) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        inner.check_account(repository).await?;
        let row = UploadRow { id: UploadId::random(), repository: repository.clone(), algorithm: digest.algorithm() };
        let digest = *digest;
        to_the_end(async move {
            let _shield = inner.in_progress.upload(&row.id);
            let mut upload = inner.begin(&row).await?;
            let appended = inner.append_to(&row, &mut upload, &Expected::new(None, length), body).await;
            inner.open_uploads.end(&row.id);
            if let Err(error) = appended {
                if let Err(left) = upload.discard().await {
                    tracing::warn!(error = &left as &dyn std::error::Error, upload = %row.id, "an upload could not be removed");
                }
                return Err(error);
            }
            inner.store(upload, &row.repository, digest, None).await
        })
        .await
    }

    /// Gives a session up and its space back.
    ///
    /// # Errors
    /// [`RegistryError::UploadUnknown`], [`RegistryError::UploadBusy`], or our own trouble.
    pub async fn cancel_upload(&self, repository: &RepositoryName, id: &UploadId) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        if let Some(there) = inner.upload_elsewhere(repository, id) {
            return there.cancel().await;
        }
        let session = inner.session(repository, id).await?;
        let mut state = session.hold()?;
        to_the_end(async move {
            // The handle stays until the row and the bytes are gone, so that nobody opens them in between.
            let held = std::mem::replace(&mut *state, State::Ended);
            if let State::Ended = held {
                return Err(RegistryError::UploadUnknown { id: session.row.id.clone() });
            }
            let discarded = inner.discard_upload(&session.row).await;
            drop(held);
            discarded
        })
        .await
    }

    /// Ends a session that nobody touched for long; called by the task for abandoned uploads. Gives `false` for one that
    /// is just being written to, which is left alone.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn abandon_upload(&self, row: &UploadRow) -> Result<bool, RegistryError> {
        let _held = match self.inner.sessions.get(&row.id) {
            Some(session) => {
                let Ok(mut state) = session.hold() else { return Ok(false) };
                Some(std::mem::replace(&mut *state, State::Ended))
            }
            // A transfer from another region.
            None if self.inner.in_progress.has_upload(&row.id) => return Ok(false),
            None => None,
        };
        self.inner.discard_upload(row).await.map(|()| true)
    }

    /// The time before which a session must have been touched last to count as abandoned, in UNIX seconds.
    pub fn idle_uploads_before(&self) -> i64 {
        let timeout = i64::try_from(self.inner.options.upload_idle_timeout.as_secs()).unwrap_or(i64::MAX);
        self.inner.clock.now().saturating_sub(timeout)
    }

    /// Closes sessions that nobody touched for a while; they can be continued.
    pub fn close_idle_uploads(&self) {
        let timeout = i64::try_from(self.inner.options.upload_open_timeout.as_secs()).unwrap_or(i64::MAX);
        let closed = self.inner.sessions.close_idle(self.inner.clock.now().saturating_sub(timeout));
        self.inner.record_closed(closed);
    }
}

/// What the client announced of a body.
pub(super) struct Expected {
    pub(super) first: Option<u64>,
    pub(super) length: Option<u64>,
}

impl Expected {
    fn new(range: Option<(u64, u64)>, length: Option<u64>) -> Self {
        let ranged = range.map(|(first, last)| last.saturating_sub(first).saturating_add(1));
        Self { first: range.map(|(first, _)| first), length: ranged.or(length) }
    }
}

impl Session {
    /// Becomes the one request that works on the session.
    fn hold(self: &Arc<Self>) -> Result<OwnedMutexGuard<State>, RegistryError> {
        let busy = |_| RegistryError::UploadBusy { id: self.row.id.clone() };
        self.state.clone().try_lock_owned().map_err(busy)
    }
}

impl Inner {
    /// The session, from memory or, after a restart, from disk.
    async fn session(&self, repository: &RepositoryName, id: &UploadId) -> Result<Arc<Session>, RegistryError> {
        let unknown = || RegistryError::UploadUnknown { id: id.clone() };
        let session = match self.sessions.get(id) {
            Some(session) => session,
            None => {
                let wanted = id.clone();
                let row = self.metadata.read(move |reader| reader.get_upload(&wanted)).await?.ok_or_else(unknown)?;
                let account = row.repository.account();
                let state = match self.storage.resume_upload(&account, id, row.algorithm).await? {
                    Some(upload) => State::Open(Box::new(upload)),
                    None => State::Empty,
                };
                // Whoever held the bytes while this waited for them may have ended the session.
                let wanted = id.clone();
                self.metadata.read(move |reader| reader.get_upload(&wanted)).await?.ok_or_else(unknown)?;
                self.take_in(Session::recorded(row, state, self.clock.now()))?
            }
        };
        match session.row.repository == *repository {
            true => Ok(session),
            false => Err(unknown()),
        }
    }

    /// Holds a session open, or gives the one that is.
    fn take_in(&self, session: Arc<Session>) -> Result<Arc<Session>, RegistryError> {
        let limit = self.sessions.limit();
        let (session, closed) = self.sessions.insert(session).ok_or(RegistryError::TooManyUploads { limit })?;
        self.record_closed(closed);
        Ok(session)
    }

    /// Records sessions that are held open no more and have no row yet. Nothing was sent in them that could be lost, so
    /// nobody waits for it.
    fn record_closed(&self, closed: impl IntoIterator<Item = Arc<Session>>) {
        let rows: Vec<_> =
            closed.into_iter().filter(|session| !session.is_recorded()).map(|session| session.row.clone()).collect();
        if rows.is_empty() {
            return;
        }
        let (metadata, now) = (self.metadata.clone(), self.clock.now());
        tokio::spawn(async move {
            let recorded =
                metadata.write(move |transaction| rows.iter().try_for_each(|row| transaction.put_upload(row, now)));
            if let Err(error) = recorded.await {
                tracing::warn!(error = &error as &dyn std::error::Error, "idle upload sessions could not be recorded");
            }
        });
    }

    pub(super) async fn begin(&self, row: &UploadRow) -> Result<Upload, RegistryError> {
        let account = row.repository.account();
        match self.storage.begin_upload(&account, &row.id, row.algorithm).await {
            // The first push to an account makes its space.
            Err(StorageError::SpaceMissing(_)) => self.storage.prepare_space(&account).await?,
            begun => return Ok(begun?),
        }
        Ok(self.storage.begin_upload(&account, &row.id, row.algorithm).await?)
    }

    async fn append(
        &self,
        session: &Session,
        state: &mut State,
        expected: &Expected,
        body: impl UploadBody,
    ) -> Result<(), RegistryError> {
        let id = || session.row.id.clone();
        let size_bytes = state.size_bytes();
        if let State::Ended = state {
            return Err(RegistryError::UploadUnknown { id: id() });
        }
        if expected.first.is_some_and(|first| first != size_bytes) {
            return Err(RegistryError::RangeOutOfOrder { id: id(), size_bytes });
        }
        if let State::Empty = state {
            if expected.length == Some(0) {
                return Ok(());
            }
            *state = State::Open(Box::new(self.begin(&session.row).await?));
        }
        match state {
            State::Open(upload) => self.append_to(&session.row, upload, expected, body).await,
            State::Empty | State::Ended => Ok(()),
        }
    }

    /// Appends; when it answers, the bytes are on disk and the session is recorded.
    async fn append_durably(
        &self,
        session: &Session,
        state: &mut State,
        expected: &Expected,
        body: impl UploadBody,
    ) -> Result<(), RegistryError> {
        let appended = self.append(session, state, expected, body).await;
        let now = self.clock.now();
        session.touch(now);
        let State::Open(upload) = state else { return appended };
        // Also what arrived before an error stays, so that the client can go on from there.
        let row = session.row.clone();
        let recorded = self.metadata.write(move |transaction| transaction.put_upload(&row, now));
        let (synced, recorded) = futures_util::future::join(upload.sync(), recorded).await;
        if recorded.is_ok() {
            session.set_recorded();
        }
        if synced.is_ok() {
            session.set_durable_bytes(upload.size_bytes());
        }
        appended?;
        synced?;
        Ok(recorded?)
    }

    /// Ends a session whose bytes did not fit, on the disk or in the quota: few clients cancel it, and its space is what
    /// others lack.
    async fn give_back_if_full(&self, session: &Session, state: &mut State, appended: &Result<(), RegistryError>) {
        if matches!(appended, Err(RegistryError::StorageFull | RegistryError::QuotaExceeded { .. })) {
            // The handle stays until the row and the bytes are gone, so that nobody opens them in between.
            let held = std::mem::replace(state, State::Ended);
            self.forget_upload(&session.row).await;
            drop(held);
        }
    }

    async fn append_to(
        &self,
        row: &UploadRow,
        upload: &mut Upload,
        expected: &Expected,
        body: impl UploadBody,
    ) -> Result<(), RegistryError> {
        let limit_bytes = self.options.blob_size_max_bytes;
        let room = limit_bytes.saturating_sub(upload.size_bytes());
        if expected.length.is_some_and(|length| length > room) {
            return Err(RegistryError::BlobTooLarge { limit_bytes });
        }
        let before = upload.size_bytes();
        let allowed = self.room_for_upload(row, before).await?;
        if let (Some(allowed), Some(length)) = (&allowed, expected.length) {
            allowed.check(length)?;
        }
        let metered = Metered::new(allowed);
        let appended = upload.append(metered.limit(body), expected.length.unwrap_or(room)).await;
        metered.outcome()?;
        let received = upload.size_bytes() - before;
        match (appended, expected.length) {
            (Ok(_), Some(declared)) if received != declared => Err(RegistryError::SizeMismatch { declared, received }),
            (Ok(_), _) => Ok(()),
            (Err(AppendError::TooLarge { .. }), Some(declared)) => {
                Err(RegistryError::SizeMismatch { declared, received: declared.saturating_add(1) })
            }
            (Err(AppendError::TooLarge { .. }), None) => Err(RegistryError::BlobTooLarge { limit_bytes }),
            (Err(AppendError::Body(cause)), _) => Err(RegistryError::BodyBroken { cause: cause.into() }),
            (Err(AppendError::Storage(error)), _) => Err(error.into()),
        }
    }

    async fn discard_upload(&self, row: &UploadRow) -> Result<(), RegistryError> {
        self.open_uploads.end(&row.id);
        let account = row.repository.account();
        match self.delete_upload_row(row).await {
            // Deleting takes space too. A row without bytes is a session in which nothing was sent yet.
            Err(RegistryError::StorageFull) => {
                self.storage.discard_upload(&account, &row.id).await?;
                self.delete_upload_row(row).await?;
                self.sessions.remove(&row.id);
                Ok(())
            }
            deleted => {
                deleted?;
                self.sessions.remove(&row.id);
                Ok(self.storage.discard_upload(&account, &row.id).await?)
            }
        }
    }

    async fn delete_upload_row(&self, row: &UploadRow) -> Result<(), RegistryError> {
        let id = row.id.clone();
        Ok(self.metadata.write(move |transaction| transaction.delete_upload(&id).map(|_| ())).await?)
    }

    /// Gives up a session whose end failed. The client has its error already; what stays is swept later.
    pub(super) async fn forget_upload(&self, row: &UploadRow) {
        if let Err(error) = self.discard_upload(row).await {
            tracing::warn!(error = &error as &dyn std::error::Error, upload = %row.id, "an upload could not be removed");
        }
    }
}
