//! Whether the process lives, and whether it can serve.

use axum::{extract::State, response::IntoResponse};
use http::StatusCode;

use super::{error::chain, service::ApiState};

/// `GET /health/live`: the process answers. Says nothing about what it depends on, so that a broken disk does not get
/// it restarted for ever.
pub(crate) async fn get_live() -> &'static str {
    "live\n"
}

/// `GET /health/ready`: metadata and storage answer, and no shutdown is under way.
pub(crate) async fn get_ready(State(state): State<ApiState>) -> impl IntoResponse {
    if state.is_shutting_down() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match tokio::time::timeout(std::time::Duration::from_secs(5), state.registry().ready()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n"),
        Ok(Err(error)) => {
            tracing::error!(cause = chain(&error), "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
        Err(_) => {
            tracing::error!("not ready: metadata and storage did not answer in time");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}
