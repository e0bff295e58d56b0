//! Lists of tags.

use keppel_federation::vocabulary::RepositoryName;

use super::elsewhere::Elsewhere;
use super::{Inner, Registry, RegistryError};

/// One page of a list in bytewise order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether there are further ones after the last.
    pub more: bool,
    /// Whether this is only what was known when the primary was last reached.
    pub is_stale: bool,
}

impl<T> Page<T> {
    /// Makes a page of `limit` items out of those and perhaps one more.
    pub(super) fn cut(mut items: Vec<T>, limit: usize) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        Self { items, more, is_stale: false }
    }
}

impl Registry {
    /// Names of tags after `after`. `limit` is cut to the longest page.
    ///
    /// Source: OCI distribution-spec, "Listing tags".
    ///
    /// # Errors
    /// [`RegistryError::RepositoryUnknown`], or our own trouble.
    pub async fn list_tags(
        &self,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<String>, RegistryError> {
        let limit = limit.min(self.inner.options.page_size_max);
        let Some(elsewhere) = self.inner.elsewhere(&repository.account()) else {
            let read = self.inner.read_tags(repository, after, limit);
            return self.inner.as_primary(&repository.account(), read).await;
        };
        let before = self.inner.fresh(&elsewhere, repository);
        if before.is_some() {
            let read = self.inner.read_tags(repository, after, limit).await;
            let is_clear = match &read {
                // Repositories without a tag may be here for blobs that are being pushed.
                Ok(page) => !page.items.is_empty(),
                Err(error) => matches!(error, RegistryError::RepositoryUnknown { .. }),
            };
            if is_clear && self.inner.is_still(before, &elsewhere, repository) {
                return read;
            }
        }
        let Elsewhere { primary, upstream } = elsewhere;
        let asked = upstream.tags(&primary, repository, after, limit).await;
        let known = self.inner.read_tags(repository, after, limit);
        self.inner.or_as_known(&repository.account(), asked, known).await
    }
}

impl Inner {
    /// The tags that are here.
    async fn read_tags(
        &self,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<String>, RegistryError> {
        self.refuse_former(&repository.account())?;
        let (repository, after) = (repository.clone(), after.unwrap_or_default().to_owned());
        self.metadata
            .read(move |reader| {
                let id = reader.get_repository(&repository)?;
                let id = id.ok_or(RegistryError::RepositoryUnknown { repository })?;
                Ok(Page::cut(reader.list_tags(id, &after, limit + 1)?, limit))
            })
            .await
    }
}
