//! Which registry a command is about.

use std::path::PathBuf;

use super::super::Failure;
use super::super::federation::failure;

/// A registry's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// `https` or `http`.
    scheme: &'static str,
    /// Host, and port where there is one.
    host: String,
}

impl Server {
    /// Reads `registry.example.org`, with a port, or a whole URL without a path. Without a scheme it is https, but http
    /// on this very machine, as Docker has it.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some("https"), rest),
            Some(("http", rest)) => (Some("http"), rest),
            Some(_) => return Err(bad(text)),
            None => (None, text),
        };
        let host = rest.strip_suffix('/').unwrap_or(rest);
        let good = !host.is_empty()
            && host.len() <= 260
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
        if !good {
            return Err(bad(text));
        }
        let local = ["localhost", "127.0.0.1", "[::1]"]
            .iter()
            .any(|name| host.strip_prefix(name).is_some_and(|port| port.is_empty() || port.starts_with(':')));
        Ok(Self { scheme: scheme.unwrap_or(if local { "http" } else { "https" }), host: host.to_ascii_lowercase() })
    }

    /// Under which name its login is kept.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Whether what is sent may be read on the way.
    pub(super) fn is_plain(&self) -> bool {
        self.scheme == "http"
    }

    /// The URL of a path.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{self}{path}")
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)
    }
}

fn bad(text: &str) -> Failure {
    failure(format!(
        "{text:?} is no registry's address\n  write a host, such as registry.example.org or http://10.0.0.5:5000, without a path"
    ))
}

/// The registry that was named, or that of the last login.
pub(super) fn choose(named: Option<&str>) -> Result<Server, Failure> {
    if let Some(named) = named {
        return Server::parse(named);
    }
    let remembered = remembered().and_then(|path| std::fs::read_to_string(path).ok());
    match remembered {
        Some(text) => Server::parse(&text),
        None => Err(failure(
            "no registry was named\n  name one with --server or KEPPEL_SERVER, or log in with `keppel login SERVER`"
                .to_owned(),
        )),
    }
}

/// Remembers the registry of the last login. Where that is not possible it has to be named each time.
pub(super) fn remember(server: &Server) {
    if let Some(path) = remembered() {
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(path, format!("{server}\n"));
    }
}

/// Forgets it, if it is the remembered one.
pub(super) fn forget(server: &Server) {
    if let Some(path) = remembered()
        && std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == server.to_string())
    {
        let _ = std::fs::remove_file(path);
    }
}

fn remembered() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")))?;
    Some(folder.join("keppel").join("server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_docker_reads_them() {
        for (text, url) in [
            ("registry.example.org", "https://registry.example.org"),
            ("Registry.Example.org:5000/", "https://registry.example.org:5000"),
            ("http://10.0.0.5:5000", "http://10.0.0.5:5000"),
            ("localhost:5000", "http://localhost:5000"),
            ("https://127.0.0.1", "https://127.0.0.1"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("localhost.example.org", "https://localhost.example.org"),
        ] {
            assert_eq!(Server::parse(text).unwrap().to_string(), url);
        }
        for bad in ["", "https://", "ftp://x", "host/path", "user@host", "a b", "host?x"] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }
}
