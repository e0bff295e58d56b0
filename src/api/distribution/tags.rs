use http::header::{LINK, WARNING};
use serde_json::json;

use super::{
    Answer, Call, JSON, document,
    manifests::STALE,
    query::{PageQuery, encode},
    set,
};

/// `GET /v2/<name>/tags/list`: the tags of a repository in bytewise order.
pub(super) async fn get(call: &Call<'_>, name: &str) -> Answer {
    let registry = call.state.registry();
    let repository = call.repository(name)?;
    let page = PageQuery::parse(call.query, registry.options().page_size_max)?;
    // An empty page of an unknown repository is an error all the same.
    let found = registry.list_tags(&repository, page.after.as_deref(), page.limit.max(1)).await?;
    if page.limit == 0 {
        return Ok(document(JSON, &json!({ "name": name, "tags": [] })));
    }
    let mut response = document(JSON, &json!({ "name": name, "tags": found.items }));
    if found.is_stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    if let (true, Some(last)) = (found.more, found.items.last()) {
        let link = format!("</v2/{name}/tags/list?n={}&last={}>; rel=\"next\"", page.limit, encode(last));
        set(&mut response, LINK, link);
    }
    Ok(response)
}
