use http::header::LINK;
use keppel_federation::vocabulary::RepositoryName;
use serde_json::json;

use super::{
    Answer, Call, JSON, document,
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
        None => visible(call, page.after.as_deref(), page.limit, "").await?,
        Some(account) => {
            let prefix = format!("{account}/");
            let after = format!("{prefix}{}", page.after.as_deref().unwrap_or_default());
            let mut found = visible(call, Some(&after), page.limit, &prefix).await?;
            found.items.iter_mut().for_each(|name| drop(name.drain(..prefix.len())));
            found
        }
    };
    let mut response = document(JSON, &json!({ "repositories": found.items }));
    if let (true, Some(last)) = (found.more, found.items.last()) {
        let link = format!("</v2/_catalog?n={}&last={}>; rel=\"next\"", page.limit, encode(last));
        set(&mut response, LINK, link);
    }
    Ok(response)
}

/// A page of what the caller may see of the names that begin with `prefix`. Passes over the rest, so that nothing tells of
/// it, not even the page's end.
async fn visible(call: &Call<'_>, after: Option<&str>, limit: usize, prefix: &str) -> Result<Page<String>, ApiError> {
    let registry = call.state.registry();
    if call.visitor.sees_everything() && prefix.is_empty() {
        return Ok(registry.list_repositories(after, limit).await?);
    }
    let limit = limit.min(registry.options().page_size_max);
    let (mut items, mut after) = (Vec::new(), after.map(str::to_owned));
    loop {
        let mut found = registry.list_repositories(after.as_deref(), registry.options().page_size_max).await?;
        if let Some(end) = found.items.iter().position(|name| !name.starts_with(prefix)) {
            found.items.truncate(end);
            found.more = false;
        }
        let seen = |name: &String| RepositoryName::parse(name).is_ok_and(|name| call.visitor.access(&name).see);
        after = found.items.last().cloned();
        items.extend(found.items.into_iter().filter(seen).take(limit + 1 - items.len()));
        if !found.more || items.len() > limit {
            let more = items.len() > limit;
            items.truncate(limit);
            return Ok(Page { items, more, is_stale: false });
        }
    }
}
