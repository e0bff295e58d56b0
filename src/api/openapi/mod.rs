//! The description of the registry's own API: as OpenAPI for programs, as a page for people.
//!
//! The document is written by hand in `openapi.json`; a test compares it with the routes there are.

mod page;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::Value;

const SOURCE: &str = include_str!("openapi.json");

/// The document, with this version in it.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document: Value = serde_json::from_str(SOURCE).unwrap_or_default();
    if let Some(version) = document.pointer_mut("/info/version") {
        *version = env!("CARGO_PKG_VERSION").into();
    }
    document
});
static TEXT: LazyLock<String> = LazyLock::new(|| DOCUMENT.to_string());
static PAGE: LazyLock<String> = LazyLock::new(|| page::render(&DOCUMENT));

/// `GET /keppel/v1/openapi.json`.
pub(super) async fn get_document() -> Response {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "max-age=3600")], TEXT.as_str()).into_response()
}

/// `GET /keppel/v1/docs`.
pub(super) async fn get_page() -> Response {
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "max-age=3600"),
        (CONTENT_SECURITY_POLICY, policy),
    ];
    (headers, PAGE.as_str()).into_response()
}
