//! One request with all that belongs to it: login, redirects, and what its status means.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::session::{Session, basic};
use super::{ExternalClient, ExternalError, Origin};
use crate::model::policy::Secret;

/// Redirects that are followed: to a storage, perhaps by way of a name that moved.
const REDIRECTS_MAX: usize = 5;
/// The longest answer of a token service, in bytes.
const TOKEN_BYTES_MAX: usize = 256 << 10;
/// How long a token is good that does not say, and at most.
const TOKEN_LIFETIME_DEFAULT: u64 = 60;
const TOKEN_LIFETIME_MAX: u64 = 3600;

/// What is asked of a repository.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// The repository, without its account.
    pub(super) path: &'a str,
    /// What in it, such as `manifests/latest`.
    pub(super) rest: String,
    pub(super) headers: HeaderMap,
}

impl ExternalClient {
    /// Sends a request and gives an answer of the kinds 2xx and 304, or `None` for a 404.
    ///
    /// Cancel safety: dropping it abandons the question.
    pub(super) async fn send(&self, origin: &Origin, request: &Request<'_>) -> Result<Option<Response>, ExternalError> {
        let session = self.session(origin);
        session.check_wait(request.rest.starts_with("blobs/"))?;
        let outcome = self.ask(origin, &session, request).await;
        session.note(origin, outcome.as_ref().map(|_| ()));
        let label = match &outcome {
            Ok(Some(_)) => "found",
            Ok(None) => "absent",
            Err(ExternalError::Unreachable { .. }) => "unreachable",
            Err(ExternalError::Refused { .. }) => "refused",
            Err(ExternalError::Limited { .. }) => "limited",
            Err(ExternalError::Unusable { .. }) => "unusable",
        };
        metrics::counter!("keppel_external_requests_total", "outcome" => label).increment(1);
        outcome
    }

    async fn ask(
        &self,
        origin: &Origin,
        session: &Session,
        request: &Request<'_>,
    ) -> Result<Option<Response>, ExternalError> {
        let scope = format!("repository:{}:pull", origin.repository(request.path));
        let shown = session.authorization(origin, &scope);
        let mut response = self.exchange(origin, request, shown.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = response.headers().get_all(WWW_AUTHENTICATE);
            let challenge = Challenge::choose(challenges.iter().filter_map(|value| value.to_str().ok()));
            let authorization = self.log_in(origin, session, &scope, challenge, shown.as_ref()).await?;
            response = self.exchange(origin, request, Some(&authorization)).await?;
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED => Ok(Some(response)),
            StatusCode::NOT_FOUND => Ok(None),
            status => {
                if status == StatusCode::UNAUTHORIZED {
                    session.drop_token(&scope);
                }
                Err(failure(session, &response))
            }
        }
    }

    /// Finds out what to show. Whoever waits for another's login takes what that has brought.
    async fn log_in(
        &self,
        origin: &Origin,
        session: &Session,
        scope: &str,
        challenge: Option<Challenge>,
        shown: Option<&Secret>,
    ) -> Result<Secret, ExternalError> {
        let refused = |reason: &str| ExternalError::Refused { reason: reason.to_owned() };
        match challenge {
            None => Err(refused("401, and it does not say what it wants")),
            Some(Challenge::Basic) => {
                session.ask_by_password();
                basic(origin).ok_or_else(|| refused("401: it wants a name and a password"))
            }
            Some(Challenge::Bearer { realm, service, scope: wanted }) => {
                let _turn = session.login.lock().await;
                if let Some(known) = session.authorization(origin, scope).filter(|known| Some(known) != shown) {
                    return Ok(known);
                }
                let wanted = wanted.unwrap_or_else(|| scope.to_owned());
                let (token, lifetime) = self.fetch_token(origin, session, &realm, service.as_deref(), &wanted).await?;
                let authorization = Secret::new(format!("Bearer {}", token.reveal()));
                session.keep_token(scope, token, lifetime);
                Ok(authorization)
            }
        }
    }

    /// Asks a token service.
    ///
    /// Source: Docker's "Token Authentication Specification", "Requesting a Token".
    async fn fetch_token(
        &self,
        origin: &Origin,
        session: &Session,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<(Secret, Duration), ExternalError> {
        #[derive(Deserialize)]
        struct Document {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let mut url = Url::parse(realm)
            .map_err(|error| ExternalError::unusable(format!("its token service {realm:?} is no URL: {error}")))?;
        origin.check_target(self.options(), &url)?;
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", scope);
        }
        let headers = basic(origin).and_then(|shown| header(&shown)).map(|value| (AUTHORIZATION, value));
        let response = self.send_once(Method::GET, url, headers.into_iter().collect()).await?;
        if response.status() != StatusCode::OK {
            return Err(match failure(session, &response) {
                ExternalError::Refused { reason } => {
                    ExternalError::Refused { reason: format!("{reason} of its token service") }
                }
                ExternalError::Unusable { .. } => {
                    let status = response.status().as_u16();
                    ExternalError::Refused { reason: format!("{status} of its token service") }
                }
                other => other,
            });
        }
        let limit = self.options().answer_timeout;
        let body = tokio::time::timeout(limit, read_body(response, TOKEN_BYTES_MAX)).await;
        let body = body.map_err(|_| ExternalError::unreachable("its token service is too slow"))??;
        let unusable = || ExternalError::unusable("its token service gave no token");
        let document: Document = serde_json::from_slice(&body).map_err(|_| unusable())?;
        let token = [document.token, document.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.filter(|token| HeaderValue::from_str(token).is_ok()).ok_or_else(unusable)?;
        let seconds = document.expires_in.unwrap_or(TOKEN_LIFETIME_DEFAULT).min(TOKEN_LIFETIME_MAX);
        // It is to be good still when it arrives.
        Ok((Secret::new(token), Duration::from_secs(seconds - seconds / 8).saturating_sub(Duration::from_secs(2))))
    }

    /// Sends a request and follows redirects. What we show is for the registry itself.
    async fn exchange(
        &self,
        origin: &Origin,
        request: &Request<'_>,
        authorization: Option<&Secret>,
    ) -> Result<Response, ExternalError> {
        let first = origin.locate(self.options(), request.path, &request.rest)?;
        let mut url = first.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = request.headers.clone();
            if url.origin() == first.origin()
                && let Some(value) = authorization.and_then(header)
            {
                headers.insert(AUTHORIZATION, value);
            }
            let response = self.send_once(request.method.clone(), url.clone(), headers).await?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(LOCATION),
                401 if url.origin() != first.origin() => {
                    // It would get the registry's password if it named a token service of its own.
                    let host = url.host_str().unwrap_or_default();
                    let reason = format!("it sends us to {host:?}, which wants a login; that is for the registry only");
                    return Err(ExternalError::unusable(reason));
                }
                _ => return Ok(response),
            };
            let target = location.and_then(|location| location.to_str().ok()).and_then(|text| url.join(text).ok());
            url = target.ok_or_else(|| ExternalError::unusable("it sends us away and does not say where"))?;
            origin.check_target(self.options(), &url)?;
        }
        Err(ExternalError::unusable(format!("it sends us away more than {REDIRECTS_MAX} times")))
    }

    async fn send_once(&self, method: Method, url: Url, headers: HeaderMap) -> Result<Response, ExternalError> {
        let http = match url.scheme() {
            "https" => &self.inner.https,
            _ => &self.inner.plain,
        };
        let limit = self.options().answer_timeout;
        let sent = tokio::time::timeout(limit, http.request(method, url).headers(headers).send()).await;
        let late = |_| ExternalError::unreachable(format!("no answer within {limit:?}"));
        Ok(sent.map_err(late)??)
    }
}

fn header(secret: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.reveal()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a status means that is not an answer.
fn failure(session: &Session, response: &Response) -> ExternalError {
    let status = response.status();
    match status.as_u16() {
        401 | 403 => ExternalError::Refused { reason: status.as_u16().to_string() },
        429 => {
            let said = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            session.wait(said.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs))
        }
        408 | 500..=599 => ExternalError::unreachable(format!("it answered {}", status.as_u16())),
        other => ExternalError::unusable(format!("it answered {other}")),
    }
}

/// A whole body of a bounded size.
pub(super) async fn read_body(mut response: Response, limit_bytes: usize) -> Result<Vec<u8>, ExternalError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > limit_bytes {
            return Err(ExternalError::unusable(format!("its answer is longer than {limit_bytes} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}
