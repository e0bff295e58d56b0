//! Certificates from files, looked at again when the files change.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio_util::sync::CancellationToken;

use super::{TlsOptions, error::CertificateError};

impl TlsOptions {
    /// Reads the files and sees whether a server could use them. Blocks on small reads.
    ///
    /// # Errors
    /// [`CertificateError`], as the server would have it at its start.
    pub fn check(&self) -> Result<(), CertificateError> {
        read(self).map(|_| ())
    }
}

/// What tells one state of the two files from another: modification time, length and inode of each.
type Fingerprint = [Option<(i64, i64, u64, u64)>; 2];

/// The certificate in use, and the files it came from.
#[derive(Debug)]
pub(super) struct Certificates {
    options: TlsOptions,
    current: Mutex<Arc<ServerConfig>>,
    seen: Mutex<Fingerprint>,
}

impl Certificates {
    /// Reads the files. Blocks on small reads.
    pub(super) fn load(options: TlsOptions) -> Result<Self, CertificateError> {
        let seen = Mutex::new(fingerprint(&options));
        let current = Mutex::new(Arc::new(read(&options)?));
        Ok(Self { options, current, seen })
    }

    /// The configuration for the next handshake.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often [`Self::reload_if_changed`] wants to be called.
    fn interval(&self) -> Duration {
        self.options.reload_interval.max(Duration::from_millis(10))
    }

    /// Takes changed files into use; files that cannot be used leave the old certificate in place and are logged once.
    /// Blocks on small reads. True when a new certificate is in use.
    fn reload_if_changed(&self) -> bool {
        let now = fingerprint(&self.options);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == now {
            return false;
        }
        *seen = now;
        let certificate_file = self.options.certificate_file.display();
        match read(&self.options) {
            Ok(config) => {
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                tracing::info!(%certificate_file, "a new certificate is in use");
                true
            }
            Err(error) => {
                let error = crate::api::error::chain(&error);
                tracing::warn!(%certificate_file, error, "the changed certificate cannot be used; the old one stays");
                false
            }
        }
    }
}

/// Watches the files until shutdown.
pub(super) async fn watch(certificates: Arc<Certificates>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(certificates.interval()) => {}
        }
        let certificates = certificates.clone();
        // A panic in there would only mean that this look failed; the next one comes.
        let _ = tokio::task::spawn_blocking(move || certificates.reload_if_changed()).await;
    }
}

fn fingerprint(options: &TlsOptions) -> Fingerprint {
    [&options.certificate_file, &options.key_file].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.mtime(), metadata.mtime_nsec(), metadata.len(), metadata.ino()))
    })
}

fn read(options: &TlsOptions) -> Result<ServerConfig, CertificateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Read { path, source }
    };
    let chain = CertificateDer::pem_file_iter(&options.certificate_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed(&options.certificate_file))?;
    if chain.is_empty() {
        return Err(CertificateError::Empty { path: options.certificate_file.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&options.key_file).map_err(failed(&options.key_file))?;
    let refused = |source| CertificateError::Refused {
        certificate: options.certificate_file.clone(),
        key: options.key_file.clone(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(refused)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(directory: &Path, name: &str) -> (String, String) {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        std::fs::write(directory.join("cert.pem"), &certificate).unwrap();
        std::fs::write(directory.join("key.pem"), &key).unwrap();
        (certificate, key)
    }

    fn options(directory: &Path) -> TlsOptions {
        TlsOptions {
            certificate_file: directory.join("cert.pem"),
            key_file: directory.join("key.pem"),
            reload_interval: Duration::from_secs(5),
        }
    }

    #[test]
    fn changed_files_are_taken_into_use_and_bad_ones_leave_the_old_certificate() {
        let directory = tempfile::tempdir().unwrap();
        write_pair(directory.path(), "one.example");
        let certificates = Certificates::load(options(directory.path())).unwrap();
        let first = certificates.current();
        assert!(!certificates.reload_if_changed());

        let (_, old_key) = write_pair(directory.path(), "two.example");
        assert!(certificates.reload_if_changed());
        let second = certificates.current();
        assert!(!Arc::ptr_eq(&first, &second));

        let other = rcgen::generate_simple_self_signed(["three.example".to_owned()]).unwrap();
        std::fs::write(directory.path().join("cert.pem"), format!("{}\n", other.cert.pem())).unwrap();
        assert!(!certificates.reload_if_changed(), "a certificate without its key must not be used");
        assert!(Arc::ptr_eq(&second, &certificates.current()));

        std::fs::remove_file(directory.path().join("key.pem")).unwrap();
        assert!(!certificates.reload_if_changed());
        std::fs::write(directory.path().join("key.pem"), old_key).unwrap();
        assert!(!certificates.reload_if_changed());
        std::fs::write(directory.path().join("key.pem"), other.signing_key.serialize_pem() + "\n\n").unwrap();
        assert!(certificates.reload_if_changed(), "the key that belongs to it makes it usable");
    }

    #[test]
    fn files_without_certificates_are_refused_with_their_name() {
        let directory = tempfile::tempdir().unwrap();
        write_pair(directory.path(), "one.example");
        std::fs::write(directory.path().join("cert.pem"), "nothing").unwrap();
        let error = Certificates::load(options(directory.path())).unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
        std::fs::remove_file(directory.path().join("cert.pem")).unwrap();
        assert!(matches!(Certificates::load(options(directory.path())), Err(CertificateError::Read { .. })));
    }
}
