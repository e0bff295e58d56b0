use http::Response;

use super::{Body, JSON, document};

/// `GET /v2/`: yes, this is a registry.
pub(super) fn get() -> Response<Body> {
    document(JSON, &serde_json::json!({}))
}
