//! Files that a configuration names: looked at before anything is started, so that a node does not fail on them later.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::problem::{Origin, Problem};
use super::settings::Http;
use crate::api::serve::{CertificateError, TlsOptions};
use crate::auth::HtpasswdDriver;

/// Reads a file of `limit_bytes` at the most. Devices and pipes are refused, since they may never end or never begin.
///
/// # Errors
/// What is wrong with the file, to go on after its name.
pub(super) fn read_regular(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let kind = std::fs::metadata(path).map_err(cannot)?.file_type();
    if kind.is_dir() {
        return Err("cannot be read: it is a folder".to_owned());
    }
    if !kind.is_file() {
        return Err("cannot be read: it is a device, a pipe or a socket, not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit_bytes + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    match bytes.len() as u64 > limit_bytes {
        true => Err(format!("has more than {limit_bytes} bytes, which is too much")),
        false => Ok(bytes),
    }
}

/// Certificates and keys are small; anything beyond this is another file.
const TLS_FILE_MAX_BYTES: u64 = 1 << 20;
/// As much as the password file's own reader takes.
const HTPASSWD_FILE_MAX_BYTES: u64 = 16 << 20;

/// Checks that certificate and key are both there or both not, and that a server can use them.
pub(super) fn check_tls(http: &Http, origin: &impl Fn(&str) -> Origin, problems: &mut Vec<Problem>) {
    let before = problems.len();
    let mut refuse = |key: &str, message: String| problems.push(Problem::of_key(origin(key), key, message));
    for (key, path) in [(CERTIFICATE, &http.tls_certificate), (KEY, &http.tls_key)] {
        if let Some(Err(message)) = path.as_ref().map(|path| read_regular(path, TLS_FILE_MAX_BYTES)) {
            refuse(key, format!("{} {message}", path.as_deref().unwrap_or(Path::new("")).display()));
        }
    }
    match (&http.tls_certificate, &http.tls_key) {
        (Some(_), None) => refuse(CERTIFICATE, "a certificate needs its key: set http.tls_key too".to_owned()),
        (None, Some(_)) => refuse(KEY, "a key needs its certificate: set http.tls_certificate too".to_owned()),
        (None, None) => {}
        (Some(certificate), Some(key)) if problems.len() == before => {
            let reload_interval = http.tls_reload_interval;
            let tls = TlsOptions { certificate_file: certificate.clone(), key_file: key.clone(), reload_interval };
            if let Err(error) = tls.check() {
                let at = match &error {
                    CertificateError::Read { path, .. } if path == key => KEY,
                    CertificateError::Read { .. } | CertificateError::Empty { .. } => CERTIFICATE,
                    CertificateError::Refused { .. } => KEY,
                };
                problems.push(Problem::of_key(origin(at), at, with_causes(&error)));
            }
        }
        (Some(_), Some(_)) => {}
    }
}

const CERTIFICATE: &str = "http.tls_certificate";
const KEY: &str = "http.tls_key";

/// Checks that the users of a password file could log in.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn check_htpasswd(path: &Path) -> Result<(), String> {
    read_regular(path, HTPASSWD_FILE_MAX_BYTES).map_err(|message| format!("{} {message}", path.display()))?;
    HtpasswdDriver::check(path).map_err(|error| with_causes(&error))
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_or_is_no_file_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "12345").expect("written");
        assert_eq!(read_regular(&file, 5).as_deref(), Ok(&b"12345"[..]));
        assert_eq!(read_regular(&file, 4), Err("has more than 4 bytes, which is too much".to_owned()));
        let refused = |path: &Path| read_regular(path, 5).expect_err("it is refused");
        assert!(refused(Path::new("/dev/zero")).contains("not a regular file"));
        assert!(refused(folder.path()).contains("a folder"));
        assert!(refused(&folder.path().join("none")).contains("No such file"));
    }
}
