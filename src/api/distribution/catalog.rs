use http::header::{LINK, WARNING};
use keppel_federation::vocabulary::{AccountName, RepositoryName};
use serde_json::json;

use super::{
    Answer, Call, JSON, document,
    manifests::STALE,
    query::{PageQuery, encode},
    set,
};
use crate::{api::error::ApiError, registry::Page};

/// `GET /v2/_catalog`: the full names of all repositories; at an account's own host, the names within it.
pub(super) async fn get(call: &Call<'_>) -> Answer {
    let registry = call.state.registry();
    let page = PageQuery::parse(call.query, registry.options().page_size_max)?;
    if page.limit == 0 {
        return Ok(document(JSON, &json!({ "repositories": [] })));
    }
    let found = match call.visitor.account() {
        None => visible(call, page.after.as_deref(), page.limit, None).await?,
        Some(account) => {
            let prefix = format!("{account}/");
            let after = format!("{prefix}{}", page.after.as_deref().unwrap_or_default());
            let mut found = visible(call, Some(&after), page.limit, Some(account)).await?;
            found.items.iter_mut().for_each(|name| drop(name.drain(..prefix.len())));
            found
        }
    };
    let mut response = document(JSON, &json!({ "repositories": found.items }));
    if found.is_stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    if let (true, Some(last)) = (found.more, found.items.last()) {
        let link = format!("</v2/_catalog?n={}&last={}>; rel=\"next\"", page.limit, encode(last));
        set(&mut response, LINK, link);
    }
    Ok(response)
}

/// A page of what the caller may see, perhaps of one account. Passes over the rest, so that nothing tells of it, not even
/// the page's end.
async fn visible(
    call: &Call<'_>,
    after: Option<&str>,
    limit: usize,
    within: Option<&AccountName>,
) -> Result<Page<String>, ApiError> {
    let registry = call.state.registry();
    if call.visitor.sees_everything() {
        return Ok(registry.list_repositories(within, after, limit).await?);
    }
    let longest = registry.options().page_size_max;
    let limit = limit.min(longest);
    let (mut items, mut after, mut is_stale) = (Vec::new(), after.map(str::to_owned), false);
    loop {
        let found = registry.list_repositories(within, after.as_deref(), longest).await?;
        let seen = |name: &String| RepositoryName::parse(name).is_ok_and(|name| call.visitor.access(&name).see);
        is_stale |= found.is_stale;
        after = found.items.last().cloned();
        items.extend(found.items.into_iter().filter(seen).take(limit + 1 - items.len()));
        if !found.more || after.is_none() || items.len() > limit {
            let more = items.len() > limit;
            items.truncate(limit);
            return Ok(Page { items, more, is_stale });
        }
    }
}
