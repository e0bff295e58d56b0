use http::{
    HeaderName, Response, StatusCode,
    header::{CONTENT_RANGE, LOCATION, RANGE},
};
use keppel_federation::vocabulary::{Algorithm, Digest, RepositoryName, UploadId};

use super::{Answer, CONTENT_DIGEST, Call, UPLOAD_UUID, empty, parse_digest, range::parse_content_range, set};
use crate::{
    api::{
        access::Action,
        body::{Body, RequestBody},
        error::{ApiError, Code},
    },
    registry::{RegistryError, UploadStatus},
};

const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// `POST /v2/<name>/blobs/uploads/`: mounts a blob, takes a whole one, or opens a session.
pub(super) async fn post(call: &Call<'_>, name: &str, body: RequestBody) -> Answer {
    let registry = call.state.registry();
    let repository = call.repository(name)?;
    if let Some(digest) = call.query.get("mount") {
        let digest = parse_digest(&digest)?;
        if mount(call, &repository, &digest).await? {
            return Ok(stored(name, &digest));
        }
    }
    if let Some(digest) = call.query.get("digest") {
        let digest = parse_digest(&digest)?;
        let length = body.declared_bytes();
        registry.put_blob(&repository, &digest, length, body).await?;
        return Ok(stored(name, &digest));
    }
    let algorithm = match call.query.get("digest-algorithm") {
        Some(text) => Algorithm::parse(&text).map_err(|error| ApiError::digest_invalid(&error))?,
        None => Algorithm::Sha256,
    };
    let status = registry.start_upload(&repository, algorithm).await?;
    let mut response = progress(StatusCode::ACCEPTED, name, &status);
    set(&mut response, CHUNK_MIN_LENGTH, call.state.options().upload_chunk_min_bytes.to_string());
    Ok(response)
}

/// Tries to mount. A source that cannot be mounted from, for whatever reason, only means that the client has to upload.
async fn mount(call: &Call<'_>, repository: &RepositoryName, digest: &Digest) -> Result<bool, ApiError> {
    let from = match call.query.get("from").filter(|from| !from.is_empty()) {
        Some(from) => match call.visitor.parse(&from) {
            Ok(from) if call.visitor.may(&from, Action::Pull) => Some(from),
            Ok(_) | Err(_) => return Ok(false),
        },
        None if call.visitor.may_pull_anything(&repository.account()) => None,
        None => return Ok(false),
    };
    Ok(call.state.registry().mount_blob(repository, digest, from.as_ref()).await?)
}

/// `GET /v2/<name>/blobs/uploads/<id>`: how far an upload is.
pub(super) async fn get(call: &Call<'_>, name: &str, id: &str) -> Answer {
    let (repository, id) = (call.repository(name)?, parse_id(id)?);
    let status = call.state.registry().upload_status(&repository, &id).await?;
    Ok(progress(StatusCode::NO_CONTENT, name, &status))
}

/// `PATCH /v2/<name>/blobs/uploads/<id>`: a chunk, or all of it in one stream.
pub(super) async fn patch(call: &Call<'_>, name: &str, id: &str, body: RequestBody) -> Answer {
    let (repository, id) = (call.repository(name)?, parse_id(id)?);
    let length = body.declared_bytes();
    let range = content_range(call, length)?;
    let status = call.state.registry().append_upload(&repository, &id, range, length, body).await?;
    Ok(progress(StatusCode::ACCEPTED, name, &status))
}

/// `PUT /v2/<name>/blobs/uploads/<id>?digest=`: ends an upload, perhaps with a last chunk.
pub(super) async fn put(call: &Call<'_>, name: &str, id: &str, body: RequestBody) -> Answer {
    let (repository, id) = (call.repository(name)?, parse_id(id)?);
    let digest = call.query.get("digest").filter(|digest| !digest.is_empty()).ok_or_else(|| {
        let message = "the digest of the blob is missing: end an upload with ?digest=<digest>";
        ApiError::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, message)
    })?;
    let digest = parse_digest(&digest)?;
    let length = body.declared_bytes();
    let range = content_range(call, length)?;
    call.state.registry().finish_upload(&repository, &id, range, length, body, &digest).await?;
    Ok(stored(name, &digest))
}

/// `DELETE /v2/<name>/blobs/uploads/<id>`: ends an upload and forgets what has arrived.
pub(super) async fn delete(call: &Call<'_>, name: &str, id: &str) -> Answer {
    let (repository, id) = (call.repository(name)?, parse_id(id)?);
    call.state.registry().cancel_upload(&repository, &id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// What is no id names no session.
fn parse_id(text: &str) -> Result<UploadId, ApiError> {
    UploadId::parse(text).map_err(|_| {
        let message = "there is no such upload: start a new one";
        ApiError::new(StatusCode::NOT_FOUND, Code::BlobUploadUnknown, message)
    })
}

/// The first and last byte of the chunk, if the client says where it belongs.
fn content_range(call: &Call<'_>, length: Option<u64>) -> Result<Option<(u64, u64)>, ApiError> {
    let Some(header) = call.headers.get(CONTENT_RANGE) else { return Ok(None) };
    // No range can describe nothing, so what clients send with nothing says nothing.
    if length == Some(0) {
        return Ok(None);
    }
    let Some((first, last)) = header.to_str().ok().and_then(parse_content_range) else {
        let message = "the Content-Range header must look like <first byte>-<last byte>";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, Code::BlobUploadInvalid, message));
    };
    match length {
        Some(received) if received != (last - first).saturating_add(1) => {
            Err(RegistryError::SizeMismatch { declared: (last - first).saturating_add(1), received }.into())
        }
        _ => Ok(Some((first, last))),
    }
}

/// An answer that says how far an upload is.
fn progress(status: StatusCode, name: &str, upload: &UploadStatus) -> Response<Body> {
    let mut response = empty(status);
    set(&mut response, LOCATION, format!("/v2/{name}/blobs/uploads/{}", upload.id));
    set(&mut response, RANGE, ApiError::upload_range(upload.size_bytes));
    set(&mut response, UPLOAD_UUID, upload.id.as_str());
    response
}

/// The answer to a blob that is stored now.
fn stored(name: &str, digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    set(&mut response, LOCATION, format!("/v2/{name}/blobs/{digest}"));
    set(&mut response, CONTENT_DIGEST, digest.to_string());
    response
}
