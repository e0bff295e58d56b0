//! The key of a node: ed25519, made on first start; its public half is the node's id.
//!
//! The key never leaves the file and this room: others get signatures (through TLS) and secrets derived from it. There
//! is no second copy: a node whose key is lost is a new node, and its old id is removed from the federation by a member.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::BASE64;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::vocabulary::NodeId;

/// The name of the key's file in the data directory.
pub const KEY_FILE: &str = "node.key";

const PEM_HEAD: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_FOOT: &str = "-----END PRIVATE KEY-----";
/// What precedes the 32 bytes of an ed25519 public key in its SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why a node has no key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or its directory could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Someone else than the owner may read the key.
    #[error("{path} may be read by others (mode {mode:o}): nobody but its owner may, so run chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no ed25519 key.
    #[error("{path} holds no ed25519 private key in PKCS#8 PEM form")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The cryptographic library refused to make a key.
    #[error("no key could be made")]
    Generation,
}

/// The private key of this node.
#[derive(Clone)]
pub struct NodeKey {
    pkcs8: Arc<[u8]>,
    id: NodeId,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeKey({}, ***)", self.id)
    }
}

impl NodeKey {
    /// Makes a new key, kept in memory only.
    ///
    /// # Errors
    /// [`IdentityError::Generation`].
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| IdentityError::Generation)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| IdentityError::Generation)?;
        Self::from_pkcs8(pkcs8.as_ref()).ok_or(IdentityError::Generation)
    }

    /// Reads the key `node.key` of a data directory, or makes it when there is none. The directory is made, too.
    /// When this returns, the key is durable. Blocks on the disk.
    ///
    /// # Errors
    /// Any [`IdentityError`]; an existing file is never replaced.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join(KEY_FILE);
        if let Some(key) = Self::load(&path)? {
            return Ok(key);
        }
        let make = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
        make.map_err(|source| IdentityError::Io { action: "make", path: data_dir.to_owned(), source })?;
        let key = Self::generate()?;
        match key.store(data_dir, &path) {
            Ok(()) => Ok(key),
            // Another process made one in the meantime: theirs counts.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Self::load(&path)?.ok_or(IdentityError::Malformed { path })
            }
            Err(source) => Err(IdentityError::Io { action: "write", path, source }),
        }
    }

    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let failed = |source| IdentityError::Io { action: "read", path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        (&mut file).take(KEY_FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        let key = parse_pem(&text).and_then(|pkcs8| Self::from_pkcs8(&pkcs8));
        key.map(Some).ok_or_else(|| IdentityError::Malformed { path: path.to_owned() })
    }

    /// Written whole under another name, then linked to its own name, which fails when that exists.
    fn store(&self, data_dir: &Path, path: &Path) -> io::Result<()> {
        let temporary = data_dir.join(format!(".{KEY_FILE}.{:016x}", rand::random::<u64>()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(format!("{PEM_HEAD}\n{}\n{PEM_FOOT}\n", BASE64.encode(&self.pkcs8)).as_bytes())?;
            file.sync_all()?;
            std::fs::hard_link(&temporary, path)
        })();
        let removed = std::fs::remove_file(&temporary);
        written.and(removed)?;
        File::open(data_dir)?.sync_all()
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref()).ok()?;
        Some(Self { pkcs8: pkcs8.into(), id: NodeId::from_public_key(public) })
    }

    /// The id: the public key.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// 32 secret bytes for one purpose, the same after every start. Nothing can be learned from them about the key.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.pkcs8)
    }

    /// The key as TLS wants it: a raw public key (RFC 7250) and its signer.
    pub(crate) fn certified(&self) -> Result<CertifiedKey, rustls::Error> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.to_vec());
        let signer = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&der)?;
        Ok(CertifiedKey::new(vec![CertificateDer::from(public_key_info(self.id).to_vec())], signer))
    }
}

/// The SubjectPublicKeyInfo of a node's key, as DER.
pub(crate) fn public_key_info(id: NodeId) -> [u8; 44] {
    let mut info = [0; 44];
    info[..12].copy_from_slice(&SPKI_PREFIX);
    info[12..].copy_from_slice(id.public_key());
    info
}

/// The node whose SubjectPublicKeyInfo this is; none when it is not an ed25519 key.
pub(crate) fn node_of_public_key_info(der: &[u8]) -> Option<NodeId> {
    let key = der.strip_prefix(&SPKI_PREFIX)?;
    Some(NodeId::from_public_key(key.try_into().ok()?))
}

fn parse_pem(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let body = text.strip_prefix(PEM_HEAD)?.strip_suffix(PEM_FOOT)?;
    let joined: String = body.split_ascii_whitespace().collect();
    BASE64.decode(joined.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let first = NodeKey::load_or_create(&data).unwrap();
        let again = NodeKey::load_or_create(&data).unwrap();
        assert_eq!(first.id(), again.id());
        assert_eq!(first.derive("x"), again.derive("x"));
        assert_ne!(first.derive("x"), first.derive("y"));
        let mode = std::fs::metadata(data.join(KEY_FILE)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        NodeKey::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let refused = NodeKey::load_or_create(dir.path()).unwrap_err();
        assert!(matches!(refused, IdentityError::Exposed { mode: 0o640, .. }), "{refused}");
    }

    #[test]
    fn a_damaged_key_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        NodeKey::load_or_create(dir.path()).unwrap();
        let path = dir.path().join(KEY_FILE);
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&b""[..], b"hello", &whole[..whole.len() / 2]] {
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(NodeKey::load_or_create(dir.path()), Err(IdentityError::Malformed { .. })));
            assert_eq!(std::fs::read(&path).unwrap(), damaged);
        }
    }

    #[test]
    fn a_public_key_survives_its_der_form_and_nothing_else_parses() {
        let id = NodeKey::generate().unwrap().id();
        assert_eq!(node_of_public_key_info(&public_key_info(id)), Some(id));
        assert_eq!(node_of_public_key_info(&public_key_info(id)[..43]), None);
        assert_eq!(node_of_public_key_info(&[0; 44]), None);
    }
}
