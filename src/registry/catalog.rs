//! The catalog: the repositories of all accounts, wherever their primaries are.
//!
//! It follows the rule of all reads: what is here of another region's accounts is an answer only while this node may answer
//! for all of them; else their primaries are asked, each once for a page. Where one cannot be asked the page has what was
//! last known, and is marked. A repository without a manifest is in no list: it may be here, and nowhere else, for blobs
//! that are being pushed.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use keppel_federation::vocabulary::{AccountName, NodeId};

use super::elsewhere::{AccountsElsewhere, Fresh};
use super::{Inner, Page, Registry, RegistryError};

impl Registry {
    /// Full names of repositories after `after`; `within`: only those of this account. `limit` is cut to the longest page.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`] where nothing is known of what there is, or our own trouble.
    pub async fn list_repositories(
        &self,
        within: Option<&AccountName>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<String>, RegistryError> {
        let (inner, after) = (&self.inner, after.unwrap_or_default());
        let limit = limit.min(inner.options.page_size_max);
        let Some(upstream) = inner.upstream.get() else {
            return inner.read_repositories(within, after, limit, BTreeSet::new()).await;
        };
        // What was claimed elsewhere a moment ago belongs to the answer.
        let is_current = inner.claims.confirm_majority().await;
        let elsewhere = upstream.primaries(within);
        let mut asked_anyway: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let before: Vec<_> = elsewhere.iter().map(|those| (those, inner.all_fresh(those))).collect();
            let to_ask = |(those, fresh): &&(&AccountsElsewhere, Option<Vec<Fresh>>)| {
                fresh.is_none() || asked_anyway.contains(&those.primary.node)
            };
            let ask = |(those, _): &(&AccountsElsewhere, Option<Vec<Fresh>>)| {
                let primary = those.primary.clone();
                async move { upstream.repositories(&primary, within, after, limit + 1).await }
            };
            let asked: Vec<_> = before.iter().filter(to_ask).collect();
            let answers = join_all(asked.iter().map(|those| ask(those))).await;
            let (mut told, mut left_out, mut unreachable) = (Vec::new(), BTreeSet::new(), None);
            for ((those, _), answer) in asked.into_iter().zip(answers) {
                match answer {
                    Ok(page) => {
                        left_out.extend(those.accounts.iter().cloned());
                        told.push(page);
                    }
                    Err(reason) => {
                        let account = those.accounts.first().cloned();
                        let region = those.primary.region.clone();
                        let error = |account| RegistryError::PrimaryUnreachable { account, region, reason };
                        unreachable = unreachable.or(account.map(error));
                    }
                }
            }
            let own = inner.read_own_repositories(within, after, limit, left_out, &elsewhere).await?;
            let is_other = |(those, fresh): &&(&AccountsElsewhere, Option<Vec<Fresh>>)| {
                fresh.is_some() && !asked_anyway.contains(&those.primary.node) && inner.all_fresh(those) != *fresh
            };
            let changed: BTreeSet<NodeId> =
                before.iter().filter(is_other).map(|(those, _)| those.primary.node).collect();
            if !changed.is_empty() {
                // What was read may be neither the one nor the other.
                asked_anyway.extend(changed);
                continue;
            }
            let is_stale = own.is_stale || !is_current || unreachable.is_some();
            let page = merge(own, told, limit);
            return match unreachable {
                Some(error) if page.items.is_empty() => Err(error),
                _ => Ok(Page { is_stale, ..page }),
            };
        }
    }

    /// The same, of accounts of which this node is the primary.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn list_own_repositories(
        &self,
        within: Option<&AccountName>,
        after: &str,
        limit: usize,
    ) -> Result<Page<String>, RegistryError> {
        let limit = limit.min(self.inner.options.page_size_max);
        let elsewhere = self.inner.upstream.get().map(|upstream| upstream.primaries(within)).unwrap_or_default();
        let left_out = elsewhere.iter().flat_map(|those| those.accounts.iter().cloned()).collect();
        self.inner.read_own_repositories(within, after, limit, left_out, &elsewhere).await
    }
}

impl Inner {
    /// What shows that this node may answer for all of these accounts.
    fn all_fresh(&self, those: &AccountsElsewhere) -> Option<Vec<Fresh>> {
        self.copies.all_fresh(those.accounts.iter(), those.primary.node)
    }

    /// What is here, marked unless this node may speak for its own part of it, which is everywhere when this comes back.
    async fn read_own_repositories(
        &self,
        within: Option<&AccountName>,
        after: &str,
        limit: usize,
        left_out: BTreeSet<AccountName>,
        elsewhere: &[AccountsElsewhere],
    ) -> Result<Page<String>, RegistryError> {
        let page = self.read_repositories(within, after, limit, left_out).await?;
        let accounts: BTreeSet<AccountName> = page.items.iter().filter_map(|name| account_of(name)).collect();
        let is_ours = |account: &&AccountName| !elsewhere.iter().any(|those| those.accounts.contains(*account));
        let mut speaks = true;
        for account in accounts.iter().filter(is_ours) {
            if self.speaks_for(account) {
                self.settled(account).await;
            }
            speaks &= self.speaks_for(account);
        }
        let is_stale = !(self.confirm_authority().await && speaks);
        Ok(Page { is_stale, ..page })
    }

    async fn read_repositories(
        &self,
        within: Option<&AccountName>,
        after: &str,
        limit: usize,
        mut left_out: BTreeSet<AccountName>,
    ) -> Result<Page<String>, RegistryError> {
        left_out.extend(self.former_accounts());
        let prefix = within.map(|account| format!("{account}/")).unwrap_or_default();
        let mut after = after.max(&*prefix).to_owned();
        self.metadata
            .read(move |reader| {
                let mut items: Vec<String> = Vec::new();
                loop {
                    let names = reader.list_repositories(&after, limit + 1)?;
                    let is_last = names.len() <= limit || !names.iter().all(|name| name.starts_with(&prefix));
                    if let Some(last) = names.last() {
                        after.clone_from(last);
                    }
                    let is_wanted = |name: &String| {
                        name.starts_with(&prefix) && account_of(name).is_none_or(|account| !left_out.contains(&account))
                    };
                    items.extend(names.into_iter().filter(is_wanted));
                    if is_last || items.len() > limit {
                        return Ok(Page::cut(items, limit));
                    }
                }
            })
            .await
    }
}

/// The account of a full name.
fn account_of(name: &str) -> Option<AccountName> {
    name.split_once('/').and_then(|(account, _)| AccountName::parse(account).ok())
}

/// One page out of several that have no name in common. What follows the end of one that has more is left to later pages.
fn merge(own: Page<String>, told: Vec<Page<String>>, limit: usize) -> Page<String> {
    let (mut items, mut horizon): (Vec<String>, Option<String>) = (Vec::new(), None);
    for page in told.into_iter().chain([own]) {
        if let (true, Some(last)) = (page.more, page.items.last())
            && horizon.as_ref().is_none_or(|horizon| last < horizon)
        {
            horizon = Some(last.clone());
        }
        items.extend(page.items);
    }
    items.sort_unstable();
    items.dedup();
    let has_more = horizon.is_some();
    if let Some(horizon) = horizon {
        items.retain(|name| *name <= horizon);
    }
    let page = Page::cut(items, limit);
    Page { more: page.more || has_more, ..page }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(names: &[&str], more: bool) -> Page<String> {
        Page { items: names.iter().map(ToString::to_string).collect(), more, is_stale: false }
    }

    #[test]
    fn pages_of_several_regions_are_one_page_without_gaps() {
        let all = merge(page(&["b/1", "d/1"], false), vec![page(&["a/1", "c/1"], false)], 10);
        assert_eq!(all, page(&["a/1", "b/1", "c/1", "d/1"], false));
        let cut = merge(page(&["b/1", "d/1"], false), vec![page(&["a/1", "c/1"], false)], 3);
        assert_eq!(cut, page(&["a/1", "b/1", "c/1"], true));
        // There may be names between "c/1" and "d/1" that the other region has not told.
        let short = merge(page(&["b/1", "d/1"], false), vec![page(&["a/1", "c/1"], true)], 10);
        assert_eq!(short, page(&["a/1", "b/1", "c/1"], true));
        let two = merge(page(&["b/1"], true), vec![page(&["a/1", "c/1"], true), page(&["aa/1"], false)], 10);
        assert_eq!(two, page(&["a/1", "aa/1", "b/1"], true));
    }
}
