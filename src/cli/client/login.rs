//! `keppel login` and `keppel logout`.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};

use clap::Args;
use serde_json::Value;

use super::super::federation::failure;
use super::super::{Failure, say};
use super::block_on;
use super::credentials::{self, Stored};
use super::device::{self, Provider};
use super::http::{http_client, token_request, unreachable_server};
use super::server::{self, Server};

/// The longest password or token, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

#[derive(Debug, Args)]
#[command(after_help = "The login is kept where Docker keeps its own, so that docker, podman and skopeo use it too.")]
pub(in super::super) struct Login {
    /// The registry, such as registry.example.org.
    #[arg(env = "KEPPEL_SERVER")]
    server: String,
    /// The user or robot. Asked for, if it is not given.
    #[arg(short, long)]
    username: Option<String>,
    /// Read the password or token from standard input.
    #[arg(long)]
    password_stdin: bool,
    /// Log in with the registry's OpenID Connect provider, in any browser.
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    device: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct Logout {
    /// The registry. Default: the one of the last login.
    #[arg(env = "KEPPEL_SERVER")]
    server: Option<String>,
}

impl Login {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let server = Server::parse(&self.server)?;
        let login = match self.device {
            true => block_on(by_device(&server))?,
            false => {
                let username = match self.username {
                    Some(username) => username,
                    None => ask("Username: ")?,
                };
                let password = match self.password_stdin {
                    true => read_stdin()?,
                    false => ask_hidden("Password: ")?,
                };
                block_on(by_password(&server, &username, &password))?
            }
        };
        let place = credentials::store(server.host(), &login)?;
        server::remember(&server);
        say(&format!("logged in to {server}; kept in {place}\n"))
    }
}

impl Logout {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let server = server::choose(self.server.as_deref())?;
        let known = credentials::erase(server.host())?;
        server::forget(&server);
        match known {
            true => say(&format!("logged out of {server}\n")),
            false => say(&format!("there was no login for {server}\n")),
        }
    }
}

/// Checks a name and a password with the registry before they are kept.
async fn by_password(server: &Server, username: &str, password: &str) -> Result<Stored, Failure> {
    if username.is_empty() || password.is_empty() {
        return Err(failure("both a user name and a password are needed".to_owned()));
    }
    let http = http_client()?;
    let fields = [("grant_type", "password"), ("username", username), ("password", password), ("client_id", "keppel")];
    token_request(&http, server, &fields).await?;
    Ok(Stored::Password { username: username.to_owned(), password: password.to_owned() })
}

/// Has the person log in with the registry's provider, and exchanges the ID token for a refresh token of the registry.
async fn by_device(server: &Server) -> Result<Stored, Failure> {
    let http = http_client()?;
    let answer = http.get(server.url("/keppel/v1")).send().await;
    let answer = answer.map_err(|error| unreachable_server(server, error))?;
    let info: Value = serde_json::from_str(&answer.text().await.unwrap_or_default()).unwrap_or_default();
    let hint = info.get("oidc").filter(|hint| hint.is_object());
    let hint = hint.ok_or_else(|| {
        failure(format!(
            "{server} has no provider to log in with\n  log in with a password: keppel login {}",
            server.host()
        ))
    })?;
    let text = |name: &str| hint.get(name).and_then(Value::as_str).unwrap_or_default();
    let scopes =
        hint.get("scopes").and_then(Value::as_array).map(|scopes| scopes.iter().filter_map(Value::as_str).collect());
    let provider =
        Provider { issuer: text("issuer"), client_id: text("client_id"), scopes: scopes.unwrap_or_default() };
    let id_token = device::id_token(&http, &provider, |url, code, complete| {
        eprintln!("Open this page in a browser, on any device, and enter the code {code}:\n\n  {url}\n");
        if let Some(complete) = complete {
            eprintln!("or this one, with the code in it:\n\n  {complete}\n");
        }
    })
    .await?;
    let fields = [
        ("grant_type", EXCHANGE),
        ("subject_token", &id_token),
        ("subject_token_type", ID_TOKEN),
        ("access_type", "offline"),
        ("client_id", "keppel"),
    ];
    let answer = token_request(&http, server, &fields).await?;
    match answer.get("refresh_token").and_then(Value::as_str) {
        Some(token) => Ok(Stored::RefreshToken { username: "oidc".to_owned(), token: token.to_owned() }),
        None => Err(failure(format!("{server} gave no refresh token"))),
    }
}

fn read_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    match secret.is_empty() {
        true => Err(failure("standard input holds no password".to_owned())),
        false => Ok(secret.to_owned()),
    }
}

fn ask(question: &str) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(failure("there is no terminal to ask on\n  give --username and --password-stdin".to_owned()));
    }
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks without showing what is typed.
fn ask_hidden(question: &str) -> Result<String, Failure> {
    let _hidden = HiddenInput::begin();
    let answer = ask(question);
    eprintln!();
    answer
}

/// The terminal shows nothing of what is typed as long as this lives.
struct HiddenInput(Option<libc::termios>);

impl HiddenInput {
    fn begin() -> Self {
        // SAFETY: termios is plain data, for which zeroes are a value.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a termios that lives through the call.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) } != 0 {
            return Self(None);
        }
        let mut hidden = before;
        hidden.c_lflag &= !libc::ECHO;
        // SAFETY: as above.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSAFLUSH, &raw const hidden) };
        Self(Some(before))
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // SAFETY: the pointer is to a termios that lives through the call.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSAFLUSH, before) };
        }
    }
}
