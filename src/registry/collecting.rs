//! Deleting the images that retention has decided about.

use keppel_federation::vocabulary::RepositoryName;

use super::{Registry, RegistryError};
use crate::metadata::{ManifestId, MetadataError, Reader};
use crate::model::policy::ImageFacts;

/// What is known of an image; `None`: it is not there any more.
///
/// # Errors
/// Our own trouble.
pub fn image_facts(reader: &Reader<'_>, manifest: ManifestId) -> Result<Option<ImageFacts>, MetadataError> {
    let Some(row) = reader.get_image(manifest)? else { return Ok(None) };
    let mut tags = reader.list_tags_of(manifest)?;
    tags.sort_unstable();
    Ok(Some(ImageFacts {
        digest: row.digest,
        pushed_at: row.pushed_at,
        last_pulled_at: row.last_pulled_at,
        tags,
        parent: row.parent,
        subject: row.subject,
        subject_gone: row.subject_gone,
    }))
}

impl Registry {
    /// Deletes images of a repository that are still what they were when that was decided, each with its tags. Gives those
    /// that were deleted, and the bytes of their manifests.
    ///
    /// Cancel safety: once the write is queued it is done, whether or not anybody waits.
    ///
    /// # Errors
    /// [`RegistryError::AccountElsewhere`], or our own trouble.
    pub async fn collect_images(
        &self,
        repository: &RepositoryName,
        decided: Vec<(ManifestId, ImageFacts)>,
    ) -> Result<(Vec<ImageFacts>, u64), RegistryError> {
        self.refuse_elsewhere(&repository.account())?;
        let (inner, repository) = (self.inner.clone(), repository.clone());
        self.inner
            .metadata
            .write(move |transaction| {
                let (mut gone, mut changed, mut bytes) = (Vec::new(), Vec::new(), 0);
                let account = repository.account();
                if inner.check_primacy(&account).is_err() || inner.is_in_disorder(&account) || inner.is_quiet(&account)
                {
                    return Ok((gone, bytes));
                }
                for (manifest, facts) in decided {
                    // A push, a pull, a tag or a parent that came since is decided about anew, by the next run.
                    if image_facts(transaction, manifest)?.as_ref() != Some(&facts) {
                        continue;
                    }
                    let tags = facts.tags.iter().map(String::as_str);
                    match inner.check_tag_deletion(&repository, tags) {
                        Ok(()) => {}
                        Err(RegistryError::TagProtected { .. }) => continue,
                        Err(error) => return Err(error),
                    }
                    bytes += transaction.get_manifest(manifest)?.map_or(0, |row| row.bytes.len() as u64);
                    transaction.delete_manifest(manifest)?;
                    changed.extend(facts.tags.iter().cloned());
                    changed.push(facts.digest.to_string());
                    gone.push(facts);
                }
                inner.evict_around_commit(transaction, &repository, changed);
                Ok((gone, bytes))
            })
            .await
    }
}
