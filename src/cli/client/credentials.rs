//! Logins as Docker keeps them: in its own file, or with the helper that the file names.
//!
//! Source: Docker's documentation of `config.json` and of the protocol of `docker-credential-*` programs.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow, bail};
use data_encoding::BASE64;
use serde_json::{Map, Value, json};

use super::super::Failure;

/// The user name under which helpers keep refresh tokens.
const TOKEN_USERNAME: &str = "<token>";
/// A file of logins is written by programs and by hand; anything beyond this is another file, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What is kept of a login.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// A name and a password.
    Password { username: String, password: String },
    /// A refresh token, which Docker calls an identity token.
    RefreshToken { username: String, token: String },
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username}, ***)"),
            Self::RefreshToken { username, .. } => write!(f, "RefreshToken({username}, ***)"),
        }
    }
}

/// The login for a registry.
pub(super) fn load(host: &str) -> Result<Option<Stored>, Failure> {
    let file = File::open()?;
    match file.helper(host) {
        Some(helper) => Ok(ask_helper(&helper, host)?),
        None => Ok(file.login(host)?),
    }
}

/// Keeps the login for a registry; gives where.
pub(super) fn store(host: &str, login: &Stored) -> Result<String, Failure> {
    let mut file = File::open()?;
    if let Some(helper) = file.helper(host) {
        let (username, secret) = match login {
            Stored::Password { username, password } => (username.as_str(), password),
            Stored::RefreshToken { token, .. } => (TOKEN_USERNAME, token),
        };
        let request = json!({ "ServerURL": host, "Username": username, "Secret": secret });
        run_helper(&helper, "store", &request.to_string())?;
        return Ok(format!("the helper docker-credential-{helper}"));
    }
    file.set_login(host, login);
    file.write()?;
    Ok(file.path.display().to_string())
}

/// Forgets the login for a registry. Whether there was one.
pub(super) fn erase(host: &str) -> Result<bool, Failure> {
    let mut file = File::open()?;
    let mut known = file.logins().is_some_and(|logins| logins.remove(host).is_some());
    if known {
        file.write()?;
    }
    if let Some(helper) = file.helper(host) {
        known |= ask_helper(&helper, host)?.is_some();
        run_helper(&helper, "erase", host)?;
    }
    Ok(known)
}

/// Docker's file.
struct File {
    path: PathBuf,
    content: Map<String, Value>,
}

impl File {
    fn open() -> Result<Self, Failure> {
        let folder = match std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(std::env::var_os("HOME").context("neither HOME nor DOCKER_CONFIG is set")?)
                .join(".docker"),
        };
        Ok(Self::read(folder.join("config.json"))?)
    }

    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let shown = path.display().to_string();
        let text = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                bail!("{shown} is too large to be Docker's file of logins")
            }
            Ok(_) => std::fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(anyhow!(error).context(format!("cannot read {shown}"))),
        };
        let content = match text.trim().is_empty() {
            true => Map::new(),
            false => {
                serde_json::from_str(&text).with_context(|| format!("{shown} is not a JSON object; mend it first"))?
            }
        };
        Ok(Self { path, content })
    }

    /// The helper for a registry, without `docker-credential-`.
    fn helper(&self, host: &str) -> Option<String> {
        let own = self.content.get("credHelpers").and_then(|helpers| helpers.get(host));
        let helper = own.or_else(|| self.content.get("credsStore"))?.as_str()?;
        (!helper.is_empty()).then(|| helper.to_owned())
    }

    fn logins(&mut self) -> Option<&mut Map<String, Value>> {
        self.content.get_mut("auths")?.as_object_mut()
    }

    fn login(&self, host: &str) -> anyhow::Result<Option<Stored>> {
        let Some(entry) = self.content.get("auths").and_then(|auths| auths.get(host)) else { return Ok(None) };
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut username, mut password) = (text("username"), text("password"));
        let encoded = text("auth");
        if !encoded.is_empty() {
            let malformed = || anyhow!("the login for {host} in {} cannot be read: log in again", self.path.display());
            let bytes = BASE64.decode(encoded.as_bytes()).map_err(|_| malformed())?;
            let pair = String::from_utf8(bytes).map_err(|_| malformed())?;
            let (name, secret) = pair.split_once(':').ok_or_else(malformed)?;
            (username, password) = (name.to_owned(), secret.trim_end_matches('\0').to_owned());
        }
        let token = text("identitytoken");
        Ok(match (token.is_empty(), username.is_empty()) {
            (false, _) => Some(Stored::RefreshToken { username, token }),
            (true, false) => Some(Stored::Password { username, password }),
            (true, true) => None,
        })
    }

    fn set_login(&mut self, host: &str, login: &Stored) {
        let entry = match login {
            Stored::Password { username, password } => {
                json!({ "auth": BASE64.encode(format!("{username}:{password}").as_bytes()) })
            }
            Stored::RefreshToken { username, token } => {
                json!({ "auth": BASE64.encode(format!("{username}:").as_bytes()), "identitytoken": token })
            }
        };
        if self.logins().is_none() {
            self.content.insert("auths".to_owned(), json!({}));
        }
        if let Some(logins) = self.logins() {
            logins.insert(host.to_owned(), entry);
        }
    }

    /// Writes it for its owner only, all of it or nothing.
    fn write(&self) -> anyhow::Result<()> {
        // Where it is a link, what it leads to is written.
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let shown = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let temporary = folder.join(format!(".config.json.{}", std::process::id()));
        let write = || {
            let _ = std::fs::remove_file(&temporary);
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            let mut text = serde_json::to_string_pretty(&self.content)?;
            text.push('\n');
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        write().inspect_err(|_| drop(std::fs::remove_file(&temporary))).with_context(|| format!("cannot write {shown}"))
    }
}

fn ask_helper(helper: &str, host: &str) -> anyhow::Result<Option<Stored>> {
    let Some(answer) = run_helper(helper, "get", host)? else { return Ok(None) };
    let answer: Value = serde_json::from_str(&answer)
        .with_context(|| format!("docker-credential-{helper} did not answer with JSON"))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (username, secret) = (text("Username"), text("Secret"));
    Ok(Some(match username == TOKEN_USERNAME {
        true => Stored::RefreshToken { username: String::new(), token: secret },
        false => Stored::Password { username, password: secret },
    }))
}

/// Runs a helper; `None`: it knows no such login.
fn run_helper(helper: &str, verb: &str, input: &str) -> anyhow::Result<Option<String>> {
    let program = format!("docker-credential-{helper}");
    if helper.contains('/') {
        bail!("the helper {program:?} named in Docker's file is no program's name");
    }
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("cannot start {program}, which Docker's file names: install it or take it out there")
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // One that has its answer without reading to the end is judged by that; what is to be kept must be read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe && verb != "store" => {}
            written => written.with_context(|| format!("{program} {verb} does not read"))?,
        }
    }
    let output = child.wait_with_output().with_context(|| format!("{program} {verb}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(Some(text));
    }
    let words = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    match verb != "store" && words.contains("credentials not found") {
        true => Ok(None),
        false => bail!("{program} {verb} failed: {}", words.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn logins_are_kept_beside_what_else_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("config.json");
        let mut file = File::read(path.clone()).unwrap();
        assert_eq!(file.login("r.example").unwrap(), None);
        let password = Stored::Password { username: "ada".into(), password: "a:b".into() };
        let token = Stored::RefreshToken { username: "ada".into(), token: "t.t.t".into() };
        file.set_login("r.example", &password);
        file.write().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, r#"{"psFormat":"x","auths":{"other":{"auth":"YTpi"}}}"#).unwrap();
        let mut file = File::read(path.clone()).unwrap();
        file.set_login("r.example", &password);
        file.set_login("t.example", &token);
        file.write().unwrap();
        let mut file = File::read(path.clone()).unwrap();
        assert_eq!(file.login("r.example").unwrap(), Some(password));
        assert_eq!(file.login("t.example").unwrap(), Some(token));
        assert!(file.login("other").unwrap().is_some() && file.content["psFormat"] == "x");
        assert!(file.logins().unwrap().remove("other").is_some());
        std::fs::write(&path, "{broken").unwrap();
        assert!(File::read(path).is_err(), "a file that cannot be read is not written over");
    }

    #[test]
    fn the_helper_of_a_registry_comes_before_the_one_for_all() {
        let content = json!({"credsStore": "all", "credHelpers": {"r.example": "one"}});
        let content = content.as_object().unwrap().clone();
        let file = File { path: PathBuf::new(), content };
        assert_eq!(file.helper("r.example").as_deref(), Some("one"));
        assert_eq!(file.helper("other").as_deref(), Some("all"));
        assert!(run_helper("../x", "get", "").is_err());
    }
}
