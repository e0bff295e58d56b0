//! Requests to a registry, and its refusals with what to do about them.

use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::super::Failure;
use super::super::federation::failure;
use super::credentials::{self, Stored};
use super::server::Server;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a deletion may take: a repository goes with all its images.
const DELETION_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most pages of a list.
const PAGES_MAX: usize = 100_000;
/// What is not put into a path or query as it is.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'&')
    .add(b'+')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'/');

/// A registry, and who we are there.
pub(super) struct Client {
    http: reqwest::Client,
    server: Server,
    proof: Proof,
}

enum Proof {
    None,
    Basic { username: String, password: String },
    Bearer(String),
}

/// An HTTP client as all commands use it.
pub(super) fn http_client() -> Result<reqwest::Client, Failure> {
    let client = reqwest::Client::builder()
        .user_agent(concat!("keppel/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .timeout(REQUEST_TIMEOUT)
        .build();
    client.map_err(|error| failure(format!("cannot make an HTTP client: {error}")))
}

/// A text as part of a path or query.
pub(super) fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

impl Client {
    /// With the token of `KEPPEL_TOKEN`, or what the login left.
    pub(super) async fn connect(server: Server) -> Result<Self, Failure> {
        let http = http_client()?;
        let given = std::env::var("KEPPEL_TOKEN").ok().filter(|token| !token.is_empty());
        let stored = if given.is_some() { None } else { credentials::load(server.host())? };
        let proof = match (given, stored) {
            (Some(token), _) => Proof::Bearer(token),
            (None, Some(Stored::Password { username, password })) => Proof::Basic { username, password },
            (None, Some(Stored::RefreshToken { token, .. })) => {
                Proof::Bearer(access_token(&http, &server, &token).await?)
            }
            (None, None) => Proof::None,
        };
        Ok(Self { http, server, proof })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.server.url(path));
        match &self.proof {
            Proof::None => request,
            Proof::Basic { username, password } => request.basic_auth(username, Some(password)),
            Proof::Bearer(token) => request.bearer_auth(token),
        }
    }

    /// The document at a path.
    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends a document; gives the answer.
    pub(super) async fn put(&self, path: &str, body: &Value, header: Option<(&str, &str)>) -> Result<Value, Failure> {
        let mut request = self.request(Method::PUT, path).header("content-type", "application/json");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        self.send(request.body(body.to_string())).await
    }

    /// Asks for something to be made.
    pub(super) async fn post(&self, path: &str) -> Result<Value, Failure> {
        self.send(self.request(Method::POST, path).header("content-length", "0")).await
    }

    /// Deletes what a path names.
    pub(super) async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path).timeout(DELETION_TIMEOUT)).await.map(drop)
    }

    /// All pages of a list: `items` of each document, as long as it is `truncated`; `marker` tells where the next begins.
    pub(super) async fn list(
        &self,
        path: &str,
        items: &str,
        marker: impl Fn(&Value) -> Option<&str>,
    ) -> Result<Vec<Value>, Failure> {
        let mut all: Vec<Value> = Vec::new();
        for _ in 0..PAGES_MAX {
            let next = all.last().and_then(&marker).map(|last| format!("{path}?marker={}", escape(last)));
            let mut page = self.get(next.as_deref().unwrap_or(path)).await?;
            let Some(Value::Array(found)) = page.get_mut(items).map(Value::take) else {
                return Err(failure(format!("{} answered without {items:?}: is it a Keppel registry?", self.server)));
            };
            let is_last = found.is_empty() || page.get("truncated") != Some(&Value::Bool(true));
            all.extend(found);
            if is_last {
                break;
            }
        }
        Ok(all)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = request.send().await.map_err(|error| unreachable_server(&self.server, error))?;
        let status = response.status();
        if response.headers().get("warning").is_some_and(|mark| mark.as_bytes().starts_with(b"110 ")) {
            eprintln!("note: {} cannot ask other regions now; this may be old", self.server);
        }
        let text = response.text().await.map_err(|error| unreachable_server(&self.server, error))?;
        if !status.is_success() {
            return Err(failure(refusal(&self.server, status, &text, matches!(self.proof, Proof::None))));
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text)
            .map_err(|_| failure(format!("{} did not answer with JSON: is it a Keppel registry?", self.server)))
    }
}

/// A token for the registry's API, for a refresh token.
async fn access_token(http: &reqwest::Client, server: &Server, refresh: &str) -> Result<String, Failure> {
    let form = [("grant_type", "refresh_token"), ("refresh_token", refresh), ("scope", "keppel:api:*")];
    let answer = token_request(http, server, &form).await?;
    let token = answer.get("access_token").and_then(Value::as_str);
    token.map(str::to_owned).ok_or_else(|| failure(format!("{server} gave no token")))
}

/// Sends a form to the token endpoint.
pub(super) async fn token_request(
    http: &reqwest::Client,
    server: &Server,
    fields: &[(&str, &str)],
) -> Result<Value, Failure> {
    let form: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
    let request = http.post(server.url("/keppel/v1/auth")).header("content-type", "application/x-www-form-urlencoded");
    let response = request.body(form.join("&")).send().await.map_err(|error| unreachable_server(server, error))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| unreachable_server(server, error))?;
    match status.is_success() {
        true => serde_json::from_str(&text).map_err(|_| failure(format!("{server} gave no token"))),
        false => Err(failure(refusal(server, status, &text, false))),
    }
}

/// Why nothing was answered.
pub(super) fn unreachable_server(server: &Server, error: reqwest::Error) -> Failure {
    let advice = match (error.is_connect(), error.is_timeout(), server.is_plain()) {
        (true, _, false) => {
            "is it running and its certificate good? For a registry without TLS write http:// before its name"
        }
        (true, _, true) => "is it running? Check the name and the port",
        (_, true, _) => "it took too long; try again",
        _ => "try again",
    };
    let cause = anyhow::Error::from(error.without_url());
    failure(format!("{server} cannot be asked: {cause:#}\n  {advice}"))
}

/// A refusal in words.
fn refusal(server: &Server, status: StatusCode, text: &str, anonymous: bool) -> String {
    let words = text.trim().lines().next().unwrap_or_default();
    // Some refusals are documents: of the distribution API, or `{"error": …}`.
    let document: Value = serde_json::from_str(text).unwrap_or_default();
    let message = document.pointer("/errors/0/message").or_else(|| document.get("error")).and_then(Value::as_str);
    let words: String = message.unwrap_or(words).chars().filter(|c| !c.is_control()).take(500).collect();
    let words = if words.is_empty() { status.to_string() } else { words };
    let advice = match status {
        StatusCode::UNAUTHORIZED if anonymous => format!("log in first: keppel login {}", server.host()),
        StatusCode::UNAUTHORIZED => format!("log in again: keppel login {}", server.host()),
        StatusCode::FORBIDDEN => "ask an admin of the tenant or an operator for the right to do this".to_owned(),
        StatusCode::NOT_FOUND => "check the name; what you may not see is told to be absent, too".to_owned(),
        StatusCode::TOO_MANY_REQUESTS => "wait a moment, then try again".to_owned(),
        StatusCode::SERVICE_UNAVAILABLE => "try again in a moment".to_owned(),
        status if status.is_server_error() => "see the log of the registry".to_owned(),
        _ => return words,
    };
    format!("{words}\n  {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let server = Server::parse("registry.example.org").unwrap();
        let say = |status: u16, text: &str, anonymous| {
            refusal(&server, StatusCode::from_u16(status).unwrap(), text, anonymous)
        };
        assert_eq!(say(422, "account.auth_tenant_id: is missing\n", false), "account.auth_tenant_id: is missing");
        assert!(say(401, "", true).contains("keppel login registry.example.org"));
        assert!(say(409, "{\"error\":\"still has replicas\"}", false).starts_with("still has replicas"));
        let oci = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no\"}]}";
        assert_eq!(say(409, oci, false), "no");
        assert!(!say(500, "a\u{1b}[2Jb", false).contains('\u{1b}'), "a server does not write on the terminal");
        assert_eq!(escape("a/b c&d=é"), "a%2Fb%20c%26d=%C3%A9");
    }
}
