use axum::response::Response;
use serde_json::{Value, json};

use super::{Call, document};

/// `GET /keppel/v1/peers`: the other nodes of the federation, and how far the copies of their accounts are behind.
pub(super) fn list(call: &Call<'_>) -> Response {
    let peers = call.state.accounts().peers();
    let shown: Vec<Value> = peers
        .iter()
        .map(|(peer, lag)| {
            let lag = json!({
                "accounts": lag.accounts,
                "answered_here": lag.fresh,
                "events": lag.events,
                "bytes": lag.bytes,
                "seconds": lag.behind.as_secs_f64(),
            });
            json!({ "hostname": peer.hostname, "region": peer.region, "role": peer.role, "lag": lag })
        })
        .collect();
    document(&json!({ "peers": shown }))
}
