//! From a request to its answer: what is below `/v2/` goes straight to the distribution API, the rest to the router.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::Router;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, HOST, TRANSFER_ENCODING},
};
use http_body::Body as _;
use hyper::body::Incoming;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{
    ApiOptions,
    access::TOKEN_PATH,
    body::Body,
    distribution,
    error::ApiError,
    forwarded,
    host::Place,
    limits::Limits,
    manifest_room::ManifestRoom,
    metrics::{RequestMetrics, Route},
    request_id::{self, X_REQUEST_ID},
    serve::Peer,
};
use crate::{
    auth::Auth,
    registry::{Accounts, Registry},
};

const X_KEPPEL_YOUR_IP: HeaderName = HeaderName::from_static("x-keppel-your-ip");

/// What every request needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ApiState {
    inner: Arc<Inner>,
}

struct Inner {
    options: ApiOptions,
    registry: Registry,
    accounts: Accounts,
    auth: Auth,
    metrics: RequestMetrics,
    prometheus: PrometheusHandle,
    shutdown: CancellationToken,
    default_account: Option<String>,
    manifest_room: ManifestRoom,
    limits: Option<Limits>,
}

impl ApiState {
    pub(crate) fn new(
        options: ApiOptions,
        accounts: Accounts,
        auth: Auth,
        prometheus: PrometheusHandle,
        shutdown: CancellationToken,
    ) -> Self {
        let registry = accounts.registry().clone();
        let default_account = registry.options().default_account.as_ref().map(ToString::to_string);
        let metrics = RequestMetrics::new();
        let limits = Limits::new(options.limits);
        let inner = Inner {
            options,
            registry,
            accounts,
            auth,
            metrics,
            prometheus,
            shutdown,
            default_account,
            manifest_room: ManifestRoom::new(),
            limits,
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn options(&self) -> &ApiOptions {
        &self.inner.options
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(crate) fn accounts(&self) -> &Accounts {
        &self.inner.accounts
    }

    pub(crate) fn auth(&self) -> &Auth {
        &self.inner.auth
    }

    pub(crate) fn metrics(&self) -> &RequestMetrics {
        &self.inner.metrics
    }

    pub(crate) fn prometheus(&self) -> &PrometheusHandle {
        &self.inner.prometheus
    }

    pub(crate) fn default_account(&self) -> Option<&str> {
        self.inner.default_account.as_deref()
    }

    /// The memory for manifests that are being pushed.
    pub(crate) fn manifest_room(&self) -> &ManifestRoom {
        &self.inner.manifest_room
    }

    /// What accounts may be asked for, where that is limited.
    pub(super) fn limits(&self) -> Option<&Limits> {
        self.inner.limits.as_ref()
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.inner.shutdown.is_cancelled()
    }
}

/// Serves one connection.
pub(crate) struct ApiService {
    state: ApiState,
    router: Router,
    peer: Peer,
}

impl ApiService {
    pub(crate) fn new(state: ApiState, router: Router, peer: Peer) -> Self {
        Self { state, router, peer }
    }
}

impl hyper::service::Service<Request<Incoming>> for ApiService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Reply;

    fn call(&self, request: Request<Incoming>) -> Reply {
        let started = Instant::now();
        let request_id = request_id::of_request(request.headers());
        let path = request.uri().path();
        if let Some(fault) = fault_of_head(request.version(), request.headers()) {
            let exchange = Exchange::begin(&self.state, &self.peer, request_id, started, Route::Other, &request);
            let mut response = in_form_of(path, ApiError::bad_head(fault), &exchange.request_id);
            // Where the next request begins is in doubt.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Reply::Ready(Some(exchange.finish(response)));
        }
        let ApiOptions { trusted_proxies, proxy_headers, .. } = self.state.options();
        let proxied = forwarded::client_of(trusted_proxies, *proxy_headers, &self.peer, request.headers());
        let peer = proxied.as_ref().unwrap_or(&self.peer);
        let limit = self.state.options().server.header_size_max_bytes;
        if head_size_bytes(request.headers()) > limit {
            let exchange = Exchange::begin(&self.state, peer, request_id, started, Route::Other, &request);
            let response = in_form_of(path, ApiError::head_too_large(limit), &exchange.request_id);
            return Reply::Ready(Some(exchange.finish(response)));
        }
        let is_content = path.starts_with("/v2/") || path == "/v2";
        match Place::of(&self.state.options().public_hosts, peer, request.headers(), request.uri()) {
            Place::Whole => {}
            // The host of an account serves its content and the tokens for it.
            Place::Account(_) if is_content || path == TOKEN_PATH => {}
            Place::Account(_) | Place::Nowhere => {
                let exchange = Exchange::begin(&self.state, peer, request_id, started, Route::Other, &request);
                let response = in_form_of(path, ApiError::not_at_this_host(), &exchange.request_id);
                return Reply::Ready(Some(exchange.finish(response)));
            }
        }
        if is_content {
            if let Some(response) = distribution::answer_from_memory(&self.state, peer, &request_id, &request) {
                return Reply::Ready(Some(self.finish_now(response, request_id, started, &request, peer)));
            }
            let route = distribution::route_of(path);
            let exchange = Exchange::begin(&self.state, peer, request_id, started, route, &request);
            return Reply::Waiting(Box::pin(async move {
                let response =
                    distribution::answer(&exchange.state, &exchange.peer, &exchange.request_id, request).await;
                exchange.finish(response)
            }));
        }
        let exchange = Exchange::begin(&self.state, peer, request_id, started, Route::Other, &request);
        let (router, peer) = (self.router.clone(), peer.clone());
        Reply::Waiting(Box::pin(async move {
            let mut request = request.map(axum::body::Body::new);
            request.extensions_mut().insert(peer);
            let Ok(response) = router.oneshot(request).await;
            exchange.finish(response.map(Body::Routed))
        }))
    }
}

impl ApiService {
    /// The short way for answers that are ready at once: nothing is kept about the request.
    fn finish_now(
        &self,
        response: Response<Body>,
        request_id: HeaderValue,
        started: Instant,
        request: &Request<Incoming>,
        peer: &Peer,
    ) -> Response<Body> {
        let (method, uri) = (request.method(), request.uri());
        let log = Log { method, uri, request_id: &request_id, peer, user_agent: user_agent(request) };
        account(self.state.metrics(), Route::Manifest, &log, &response, started.elapsed());
        with_common_headers(response, request_id, peer)
    }
}

/// A refusal from before the interfaces, each of which has errors of a form of its own.
fn in_form_of(path: &str, refusal: ApiError, request_id: &HeaderValue) -> Response<Body> {
    match path == "/keppel" || path.starts_with("/keppel/") {
        true => refusal.into_plain(request_id),
        false => refusal.into_response(request_id),
    }
}

/// What is wrong with a request's head that servers in between might read in another way than we do, if anything. The host
/// must be named once, and from HTTP/1.1 on always (HTTP/2 has a field of its own for it); a body must have no coding but
/// `chunked`. (Of a length beside that, hyper has let go already.) Source: RFC 9112, sections 3.2 and 6.1.
fn fault_of_head(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host_is_sound = match (hosts.next(), hosts.next()) {
        (None, _) => version != Version::HTTP_11,
        (Some(host), None) => host.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || HOST_MARKS.contains(b)),
        (Some(_), Some(_)) => false,
    };
    if !host_is_sound {
        return Some("a request must have one Host header that names a host");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        (Some(_), _) => Some("the only Transfer-Encoding that is taken is chunked"),
    }
}

/// What a host may hold besides letters and digits. Source: RFC 3986, section 3.2.
const HOST_MARKS: &[u8] = b".-:[]_~%!$&'()*+,;=";

fn head_size_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

fn user_agent<B>(request: &Request<B>) -> Option<&HeaderValue> {
    request.headers().get(http::header::USER_AGENT)
}

fn with_common_headers(mut response: Response<Body>, request_id: HeaderValue, peer: &Peer) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(X_REQUEST_ID, request_id);
    headers.insert(X_KEPPEL_YOUR_IP, peer.header.clone());
    response
}

/// A request on its way: what is needed to finish its answer.
struct Exchange {
    state: ApiState,
    peer: Peer,
    request_id: HeaderValue,
    started: Instant,
    route: Route,
    method: Method,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    finished: bool,
}

impl Exchange {
    fn begin(
        state: &ApiState,
        peer: &Peer,
        request_id: HeaderValue,
        started: Instant,
        route: Route,
        request: &Request<Incoming>,
    ) -> Self {
        state.metrics().begin();
        Self {
            state: state.clone(),
            peer: peer.clone(),
            request_id,
            started,
            route,
            method: request.method().clone(),
            uri: request.uri().clone(),
            user_agent: user_agent(request).cloned(),
            finished: false,
        }
    }

    fn log(&self) -> Log<'_> {
        Log {
            method: &self.method,
            uri: &self.uri,
            request_id: &self.request_id,
            peer: &self.peer,
            user_agent: self.user_agent.as_ref(),
        }
    }

    fn finish(mut self, response: Response<Body>) -> Response<Body> {
        self.finished = true;
        account(self.state.metrics(), self.route, &self.log(), &response, self.started.elapsed());
        with_common_headers(response, self.request_id.clone(), &self.peer)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.state.metrics().end();
        if !self.finished {
            tracing::debug!(
                request_id = self.request_id.to_str().unwrap_or_default(),
                method = %self.method,
                path = self.uri.path(),
                "the client went away before it was answered"
            );
        }
    }
}

/// What an access log line says besides the answer.
struct Log<'a> {
    method: &'a Method,
    uri: &'a Uri,
    request_id: &'a HeaderValue,
    peer: &'a Peer,
    user_agent: Option<&'a HeaderValue>,
}

/// Counts and logs an answer.
fn account(metrics: &RequestMetrics, route: Route, log: &Log<'_>, response: &Response<Body>, duration: Duration) {
    let sent = match response.body() {
        Body::Full(bytes) => bytes.len() as u64,
        Body::Empty | Body::Blob(_) | Body::Routed(_) => 0,
    };
    metrics.record(route, log.method, response.status(), duration, sent);
    // Reads are many and dull; what changes something, or goes wrong, is worth a line.
    let status = response.status();
    let dull = matches!(*log.method, Method::GET | Method::HEAD)
        && (status.as_u16() < 400 || matches!(status, StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED));
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                $level,
                request_id = log.request_id.to_str().unwrap_or_default(),
                peer = log.peer.header.to_str().unwrap_or_default(),
                method = log.method.as_str(),
                path = log.uri.path(),
                status = status.as_u16(),
                size_bytes = response.body().size_hint().exact(),
                duration_ms = duration.as_secs_f64() * 1e3,
                user_agent = log.user_agent.and_then(|agent| agent.to_str().ok()),
                "answered"
            )
        };
    }
    match (dull, status.is_server_error()) {
        (true, _) => line!(tracing::Level::DEBUG),
        (false, false) => line!(tracing::Level::INFO),
        (false, true) => line!(tracing::Level::WARN),
    }
}

/// An answer that is there, or on its way.
// Boxing the answer would cost the short way the allocation that it exists to avoid.
#[expect(clippy::large_enum_variant)]
pub(crate) enum Reply {
    Ready(Option<Response<Body>>),
    Waiting(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Future for Reply {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it is ready")))
            }
            Self::Waiting(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}
