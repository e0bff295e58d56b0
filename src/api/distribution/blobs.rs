use http::{
    HeaderValue, StatusCode,
    header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE},
};

use keppel_federation::vocabulary::AccountName;

use super::{Answer, CONTENT_DIGEST, Call, conditional, empty, parse_digest, range::Wanted, set};
use crate::api::{
    body::{BlobBody, Body},
    error::ApiError,
    limits::{self, Standing},
};

/// `GET` and `HEAD /v2/<name>/blobs/<digest>`, whole or in part.
pub(super) async fn get(call: &Call<'_>, name: &str, digest: &str) -> Answer {
    let registry = call.state.registry();
    let (repository, digest) = (call.repository(name)?, parse_digest(digest)?);
    let first_pull = call.visitor.first_pull(&repository);
    let blob = registry.load_blob_for(&repository, &digest, !call.is_head(), first_pull).await;
    let blob = blob.map_err(|error| call.visitor.refuse_first_pull(name, error))?;
    let etag = format!("\"{digest}\"");
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What a digest names never changes.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    set(&mut response, CONTENT_DIGEST, digest.to_string());
    set(&mut response, ETAG, &*etag);
    if conditional::none_match_holds(call.headers, etag.as_bytes()) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if call.is_head() {
        response.headers_mut().insert(CONTENT_LENGTH, blob.size_bytes.into());
        return Ok(response);
    }
    let range = match wanted(call, &etag, blob.size_bytes) {
        Wanted::Whole => 0..blob.size_bytes,
        Wanted::Part(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, CONTENT_RANGE, format!("bytes {}-{}/{}", range.start, range.end - 1, blob.size_bytes));
            range
        }
        Wanted::Nothing => return Err(ApiError::range_not_satisfiable(blob.size_bytes)),
    };
    let amount = range.end - range.start;
    if let Some(standing) = passing_through(call, &repository.account(), amount) {
        standing.set_headers(response.headers_mut());
        if standing.retry_seconds.is_some() {
            let mut refusal =
                ApiError::too_many_requests(repository.account_str(), &standing).into_response(call.request_id);
            standing.set_headers(refusal.headers_mut());
            return Ok(refusal);
        }
    }
    if !range.is_empty() {
        let reader = registry.open_blob(&blob, range).await?;
        let sent = call.state.metrics().blob_sent.clone();
        *response.body_mut() = Body::Blob(BlobBody::new(reader, call.files.cloned(), sent, call.request_id.clone()));
    }
    Ok(response)
}

/// Counts what is handed out of an account that this region holds nothing of for good; `None`: that is not limited.
fn passing_through(call: &Call<'_>, account: &AccountName, size_bytes: u64) -> Option<Standing> {
    let limits = call.state.limits()?;
    match call.state.registry().is_held_here(account) {
        true => None,
        false => limits.count_many(account.as_str(), limits::Action::AnycastBlobPullBytes, size_bytes),
    }
}

fn wanted(call: &Call<'_>, etag: &str, size_bytes: u64) -> Wanted {
    match call.headers.get(RANGE).and_then(|range| range.to_str().ok()) {
        Some(range) if conditional::range_may_be_honoured(call.headers, etag.as_bytes()) => {
            Wanted::parse(range, size_bytes)
        }
        _ => Wanted::Whole,
    }
}

/// `DELETE /v2/<name>/blobs/<digest>`: takes the blob out of the repository, unless a manifest in it refers to it.
pub(super) async fn delete(call: &Call<'_>, name: &str, digest: &str) -> Answer {
    let (repository, digest) = (call.repository(name)?, parse_digest(digest)?);
    call.state.registry().delete_blob(&repository, &digest).await?;
    Ok(empty(StatusCode::ACCEPTED))
}
