//! The registry's own API, below `/keppel/v1`: accounts and what belongs to them.
//!
//! A path is taken apart, the caller identified, and one short handler per endpoint asks the registry. Refusals are one
//! line of text that names the field or name at fault. Whoever may not see an account is told that there is none.

mod accounts;
mod audit;
mod manifests;
mod path;
mod peers;
mod quotas;
mod repositories;
mod scan_policies;

use axum::{
    Extension,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{
    HeaderValue, Method, StatusCode, Version,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WARNING},
    request::Parts,
};
use keppel_federation::vocabulary::{AccountName, RepositoryName, TenantId};
use serde_json::Value;

pub(super) use self::path::Endpoint;
use super::{
    access::{Scope, Visitor},
    audit::Change,
    body::{ShortBodyError, collect_short},
    distribution::{Query, STALE, path_decode},
    error::ApiError,
    request_id,
    serve::Peer,
    service::ApiState,
};
use crate::{
    auth::Right,
    registry::{AccountEntry, AccountError, Page, RegistryError},
};

/// What is told of an image's vulnerabilities where nobody looks for them.
pub(crate) const NOT_SCANNED: &str = "Unsupported";
/// The longest body, in bytes: that of the settings of an account.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// What a handler gets besides the parts of the path.
struct Call<'a> {
    state: &'a ApiState,
    visitor: &'a Visitor<'a>,
    parts: &'a Parts,
    body: Option<Value>,
    request_id: &'a HeaderValue,
}

impl Call<'_> {
    /// Refuses unless an account may be seen.
    fn require_seen(&self, entry: &AccountEntry) -> Result<(), Refusal> {
        match self.visitor.has(Right::ViewAccount, &entry.tenant) {
            true => Ok(()),
            false => Err(AccountError::Unknown.into()),
        }
    }

    /// Refuses unless an account may be seen and changed; `what` would be done to it, as in "change account".
    fn require_changed(&self, entry: &AccountEntry, what: &str) -> Result<(), Refusal> {
        self.require_seen(entry)?;
        match self.visitor.has(Right::EditAccount, &entry.tenant) {
            true => Ok(()),
            false => Err(Refusal::forbidden(&format_args!("{what} {}", entry.name))),
        }
    }

    /// The first value of a key of the query; an empty one is none.
    fn query(&self, key: &'static str) -> Option<String> {
        let value = Query::new(self.parts.uri.query()).get(key)?;
        (!value.is_empty()).then(|| value.into_owned())
    }

    /// The length of a page as asked for.
    fn limit(&self) -> Result<usize, Refusal> {
        match self.query("limit") {
            None => Ok(usize::MAX),
            Some(text) => match text.parse() {
                Ok(limit @ 1..) => Ok(limit),
                Ok(0) | Err(_) => Err(Refusal::invalid("limit", "must be a positive whole number")),
            },
        }
    }

    fn body(&self) -> Value {
        self.body.clone().unwrap_or_default()
    }
}

type Answer = Result<Response, Refusal>;

/// A refusal, ready to be sent.
enum Refusal {
    /// One line of text.
    Plain(StatusCode, String),
    /// A document, for the deletion of accounts.
    Document(StatusCode, String),
    /// The caller has to show who they are, or something went wrong on the way.
    Http(Box<ApiError>),
}

impl Refusal {
    fn plain(status: StatusCode, reason: impl Into<String>) -> Self {
        Self::Plain(status, reason.into())
    }

    /// What the client is told as status.
    fn status(&self) -> StatusCode {
        match self {
            Self::Plain(status, _) | Self::Document(status, _) => *status,
            Self::Http(error) => error.status(),
        }
    }

    /// What the client is told in words.
    fn words(&self) -> String {
        match self {
            Self::Plain(_, reason) | Self::Document(_, reason) => reason.clone(),
            Self::Http(error) => error.words(),
        }
    }

    /// The same, saying which account there is not, or about what nothing can be said or decided now.
    fn naming(self, endpoint: Endpoint<'_>) -> Self {
        match (self, endpoint.account(), endpoint) {
            (Self::Plain(status, reason), Some(account), _) if reason == AccountError::Unknown.to_string() => {
                Self::Plain(status, format!("{reason}: {account}"))
            }
            (Self::Plain(StatusCode::SERVICE_UNAVAILABLE, reason), Some(account), _) if !reason.contains(account) => {
                Self::Plain(StatusCode::SERVICE_UNAVAILABLE, format!("account {account}: {reason}"))
            }
            (Self::Plain(StatusCode::SERVICE_UNAVAILABLE, reason), None, Endpoint::Quotas(tenant)) => {
                Self::Plain(StatusCode::SERVICE_UNAVAILABLE, format!("the quota of auth tenant {tenant}: {reason}"))
            }
            (refusal, _, _) => refusal,
        }
    }

    /// The answer.
    fn into_response(self, request_id: &HeaderValue) -> Response {
        match self {
            Self::Plain(status, reason) => plain(status, &reason),
            Self::Document(status, reason) => {
                let mut response = document(&serde_json::json!({ "error": reason }));
                *response.status_mut() = status;
                response
            }
            Self::Http(error) => error.into_plain(request_id).map(axum::body::Body::new),
        }
    }

    /// Something that may be seen and not done. Never about what may not be seen.
    fn forbidden(what: &impl std::fmt::Display) -> Self {
        Self::plain(StatusCode::FORBIDDEN, format!("you are not allowed to {what}"))
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Http(Box::new(error))
    }
}

/// The table from what went wrong with an account to a status.
impl From<AccountError> for Refusal {
    fn from(error: AccountError) -> Self {
        use AccountError as E;
        use StatusCode as S;
        let reason = error.to_string();
        match error {
            E::Unknown => Self::Plain(S::NOT_FOUND, reason),
            E::Invalid(_) => Self::Plain(S::UNPROCESSABLE_ENTITY, reason),
            E::Elsewhere { .. }
            | E::Taken { .. }
            | E::Deleting { .. }
            | E::QuotaConflict { .. }
            | E::Conflict { .. } => Self::Plain(S::CONFLICT, reason),
            E::HasReplicas { .. } => Self::Document(S::CONFLICT, reason),
            E::NotPrimary { .. } | E::Mirror { .. } | E::NoSublease { .. } => Self::Plain(S::BAD_REQUEST, reason),
            E::ManagedByOther { .. } | E::Sublease { .. } => Self::Plain(S::FORBIDDEN, reason),
            E::Undecided(_) | E::Storage { .. } => Self::Plain(S::SERVICE_UNAVAILABLE, reason),
            E::Usage(cause) => {
                let cause = &*cause as &dyn std::error::Error;
                tracing::error!(cause, "the usage of a quota cannot be looked up");
                Self::Plain(S::SERVICE_UNAVAILABLE, reason)
            }
        }
    }
}

/// The table from what went wrong with content to a status is that of the distribution API; the text alone is shown.
impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        ApiError::from(error).into()
    }
}

/// The methods of a path, as the `Allow` header lists them.
#[cfg(test)]
pub(super) fn allowed(path: &str) -> Option<&'static str> {
    Endpoint::parse(path).map(Endpoint::allow)
}

/// Answers any request below `/keppel/v1/` that is not about tokens.
pub(super) async fn answer(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let request_id = request_id::of_request(request.headers());
    let version = request.version();
    let answer = dispatch(&state, &peer, &request_id, request).await;
    let mut response = answer.unwrap_or_else(|refusal| refusal.into_response(&request_id));
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE && version < Version::HTTP_2 {
        // What is left of the body would have to be waited for.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn dispatch(state: &ApiState, peer: &Peer, request_id: &HeaderValue, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let path =
        path_decode(parts.uri.path()).map_err(|error| Refusal::plain(StatusCode::BAD_REQUEST, error.to_string()))?;
    let endpoint =
        Endpoint::parse(&path).ok_or_else(|| Refusal::plain(StatusCode::NOT_FOUND, "there is no such endpoint"))?;
    let scope = Scope::Api { action: endpoint.action(&parts.method) };
    let visitor = Visitor::identify(state, &parts.headers, &parts.uri, peer, scope).await?;
    let pending = change(endpoint, &parts.method, state).map(|change| visitor.pending(change, request_id));
    let answer = match visitor.authorize(scope) {
        Ok(()) => {
            let answer = carry_out(state, &visitor, endpoint, &parts, body, request_id).await;
            answer.map_err(|refusal| refusal.naming(endpoint))
        }
        Err(refusal) => Err(refusal.into()),
    };
    if let Some(pending) = pending {
        match &answer {
            Ok(response) => pending.finish(response.status(), String::new()),
            Err(refusal) => pending.finish(refusal.status(), refusal.words()),
        }
    }
    answer
}

/// Whoever is told that there is no such account must not be told so only because this node has not heard of it yet. Asks
/// also where there is one that may not be seen, so that neither the answer nor the time it takes tells of it.
async fn know_the_account(state: &ApiState, visitor: &Visitor<'_>, endpoint: Endpoint<'_>) -> Result<(), Refusal> {
    let Some(account) = endpoint.account().and_then(|account| AccountName::parse(account).ok()) else { return Ok(()) };
    let is_seen = state.accounts().tenant_of(&account).is_some_and(|tenant| {
        let repository =
            endpoint.repository().and_then(|path| RepositoryName::parse(&format!("{account}/{path}")).ok());
        let within = || repository.is_some_and(|repository| visitor.api_access(&repository).see);
        visitor.has(Right::ViewAccount, &tenant) || within()
    });
    if is_seen {
        return Ok(());
    }
    state.accounts().catch_up().await.map_err(|reason| {
        let reason = format!("whether there is an account {account} cannot be told now: {reason}");
        Refusal::plain(StatusCode::SERVICE_UNAVAILABLE, reason)
    })
}

/// What a request is about to change, for the audit log.
fn change(endpoint: Endpoint<'_>, method: &Method, state: &ApiState) -> Option<Change> {
    let action = match *method {
        Method::PUT => "update",
        Method::POST => "create",
        Method::DELETE => "delete",
        _ => return None,
    };
    let (kind, target, account) = endpoint.target()?;
    let account = account.and_then(|account| AccountName::parse(account).ok());
    let is_new = account.as_ref().is_some_and(|account| state.accounts().tenant_of(account).is_none());
    let action = if is_new && kind == "account" && action == "update" { "create" } else { action };
    let tenant = match endpoint {
        Endpoint::Quotas(tenant) => TenantId::parse(tenant).ok(),
        _ => None,
    };
    Some(Change { action, kind, target, account, tenant })
}

async fn carry_out(
    state: &ApiState,
    visitor: &Visitor<'_>,
    endpoint: Endpoint<'_>,
    parts: &Parts,
    body: axum::body::Body,
    request_id: &HeaderValue,
) -> Answer {
    if !endpoint.allow().split(", ").any(|known| known == parts.method.as_str()) {
        let reason = format!("this endpoint knows the methods {}, and not {}", endpoint.allow(), parts.method);
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, &reason);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(endpoint.allow()));
        return Ok(response);
    }
    let body = match parts.method {
        Method::PUT => Some(read(state, body).await?),
        _ => None,
    };
    // Making an account asks the federation anyway.
    if !matches!((endpoint, &parts.method), (Endpoint::Account(_), &Method::PUT)) {
        know_the_account(state, visitor, endpoint).await?;
    }
    let call = Call { state, visitor, parts, body, request_id };
    // What all regions agree on may have changed where this node does not hear of it.
    let is_looked_up = endpoint.is_agreed_on() && endpoint.reads(&parts.method);
    let may_be_old = is_looked_up && !state.registry().is_confirmed().await;
    let mut response = handle(&call, endpoint, &parts.method).await?;
    if may_be_old {
        response.headers_mut().insert(WARNING, STALE);
    }
    Ok(response)
}

async fn handle(call: &Call<'_>, endpoint: Endpoint<'_>, method: &Method) -> Answer {
    match (endpoint, method) {
        (Endpoint::Audit, _) => audit::list(call).await,
        (Endpoint::Accounts, _) => Ok(accounts::list(call)),
        (Endpoint::Account(name), &Method::PUT) => accounts::put(call, name).await,
        (Endpoint::Account(name), &Method::DELETE) => accounts::delete(call, name).await,
        (Endpoint::Account(name), _) => accounts::get(call, name),
        (Endpoint::Sublease(name), _) => accounts::post_sublease(call, name).await,
        (Endpoint::ScanPolicies(name), &Method::PUT) => scan_policies::put(call, name).await,
        (Endpoint::ScanPolicies(name), _) => scan_policies::get(call, name),
        (Endpoint::Repositories(name), _) => repositories::list(call, name).await,
        (Endpoint::Repository { account, repository }, _) => repositories::delete(call, account, repository).await,
        (Endpoint::Manifests { account, repository }, _) => manifests::list(call, account, repository).await,
        (Endpoint::Manifest { account, repository, digest }, _) => {
            manifests::delete(call, account, repository, digest).await
        }
        (Endpoint::TrivyReport { account, repository, digest }, _) => {
            manifests::get_report(call, account, repository, digest).await
        }
        (Endpoint::Tag { account, repository, tag }, _) => manifests::delete_tag(call, account, repository, tag).await,
        (Endpoint::Peers, _) => Ok(peers::list(call)),
        (Endpoint::Quotas(tenant), &Method::PUT) => quotas::put(call, tenant).await,
        (Endpoint::Quotas(tenant), _) => quotas::get(call, tenant).await,
    }
}

async fn read(state: &ApiState, body: axum::body::Body) -> Result<Value, Refusal> {
    let arriving = collect_short(body, BODY_BYTES_MAX, state.options().server.body_idle_timeout);
    let bytes = arriving.await.map_err(|error| match error {
        ShortBodyError::TooLong => {
            let reason = format!("the body is longer than {BODY_BYTES_MAX} bytes");
            Refusal::plain(StatusCode::PAYLOAD_TOO_LARGE, reason)
        }
        ShortBodyError::Broken => Refusal::plain(StatusCode::BAD_REQUEST, "the body is broken"),
        ShortBodyError::Late => Refusal::plain(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"),
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::plain(StatusCode::BAD_REQUEST, format!("the body is not valid JSON: {error}")))
}

/// An answer that is a JSON document.
fn document(document: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], document.to_string()).into_response()
}

/// An answer that is a page of a list, called `name`.
fn page<T>(name: &str, page: &Page<T>, show: impl Fn(&T) -> Value) -> Response {
    let shown: Vec<Value> = page.items.iter().map(show).collect();
    let mut response = document(&serde_json::json!({ name: shown, "truncated": page.more }));
    if page.is_stale {
        response.headers_mut().insert(WARNING, STALE);
    }
    response
}

/// An answer that is one line of text.
fn plain(status: StatusCode, line: &str) -> Response {
    // What the client wrote may be in it.
    let line = line.replace(char::is_control, " ");
    let mut response = (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{line}\n")).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    }
    response
}
