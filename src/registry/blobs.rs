//! Pulling and mounting blobs.

use std::ops::Range;
use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName, StorageKey};

use super::blob_stream::BlobStream;
use super::elsewhere::{Flight, Source};
use super::external::{ExternalFlight, Mirror};
use super::{FirstPull, Inner, Registry, RegistryError, WriteWindow};
use crate::metadata::BlobRow;
use crate::storage::Outboard;

/// A blob that can be read.
#[derive(Clone)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    repository: RepositoryName,
    place: Place,
}

#[derive(Clone)]
enum Place {
    /// Stored here.
    Here { account: AccountName, key: StorageKey, blake3: [u8; 32] },
    /// In another region; the flight is not started yet.
    OnTheWay(Arc<Flight>),
    /// In a registry outside, on its way here.
    OnTheWayFromOutside(Arc<ExternalFlight>),
    /// In another region or registry, which was only asked for the size.
    There,
}

impl BlobInfo {
    fn here(repository: &RepositoryName, digest: &Digest, row: BlobRow) -> Self {
        let place = Place::Here { account: repository.account(), key: row.storage_key, blake3: row.blake3 };
        Self { digest: *digest, size_bytes: row.size_bytes, repository: repository.clone(), place }
    }

    /// One that comes from another region.
    pub(super) fn on_the_way(flight: Arc<Flight>) -> Self {
        let (repository, digest, size_bytes) = (flight.repository.clone(), flight.digest, flight.size_bytes());
        Self { digest, size_bytes, repository, place: Place::OnTheWay(flight) }
    }

    /// Under which key it is stored here.
    pub(super) fn storage_key(&self) -> Option<&StorageKey> {
        match &self.place {
            Place::Here { key, .. } => Some(key),
            Place::OnTheWay(_) | Place::OnTheWayFromOutside(_) | Place::There => None,
        }
    }

    /// The flight that brings it from another region.
    pub(super) fn flight(&self) -> Option<&Arc<Flight>> {
        match &self.place {
            Place::OnTheWay(flight) => Some(flight),
            Place::Here { .. } | Place::OnTheWayFromOutside(_) | Place::There => None,
        }
    }

    /// Where it belongs.
    pub(super) fn repository(&self) -> &RepositoryName {
        &self.repository
    }
}

impl Registry {
    /// A blob that is mounted in the repository, from wherever it is. `to_read`: whether its bytes will be wanted.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], [`RegistryError::PrimaryUnreachable`], [`RegistryError::TooManyTransfers`],
    /// [`RegistryError::External`], or our own trouble.
    pub async fn load_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        to_read: bool,
    ) -> Result<BlobInfo, RegistryError> {
        self.load_blob_for(repository, digest, to_read, FirstPull::Allowed).await
    }

    /// The same, for someone who perhaps may not have it fetched from a registry outside.
    ///
    /// # Errors
    /// Those of [`Self::load_blob`], and [`RegistryError::FirstPullRefused`].
    pub async fn load_blob_for(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        to_read: bool,
        first_pull: FirstPull,
    ) -> Result<BlobInfo, RegistryError> {
        let here = match to_read {
            true => self.load_local_blob(repository, digest).await,
            false => self.promise_local_blob(repository, digest).await,
        };
        let unknown = match here {
            Err(unknown @ RegistryError::BlobUnknown { .. }) => unknown,
            known => return known,
        };
        let account = repository.account();
        if first_pull == FirstPull::Refused && self.inner.external_source(&account).is_some() {
            return Err(RegistryError::FirstPullRefused { repository: repository.clone() });
        }
        if let Some(mirror) = self.inner.mirror(&account) {
            return self.load_external_blob(&mirror, repository, digest, to_read).await;
        }
        let Some(elsewhere) = self.inner.elsewhere(&account) else {
            if let Some(blob) = self.load_damaged_blob(repository, digest, to_read).await? {
                return Ok(blob);
            }
            return self.load_missing_blob(repository, digest, to_read).await?.ok_or(unknown);
        };
        let (size_bytes, place) = match to_read {
            true => {
                let flight = self.inner.join_flight_for_client(elsewhere, repository, digest).await?;
                (flight.size_bytes(), Place::OnTheWay(flight))
            }
            false => (self.inner.size_elsewhere(elsewhere, repository, digest).await?, Place::There),
        };
        self.inner.want_copy(&repository.account());
        Ok(BlobInfo { digest: *digest, size_bytes, repository: repository.clone(), place })
    }

    async fn load_external_blob(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        digest: &Digest,
        to_read: bool,
    ) -> Result<BlobInfo, RegistryError> {
        if let Some(blob) = self.mount_from_account(mirror, repository, digest).await? {
            return Ok(blob);
        }
        let (size_bytes, place) = match to_read {
            true => {
                let flight = self.fly_for_client(mirror, repository, digest).await?;
                (flight.size_bytes().await?, Place::OnTheWayFromOutside(flight))
            }
            false => {
                let size_bytes = mirror.blob_size_bytes(repository, digest).await?;
                (size_bytes.ok_or(RegistryError::BlobUnknown { digest: *digest })?, Place::There)
            }
        };
        Ok(BlobInfo { digest: *digest, size_bytes, repository: repository.clone(), place })
    }

    /// A blob that is mounted in the repository and stored here.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], or our own trouble.
    pub async fn load_local_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<BlobInfo, RegistryError> {
        let row = self.inner.blob_here(repository, digest).await?;
        self.inner.note_use(row.id);
        Ok(BlobInfo::here(repository, digest, row))
    }

    /// The same for whoever will count on the blob being there, since they want to push a manifest that refers to it: no
    /// sweep takes it before its grace period is over.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], or our own trouble.
    pub async fn promise_local_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<BlobInfo, RegistryError> {
        self.inner.refuse_former(&repository.account())?;
        let (name, digest) = (repository.clone(), *digest);
        let known = self.inner.metadata.read(move |reader| reader.get_promised_blob(name.as_str(), &digest)).await?;
        let unknown = || RegistryError::BlobUnknown { digest };
        let (row, mark) = known.filter(|(row, _)| row.is_sound).ok_or_else(unknown)?;
        self.inner.note_use(row.id);
        if mark.is_none() {
            // Whoever marks it from now on lets the whole grace period pass.
            return Ok(BlobInfo::here(repository, &digest, row));
        }
        let name = repository.clone();
        let unmarked = self.inner.metadata.write(move |transaction| {
            let Some(id) = transaction.get_repository(&name)? else { return Ok::<_, RegistryError>(None) };
            let row = transaction.get_mounted_blob(id, &digest)?.filter(|row| row.is_sound);
            if let Some(row) = &row {
                transaction.unmark_mount(id, row.id)?;
            }
            Ok(row)
        });
        let row = unmarked.await?.ok_or_else(unknown)?;
        Ok(BlobInfo::here(repository, &digest, row))
    }

    /// Those of these blobs that are mounted in the repository and stored here, promised in the same way.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn promise_local_blobs(
        &self,
        repository: &RepositoryName,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, RegistryError> {
        let mut found = Vec::new();
        for digest in digests {
            match self.promise_local_blob(repository, digest).await {
                Ok(_) => found.push(*digest),
                Err(RegistryError::BlobUnknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The tree hashes of a blob that is stored here, and their root.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`] for a blob that is not, or our own trouble.
    pub async fn load_outboard(&self, blob: &BlobInfo) -> Result<(Outboard, [u8; 32]), RegistryError> {
        let Place::Here { account, key, blake3 } = &blob.place else {
            return Err(RegistryError::BlobUnknown { digest: blob.digest });
        };
        match self.inner.storage.load_outboard(account, key, blake3).await {
            Ok(outboard) => Ok((outboard, *blake3)),
            Err(error) if error.is_damage() => {
                self.note_damage(blob, &error).await?;
                Err(RegistryError::BlobUnknown { digest: blob.digest })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a part of a blob for reading. `range` is in bytes and within the blob. Where what is stored here turns out to
    /// be lost or wrong, now or later, it comes from elsewhere.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`] when it was deleted meanwhile, or our own trouble.
    pub async fn open_blob(&self, blob: &BlobInfo, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        match &blob.place {
            Place::Here { account, key, blake3 } => {
                match self.inner.storage.open_blob(account, key, blake3, range.clone()).await {
                    Ok(reader) => Ok(BlobStream::here(self, blob, reader, range)),
                    Err(error) if error.is_damage() => Box::pin(self.recover_blob(blob, range, error)).await,
                    Err(error) => Err(error.into()),
                }
            }
            Place::OnTheWay(flight) => {
                let reader = Source::new(&self.inner, flight).read(range.clone());
                Ok(BlobStream::on_the_way(reader, range))
            }
            Place::OnTheWayFromOutside(flight) => Ok(BlobStream::on_the_way(flight.clone().read(range.clone()), range)),
            Place::There => Err(RegistryError::BlobUnknown { digest: blob.digest }),
        }
    }

    /// Mounts a blob of another repository of the same account, or of any of them when `from` is `None`. Gives `false`
    /// when that is not possible; the caller then starts an upload. In an account of another region a blob that is not
    /// here is mounted there.
    ///
    /// Cancel safety: once the write is queued it is done, whether or not anybody waits.
    ///
    /// Source: OCI distribution-spec, "Mounting a blob from another repository".
    ///
    /// # Errors
    /// [`RegistryError::AccountUnknown`], or our own trouble.
    pub async fn mount_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        self.mount_blob_within(&WriteWindow::open(), repository, digest, from).await
    }

    /// The same for a client of another region, while that waits.
    ///
    /// # Errors
    /// Those of [`Self::mount_blob`], and [`RegistryError::Overdue`].
    pub async fn mount_blob_within(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        if from.is_some_and(|from| from.account_str() != repository.account_str()) {
            return Ok(false);
        }
        let elsewhere = self.inner.elsewhere(&repository.account());
        if self.mount_local_blob(window, repository, digest, from).await? {
            return Ok(true);
        }
        match elsewhere {
            Some(elsewhere) => {
                window.refuse_passing_on(repository, &elsewhere)?;
                elsewhere.upstream.mount(&elsewhere.primary, repository, digest, from).await
            }
            None => Ok(false),
        }
    }

    async fn mount_local_blob(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        let (inner, repository, digest, from) = (self.inner.clone(), repository.clone(), *digest, from.cloned());
        let may_be_there = {
            let account = repository.account();
            let from = from.clone();
            inner.metadata.read(move |reader| {
                let Some(account) = reader.get_account(&account)? else { return Ok::<_, RegistryError>(false) };
                let blob = match from {
                    Some(from) => reader.get_blob_by_name(from.as_str(), &digest)?,
                    None => reader.get_account_blob(account, &digest)?,
                };
                Ok(blob.is_some_and(|blob| blob.is_sound))
            })
        };
        if !may_be_there.await? {
            return Ok(false);
        }
        inner.check_account(&repository).await?;
        let (metadata, window) = (inner.metadata.clone(), window.clone());
        metadata
            .write(move |transaction| {
                window.begin(&repository.account())?;
                let account = inner.account_for_push(transaction, &repository.account())?;
                let blob = match &from {
                    Some(from) => transaction.get_blob_by_name(from.as_str(), &digest)?,
                    None => transaction.get_account_blob(account, &digest)?,
                };
                let Some(blob) = blob.filter(|blob| blob.is_sound) else { return Ok(false) };
                let now = inner.clock.now();
                let id = transaction.ensure_repository(account, &repository, now)?;
                transaction.ensure_mount(id, blob.id, now)?;
                Ok(true)
            })
            .await
    }
}

impl Inner {
    /// The row of a blob that is mounted in the repository here, and whose bytes are right as far as is known.
    pub(super) async fn blob_here(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<BlobRow, RegistryError> {
        self.refuse_former(&repository.account())?;
        let (repository, digest) = (repository.clone(), *digest);
        self.metadata
            .read(move |reader| {
                let blob = reader.get_blob_by_name(repository.as_str(), &digest)?.filter(|blob| blob.is_sound);
                blob.ok_or(RegistryError::BlobUnknown { digest })
            })
            .await
    }
}
