//! The OCI Distribution API, below `/v2/`.
//!
//! A path is taken apart ([`path`]), the request let through or refused (`access`), and one short handler per endpoint
//! calls the registry. `HEAD` is `GET` whose body is left out at the end. Locations are absolute paths without a host:
//! every client resolves them, and none can be sent to a name that only a proxy in between knows.

mod base;
mod blobs;
mod catalog;
mod conditional;
mod manifests;
mod path;
mod query;
mod range;
mod referrers;
mod tags;
mod uploads;

use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body as _;
use hyper::body::Incoming;
use keppel_federation::vocabulary::{Digest, Reference, RepositoryName};

pub(super) use self::{manifests::STALE, path::decode as path_decode, query::Query};

pub(super) use self::path::Endpoint;
use super::{
    access::{Action, Scope, Visitor},
    body::{Body, BodyEnd, RequestBody},
    error::ApiError,
    limits,
    metrics::Route,
    serve::{FileSender, Peer},
    service::ApiState,
};

/// Names the upload session in an answer.
pub(super) const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

type Answer = Result<Response<Body>, ApiError>;

/// What a handler gets besides the parts of the path.
struct Call<'a> {
    state: &'a ApiState,
    visitor: &'a Visitor<'a>,
    request_id: &'a HeaderValue,
    method: &'a Method,
    headers: &'a http::HeaderMap,
    query: Query<'a>,
    /// What takes parts of blobs in place of their bytes.
    files: Option<&'a FileSender>,
}

impl Call<'_> {
    /// Reads a repository name as written in a path.
    fn repository(&self, name: &str) -> Result<RepositoryName, ApiError> {
        self.visitor.parse(name)
    }

    fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }
}

fn parse_digest(text: &str) -> Result<Digest, ApiError> {
    Digest::parse(text).map_err(|error| ApiError::digest_invalid(&error))
}

fn parse_reference(text: &str) -> Result<Reference, ApiError> {
    Reference::parse(text).map_err(|error| match text.contains(':') {
        true => ApiError::digest_invalid(&error),
        false => ApiError::tag_invalid(&error),
    })
}

/// The part of the interface that a path is about, for counting.
pub(super) fn route_of(path: &str) -> Route {
    match Endpoint::parse(path) {
        Some(Endpoint::Base) => Route::Base,
        Some(Endpoint::Catalog) => Route::Catalog,
        Some(Endpoint::Manifest { .. }) => Route::Manifest,
        Some(Endpoint::Blob { .. }) => Route::Blob,
        Some(Endpoint::Uploads { .. } | Endpoint::Upload { .. }) => Route::Upload,
        Some(Endpoint::Tags { .. }) => Route::Tags,
        Some(Endpoint::Referrers { .. }) => Route::Referrers,
        None => Route::Unknown,
    }
}

/// The answer to a pull of a manifest that is in memory; `None` when the long way has to be taken. Waits for nothing.
pub(super) fn answer_from_memory(
    state: &ApiState,
    peer: &Peer,
    request_id: &HeaderValue,
    request: &Request<Incoming>,
) -> Option<Response<Body>> {
    let is_head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => return None,
    };
    let Endpoint::Manifest { name, reference } = Endpoint::parse(request.uri().path())? else { return None };
    let visitor = Visitor::recall(state, request.headers(), request.uri(), peer)?;
    visitor.authorize(Scope::Repository { name, action: Action::Pull }).ok()?;
    let manifest = manifests::get_from_memory(state, visitor.account(), name, reference)?;
    let limited = match (state.limits(), is_head) {
        (Some(limits), false) => {
            let account = visitor.parse(name).ok()?.account();
            limits.count(account.as_str(), limits::Action::ManifestPulls)
        }
        _ => None,
    };
    let mut response = match limited {
        Some(standing) if standing.retry_seconds.is_some() => {
            let account = visitor.parse(name).ok()?.account();
            ApiError::too_many_requests(account.as_str(), &standing).into_response(request_id)
        }
        _ => manifests::respond(state, &manifest, request.headers(), is_head).ok()?,
    };
    if let Some(standing) = limited {
        standing.set_headers(response.headers_mut());
    }
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    Some(response)
}

/// The answer to any request below `/v2/`.
pub(super) async fn answer(
    state: &ApiState,
    peer: &Peer,
    request_id: &HeaderValue,
    request: Request<Incoming>,
) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    let (version, end) = (request.version(), BodyEnd::default());
    let has_body = !request.body().is_end_stream();
    let mut response = match dispatch(state, peer, request_id, request, end.clone()).await {
        Ok(response) => response,
        Err(error) => error.into_response(request_id),
    };
    if has_body && !end.is_reached() && version < Version::HTTP_2 {
        // The rest of the body would have to be waited for; a client that is not told would send its next request here.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if is_head {
        without_body(&mut response);
    }
    response
}

async fn dispatch(
    state: &ApiState,
    peer: &Peer,
    request_id: &HeaderValue,
    request: Request<Incoming>,
    end: BodyEnd,
) -> Answer {
    let (parts, incoming) = request.into_parts();
    let path = path::decode(parts.uri.path()).map_err(|error| ApiError::name_invalid(&error))?;
    let endpoint = Endpoint::parse(&path).ok_or_else(ApiError::no_such_endpoint)?;
    let query = Query::new(parts.uri.query());
    let scope = endpoint.scope(&parts.method).ok_or_else(|| ApiError::method_not_allowed(endpoint.allow()))?;
    let visitor = Visitor::identify(state, &parts.headers, &parts.uri, peer, scope).await?;
    let pending = endpoint.change(&parts.method, &visitor).map(|change| visitor.pending(change, request_id));
    let call = Call {
        state,
        visitor: &visitor,
        request_id,
        method: &parts.method,
        headers: &parts.headers,
        query,
        files: peer.file_sender(parts.version),
    };
    let idle_timeout = state.options().server.body_idle_timeout;
    let body = RequestBody::new(incoming, end, idle_timeout, state.metrics().received.clone());
    let allowed = match visitor.authorize(scope) {
        Ok(()) => know_the_account(&call, scope).await,
        Err(refusal) => Err(refusal),
    };
    let answer = match allowed {
        Ok(()) => within_limits(&call, endpoint, body).await,
        Err(refusal) => Err(refusal),
    };
    // An upload session that was opened has changed nothing that anybody can see.
    if let Some(pending) = pending {
        match &answer {
            Ok(response) if endpoint.is_upload() && response.status() != StatusCode::CREATED => {}
            Ok(response) => pending.finish(response.status(), text_of(response, &CONTENT_DIGEST)),
            Err(refusal) => pending.finish(refusal.status(), refusal.words()),
        }
    }
    answer
}

/// Whoever is told that there is nothing must not be told so only because this node has not heard of the account yet.
/// A push asks the federation anyway, where there is no such account.
async fn know_the_account(call: &Call<'_>, scope: Scope<'_>) -> Result<(), ApiError> {
    let Scope::Repository { name, action: Action::Pull | Action::Delete } = scope else { return Ok(()) };
    let Ok(repository) = call.visitor.parse(name) else { return Ok(()) };
    let account = repository.account();
    call.state.accounts().ensure_current(&account).await.map_err(|reason| {
        ApiError::not_now(format!(
            "this node knows of no account {account}, and cannot ask whether there is one: {reason}"
        ))
    })
}

fn text_of(response: &Response<Body>, name: &HeaderName) -> String {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Carries the request out unless the account is asked for too much; tells how it stands.
async fn within_limits(call: &Call<'_>, endpoint: Endpoint<'_>, body: RequestBody) -> Answer {
    let limited = call.state.limits().and_then(|limits| {
        let (name, action) = endpoint.limited(call.method)?;
        let account = call.visitor.parse(name).ok()?.account();
        Some((limits.count(account.as_str(), action)?, account))
    });
    let Some((standing, account)) = limited else { return carry_out(call, endpoint, body).await };
    let answer = match standing.retry_seconds {
        None => carry_out(call, endpoint, body).await,
        Some(_) => Err(ApiError::too_many_requests(account.as_str(), &standing)),
    };
    let mut response = answer.unwrap_or_else(|error| error.into_response(call.request_id));
    standing.set_headers(response.headers_mut());
    Ok(response)
}

async fn carry_out(call: &Call<'_>, endpoint: Endpoint<'_>, body: RequestBody) -> Answer {
    match (endpoint, call.method) {
        (Endpoint::Base, _) => Ok(base::get()),
        (Endpoint::Catalog, _) => catalog::get(call).await,
        (Endpoint::Manifest { name, reference }, &Method::PUT) => manifests::put(call, name, reference, body).await,
        (Endpoint::Manifest { name, reference }, &Method::DELETE) => manifests::delete(call, name, reference).await,
        (Endpoint::Manifest { name, reference }, _) => manifests::get(call, name, reference).await,
        (Endpoint::Blob { name, digest }, &Method::DELETE) => blobs::delete(call, name, digest).await,
        (Endpoint::Blob { name, digest }, _) => blobs::get(call, name, digest).await,
        (Endpoint::Uploads { name }, _) => uploads::post(call, name, body).await,
        (Endpoint::Upload { name, id }, &Method::PATCH) => uploads::patch(call, name, id, body).await,
        (Endpoint::Upload { name, id }, &Method::PUT) => uploads::put(call, name, id, body).await,
        (Endpoint::Upload { name, id }, &Method::DELETE) => uploads::delete(call, name, id).await,
        (Endpoint::Upload { name, id }, _) => uploads::get(call, name, id).await,
        (Endpoint::Tags { name }, _) => tags::get(call, name).await,
        (Endpoint::Referrers { name, digest }, _) => referrers::get(call, name, digest).await,
    }
}

/// Leaves the body out, but not its length.
fn without_body(response: &mut Response<Body>) {
    let length = response.body().size_hint().exact();
    *response.body_mut() = Body::Empty;
    if let (Some(length @ 1..), false) = (length, response.headers().contains_key(CONTENT_LENGTH)) {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
}

/// An answer without a body.
fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response
}

/// An answer that is a JSON document.
fn document(content_type: HeaderValue, document: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Sets a header whose value is made of checked parts, or a tag or name that holds only visible characters.
fn set(response: &mut Response<Body>, name: HeaderName, value: impl Into<String>) {
    if let Ok(value) = HeaderValue::try_from(value.into()) {
        response.headers_mut().append(name, value);
    }
}
