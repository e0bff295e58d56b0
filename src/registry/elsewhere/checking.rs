//! What a primary tells of an account, checked before it is applied.

use std::collections::BTreeMap;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};

use crate::metadata::ManifestCopy;
use crate::model::ManifestDescription;
use crate::registry::RegistryError;
use crate::registry::manifest_push::digest_of;

/// A manifest that was checked off the writer's thread.
pub(super) struct Prepared {
    pub(super) copy: ManifestCopy,
    pub(super) description: ManifestDescription,
}

pub(super) type PreparedOf = BTreeMap<(String, Digest), Prepared>;

/// Checks manifests: their digests, that they can be read, that they belong to the account.
pub(super) async fn prepare(manifests: Vec<(String, ManifestCopy)>) -> Result<PreparedOf, RegistryError> {
    let checking = tokio::task::spawn_blocking(move || {
        let mut prepared = BTreeMap::new();
        for (repository, copy) in manifests {
            let digest = copy.digest;
            let actual = digest_of(digest.algorithm(), &copy.bytes);
            if actual != digest {
                return Err(RegistryError::DigestMismatch { expected: digest, actual });
            }
            let description = ManifestDescription::parse(Some(&copy.media_type), &copy.bytes)
                .map_err(|error| RegistryError::ManifestInvalid { reason: error.to_string() })?;
            prepared.insert((repository, digest), Prepared { copy, description });
        }
        Ok(prepared)
    });
    checking.await.map_err(|_| RegistryError::Interrupted)?
}

/// The name of a repository of this account.
pub(super) fn repository_of(account: &AccountName, name: &str) -> Result<RepositoryName, RegistryError> {
    let invalid = || RegistryError::ManifestInvalid { reason: format!("{name:?} is no repository of {account}") };
    let repository = RepositoryName::parse(name).map_err(|_| invalid())?;
    (repository.account_str() == account.as_str()).then_some(repository).ok_or_else(invalid)
}
