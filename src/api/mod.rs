//! The HTTP side of a node: the server, and what it serves.
//!
//! | part | its job |
//! | --- | --- |
//! | [`serve`] | sockets, TLS, connections, deadlines, shutdown |
//! | `service` | from a request to its answer: names, counts and logs it |
//! | `distribution` | the OCI Distribution API below `/v2/` |
//! | `access` | the one place where requests are let through or refused |
//! | `keppel` | the registry's own API below `/keppel/v1`: accounts and what belongs to them |
//! | `audit` | what of a request goes into the audit log |
//! | `forwarded` | where requests come from when they come through proxies |
//! | `limits` | how often an account may be asked for something |
//! | `openapi` | the description of the API, for programs and for people |
//! | `token` | where clients get their tokens, below `/keppel/v1` |
//! | `error` | the one table from errors to status and code |
//! | `host` | which account a request is about by the name of its host |
//! | `health`, `metrics` | `/health/live`, `/health/ready`, `/metrics` |
//!
//! Deliberately absent: rules about content (the registry has them). A request for `/v2/` is dispatched by hand, before
//! any router, since a pull of a cached manifest costs a few microseconds and a router would cost as much again;
//! everything else goes through an axum router.

pub mod serve;

mod access;
mod audit;
mod body;
mod distribution;
mod error;
mod forwarded;
mod health;
mod host;
mod keppel;
mod limits;
mod manifest_room;
mod metrics;
mod openapi;
mod options;
mod request_id;
mod service;
#[cfg(test)]
mod tests;
mod token;

use axum::{
    Router,
    routing::{any, get},
};
use http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::Auth;
use crate::registry::Accounts;
use serve::{ServeError, Server};
use service::{ApiService, ApiState};

pub use forwarded::{ProxyHeaders, TrustedProxy};
pub use limits::{LimitOptions, RateLimit, Window};
pub use options::ApiOptions;

/// Starts the HTTP server, which runs until `shutdown` is cancelled; see [`Server::stopped`]. `prometheus` is the
/// handle of the recorder that the whole process writes to. Must be called within a Tokio runtime.
///
/// # Errors
/// When an address cannot be bound or a certificate not be used; then nothing runs.
pub fn spawn(
    options: ApiOptions,
    accounts: Accounts,
    auth: Auth,
    prometheus: PrometheusHandle,
    shutdown: CancellationToken,
) -> Result<Server, ServeError> {
    let server = options.server.clone();
    let state = ApiState::new(options, accounts, auth, prometheus.clone(), shutdown.clone());
    let router = router(state.clone());
    let background = metrics::upkeep(prometheus, shutdown.clone());
    Server::spawn(server, shutdown, background, move |peer| ApiService::new(state.clone(), router.clone(), peer))
}

fn router(state: ApiState) -> Router {
    Router::new()
        .route("/health/live", get(health::get_live))
        .route("/health/ready", get(health::get_ready))
        .route("/metrics", get(metrics::get_metrics))
        .route("/keppel/v1", get(token::get_info))
        .route(access::TOKEN_PATH, get(token::get).post(token::post))
        .route("/keppel/v1/openapi.json", get(openapi::get_document))
        .route("/keppel/v1/docs", get(openapi::get_page))
        .route("/keppel/v1/{*rest}", any(keppel::answer))
        .method_not_allowed_fallback(wrong_method)
        .fallback(nothing_here)
        .with_state(state)
}

/// The `Allow` header is the router's.
async fn wrong_method() -> (StatusCode, &'static str) {
    (StatusCode::METHOD_NOT_ALLOWED, "this endpoint does not know the method\n")
}

/// For people who come by with a browser.
async fn nothing_here() -> (StatusCode, &'static str) {
    (
        StatusCode::NOT_FOUND,
        "There is nothing here. Images are below /v2/, health is at /health/live and /health/ready, metrics are at /metrics.\n",
    )
}
