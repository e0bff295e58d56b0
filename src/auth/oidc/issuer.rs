//! An issuer of tokens: where its keys are, and what they are.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use tokio::sync::Mutex;

use super::{is_loopback, is_usable_url};
use crate::model::Clock;

/// How long keys are taken without being fetched again, in seconds.
const FRESH_SECONDS: i64 = 3600;
/// How long keys are still taken when they cannot be fetched, in seconds.
const STALE_SECONDS: i64 = 24 * 3600;
/// The least time between two attempts to fetch keys, in seconds: so long a token with a key that nobody knows, of which
/// anybody can make any number, costs nothing.
const REFRESH_SECONDS: i64 = 30;
/// The same while there are no keys at all, in seconds.
const RETRY_SECONDS: i64 = 2;
/// How long one fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest document of an issuer, in bytes.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// The most keys of an issuer that are looked at.
const KEYS_MAX: usize = 64;

/// Why an issuer's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssuerError {
    /// It could not be asked, or did not answer.
    #[error("{url} cannot be fetched")]
    Fetch {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// It answered with an error.
    #[error("{url} was answered with {status}")]
    Status { url: String, status: u16 },
    /// It answered with something else than it should.
    #[error("{url}: {reason}")]
    Document { url: String, reason: String },
    /// It was asked a moment ago, in vain.
    #[error("the keys of {0} could not be fetched a moment ago")]
    Waiting(String),
}

/// A key that signatures are checked with.
pub(super) struct Key {
    id: Option<String>,
    algorithm: Option<KeyAlgorithm>,
    family: Family,
    pub(super) decoding: DecodingKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    Ec,
    Ed,
}

#[derive(Default)]
struct KeySet {
    keys: Vec<Arc<Key>>,
    /// In UNIX seconds; 0: never.
    fetched_at: i64,
}

#[derive(Default)]
struct Attempts {
    keys_url: Option<String>,
    last_at: Option<i64>,
}

/// An issuer. Its keys are fetched when they are needed, remembered, and fetched again when they are old or a token names
/// one that is not known, but not too often.
pub(super) struct Issuer {
    url: String,
    http: reqwest::Client,
    clock: Arc<dyn Clock>,
    keys: RwLock<Arc<KeySet>>,
    attempts: Mutex<Attempts>,
}

impl Issuer {
    /// The issuer at a URL; `authorities` are certificates to trust besides those of the system.
    pub(super) fn new(
        url: &str,
        authorities: &[reqwest::Certificate],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, reqwest::Error> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("keppel/", env!("CARGO_PKG_VERSION")))
            .timeout(FETCH_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge(authorities.iter().cloned());
        if is_loopback(url) {
            http = http.no_proxy();
        }
        let http = http.build()?;
        Ok(Self { url: url.to_owned(), http, clock, keys: RwLock::default(), attempts: Mutex::default() })
    }

    /// The URL, which is its name.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The key that a token says it was signed with; `None`: there is none. A token without the id of a key fits only
    /// where the issuer has one key for its algorithm.
    pub(super) async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Option<Arc<Key>>, IssuerError> {
        let known = self.current();
        let found = find(&known.keys, id, algorithm);
        let age = self.clock.now() - known.fetched_at;
        if found.is_some() && age < FRESH_SECONDS {
            return Ok(found);
        }
        match self.refresh(&known).await {
            Ok(()) => Ok(find(&self.current().keys, id, algorithm)),
            Err(error) if known.fetched_at != 0 && age < STALE_SECONDS => {
                if !matches!(error, IssuerError::Waiting(_)) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        issuer = self.url,
                        error,
                        "the keys of an issuer cannot be fetched; those of before are used"
                    );
                }
                Ok(found)
            }
            Err(error) => Err(error),
        }
    }

    fn current(&self) -> Arc<KeySet> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the keys, unless someone else has since `known`, or it is too early. One at a time.
    async fn refresh(&self, known: &Arc<KeySet>) -> Result<(), IssuerError> {
        let mut attempts = self.attempts.lock().await;
        if !Arc::ptr_eq(known, &self.current()) {
            return Ok(());
        }
        let now = self.clock.now();
        let pause = if known.fetched_at == 0 { RETRY_SECONDS } else { REFRESH_SECONDS };
        if attempts.last_at.is_some_and(|last| (0..pause).contains(&(now - last))) {
            return Err(IssuerError::Waiting(self.url.clone()));
        }
        attempts.last_at = Some(now);
        let keys = self.fetch_keys(&mut attempts).await.inspect_err(|_| attempts.keys_url = None)?;
        tracing::debug!(issuer = self.url, keys = keys.len(), "the keys of an issuer were fetched");
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(KeySet { keys, fetched_at: now });
        Ok(())
    }

    async fn fetch_keys(&self, attempts: &mut Attempts) -> Result<Vec<Arc<Key>>, IssuerError> {
        let url = match &attempts.keys_url {
            Some(url) => url.clone(),
            None => {
                let url = self.discover().await?;
                attempts.keys_url.insert(url).clone()
            }
        };
        let document = self.fetch(&url).await?;
        let reason = || IssuerError::Document { url: url.clone(), reason: "it holds no list of keys".to_owned() };
        let keys = document.get("keys").and_then(Value::as_array).ok_or_else(reason)?;
        Ok(keys.iter().take(KEYS_MAX).filter_map(Key::read).map(Arc::new).collect())
    }

    /// Where the keys are.
    ///
    /// Source: OpenID Connect Discovery 1.0, section 4.
    async fn discover(&self) -> Result<String, IssuerError> {
        let url = format!("{}/.well-known/openid-configuration", self.url.trim_end_matches('/'));
        let document = self.fetch(&url).await?;
        let refuse = |reason: String| IssuerError::Document { url: url.clone(), reason };
        match document.get("issuer").and_then(Value::as_str) {
            Some(issuer) if issuer == self.url => {}
            Some(other) => {
                return Err(refuse(format!("it is of issuer {:?}", other.chars().take(128).collect::<String>())));
            }
            None => return Err(refuse("it names no issuer".to_owned())),
        }
        let keys_url = document.get("jwks_uri").and_then(Value::as_str).unwrap_or_default();
        match is_usable_url(keys_url) && (keys_url.starts_with("https://") || is_loopback(&self.url)) {
            true => Ok(keys_url.to_owned()),
            false => Err(refuse("its jwks_uri is not an https URL".to_owned())),
        }
    }

    async fn fetch(&self, url: &str) -> Result<Value, IssuerError> {
        let failed = |source| IssuerError::Fetch { url: url.to_owned(), source };
        let refuse = |reason: String| IssuerError::Document { url: url.to_owned(), reason };
        let mut response = self.http.get(url).header("accept", "application/json").send().await.map_err(failed)?;
        if !response.status().is_success() {
            return Err(IssuerError::Status { url: url.to_owned(), status: response.status().as_u16() });
        }
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if bytes.len() + piece.len() > DOCUMENT_BYTES_MAX {
                return Err(refuse(format!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&piece);
        }
        serde_json::from_slice(&bytes).map_err(|error| refuse(format!("it is not JSON: {error}")))
    }
}

impl Key {
    /// Reads a key; `None`: it is none that signatures of ours are checked with.
    ///
    /// Source: RFC 7517.
    fn read(value: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let family = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Family::Rsa,
            AlgorithmParameters::EllipticCurve(_) => Family::Ec,
            AlgorithmParameters::OctetKeyPair(_) => Family::Ed,
            // Above all no secret: whoever can read it could sign with it.
            _ => return None,
        };
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithm: jwk.common.key_algorithm, family, decoding })
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        let family = match algorithm {
            A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512 => Family::Rsa,
            A::ES256 | A::ES384 => Family::Ec,
            A::EdDSA => Family::Ed,
            _ => return false,
        };
        let named = self.algorithm.is_none_or(|named| Algorithm::try_from(named).is_ok_and(|named| named == algorithm));
        self.family == family && named
    }
}

fn find(keys: &[Arc<Key>], id: Option<&str>, algorithm: Algorithm) -> Option<Arc<Key>> {
    let mut fitting = keys.iter().filter(|key| key.fits(algorithm) && (id.is_none() || key.id.as_deref() == id));
    let first = fitting.next()?;
    match id.is_none() && fitting.next().is_some() {
        true => None,
        false => Some(first.clone()),
    }
}
