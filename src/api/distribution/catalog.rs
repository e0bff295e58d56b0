use http::header::LINK;
use serde_json::json;

use super::{
    Answer, Call, JSON, document,
    query::{PageQuery, encode},
    set,
};

/// `GET /v2/_catalog`: the full names of all repositories.
pub(super) async fn get(call: &Call<'_>) -> Answer {
    let registry = call.state.registry();
    let page = PageQuery::parse(call.query, registry.options().page_size_max)?;
    if page.limit == 0 {
        return Ok(document(JSON, &json!({ "repositories": [] })));
    }
    let found = registry.list_repositories(page.after.as_deref(), page.limit).await?;
    let mut response = document(JSON, &json!({ "repositories": found.items }));
    if let (true, Some(last)) = (found.more, found.items.last()) {
        let link = format!("</v2/_catalog?n={}&last={}>; rel=\"next\"", page.limit, encode(last));
        set(&mut response, LINK, link);
    }
    Ok(response)
}
