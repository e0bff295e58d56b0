use http::{
    HeaderName, HeaderValue,
    header::{LINK, WARNING},
};
use serde_json::json;

use super::{
    Answer, Call, document,
    manifests::STALE,
    parse_digest,
    query::{PageQuery, encode},
    set,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// `GET /v2/<name>/referrers/<digest>`: what refers to a manifest as its subject, whether or not that is here.
pub(super) async fn get(call: &Call<'_>, name: &str, digest: &str) -> Answer {
    let registry = call.state.registry();
    let (repository, subject) = (call.repository(name)?, parse_digest(digest)?);
    let page = PageQuery::parse(call.query, registry.options().page_size_max)?;
    let after = page.after.as_deref().map(parse_digest).transpose()?;
    let artifact_type = call.query.get("artifactType").filter(|text| !text.is_empty());
    let filter = artifact_type.as_deref();
    let limit = page.limit.max(1);
    let mut found = registry.list_referrers(&repository, &subject, filter, after.as_ref(), limit).await?;
    if page.limit == 0 {
        (found.items, found.more) = (Vec::new(), false);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": found.items });
    let mut response = document(HeaderValue::from_static(INDEX), &index);
    if filter.is_some() {
        response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if found.is_stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    if let (true, Some(last)) = (found.more, found.items.last()) {
        let filter = filter.map(|filter| format!("&artifactType={}", encode(filter))).unwrap_or_default();
        let link = format!("</v2/{name}/referrers/{subject}?n={limit}&last={}{filter}>; rel=\"next\"", last.digest);
        set(&mut response, LINK, link);
    }
    Ok(response)
}
