use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, LOCATION, WARNING},
};
use keppel_federation::vocabulary::{AccountName, Reference, Tag};

use super::{Answer, CONTENT_DIGEST, Call, conditional, empty, parse_reference, set};
use crate::{
    api::{
        body::{Body, CollectError, RequestBody},
        error::{ApiError, Code},
        keppel::NOT_SCANNED,
        service::ApiState,
    },
    registry::{BodyError, Manifest, ManifestTarget, RegistryError},
};

const NO_COUNT: HeaderName = HeaderName::from_static("x-keppel-no-count-towards-last-pulled");
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const VULNERABILITY_STATUS: HeaderName = HeaderName::from_static("x-keppel-vulnerability-status");
const MIN_LAYER_CREATED_AT: HeaderName = HeaderName::from_static("x-keppel-min-layer-created-at");
const MAX_LAYER_CREATED_AT: HeaderName = HeaderName::from_static("x-keppel-max-layer-created-at");
/// What was known when the primary was last reached. Source: RFC 7234 section 5.5.1.
pub(in crate::api) const STALE: HeaderValue = HeaderValue::from_static("110 - \"Response is Stale\"");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

/// A manifest that is in memory, by name and reference as written in the path, which may be below an account's own host.
pub(super) fn get_from_memory(
    state: &ApiState,
    host: Option<&AccountName>,
    name: &str,
    reference: &str,
) -> Option<Arc<Manifest>> {
    let registry = state.registry();
    let account = match host {
        Some(account) => account.as_str(),
        None if name.contains('/') => return registry.cached_manifest(name, reference),
        // One component only: the name belongs to the default account.
        None => state.default_account()?,
    };
    // Joined on the stack, since this is the way of every pull from a registry that is used like that.
    let mut full = [0; 304];
    let end = account.len() + 1 + name.len();
    let target = full.get_mut(..end)?;
    target[..account.len()].copy_from_slice(account.as_bytes());
    target[account.len()] = b'/';
    target[account.len() + 1..].copy_from_slice(name.as_bytes());
    registry.cached_manifest(std::str::from_utf8(target).ok()?, reference)
}

/// `GET` and `HEAD /v2/<name>/manifests/<reference>`.
pub(super) async fn get(call: &Call<'_>, name: &str, reference: &str) -> Answer {
    let repository = call.repository(name)?;
    // The specification's conformance tests ask for a malformed tag and want to hear that there is no such manifest.
    let reference = match reference.contains(':') {
        true => parse_reference(reference)?,
        false => Reference::Tag(Tag::parse(reference).map_err(|error| ApiError::no_such_tag(&error))?),
    };
    let first_pull = call.visitor.first_pull(&repository);
    let manifest = call.state.registry().load_manifest_for(&repository, &reference, first_pull).await;
    let manifest = manifest.map_err(|error| call.visitor.refuse_first_pull(name, error))?;
    respond(call.state, &manifest, call.headers, call.is_head())
}

/// The answer with a manifest, for every way of having found it. Notes the pull.
pub(super) fn respond(state: &ApiState, manifest: &Manifest, headers: &HeaderMap, is_head: bool) -> Answer {
    if !conditional::accepts(headers, &manifest.media_type) {
        let media_type = String::from_utf8_lossy(&manifest.media_type);
        let digest = String::from_utf8_lossy(&manifest.digest_text);
        let message =
            format!("manifest {digest} has the media type {media_type}, which the Accept header does not list");
        return Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, Code::ManifestUnknown, message));
    }
    if !is_head && headers.get(NO_COUNT).is_none_or(|value| value != "1") {
        state.registry().note_pull(manifest);
    }
    let mut response = Response::new(Body::Empty);
    // Room for these and what every answer gets.
    response.headers_mut().reserve(11);
    response.headers_mut().insert(VULNERABILITY_STATUS, HeaderValue::from_static(NOT_SCANNED));
    if let Some((min, max)) = &manifest.layers_created_at {
        set_shared(response.headers_mut(), MIN_LAYER_CREATED_AT, min);
        set_shared(response.headers_mut(), MAX_LAYER_CREATED_AT, max);
    }
    set_shared(response.headers_mut(), CONTENT_DIGEST, &manifest.digest_text);
    set_shared(response.headers_mut(), ETAG, &manifest.etag);
    if manifest.is_stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    if conditional::none_match_holds(headers, &manifest.etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    set_shared(response.headers_mut(), CONTENT_TYPE, &manifest.media_type);
    match is_head {
        true => drop(response.headers_mut().insert(CONTENT_LENGTH, manifest.bytes.len().into())),
        false => *response.body_mut() = Body::Full(manifest.bytes.clone()),
    }
    Ok(response)
}

/// Sets a header to bytes that are shared with whoever holds them.
fn set_shared(headers: &mut HeaderMap, name: HeaderName, value: &Bytes) {
    if let Ok(value) = HeaderValue::from_maybe_shared(value.clone()) {
        headers.insert(name, value);
    }
}

/// `PUT /v2/<name>/manifests/<reference>`.
pub(super) async fn put(call: &Call<'_>, name: &str, reference: &str, body: RequestBody) -> Answer {
    let registry = call.state.registry();
    let repository = call.repository(name)?;
    let target = match parse_reference(reference)? {
        Reference::Tag(tag) => ManifestTarget::Tag(tag),
        Reference::Digest(digest) => ManifestTarget::Digest { digest, tags: tags(call)? },
    };
    let limit_bytes = registry.options().manifest_size_max_bytes;
    let mut place = call.state.manifest_room().place(repository.account());
    // It is short: whoever sends it in drops would keep its memory from others.
    let time = 2 * call.state.options().server.body_idle_timeout;
    let collected = tokio::time::timeout(time, body.collect(limit_bytes, &mut place)).await;
    let bytes = collected.map_err(|_| broken(BodyError::Timeout))?.map_err(|error| match error {
        CollectError::Body(error) => broken(error),
        CollectError::NoRoom(error) => error,
    })?;
    let bytes = bytes.ok_or(RegistryError::ManifestTooLarge { limit_bytes })?;
    let put = registry.put_manifest(&repository, target, media_type(call.headers), bytes).await?;
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, LOCATION, format!("/v2/{name}/manifests/{}", put.digest));
    set(&mut response, CONTENT_DIGEST, put.digest.to_string());
    if let Some(subject) = put.subject {
        set(&mut response, SUBJECT, subject.to_string());
    }
    put.tags.iter().for_each(|tag| set(&mut response, TAG, tag.as_str()));
    Ok(response)
}

fn broken(error: BodyError) -> ApiError {
    let status = match error {
        BodyError::Timeout => StatusCode::REQUEST_TIMEOUT,
        BodyError::Disconnected(_) => StatusCode::BAD_REQUEST,
    };
    ApiError::new(status, Code::ManifestInvalid, error.to_string())
}

/// The tags of `?tag=a&tag=b`.
fn tags(call: &Call<'_>) -> Result<Vec<Tag>, ApiError> {
    let tags_max = call.state.options().tags_per_push_max;
    let tags = call.query.all("tag").take(tags_max + 1).map(|tag| Tag::parse(&tag));
    let mut tags = tags.collect::<Result<Vec<_>, _>>().map_err(|error| ApiError::tag_invalid(&error))?;
    let asked = tags.len();
    // Each is set, and told, once.
    let mut seen = HashSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    if asked > tags_max {
        let message = format!("one push can set {tags_max} tags at most");
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, Code::TagInvalid, message));
    }
    Ok(tags)
}

/// The media type without its parameters.
fn media_type(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim()).filter(|text| !text.is_empty())
}

/// `DELETE /v2/<name>/manifests/<reference>`: a digest with all its tags, or only a tag.
pub(super) async fn delete(call: &Call<'_>, name: &str, reference: &str) -> Answer {
    let repository = call.repository(name)?;
    match parse_reference(reference)? {
        Reference::Tag(tag) => call.state.registry().delete_tag(&repository, &tag).await?,
        Reference::Digest(digest) => call.state.registry().delete_manifest(&repository, &digest).await?,
    }
    Ok(empty(StatusCode::ACCEPTED))
}
