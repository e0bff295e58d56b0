use std::hash::{Hash, Hasher};
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
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
    /// How long an access token is good.
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
    key_revision: u64,
}

/// The text of a token that was verified. Its end, which is part of the signature, tells it from others as well as a hash
/// of the whole would; whether two are the same is decided by all of it.
struct TokenText(Box<str>);

/// Shown by a request; see [`TokenText`].
struct Shown<'a>(&'a str);

/// What is reckoned for each remembered token; where they are larger, fewer are remembered.
const TOKEN_BYTES_USUAL: u64 = 2048;
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
        let seconds = match claims.kind {
            TokenKind::Access => self.options.access_seconds,
            TokenKind::Refresh => self.options.refresh_seconds,
        };
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
        let key_id = header.kid.filter(|id| id.len() <= 64).ok_or(TokenError::UnknownKey)?;
        let record = self.records.get(RecordKind::IssuerKey, &key_id).ok_or(TokenError::UnknownKey)?;
        let key = IssuerKeyDocument::from_bytes(&record.body).map_err(|_| TokenError::UnknownKey)?;
        if key.revoked || key.expires_at <= self.clock.now() {
            return Err(TokenError::UnknownKey);
        }
        let public = key.public_key().ok_or(TokenError::UnknownKey)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, &DecodingKey::from_ed_der(&public), &self.validation);
        let claims = decoded.map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => TokenError::BadSignature,
            _ => TokenError::Malformed,
        })?;
        let claims = claims.claims;
        let identity = Arc::new(Identity::from_subject(&claims.sub).ok_or(TokenError::Malformed)?);
        let limit = claims.limit.iter().copied().collect();
        Ok(Verified { claims, identity, limit, key_id, key_revision: record.revision })
    }

    fn check_claims(&self, claims: &Claims, kind: TokenKind) -> Result<(), TokenError> {
        let (now, leeway) = (self.clock.now(), self.options.leeway_seconds);
        if claims.aud != self.options.service || claims.iss != self.options.service || claims.kind != kind {
            return Err(TokenError::WrongAudience);
        }
        if claims.exp <= now {
            return Err(TokenError::Expired);
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
mod tests {
    use super::super::{KeyOptions, MemoryRecords};
    use super::*;
    use crate::model::ManualClock;
    use proptest::prelude::*;
    use serde_json::json;

    struct Fixture {
        tokens: Tokens,
        records: Arc<MemoryRecords>,
        clock: Arc<ManualClock>,
    }

    fn publish(records: &MemoryRecords, tokens: &Tokens) {
        for (id, document) in tokens.keys().documents() {
            records.put(RecordKind::IssuerKey, &id, document.to_bytes());
        }
    }

    fn fixture() -> Fixture {
        let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(1_000_000)));
        let keys = KeyRing::in_memory(KeyOptions::default(), 1_000_000).unwrap();
        let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
        publish(&records, &tokens);
        Fixture { tokens, records, clock }
    }

    fn claims(kind: TokenKind) -> Claims {
        Claims {
            iss: String::new(),
            sub: "user:alice".into(),
            aud: String::new(),
            exp: i64::MAX,
            nbf: 0,
            iat: 0,
            jti: String::new(),
            access: vec![ScopeClaim { kind: "repository".into(), name: "a/b".into(), actions: vec![Action::Pull] }],
            kind,
            epoch: 3,
            credential: None,
            limit: Action::ALL.to_vec(),
        }
    }

    /// A token with any header and payload, signed by `sign`.
    fn forge(header: &serde_json::Value, payload: &serde_json::Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let part = |value: &serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let message = format!("{}.{}", part(header), part(payload));
        let signature = BASE64URL_NOPAD.encode(&sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    #[test]
    fn a_token_is_good_for_its_use_until_its_end() {
        let Fixture { tokens, clock, .. } = fixture();
        let (access, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
        let (refresh, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
        for _ in 0..2 {
            assert_eq!(tokens.verify(&access, TokenKind::Access).unwrap().claims, issued);
        }
        assert_eq!(tokens.verify(&refresh, TokenKind::Access), Err(TokenError::WrongAudience));
        assert_eq!(tokens.verify(&access, TokenKind::Refresh), Err(TokenError::WrongAudience));
        clock.advance(599);
        assert!(tokens.verify(&access, TokenKind::Access).is_ok());
        clock.advance(1);
        assert_eq!(tokens.verify(&access, TokenKind::Access), Err(TokenError::Expired));
        assert!(tokens.verify(&refresh, TokenKind::Refresh).is_ok());
        clock.advance(-1000);
        assert_eq!(tokens.verify(&refresh, TokenKind::Refresh), Err(TokenError::TooEarly));
    }

    #[test]
    fn a_revoked_or_removed_key_ends_its_tokens_even_remembered_ones() {
        let Fixture { tokens, records, .. } = fixture();
        let (token, _) = tokens.issue(claims(TokenKind::Access)).unwrap();
        assert!(tokens.verify(&token, TokenKind::Access).is_ok());
        let (id, mut document) = tokens.keys().documents().remove(0);
        document.revoked = true;
        records.put(RecordKind::IssuerKey, &id, document.to_bytes());
        assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey));
        publish(&records, &tokens);
        assert!(tokens.verify(&token, TokenKind::Access).is_ok());
        records.remove(RecordKind::IssuerKey, &id);
        assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey));
    }

    #[test]
    fn tokens_are_good_in_other_regions_and_through_a_rotation_of_keys() {
        let Fixture { tokens, records, clock } = fixture();
        let elsewhere_keys = KeyRing::in_memory(KeyOptions::default(), 1_000_000).unwrap();
        let elsewhere = Tokens::new(TokenOptions::default(), elsewhere_keys, records.clone(), clock.clone());
        let (refresh, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
        assert!(elsewhere.verify(&refresh, TokenKind::Refresh).is_ok());
        let rotation = KeyOptions::default().rotation_seconds;
        clock.advance(rotation - 1000);
        let (late, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
        assert!(tokens.keys().maintain(1_000_000 + rotation - 1000).unwrap());
        publish(&records, &tokens);
        clock.advance(KeyOptions::default().lead_seconds + 1000);
        let (next, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
        for token in [&late, &next] {
            assert!(elsewhere.verify(token, TokenKind::Refresh).is_ok());
        }
        let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid;
        assert_ne!(kid(&late), kid(&next));
    }

    #[test]
    fn confused_algorithms_and_foreign_keys_open_nothing() {
        let Fixture { tokens, clock, records } = fixture();
        let (token, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
        let (kid, document) = tokens.keys().documents().remove(0);
        let payload = serde_json::to_value(&issued).unwrap();
        let public = document.public_key().unwrap();
        let hmac = |message: &[u8]| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &public);
            aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
        };
        for header in [
            json!({"alg": "HS256", "typ": "JWT", "kid": kid}),
            json!({"alg": "none", "typ": "JWT", "kid": kid}),
            json!({"alg": "RS256", "typ": "JWT", "kid": kid}),
            json!({"alg": "ES256", "typ": "JWT", "kid": kid}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": kid}),
            json!({"alg": "EdDSA", "typ": "JWT"}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": "../other"}),
            json!({"typ": "JWT", "kid": kid}),
        ] {
            for forged in [forge(&header, &payload, hmac), forge(&header, &payload, |_| Vec::new())] {
                assert!(tokens.verify(&forged, TokenKind::Access).is_err(), "{header}");
            }
        }
        // A key that brings itself along, and one that nobody published.
        let stranger = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
        let x = BASE64URL_NOPAD.encode(aws_lc_rs::signature::KeyPair::public_key(&stranger).as_ref());
        let header = json!({"alg": "EdDSA", "kid": kid, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}});
        let forged = forge(&header, &payload, |message| stranger.sign(message).as_ref().to_vec());
        assert_eq!(tokens.verify(&forged, TokenKind::Access), Err(TokenError::BadSignature));
        let unpublished = KeyRing::in_memory(KeyOptions::default(), 1_000_000).unwrap();
        let other = Tokens::new(TokenOptions::default(), unpublished, records.clone(), clock.clone());
        let (foreign, _) = other.issue(claims(TokenKind::Access)).unwrap();
        assert_eq!(tokens.verify(&foreign, TokenKind::Access), Err(TokenError::UnknownKey));
        // Another service of the same federation.
        let options = TokenOptions { service: "other".into(), ..TokenOptions::default() };
        let keys = KeyRing::in_memory(KeyOptions::default(), 1_000_000).unwrap();
        let neighbour = Tokens::new(options, keys, records.clone(), clock);
        publish(&records, &neighbour);
        let (foreign, _) = neighbour.issue(claims(TokenKind::Access)).unwrap();
        assert_eq!(tokens.verify(&foreign, TokenKind::Access), Err(TokenError::WrongAudience));
        assert_eq!(
            tokens.verify(&format!("{token}{}", "A".repeat(20_000)), TokenKind::Access),
            Err(TokenError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn a_token_that_was_changed_anywhere_is_refused(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9._-]") {
            let Fixture { tokens, .. } = fixture();
            let (token, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
            let at = at.index(token.len());
            let mut changed = token.clone();
            changed.replace_range(at..=at, &with);
            match tokens.verify(&changed, TokenKind::Access) {
                Ok(read) => prop_assert!(changed == token && read.claims == issued),
                Err(_) => prop_assert!(changed != token),
            }
        }

        #[test]
        fn no_text_makes_verifying_panic(text in ".{0,200}", parts in "[A-Za-z0-9_.-]{0,200}") {
            let Fixture { tokens, .. } = fixture();
            prop_assert!(tokens.verify(&text, TokenKind::Access).is_err());
            prop_assert!(tokens.verify(&parts, TokenKind::Access).is_err());
        }
    }
}
