//! Where clients get their tokens: `GET` and `POST /keppel/v1/auth`, and `GET /keppel/v1`, which says how to log in.
//!
//! The flow itself is the auth room's; here are its HTTP and its refusals.

use axum::{
    Extension,
    body::Body,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde_json::json;

use super::{
    access::address,
    body::{ShortBodyError, collect_short},
    host::Place,
    serve::Peer,
    service::ApiState,
};
use crate::auth::{AuthError, Credentials, LoginHint, TokenRequest};

/// The longest form, in bytes.
const FORM_BYTES_MAX: usize = 32 * 1024;

/// `GET /keppel/v1`: which driver is active, so that a client knows how to log in.
pub(super) async fn get_info(State(state): State<ApiState>) -> Response {
    let mut body = json!({ "auth_driver": state.auth().driver_name() });
    if let Some(LoginHint { issuer, client_id, scopes }) = state.auth().login_hint() {
        body["oidc"] = json!({ "issuer": issuer, "client_id": client_id, "scopes": scopes });
    }
    ([(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// `GET /keppel/v1/auth`: Docker's token flow.
pub(super) async fn get(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    RawQuery(query): RawQuery,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let place = Place::of(&state.options().public_hosts, &peer, &headers, &uri);
    let request = basic(&headers).and_then(|basic| TokenRequest::from_query(&query.unwrap_or_default(), basic));
    answer(&state, &peer, &place, request).await
}

/// `POST /keppel/v1/auth`: the same in OAuth2's form.
pub(super) async fn post(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let place = Place::of(&state.options().public_hosts, &peer, &headers, &uri);
    let form = collect_short(body, FORM_BYTES_MAX, state.options().server.body_idle_timeout).await;
    let request = match form {
        Ok(form) => basic(&headers).and_then(|basic| TokenRequest::from_form(&form, basic)),
        Err(ShortBodyError::Broken) => Err(AuthError::BadRequest("the form is broken".to_owned())),
        Err(ShortBodyError::Late) => return plain(StatusCode::REQUEST_TIMEOUT, "the form did not arrive in time"),
        Err(ShortBodyError::TooLong) => {
            let reason = format!("the form is longer than {FORM_BYTES_MAX} bytes");
            let mut refusal = plain(StatusCode::PAYLOAD_TOO_LARGE, &reason);
            if version < Version::HTTP_2 {
                // What is left of it would have to be waited for.
                refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            return refusal;
        }
    };
    answer(&state, &peer, &place, request).await
}

fn basic(headers: &HeaderMap) -> Result<Option<Credentials>, AuthError> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let text = header.to_str().map_err(|_| AuthError::BadHeader("it is not ASCII"))?;
    match text.split_once(' ') {
        Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => {
            Credentials::from_basic(encoded.trim()).map(Some)
        }
        _ => Err(AuthError::BadHeader("its scheme is not Basic")),
    }
}

async fn answer(state: &ApiState, peer: &Peer, place: &Place, request: Result<TokenRequest, AuthError>) -> Response {
    let resolve = |name: &str| place.parse(state, name).ok();
    let issued = match request {
        Ok(request) => state.auth().issue(request, address(peer), resolve).await,
        Err(error) => Err(error),
    };
    let response = issued.map(|response| serde_json::to_string(&response).unwrap_or_default());
    match response {
        Ok(body) => {
            let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
            (headers, body).into_response()
        }
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &AuthError) -> Response {
    let (status, header): (_, Option<(HeaderName, HeaderValue)>) = match error {
        AuthError::InvalidCredentials | AuthError::Token(_) => {
            let ask = HeaderValue::from_static("Basic realm=\"keppel\", charset=\"UTF-8\"");
            (StatusCode::UNAUTHORIZED, Some((WWW_AUTHENTICATE, ask)))
        }
        AuthError::BadHeader(_) | AuthError::BadRequest(_) | AuthError::Scope(_) => (StatusCode::BAD_REQUEST, None),
        AuthError::Overloaded => (StatusCode::TOO_MANY_REQUESTS, Some((RETRY_AFTER, HeaderValue::from_static("1")))),
        AuthError::CutOff => (StatusCode::SERVICE_UNAVAILABLE, Some((RETRY_AFTER, HeaderValue::from_static("5")))),
        AuthError::Unavailable(cause) => {
            tracing::error!(cause, "credentials could not be checked");
            let reason = "the credentials cannot be checked at the moment; try again";
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, reason);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
    };
    let mut response = plain(status, &error.to_string());
    response.headers_mut().extend(header);
    response
}

/// A refusal as the contract has it: one line of text.
fn plain(status: StatusCode, message: &str) -> Response {
    (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{message}\n")).into_response()
}
