//! The one table from what went wrong to what a client of the distribution API is told.

use std::{borrow::Cow, time::Duration};

use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_RANGE, CONTENT_TYPE, RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use keppel_federation::vocabulary::ParseError;
use serde_json::{Value, json};

use super::{
    access::{Action, Scope},
    body::Body,
    limits::Standing,
};
use crate::{
    auth::{AuthError, Challenge},
    external::ExternalError,
    metadata::MetadataError,
    registry::{BodyError, RegistryError},
    storage::StorageError,
};

/// An error and its causes on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many libraries repeat their cause in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The error codes on the wire: those of the OCI Distribution Spec, of Docker's older API for what OCI has no word
/// for, and two for our own trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    PaginationNumberInvalid,
    SizeInvalid,
    TagInvalid,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unknown,
    Unsupported,
}

impl Code {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
            Self::Unsupported => "UNSUPPORTED",
        }
    }
}

/// A refusal or failure, ready to be sent.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: Code,
    message: Cow<'static, str>,
    /// One entry of the document for each; none means one entry without detail.
    details: Vec<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What only the log may tell.
    cause: Option<String>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self { status, code, message, details: Vec::new(), headers: Vec::new(), cause: None }
    }

    fn detail(mut self, detail: Value) -> Self {
        self.details.push(detail);
        self
    }

    fn header(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.push((name, value));
        }
        self
    }

    fn retry_after(self, delay: Duration) -> Self {
        self.header(RETRY_AFTER, delay.as_secs().max(1))
    }

    /// Our own trouble: the client learns the status only, the log the cause.
    fn trouble(status: StatusCode, cause: String) -> Self {
        let (code, message) = match status {
            StatusCode::INTERNAL_SERVER_ERROR => (Code::Unknown, "something went wrong here; the request id finds it"),
            _ => (Code::Unavailable, "not possible at the moment; try again"),
        };
        Self { cause: Some(cause), ..Self::new(status, code, message) }
    }

    /// The storage or the disk of the metadata is full. The client is told, since nobody else may be there to tell the
    /// operator.
    fn storage_full(error: &RegistryError) -> Self {
        let cause = Some(chain(error));
        let message = "the registry's storage is full: nothing can be pushed until its operator makes room";
        Self { cause, ..Self::new(StatusCode::INSUFFICIENT_STORAGE, Code::Unavailable, message) }
            .retry_after(RETRY_FULL)
    }

    /// Overload, seen before the registry was asked.
    pub(crate) fn unavailable(cause: String) -> Self {
        Self::trouble(StatusCode::SERVICE_UNAVAILABLE, cause).retry_after(RETRY_SOON)
    }

    /// Something that is in the way for a moment and that the client may know of.
    pub(crate) fn not_now(message: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message).retry_after(RETRY_SOON)
    }

    /// The head of the request can be read in more than one way.
    pub(crate) fn bad_head(message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::Unsupported, message)
    }

    /// The head of the request is longer than it may be.
    pub(crate) fn head_too_large(limit_bytes: usize) -> Self {
        let message = format!("the headers are longer than {limit_bytes} bytes");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::Unsupported, message)
            .detail(json!({ "limit_bytes": limit_bytes }))
    }

    /// The account is asked for something more often than it may be.
    pub(super) fn too_many_requests(account: &str, standing: &Standing) -> Self {
        let message = format!(
            "account {account} is asked too often for {}, of which there may be {}: wait, as Retry-After says",
            standing.action(),
            standing.rate()
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, message).detail(standing.detail(account))
    }

    /// What the client is told in words.
    pub(crate) fn words(&self) -> String {
        self.message.to_string()
    }

    /// The path is none of this API.
    pub(crate) fn no_such_endpoint() -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::Unsupported, "there is no such endpoint in the distribution API")
    }

    /// The host is that of an account, or of nothing, which has not all of this API.
    pub(crate) fn not_at_this_host() -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::Unsupported, "there is no such endpoint at this host")
    }

    /// The path is, but not with this method.
    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        let message = format!("this endpoint knows the methods {allow}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
            .header(ALLOW, HeaderValue::from_static(allow))
    }

    /// Who is there has to be shown, with a token as the challenge says.
    pub(crate) fn unauthorized(challenge: &Challenge<'_>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, "authentication required").challenging(challenge)
    }

    /// Says where to get a token and what for: to clients in the header, and to people who see the document only.
    fn challenging(self, challenge: &Challenge<'_>) -> Self {
        let mut detail = json!({ "realm": challenge.realm, "service": challenge.service });
        if let Some(scope) = &challenge.scope {
            detail["scope"] = scope.as_str().into();
        }
        self.header(WWW_AUTHENTICATE, challenge.to_string()).detail(detail)
    }

    /// Who is there is known, and may not. Says what was asked for, and nothing about whether that exists unless they may
    /// know (`seen`).
    pub(crate) fn denied(scope: Scope<'_>, seen: bool) -> Self {
        let what = match scope {
            Scope::Base => "this registry may not be used".to_owned(),
            Scope::Catalog => "repositories may not be listed".to_owned(),
            Scope::Api { .. } => "this API may not be used".to_owned(),
            Scope::Repository { name, action } => {
                let verb = match action {
                    Action::Pull => "pulled from",
                    Action::Push => "pushed to",
                    Action::Delete => "deleted from",
                };
                let or_absent = if seen { "" } else { ", or does not exist" };
                format!("{name} may not be {verb}{or_absent}")
            }
        };
        let message = format!("requested access to the resource is denied: {what}");
        let refusal = Self::new(StatusCode::FORBIDDEN, Code::Denied, message);
        match scope.wanted(None) {
            Some(scope) => refusal.detail(json!({ "scope": scope })),
            None => refusal,
        }
    }

    /// The proof of identity is not good, or cannot be checked.
    pub(crate) fn from_auth(error: &AuthError, challenge: &Challenge<'_>) -> Self {
        use StatusCode as S;
        match error {
            AuthError::InvalidCredentials | AuthError::Token(_) | AuthError::BadHeader(_) => {
                Self::new(S::UNAUTHORIZED, Code::Unauthorized, error.to_string()).challenging(challenge)
            }
            AuthError::Overloaded => Self::new(S::TOO_MANY_REQUESTS, Code::TooManyRequests, error.to_string())
                .detail(json!({ "action": "logins", "retry_after": RETRY_SOON.as_secs() }))
                .retry_after(RETRY_SOON),
            AuthError::BadRequest(_) | AuthError::Scope(_) => {
                Self::new(S::BAD_REQUEST, Code::Unsupported, error.to_string())
            }
            AuthError::CutOff => {
                Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, error.to_string()).retry_after(RETRY_CLAIM)
            }
            AuthError::Unavailable(cause) => Self::unavailable(cause.clone()),
        }
    }

    pub(crate) fn name_invalid(error: &ParseError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::NameInvalid, error.to_string())
    }

    pub(crate) fn tag_invalid(error: &ParseError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::TagInvalid, error.to_string())
    }

    /// What is no tag names no manifest.
    pub(crate) fn no_such_tag(error: &ParseError) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::ManifestUnknown, error.to_string())
    }

    pub(crate) fn digest_invalid(error: &ParseError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::DigestInvalid, error.to_string())
    }

    /// A range that the blob of this size does not have.
    pub(crate) fn range_not_satisfiable(size_bytes: u64) -> Self {
        let message = format!("the blob has {size_bytes} bytes, none of them in the range asked for");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, message)
            .header(CONTENT_RANGE, format!("bytes */{size_bytes}"))
    }

    /// The `Range` header of an upload's answers: what has arrived so far.
    pub(crate) fn upload_range(size_bytes: u64) -> String {
        format!("0-{}", size_bytes.saturating_sub(1))
    }

    /// The status, for logs and metrics.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// The code, as it goes on the wire.
    #[cfg(test)]
    pub(crate) fn code(&self) -> &'static str {
        self.code.as_str()
    }

    /// The answer as one line of text, for the registry's own API.
    pub(crate) fn into_plain(self, request_id: &HeaderValue) -> Response<Body> {
        let line = format!("{}\n", self.message);
        let mut response = self.into_response(request_id);
        *response.body_mut() = Body::from(line);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    /// The answer. Logs the cause, if there is one to hide from the client.
    pub(crate) fn into_response(self, request_id: &HeaderValue) -> Response<Body> {
        if let Some(cause) = &self.cause {
            let request_id = request_id.to_str().unwrap_or_default();
            tracing::error!(cause, request_id, status = self.status.as_u16(), "a request failed");
        }
        let entry = |detail: Option<Value>| {
            let mut entry = json!({ "code": self.code.as_str(), "message": self.message });
            if let Some(detail) = detail {
                entry["detail"] = detail;
            }
            entry
        };
        let errors: Vec<_> = match self.details.is_empty() {
            true => vec![entry(None)],
            false => self.details.iter().map(|detail| entry(Some(detail.clone()))).collect(),
        };
        let mut response = Response::new(Body::from(json!({ "errors": errors }).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(self.headers);
        response
    }
}

const RETRY_SOON: Duration = Duration::from_secs(1);
/// A slot for uploads frees up when someone's upload ends, which takes longer than a moment.
const RETRY_UPLOAD: Duration = Duration::from_secs(10);
/// Long enough for an election.
const RETRY_CLAIM: Duration = Duration::from_secs(5);
/// Room is made by people, or by the next sweep.
const RETRY_FULL: Duration = Duration::from_secs(60);

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        use StatusCode as S;
        let message = error.to_string();
        match error {
            E::ManifestInvalid { .. } => Self::new(S::BAD_REQUEST, Code::ManifestInvalid, message),
            E::ManifestTooLarge { limit_bytes } => Self::new(S::PAYLOAD_TOO_LARGE, Code::ManifestInvalid, message)
                .detail(json!({ "limit_bytes": limit_bytes })),
            E::ManifestBlobsUnknown { digests } => digests.iter().fold(
                Self::new(S::NOT_FOUND, Code::ManifestBlobUnknown, "the manifest refers to content that is not here"),
                |error, digest| error.detail(json!({ "digest": digest })),
            ),
            E::DigestMismatch { expected, actual } => Self::new(S::BAD_REQUEST, Code::DigestInvalid, message)
                .detail(json!({ "expected": expected, "actual": actual })),
            E::BlobTooLarge { limit_bytes } => Self::new(S::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message)
                .detail(json!({ "limit_bytes": limit_bytes })),
            E::SizeMismatch { declared, received } => Self::new(S::BAD_REQUEST, Code::SizeInvalid, message)
                .detail(json!({ "declared": declared, "received": received })),
            E::RangeOutOfOrder { id, size_bytes } => {
                Self::new(S::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message)
                    .header(RANGE, Self::upload_range(size_bytes))
                    .header(super::distribution::UPLOAD_UUID, id.as_str())
            }
            E::BodyBroken { cause: BodyError::Timeout, .. } => {
                Self::new(S::REQUEST_TIMEOUT, Code::BlobUploadInvalid, message)
            }
            E::BodyBroken { cause: BodyError::Disconnected(_), .. } => {
                Self::new(S::BAD_REQUEST, Code::BlobUploadInvalid, message)
            }
            E::RepositoryUnknown { repository } => {
                Self::new(S::NOT_FOUND, Code::NameUnknown, message).detail(json!({ "name": repository }))
            }
            E::AccountUnknown { account } => {
                Self::new(S::NOT_FOUND, Code::NameUnknown, message).detail(json!({ "account": account }))
            }
            E::AccountElsewhere { account, region } => {
                Self::new(S::FORBIDDEN, Code::Denied, message).detail(json!({ "account": account, "region": region }))
            }
            E::ClaimUndecided { account, .. } => Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message)
                .detail(json!({ "account": account }))
                .retry_after(RETRY_CLAIM),
            E::PrimaryUnreachable { account, region, .. } => {
                Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message)
                    .detail(json!({ "account": account, "region": region }))
                    .retry_after(RETRY_SOON)
            }
            E::CopiesMissing { account, wanted, held, .. } => {
                Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message)
                    .detail(json!({ "account": account, "copies": wanted, "held": held }))
                    .retry_after(RETRY_CLAIM)
            }
            E::AccountMoving { account, .. } | E::Unconfirmed { account } | E::Overdue { account } => {
                Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message)
                    .detail(json!({ "account": account }))
                    .retry_after(RETRY_SOON)
            }
            E::RefusedElsewhere { .. } => Self::new(S::CONFLICT, Code::Denied, message),
            E::ManifestUnknown { repository, reference } => Self::new(S::NOT_FOUND, Code::ManifestUnknown, message)
                .detail(json!({ "name": repository, "reference": reference.to_string() })),
            E::BlobUnknown { digest } => {
                Self::new(S::NOT_FOUND, Code::BlobUnknown, message).detail(json!({ "digest": digest }))
            }
            E::UploadUnknown { .. } => Self::new(S::NOT_FOUND, Code::BlobUploadUnknown, message),
            E::AccountDeleting { account } => {
                Self::new(S::CONFLICT, Code::Denied, message).detail(json!({ "account": account }))
            }
            E::ExternalReplica { account, upstream } => Self::new(S::METHOD_NOT_ALLOWED, Code::Unsupported, message)
                .detail(json!({ "account": account, "upstream": upstream })),
            E::External { account, upstream, error } => {
                let detail = json!({ "account": account, "upstream": upstream });
                match error {
                    ExternalError::Unreachable { .. } => {
                        Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message).retry_after(RETRY_SOON)
                    }
                    ExternalError::Limited { retry_after } => {
                        // Rounded up: who comes back too early is only told to wait again.
                        let retry_after = retry_after + Duration::from_millis(999);
                        Self::new(S::TOO_MANY_REQUESTS, Code::TooManyRequests, message).retry_after(retry_after)
                    }
                    ExternalError::Refused { .. } | ExternalError::Unusable { .. } => {
                        Self::new(S::BAD_GATEWAY, Code::Unavailable, message)
                    }
                }
                .detail(detail)
            }
            E::FirstPullRefused { repository } => {
                Self::new(S::FORBIDDEN, Code::Denied, message).detail(json!({ "name": repository }))
            }
            E::BlobOnTheWay { digest } => Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message)
                .detail(json!({ "digest": digest }))
                .retry_after(RETRY_SOON),
            E::PoliciesUnusable { account } => {
                Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message).detail(json!({ "account": account }))
            }
            E::TagProtected { tag, .. } => Self::new(S::CONFLICT, Code::Denied, message).detail(json!({ "tag": tag })),
            E::QuotaExceeded { tenant, what, quota, usage } => Self::new(S::CONFLICT, Code::Denied, message)
                .detail(json!({ "auth_tenant_id": tenant, what: { "quota": quota, "usage": usage } })),
            E::ManifestHasParent { digest, parent } => {
                Self::new(S::CONFLICT, Code::Denied, message).detail(json!({ "digest": digest, "parent": parent }))
            }
            E::BlobInUse { digest, manifest } => {
                Self::new(S::CONFLICT, Code::Denied, message).detail(json!({ "digest": digest, "manifest": manifest }))
            }
            E::UploadOutOfReach { .. } => {
                Self::new(S::SERVICE_UNAVAILABLE, Code::Unavailable, message).retry_after(RETRY_SOON)
            }
            E::UploadBusy { .. } => Self::new(S::CONFLICT, Code::BlobUploadInvalid, message).retry_after(RETRY_SOON),
            E::TooManyUploads { limit } => Self::new(S::TOO_MANY_REQUESTS, Code::TooManyRequests, message)
                .detail(json!({ "action": "uploads", "limit": limit, "retry_after": RETRY_UPLOAD.as_secs() }))
                .retry_after(RETRY_UPLOAD),
            E::TooManyTransfers { account } => Self::new(S::TOO_MANY_REQUESTS, Code::TooManyRequests, message)
                .detail(json!({ "account": account, "action": "pulls", "retry_after": RETRY_UPLOAD.as_secs() }))
                .retry_after(RETRY_UPLOAD),
            error @ (E::StorageFull | E::Metadata(MetadataError::Full) | E::Storage(StorageError::Full)) => {
                Self::storage_full(&error)
            }
            E::Metadata(source @ (MetadataError::Overloaded | MetadataError::Closed)) => {
                Self::unavailable(chain(&source))
            }
            E::Storage(source @ (StorageError::Overloaded | StorageError::Stopped | StorageError::UploadBusy(_))) => {
                Self::unavailable(chain(&source))
            }
            E::Metadata(
                source @ (MetadataError::Sqlite(_)
                | MetadataError::Commit(_)
                | MetadataError::Corrupt { .. }
                | MetadataError::TooNew { .. }
                | MetadataError::Panicked),
            ) => Self::trouble(S::INTERNAL_SERVER_ERROR, chain(&source)),
            E::Storage(
                source @ (StorageError::SpaceMissing(_)
                | StorageError::UploadExists(_)
                | StorageError::UploadMissing(_)
                | StorageError::UploadInterrupted(_)
                | StorageError::BlobMissing(_)
                | StorageError::BlobShort { .. }
                | StorageError::BlobCorrupt(_)
                | StorageError::Io { .. }),
            ) => Self::trouble(S::INTERNAL_SERVER_ERROR, chain(&source)),
            E::Interrupted => Self::trouble(S::INTERNAL_SERVER_ERROR, message),
        }
    }
}
