use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use jsonwebtoken::EncodingKey;
use keppel_federation::vocabulary::{IssuerKeyId, NodeId};
use serde::{Deserialize, Serialize};

use super::{DocumentError, KeyError};

/// How signing keys come and go. Times are in seconds.
#[derive(Debug, Clone)]
pub struct KeyOptions {
    /// How long a key signs.
    pub rotation_seconds: i64,
    /// How long a new key is published before it signs, so that every region knows it by then.
    pub lead_seconds: i64,
    /// How long after its last signature a key is still good for verifying: the longest life of a token.
    pub tail_seconds: i64,
}

impl Default for KeyOptions {
    fn default() -> Self {
        const DAY: i64 = 24 * 3600;
        Self { rotation_seconds: 30 * DAY, lead_seconds: DAY, tail_seconds: 15 * DAY }
    }
}

/// The public half of a key, as all regions know it. Kept as JSON under an [`IssuerKeyId`], which names its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerKeyDocument {
    /// The 32 bytes of the ed25519 public key, base64url without padding.
    pub public: String,
    /// When it was made, in UNIX seconds.
    pub created_at: i64,
    /// When no token of it is good any longer, in UNIX seconds.
    pub expires_at: i64,
    /// Whether it was given up before its time: then no token of it is good.
    #[serde(default)]
    pub revoked: bool,
}

impl IssuerKeyDocument {
    /// Reads a stored document.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(bytes).map_err(|error| DocumentError::new("issuer key", error.to_string()))
    }

    /// The form that is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The public key, if it is the one that the id is of: so nobody can put another one in its place.
    pub(super) fn public_key(&self, id: &IssuerKeyId) -> Option<[u8; 32]> {
        let public: [u8; 32] = BASE64URL_NOPAD.decode(self.public.as_bytes()).ok()?.try_into().ok()?;
        (id.name() == name_of(&public)).then_some(public)
    }
}

/// What a key is called: a part of its hash.
fn name_of(public: &[u8]) -> String {
    BASE64URL_NOPAD.encode(&blake3::hash(public).as_bytes()[..12])
}

/// A key that can sign.
pub(super) struct SigningKey {
    pub(super) id: String,
    pub(super) encoding: EncodingKey,
    stored: StoredKey,
    document: IssuerKeyDocument,
}

#[derive(Clone, Serialize, Deserialize)]
struct StoredKey {
    /// PKCS#8, base64.
    private: String,
    created_at: i64,
    signs_from: i64,
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    keys: Vec<StoredKey>,
}

/// The signing keys of this node: the one that signs, and the one that will. They never leave the node.
pub struct KeyRing {
    node: NodeId,
    path: Option<PathBuf>,
    options: KeyOptions,
    keys: Mutex<Vec<Arc<SigningKey>>>,
}

impl KeyRing {
    /// Keys of this node that live as long as the process.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn in_memory(node: NodeId, options: KeyOptions, now: i64) -> Result<Self, KeyError> {
        let ring = Self { node, path: None, options, keys: Mutex::default() };
        ring.maintain(now)?;
        Ok(ring)
    }

    /// Keys of this node kept in a file that only its owner may read; it is made when it is not there. Blocks.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(path: &Path, node: NodeId, options: KeyOptions, now: i64) -> Result<Self, KeyError> {
        let stored = match std::fs::read(path) {
            Ok(bytes) => {
                let malformed = || KeyError::Malformed { path: path.to_owned() };
                serde_json::from_slice::<KeyFile>(&bytes).map_err(|_| malformed())?.keys
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(KeyError::Io { action: "read", path: path.to_owned(), source }),
        };
        let keys = stored
            .into_iter()
            .map(|stored| SigningKey::new(node, stored, &options).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| KeyError::Malformed { path: path.to_owned() })?;
        let ring = Self { node, path: Some(path.to_owned()), options, keys: Mutex::new(keys) };
        ring.maintain(now)?;
        Ok(ring)
    }

    /// Makes the next key when it is time, forgets those that are done, and writes the file. Blocks. Whether the keys
    /// to be published have changed.
    ///
    /// # Errors
    /// [`KeyError`]; then nothing has changed.
    pub fn maintain(&self, now: i64) -> Result<bool, KeyError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = keys.clone();
        // What has been followed by another key for as long as it might still be found signing is done.
        let successor = next.iter().filter(|key| key.stored.signs_from <= now).map(|key| key.stored.signs_from).max();
        next.retain(|key| successor.is_none_or(|latest| key.stored.signs_from >= latest));
        let last = next.iter().map(|key| key.stored.signs_from).max();
        let due = match last {
            None => Some(now),
            Some(last) => {
                let planned = last + self.options.rotation_seconds;
                match (now >= planned - self.options.lead_seconds, now <= planned) {
                    (false, _) => None,
                    (true, true) => Some(planned.max(now + self.options.lead_seconds)),
                    // The last key has signed for longer than it may: the new one cannot be led in.
                    (true, false) => Some(now),
                }
            }
        };
        if let Some(signs_from) = due {
            next.push(Arc::new(SigningKey::generate(self.node, now, signs_from, &self.options)?));
        }
        let changed = due.is_some() || next.len() != keys.len();
        if changed {
            self.write(&next)?;
            *keys = next;
        }
        Ok(due.is_some())
    }

    /// Forgets keys that an operator has revoked; when none is left, makes one that signs at once. Blocks. Whether there
    /// were any.
    ///
    /// # Errors
    /// [`KeyError`]; then nothing has changed.
    pub fn retire(&self, is_revoked: impl Fn(&str) -> bool, now: i64) -> Result<bool, KeyError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = keys.clone();
        next.retain(|key| !is_revoked(&key.id));
        if next.len() == keys.len() {
            return Ok(false);
        }
        if next.is_empty() {
            next.push(Arc::new(SigningKey::generate(self.node, now, now, &self.options)?));
        }
        self.write(&next)?;
        *keys = next;
        Ok(true)
    }

    /// The key that signs now; the next one, when what came before it was revoked.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] when there is none, which [`Self::maintain`] sees to.
    pub(super) fn current(&self, now: i64) -> Result<Arc<SigningKey>, KeyError> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let signing = keys.iter().filter(|key| key.stored.signs_from <= now).max_by_key(|key| key.stored.signs_from);
        signing.or(keys.first()).cloned().ok_or(KeyError::Crypto)
    }

    /// The public halves, by id, for all regions to know.
    pub fn documents(&self) -> Vec<(String, IssuerKeyDocument)> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().map(|key| (key.id.clone(), key.document.clone())).collect()
    }

    fn write(&self, keys: &[Arc<SigningKey>]) -> Result<(), KeyError> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = KeyFile { keys: keys.iter().map(|key| key.stored.clone()).collect() };
        let bytes = serde_json::to_vec(&file).map_err(|_| KeyError::Crypto)?;
        write_private(path, &bytes).map_err(|source| KeyError::Io { action: "write", path: path.clone(), source })
    }
}

/// Writes a file that only its owner may read, all of it or nothing.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => std::fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

impl SigningKey {
    fn generate(node: NodeId, now: i64, signs_from: i64, options: &KeyOptions) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Crypto)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto)?;
        Self::new(node, StoredKey { private: BASE64.encode(pkcs8.as_ref()), created_at: now, signs_from }, options)
    }

    fn new(node: NodeId, stored: StoredKey, options: &KeyOptions) -> Result<Self, KeyError> {
        let pkcs8 = BASE64.decode(stored.private.as_bytes()).map_err(|_| KeyError::Crypto)?;
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyError::Crypto)?;
        let public = pair.public_key().as_ref();
        let document = IssuerKeyDocument {
            public: BASE64URL_NOPAD.encode(public),
            created_at: stored.created_at,
            expires_at: stored.signs_from + options.rotation_seconds + options.lead_seconds + options.tail_seconds,
            revoked: false,
        };
        let id = IssuerKeyId::new(node, &name_of(public)).map_err(|_| KeyError::Crypto)?;
        Ok(Self { id: id.to_string(), encoding: EncodingKey::from_ed_der(&pkcs8), stored, document })
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({}, ***)", self.id)
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const OPTIONS: KeyOptions = KeyOptions { rotation_seconds: 1000, lead_seconds: 100, tail_seconds: 500 };

    fn node() -> NodeId {
        NodeId::from_public_key([1; 32])
    }

    #[test]
    fn the_next_key_is_known_before_it_signs_and_the_last_one_after() {
        let ring = KeyRing::in_memory(node(), OPTIONS, 0).unwrap();
        let first = ring.current(0).unwrap().id.clone();
        assert!(!ring.maintain(899).unwrap());
        assert!(ring.maintain(900).unwrap());
        assert_eq!(ring.documents().len(), 2);
        assert_eq!(ring.current(999).unwrap().id, first);
        let second = ring.current(1000).unwrap().id.clone();
        assert_ne!(second, first);
        assert!(!ring.maintain(1000).unwrap());
        let documents = ring.documents();
        assert_eq!(documents.len(), 1, "the private half of the first key is forgotten");
        assert_eq!(documents[0].0, second);
        // A node that slept for too long has a new key at once.
        assert!(ring.maintain(10_000).unwrap());
        assert_ne!(ring.current(10_000).unwrap().id, second);
        assert!(ring.documents().iter().all(|(_, document)| document.expires_at >= document.created_at + 1500));
    }

    #[test]
    fn keys_survive_a_restart_in_a_file_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token-keys.json");
        let id = KeyRing::open(&path, node(), OPTIONS, 0).unwrap().current(0).unwrap().id.clone();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(KeyRing::open(&path, node(), OPTIONS, 10).unwrap().current(10).unwrap().id, id);
        std::fs::write(&path, "{\"keys\":[{\"private\":\"AAAA\",\"created_at\":0,\"signs_from\":0}]}").unwrap();
        assert!(matches!(KeyRing::open(&path, node(), OPTIONS, 0), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn a_revoked_key_signs_no_more_and_another_one_takes_its_place() {
        let ring = KeyRing::in_memory(node(), OPTIONS, 0).unwrap();
        let revoked = ring.current(0).unwrap().id.clone();
        assert!(!ring.retire(|_| false, 5).unwrap());
        assert!(ring.retire(|id| id == revoked, 5).unwrap());
        let next = ring.current(5).unwrap().id.clone();
        assert_ne!(next, revoked);
        assert_eq!(ring.documents().iter().map(|(id, _)| id).collect::<Vec<_>>(), [&next]);
        assert!(
            ring.maintain(5 + OPTIONS.rotation_seconds - OPTIONS.lead_seconds).unwrap(),
            "the key after it is made"
        );
        assert!(ring.retire(|id| id == next, 10).unwrap());
        assert_ne!(ring.current(10).unwrap().id, next, "the one that was to come signs early");
    }
}
