//! The device flow: people log in with their provider in any browser, and this program waits for it.
//!
//! Source: RFC 8628, "OAuth 2.0 Device Authorization Grant"; OpenID Connect Discovery 1.0.

use std::time::Duration;

use reqwest::Client;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::super::Failure;
use super::super::federation::failure;
use super::http::escape;
use crate::auth::is_usable_url;

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// The longest answer of a provider, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// The provider that a registry names.
pub(super) struct Provider<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) scopes: Vec<&'a str>,
}

/// Asks the person to log in, `tell`ing them where; gives the ID token.
pub(super) async fn id_token(
    http: &Client,
    provider: &Provider<'_>,
    tell: impl FnOnce(&str, &str, Option<&str>),
) -> Result<String, Failure> {
    let discovery = format!("{}/.well-known/openid-configuration", provider.issuer.trim_end_matches('/'));
    let document = fetch(http.get(usable(&discovery)?)).await?.1;
    if text(&document, "issuer") != provider.issuer {
        return Err(failure(format!("{discovery} is of another issuer")));
    }
    let begin = text(&document, "device_authorization_endpoint");
    if begin.is_empty() {
        return Err(failure(format!("{} has no device flow; log in with a password or token", provider.issuer)));
    }
    let redeem = usable(&text(&document, "token_endpoint"))?;
    let scope = provider.scopes.join(" ");
    let fields = [("client_id", provider.client_id), ("scope", scope.as_str())];
    let (good, begun) = fetch(form(http, &usable(&begin)?, &fields)).await?;
    let (code, user_code, url) =
        (text(&begun, "device_code"), text(&begun, "user_code"), text(&begun, "verification_uri"));
    if !good || code.is_empty() || user_code.is_empty() || url.is_empty() {
        return Err(failure(format!("{} refuses: {}", provider.issuer, words(&begun))));
    }
    let complete = text(&begun, "verification_uri_complete");
    tell(&url, &user_code, Some(complete.as_str()).filter(|url| !url.is_empty()));
    let seconds = |name: &str, default: u64| begun.get(name).and_then(Value::as_u64).unwrap_or(default).min(3600);
    let ends = Instant::now() + Duration::from_secs(seconds("expires_in", 600));
    let mut interval = Duration::from_secs(seconds("interval", 5).max(1));
    loop {
        sleep(interval).await;
        if Instant::now() >= ends {
            return Err(failure("the login was not finished in time; begin again".to_owned()));
        }
        let fields = [("grant_type", DEVICE_GRANT), ("device_code", &code), ("client_id", provider.client_id)];
        let (good, answer) = fetch(form(http, &redeem, &fields)).await?;
        if good {
            let token = text(&answer, "id_token");
            let missing = "the provider gave no ID token: add \"openid\" to auth.oidc_scopes of the registry";
            return if token.is_empty() { Err(failure(missing.to_owned())) } else { Ok(token) };
        }
        match text(&answer, "error").as_str() {
            "authorization_pending" => {}
            "slow_down" => interval += Duration::from_secs(5),
            "access_denied" => return Err(failure("the login was refused".to_owned())),
            "expired_token" => return Err(failure("the login was not finished in time; begin again".to_owned())),
            _ => return Err(failure(format!("{} refuses: {}", provider.issuer, words(&answer)))),
        }
    }
}

/// Secrets go to `https` only, or to this very machine.
fn usable(url: &str) -> Result<String, Failure> {
    match is_usable_url(url) {
        true => Ok(url.to_owned()),
        false => Err(failure(format!("the provider names {:?}, which is not an https URL", shown(url)))),
    }
}

fn form(http: &Client, url: &str, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    http.post(url).header("content-type", "application/x-www-form-urlencoded").body(fields.join("&"))
}

/// Whether the answer was a success, and its document.
async fn fetch(request: reqwest::RequestBuilder) -> Result<(bool, Value), Failure> {
    let failed =
        |error: reqwest::Error| failure(format!("the provider cannot be asked: {:#}", anyhow::Error::from(error)));
    let mut response = request.header("accept", "application/json").send().await.map_err(failed)?;
    let good = response.status().is_success();
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(failure("the provider's answer is too long".to_owned()));
        }
        bytes.extend_from_slice(&piece);
    }
    let status = response.status();
    let document = serde_json::from_slice(&bytes);
    document
        .map(|document| (good, document))
        .map_err(|_| failure(format!("the provider answered {status} without JSON")))
}

fn text(document: &Value, name: &str) -> String {
    document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn words(answer: &Value) -> String {
    let (error, description) = (text(answer, "error"), text(answer, "error_description"));
    shown(&if description.is_empty() { error } else { format!("{error}: {description}") })
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
