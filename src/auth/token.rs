use std::hash::{Hash, Hasher};
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use keppel_federation::vocabulary::{IssuerKeyId, NodeId};
use quick_cache::Equivalent;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use super::{Action, ActionSet, Identity, IssuerKeyDocument, KeyError, KeyRing, RecordKind, Records, TokenError};
use crate::model::Clock;

/// How tokens are made and checked. Times are in seconds.
#[derive(Debug, Clone)]
pub struct TokenOptions {
    /// The name of the service, the same in all regions: tokens are good for it only.
    pub service: String,
    /// How long an access token is good. One that is good for longer is refused, so it is the same in all regions.
    pub access_seconds: i64,
    /// How long a refresh token is good; the tail of [`super::KeyOptions`] must be at least as long.
    pub refresh_seconds: i64,
    /// By how much clocks of regions may differ.
    pub leeway_seconds: i64,
    /// The longest token that is looked at, in bytes.
    pub token_bytes_max: usize,
    /// How many verified tokens are remembered.
    pub cache_entries_max: usize,
}

impl Default for TokenOptions {
    fn default() -> Self {
        Self {
            service: "keppel".to_owned(),
            access_seconds: 600,
            refresh_seconds: 14 * 24 * 3600,
            leeway_seconds: 60,
            token_bytes_max: 16 * 1024,
            cache_entries_max: 16 * 1024,
        }
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    /// Shown with requests.
    Access,
    /// Exchanged for access tokens.
    Refresh,
}

/// Something that a token allows, in the form of Docker's token specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeClaim {
    /// `repository`, `registry` or `keppel`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The full name of a repository, `catalog` or `api`.
    pub name: String,
    /// What is allowed there.
    pub actions: Vec<Action>,
}

/// What a token says.
///
/// Source: RFC 7519; Docker's "Token authentication implementation" for `access`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The service that issued it.
    pub iss: String,
    /// Whose it is: the subject of an identity.
    pub sub: String,
    /// The service it is for.
    pub aud: String,
    /// When it ends, in UNIX seconds.
    pub exp: i64,
    /// When it begins, in UNIX seconds.
    pub nbf: i64,
    /// When it was made, in UNIX seconds.
    pub iat: i64,
    /// Names it.
    pub jti: String,
    /// What it allows.
    #[serde(default)]
    pub access: Vec<ScopeClaim>,
    /// What it is for.
    pub kind: TokenKind,
    /// The owner's epoch at its making.
    pub epoch: u64,
    /// The credential it was made from, where that can be revoked on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The most that may be done with that credential.
    pub limit: Vec<Action>,
}

/// A token whose signature was checked with a key in a revision of its record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) claims: Claims,
    /// Whose it is.
    pub(super) identity: Arc<Identity>,
    /// The most that may be done with it.
    pub(super) limit: ActionSet,
    key_id: String,
    /// The node that signed it.
    node: NodeId,
    key_revision: u64,
}

/// The text of a token that was verified. Its end, which is part of the signature, tells it from others as well as a hash
/// of the whole would; whether two are the same is decided by all of it.
struct TokenText(Box<str>);

/// Shown by a request; see [`TokenText`].
struct Shown<'a>(&'a str);

/// What is reckoned for each remembered token; where they are larger, fewer are remembered.
const TOKEN_BYTES_USUAL: u64 = 2048;
/// The longest id of a key, in bytes.
const KEY_ID_BYTES_MAX: usize = 160;
/// How many bytes at the end of a token are hashed to find it.
const HASHED_BYTES: usize = 32;

impl Hash for Shown<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let bytes = self.0.as_bytes();
        state.write(&bytes[bytes.len().saturating_sub(HASHED_BYTES)..]);
    }
}

impl Hash for TokenText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Shown(&self.0).hash(state);
    }
}

impl PartialEq for TokenText {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for TokenText {}

impl Equivalent<TokenText> for Shown<'_> {
    fn equivalent(&self, key: &TokenText) -> bool {
        *self.0 == *key.0
    }
}

/// What remembering a token costs, in bytes: the text, and what was read from it.
#[derive(Clone)]
struct BySize;

impl Weighter<TokenText, Arc<Verified>> for BySize {
    fn weight(&self, text: &TokenText, _: &Arc<Verified>) -> u64 {
        256 + 2 * text.0.len() as u64
    }
}

/// Makes and checks tokens.
///
/// Only ed25519 is ever used, whatever a token says of itself, and only with keys from the records: nothing in a token
/// chooses how it is checked but the id of a known key.
pub struct Tokens {
    options: TokenOptions,
    keys: KeyRing,
    records: Arc<dyn Records>,
    clock: Arc<dyn Clock>,
    cache: Cache<TokenText, Arc<Verified>, BySize>,
    validation: Validation,
}

impl Tokens {
    /// Tokens signed with `keys` and checked with the keys in `records`.
    pub fn new(options: TokenOptions, keys: KeyRing, records: Arc<dyn Records>, clock: Arc<dyn Clock>) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        // Times and audience are checked here, against the one clock of the process.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let entries = options.cache_entries_max.max(16);
        let cache = Cache::with_weighter(entries, entries as u64 * TOKEN_BYTES_USUAL, BySize);
        Self { options, keys, records, clock, cache, validation }
    }

    /// The options.
    pub fn options(&self) -> &TokenOptions {
        &self.options
    }

    /// The keys that sign.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Signs a token for `sub`. The times, the service and the id are filled in; a time of its end that is sooner than
    /// that of its kind stays.
    ///
    /// # Errors
    /// [`KeyError::Crypto`].
    pub fn issue(&self, mut claims: Claims) -> Result<(String, Claims), KeyError> {
        let now = self.clock.now();
        let seconds = self.lifetime(claims.kind);
        claims.iss.clone_from(&self.options.service);
        claims.aud.clone_from(&self.options.service);
        (claims.iat, claims.nbf, claims.exp) = (now, now, claims.exp.min(now.saturating_add(seconds)));
        claims.jti = BASE64URL_NOPAD.encode(&rand::random::<[u8; 16]>());
        let key = self.keys.current(now)?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(key.id.clone());
        let token = jsonwebtoken::encode(&header, &claims, &key.encoding).map_err(|_| KeyError::Crypto)?;
        Ok((token, claims))
    }

    /// The longest life of a token, in seconds.
    fn lifetime(&self, kind: TokenKind) -> i64 {
        match kind {
            TokenKind::Access => self.options.access_seconds,
            TokenKind::Refresh => self.options.refresh_seconds,
        }
    }

    /// Checks a token: form, key, signature, service, use and time. Whether its owner still stands as it says is for
    /// the caller to check. From memory; a signature that was not seen before costs some 50 µs.
    ///
    /// # Errors
    /// [`TokenError`].
    pub(super) fn verify(&self, token: &str, kind: TokenKind) -> Result<Arc<Verified>, TokenError> {
        if token.len() > self.options.token_bytes_max {
            return Err(TokenError::TooLong);
        }
        let remembered = self.cache.get(&Shown(token)).filter(|verified| {
            let record = self.records.get(RecordKind::IssuerKey, &verified.key_id);
            record.is_some_and(|record| record.revision == verified.key_revision)
                && self.records.is_member(verified.node)
        });
        let verified = match remembered {
            Some(verified) => verified,
            None => {
                let verified = Arc::new(self.verify_signature(token)?);
                self.cache.insert(TokenText(token.into()), verified.clone());
                verified
            }
        };
        self.check_claims(&verified.claims, kind)?;
        Ok(verified)
    }

    fn verify_signature(&self, token: &str) -> Result<Verified, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.alg != Algorithm::EdDSA {
            return Err(TokenError::Malformed);
        }
        let key_id = header.kid.filter(|id| id.len() <= KEY_ID_BYTES_MAX).ok_or(TokenError::UnknownKey)?;
        // A key whose node nobody knows, or that is no member any more, signs for nobody.
        let id = IssuerKeyId::parse(&key_id).map_err(|_| TokenError::UnknownKey)?;
        if !self.records.is_member(id.node()) {
            return Err(TokenError::UnknownKey);
        }
        let record = self.records.get(RecordKind::IssuerKey, &key_id).ok_or(TokenError::UnknownKey)?;
        let key = IssuerKeyDocument::from_bytes(&record.body).map_err(|_| TokenError::UnknownKey)?;
        if key.revoked || key.expires_at <= self.clock.now() {
            return Err(TokenError::UnknownKey);
        }
        let public = key.public_key(&id).ok_or(TokenError::UnknownKey)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, &DecodingKey::from_ed_der(&public), &self.validation);
        let claims = decoded.map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::BadSignature,
            _ => TokenError::Malformed,
        })?;
        let claims = claims.claims;
        let identity = Arc::new(Identity::from_subject(&claims.sub).ok_or(TokenError::Malformed)?);
        let limit = claims.limit.iter().copied().collect();
        Ok(Verified { claims, identity, limit, key_id, node: id.node(), key_revision: record.revision })
    }

    fn check_claims(&self, claims: &Claims, kind: TokenKind) -> Result<(), TokenError> {
        let (now, leeway) = (self.clock.now(), self.options.leeway_seconds);
        if claims.aud != self.options.service || claims.iss != self.options.service || claims.kind != kind {
            return Err(TokenError::WrongAudience);
        }
        if claims.exp <= now {
            return Err(TokenError::Expired);
        }
        // No node gives out such, unless it was taken over: what it signs must end soon after it is removed.
        if claims.exp.saturating_sub(claims.iat) > self.lifetime(kind) {
            return Err(TokenError::TooLasting);
        }
        match claims.nbf > now.saturating_add(leeway) || claims.iat > now.saturating_add(leeway) {
            true => Err(TokenError::TooEarly),
            false => Ok(()),
        }
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("service", &self.options.service).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
