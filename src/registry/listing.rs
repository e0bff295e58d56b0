//! Lists of tags and repositories.

use keppel_federation::vocabulary::RepositoryName;

use super::elsewhere::Elsewhere;
use super::{Registry, RegistryError};

/// One page of a list in bytewise order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Whether there are further ones after the last.
    pub more: bool,
}

impl<T> Page<T> {
    /// Makes a page of `limit` items out of those and perhaps one more.
    pub(super) fn cut(mut items: Vec<T>, limit: usize) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        Self { items, more }
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
        if let Some(Elsewhere { primary, upstream }) = self.inner.elsewhere(&repository.account()) {
            return upstream.tags(&primary, repository, after, limit).await;
        }
        let (repository, after) = (repository.clone(), after.unwrap_or_default().to_owned());
        self.inner
            .metadata
            .read(move |reader| {
                let id = reader.get_repository(&repository)?;
                let id = id.ok_or(RegistryError::RepositoryUnknown { repository })?;
                Ok(Page::cut(reader.list_tags(id, &after, limit + 1)?, limit))
            })
            .await
    }

    /// Full names of repositories after `after`. `limit` is cut to the longest page.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn list_repositories(&self, after: Option<&str>, limit: usize) -> Result<Page<String>, RegistryError> {
        let after = after.unwrap_or_default().to_owned();
        let limit = limit.min(self.inner.options.page_size_max);
        self.inner.metadata.read(move |reader| Ok(Page::cut(reader.list_repositories(&after, limit + 1)?, limit))).await
    }
}
