//! Accounts whose content comes from a registry outside the federation: what is here is served from here, all else is
//! fetched there when it is first pulled, kept, and served.
//!
//! Only the account's primary asks that registry; other regions ask the primary. So credentials are used, and limits
//! counted, in one place; where the primary may not ask any more, another region asks on its behalf (`delegated`).
//!
//! Invariants: a tag is answered from here for the time of freshness only, after that the registry is asked; when it
//! cannot be asked, the answer is marked stale; only a 404 there is absence; what comes is compared with its digest
//! before it is kept, and before a client has all of it; whoever may not have things fetched gets what is here.
//!
//! Deliberately absent: lists and referrers of what is not here, and fetching before somebody asks, but for configurations of
//! images (`configs`).

mod delegated;
mod flight;
mod freshness;
mod questions;
mod reader;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Algorithm, Digest, Reference, RepositoryName};

use super::elsewhere::Deletion;
use super::manifest_push::{digest_of, record_from_elsewhere};
use super::platforms::is_wanted;
use super::{Inner, Manifest, ManifestTarget, Registry, RegistryError};
use crate::external::{ExternalClient, ExternalError, ExternalManifest, ManifestAnswer, Origin};
use crate::model::policy::ExternalSource;

pub(super) use flight::{ExternalFlight, ExternalFlights};

use freshness::{Freshness, Key};
use questions::Questions;

/// Whether a pull may have something fetched from outside that was not pulled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstPull {
    /// It may.
    Allowed,
    /// It gets what is here.
    Refused,
}

/// What the registry keeps for accounts of this kind.
pub(super) struct External {
    client: OnceLock<ExternalClient>,
    freshness: Freshness,
    questions: Questions<Kept>,
    pub(super) flights: ExternalFlights,
}

impl External {
    pub(super) fn new(options: &super::RegistryOptions) -> Self {
        Self {
            client: OnceLock::new(),
            freshness: Freshness::new(options.external_tag_freshness, options.external_absence_freshness),
            questions: Questions::default(),
            flights: ExternalFlights::default(),
        }
    }
}

/// An account of this kind, and the way to the registry that it mirrors.
#[derive(Clone)]
pub(in crate::registry) struct Mirror {
    account: AccountName,
    client: ExternalClient,
    origin: Origin,
}

impl Mirror {
    /// Where the registry outside is.
    pub(super) fn url(&self) -> &str {
        self.origin.url()
    }
}

/// What a question for a manifest came to.
#[derive(Clone)]
enum Kept {
    /// There is none.
    Absent,
    /// What was known is still so, or what came was recorded.
    Here,
    /// There was no room to keep it.
    PassingThrough { digest: Digest, media_type: String, bytes: Bytes },
}

impl Registry {
    /// Lets accounts be mirrors of registries outside. Called once, before it serves.
    pub fn connect_external(&self, client: ExternalClient) {
        // A second one would not know what the first has learned.
        let _ = self.inner.external.client.set(client);
    }

    /// The registry outside that an account mirrors, as it is written; `None`: it mirrors none.
    pub fn mirrored(&self, account: &AccountName) -> Option<String> {
        self.inner.external_source(account).map(|source| source.url.clone())
    }

    /// Whether what this region holds of an account can be had again from elsewhere, and so need not be whole.
    pub fn is_copy(&self, account: &AccountName) -> bool {
        self.inner.is_copy(account)
    }
}

impl Inner {
    /// The registry outside that an account mirrors; `None`: it mirrors none.
    pub(super) fn external_source(&self, account: &AccountName) -> Option<Arc<ExternalSource>> {
        self.claims.rules(account)?.policies?.external_source().cloned()
    }

    /// Whether what this region holds of an account can be had again from elsewhere: its primary is another region, or
    /// its content comes from outside.
    pub(super) fn is_copy(&self, account: &AccountName) -> bool {
        self.elsewhere(account).is_some() || self.external_source(account).is_some()
    }

    /// The registry outside that an account mirrors and the way there, when this node is the one that asks it.
    pub(super) fn mirror(&self, account: &AccountName) -> Option<Mirror> {
        let client = self.external.client.get()?;
        if self.elsewhere(account).is_some() {
            return None;
        }
        let source = self.external_source(account)?;
        let origin = Origin::new(account.clone(), source);
        Some(Mirror { account: account.clone(), client: client.clone(), origin })
    }

    /// A manifest of a mirror: by digest from here if it is here, by tag from here as long as that is fresh.
    pub(super) async fn manifest_from_external(
        self: &Arc<Self>,
        mirror: &Mirror,
        repository: &RepositoryName,
        reference: &Reference,
        first_pull: FirstPull,
    ) -> Result<Manifest, RegistryError> {
        let unknown =
            || RegistryError::ManifestUnknown { repository: repository.clone(), reference: reference.clone() };
        let key = Key::new(repository, reference);
        let here = match (self.manifest_here(repository, reference).await?, reference) {
            (Some(manifest), Reference::Digest(_)) => return Ok(manifest),
            (Some(manifest), Reference::Tag(_))
                if self.external.freshness.is_current(&key, &manifest.digest, Instant::now()) =>
            {
                return Ok(manifest);
            }
            (here, _) => here,
        };
        if first_pull == FirstPull::Refused {
            let refused = || RegistryError::FirstPullRefused { repository: repository.clone() };
            return here.map(Manifest::stale).ok_or_else(refused);
        }
        if here.is_none() && self.external.freshness.is_absent(&key, Instant::now()) {
            return Err(unknown());
        }
        if let Reference::Digest(digest) = reference
            && self.is_filtered_out(mirror, repository, digest).await?
        {
            return Err(unknown());
        }
        let known = here.as_ref().map(|manifest| manifest.digest);
        let asked = self.external.questions.ask(&key, || self.ask_external(mirror, repository, reference, known)).await;
        match (asked, here) {
            (Ok(Kept::Here), _) => self.read_manifest(repository, reference).await,
            (Ok(Kept::PassingThrough { digest, media_type, bytes }), _) => {
                Ok(Manifest::passing_through(digest, media_type, bytes))
            }
            (Ok(Kept::Absent), here) => {
                if let (Some(_), Reference::Tag(tag)) = (here, reference) {
                    self.forget(repository, &Deletion::Tag(tag.clone())).await;
                }
                Err(unknown())
            }
            (Err(error), Some(here)) => {
                tracing::debug!(%repository, %reference, %error, "answering with what was known");
                metrics::counter!("keppel_stale_answers_total").increment(1);
                Ok(here.stale())
            }
            (Err(error), None) => Err(mirror.failed(error)),
        }
    }

    /// A manifest of an account that another region asks for: what this region has, for those who may not have more.
    pub(super) async fn manifest_kept_here(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Manifest, RegistryError> {
        match (self.manifest_here(repository, reference).await?, reference) {
            (Some(manifest), Reference::Digest(_)) => Ok(manifest),
            (Some(manifest), Reference::Tag(_)) => Ok(manifest.stale()),
            (None, _) => Err(RegistryError::FirstPullRefused { repository: repository.clone() }),
        }
    }

    async fn manifest_here(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Option<Manifest>, RegistryError> {
        match self.read_manifest(repository, reference).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(RegistryError::ManifestUnknown { .. } | RegistryError::RepositoryUnknown { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry outside and keeps what it gives. A tag that is known is asked about first, which costs nothing
    /// where pulls are counted.
    async fn ask_external(
        self: &Arc<Self>,
        mirror: &Mirror,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<Digest>,
    ) -> Result<Kept, ExternalError> {
        let (client, origin, path) = (&mirror.client, &mirror.origin, repository.path());
        let key = Key::new(repository, reference);
        if let (Some(known), Reference::Tag(tag)) = (known, reference) {
            match client.tag_digest(origin, path, tag.as_str()).await {
                Ok(None) => return Ok(self.is_absent(key)),
                Ok(Some(digest)) if digest == known => {
                    self.external.freshness.note_tag(key, digest, Instant::now());
                    return Ok(Kept::Here);
                }
                Ok(Some(digest)) => {
                    if let Ok(manifest) = self.read_manifest(repository, &Reference::Digest(digest)).await {
                        // It is only the tag that is new.
                        let media_type = String::from_utf8_lossy(&manifest.media_type).into_owned();
                        let bytes = manifest.bytes.clone();
                        return self.keep_external(mirror, repository, reference, digest, media_type, bytes).await;
                    }
                }
                // Some registries know no such question; then the manifest is asked for.
                Err(ExternalError::Unusable { .. }) => {}
                // Another region may be asked.
                Err(ExternalError::Limited { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.external_manifest(mirror, repository, reference, known.as_ref()).await? {
            ManifestAnswer::Absent => Ok(self.is_absent(key)),
            ManifestAnswer::Same => {
                if let Some(known) = known {
                    self.external.freshness.note_tag(key, known, Instant::now());
                }
                Ok(Kept::Here)
            }
            ManifestAnswer::Found(ExternalManifest { digest, media_type, bytes }) => {
                let named = match reference {
                    Reference::Digest(asked) => Some(*asked),
                    Reference::Tag(_) => digest,
                };
                let algorithm = named.map_or(Algorithm::Sha256, |named| named.algorithm());
                let actual = digest_of(algorithm, &bytes);
                if named.is_some_and(|named| named != actual) {
                    tracing::error!(%repository, %reference, upstream = origin.url(), "a registry outside gave wrong bytes");
                    metrics::counter!("keppel_external_wrong_total").increment(1);
                    return Err(ExternalError::unusable("a manifest is not what its digest says"));
                }
                self.keep_external(mirror, repository, reference, actual, media_type, bytes).await
            }
        }
    }

    fn is_absent(&self, key: Key) -> Kept {
        self.external.freshness.note_absence(key, Instant::now());
        Kept::Absent
    }

    async fn keep_external(
        self: &Arc<Self>,
        mirror: &Mirror,
        repository: &RepositoryName,
        reference: &Reference,
        digest: Digest,
        media_type: String,
        bytes: Bytes,
    ) -> Result<Kept, ExternalError> {
        let target = match reference {
            Reference::Tag(tag) => ManifestTarget::Tag(tag.clone()),
            Reference::Digest(digest) => ManifestTarget::Digest { digest: *digest, tags: Vec::new() },
        };
        let recorded = record_from_elsewhere(self, repository, &digest, target, &media_type, bytes.clone(), None).await;
        match recorded {
            Ok(()) => {
                if let Reference::Tag(_) = reference {
                    self.external.freshness.note_tag(Key::new(repository, reference), digest, Instant::now());
                }
                metrics::counter!("keppel_external_manifests_total").increment(1);
                self.fetch_config(mirror, repository, &digest).await;
                Ok(Kept::Here)
            }
            Err(RegistryError::ManifestInvalid { reason }) => Err(ExternalError::unusable(reason)),
            Err(error) => {
                // A pull does not fail because there is no room to keep what passes through.
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, %repository, upstream = mirror.origin.url(), "a manifest from outside is not kept");
                Ok(Kept::PassingThrough { digest, media_type, bytes })
            }
        }
    }

    /// Whether an index here lists the manifest, and each that does, does so for a platform that is not replicated.
    async fn is_filtered_out(
        &self,
        mirror: &Mirror,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        if mirror.origin.source().platform_filter.is_empty() {
            return Ok(false);
        }
        let (name, child) = (repository.clone(), *digest);
        let parents = self.metadata.read(move |reader| match reader.get_repository(&name)? {
            Some(id) => Ok::<_, RegistryError>(reader.list_parents(id, &child)?),
            None => Ok(Vec::new()),
        });
        let parents = parents.await?;
        let filter = &mirror.origin.source().platform_filter;
        Ok(!parents.is_empty() && !parents.iter().any(|index| is_wanted(index, digest, filter)))
    }
}

impl Mirror {
    /// The registry outside gave nothing.
    fn failed(&self, error: ExternalError) -> RegistryError {
        RegistryError::External { account: self.account.clone(), upstream: self.origin.url().to_owned(), error }
    }
}
