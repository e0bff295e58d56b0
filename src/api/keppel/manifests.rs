use axum::response::IntoResponse as _;
use http::StatusCode;
use keppel_federation::vocabulary::{Digest, RepositoryName, Tag};
use serde_json::{Map, Value, json};

use super::{Answer, Call, NOT_SCANNED, Refusal, page, repositories::load};
use crate::{
    api::{error::ApiError, limits},
    auth::Action,
    registry::ManifestEntry,
};

/// `GET …/repositories/<repository>/_manifests`: the manifests of a repository with their tags, page by page.
pub(super) async fn list(call: &Call<'_>, account: &str, repository: &str) -> Answer {
    let repository = load(call, account, repository, Action::Pull)?;
    let after = match call.query("marker") {
        Some(marker) => Some(Digest::parse(&marker).map_err(|error| Refusal::invalid("marker", &error))?),
        None => None,
    };
    let found = call.state.registry().list_manifests(&repository, after, call.limit()?).await?;
    Ok(page("manifests", &found, show))
}

/// `DELETE …/_manifests/<digest>`: a manifest and the tags on it.
pub(super) async fn delete(call: &Call<'_>, account: &str, repository: &str, digest: &str) -> Answer {
    let repository = load(call, account, repository, Action::Delete)?;
    call.state.registry().delete_manifest(&repository, &parse_digest(digest)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `DELETE …/_tags/<name>`: a tag, and not the manifest.
pub(super) async fn delete_tag(call: &Call<'_>, account: &str, repository: &str, tag: &str) -> Answer {
    let repository = load(call, account, repository, Action::Delete)?;
    let tag = Tag::parse(tag).map_err(|_| Refusal::plain(StatusCode::NOT_FOUND, format!("no such tag: {tag}")))?;
    call.state.registry().delete_tag(&repository, &tag).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET …/_manifests/<digest>/trivy_report`: nobody scans here, so that every manifest is one that cannot be scanned, as its
/// `vulnerability_status` says; of such there is no report.
pub(super) async fn get_report(call: &Call<'_>, account: &str, repository: &str, digest: &str) -> Answer {
    let repository = load(call, account, repository, Action::Pull)?;
    let limits = call.state.limits();
    let account = repository.account();
    let standing = limits.and_then(|limits| limits.count(account.as_str(), limits::Action::TrivyReportRetrievals));
    let answer = match &standing {
        Some(standing) if standing.retry_seconds.is_some() => {
            Err(ApiError::too_many_requests(account.as_str(), standing).into())
        }
        Some(_) | None => find_report(call, &repository, digest).await,
    };
    let Some(standing) = standing else { return answer };
    let mut response = answer.unwrap_or_else(|refusal| refusal.into_response(call.request_id));
    standing.set_headers(response.headers_mut());
    Ok(response)
}

async fn find_report(call: &Call<'_>, repository: &RepositoryName, digest: &str) -> Answer {
    let digest = parse_digest(digest)?;
    match call.query("format").as_deref() {
        None | Some("json" | "spdx-json") => {}
        Some(other) => {
            return Err(Refusal::invalid("format", &format!("{other:?} is neither \"json\" nor \"spdx-json\"")));
        }
    }
    call.state.registry().ensure_manifest(repository, &digest).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Only a digest in its one form names a manifest here.
fn parse_digest(text: &str) -> Result<Digest, Refusal> {
    Digest::parse(text).map_err(|_| Refusal::plain(StatusCode::NOT_FOUND, format!("no such manifest: {text}")))
}

fn show(entry: &ManifestEntry) -> Value {
    let manifest = &entry.manifest;
    let tags: Vec<Value> = entry
        .tags
        .iter()
        .map(|tag| json!({ "name": tag.name, "pushed_at": tag.pushed_at, "last_pulled_at": tag.last_pulled_at }))
        .collect();
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    set("digest", manifest.digest.to_string().into());
    set("media_type", manifest.media_type.as_str().into());
    set("size_bytes", manifest.total_size_bytes.into());
    set("pushed_at", manifest.pushed_at.into());
    set("last_pulled_at", manifest.last_pulled_at.into());
    set("tags", tags.into());
    for (name, text) in [("labels", &manifest.labels), ("annotations", &manifest.annotations)] {
        match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(map)) if !map.is_empty() => set(name, map.into()),
            _ => {}
        }
    }
    let optional = [
        ("artifact_type", manifest.artifact_type.clone().map(Value::from)),
        ("subject", manifest.subject.map(|subject| subject.to_string().into())),
        ("min_layer_created_at", manifest.min_layer_created_at.map(Value::from)),
        ("max_layer_created_at", manifest.max_layer_created_at.map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            set(name, value);
        }
    }
    if let Some(status) = manifest.gc_status.as_ref().and_then(|text| serde_json::from_str(text).ok()) {
        set("gc_status", status);
    }
    set("vulnerability_status", NOT_SCANNED.into());
    Value::Object(fields)
}
