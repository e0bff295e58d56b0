use axum::response::Response;
use serde_json::{Value, json};

use super::{Call, document};

/// `GET /keppel/v1/peers`: the other nodes of the federation.
pub(super) fn list(call: &Call<'_>) -> Response {
    let peers = call.state.accounts().peers();
    let shown: Vec<Value> = peers
        .iter()
        .map(|peer| json!({ "hostname": peer.hostname, "region": peer.region, "role": peer.role }))
        .collect();
    document(&json!({ "peers": shown }))
}
