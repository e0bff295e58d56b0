//! Whether a token is what it says: signed by its issuer, in time.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, Validation};

use super::claims::{ClaimSet, time};
use super::issuer::{Issuer, IssuerError};

/// The algorithms that are accepted. Neither "none", nor any that needs a shared secret, whatever a token says.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The longest id of a key, in bytes.
const KEY_ID_BYTES_MAX: usize = 256;

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is not a JSON Web Token")]
    Malformed,
    #[error("its algorithm is not accepted")]
    Algorithm,
    #[error("its header demands something that is not known here")]
    Critical,
    #[error("its issuer {0:?} is not one of the configuration")]
    Issuer(String),
    #[error("its issuer has no such key")]
    UnknownKey,
    #[error("its signature is not valid")]
    Signature,
    #[error("it lacks the claim {0}")]
    Lacks(&'static str),
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    TooEarly,
    #[error("it is not an ID token")]
    NotAnIdToken,
    #[error("no rule of the configuration fits it")]
    NoRule,
    #[error("it is not meant for us")]
    Audience,
    #[error("its user name {0:?} cannot be used")]
    Username(String),
    #[error("the e-mail address in it was not verified")]
    Unverified,
    #[error("the user name that came with it is another")]
    OtherUsername,
    #[error("{0} is somebody else: a local user, or one of another issuer or subject")]
    Taken(String),
    #[error("{0} may not log in")]
    Disabled(String),
    #[error("it is from before the sessions of {0} were ended")]
    Revoked(String),
    #[error("no group of {0} has a role")]
    NoRole(String),
    #[error(transparent)]
    Issuers(#[from] IssuerError),
    #[error("the user cannot be recorded: {0}")]
    Store(String),
}

/// What a token says of itself, before anything is checked: good for choosing whom to ask, and for nothing else.
pub(super) fn unverified_issuer(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let claims: ClaimSet = serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?).ok()?;
    Some(claims.get("iss")?.as_str()?.to_owned())
}

/// Whether a secret has the form of a token, so that it is not taken for a password.
pub(super) fn looks_like_token(secret: &str) -> bool {
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    secret.starts_with("eyJ") && secret.split('.').count() == 3 && secret.split('.').take(2).all(is_part)
}

/// What was checked of a token.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) claims: ClaimSet,
    /// Its type, if it has one.
    pub(super) kind: Option<String>,
    /// When it ends, in UNIX seconds.
    pub(super) ends_at: i64,
    /// When it was made, in UNIX seconds.
    pub(super) issued_at: i64,
}

/// Checks a token of an issuer: algorithm, key, signature, issuer and times. For whom it is, is for the caller to check.
///
/// Source: RFC 7519; RFC 8725, "JSON Web Token Best Current Practices".
pub(super) async fn verify(issuer: &Issuer, token: &str, now: i64, skew: i64) -> Result<Checked, Refusal> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Refusal::Algorithm);
    }
    if header.crit.is_some() || header.extras.inner().contains_key("b64") {
        return Err(Refusal::Critical);
    }
    let id = header.kid.as_deref().filter(|id| id.len() <= KEY_ID_BYTES_MAX);
    if id.is_none() && header.kid.is_some() {
        return Err(Refusal::UnknownKey);
    }
    let key = issuer.key(id, header.alg).await?.ok_or(Refusal::UnknownKey)?;
    let mut validation = Validation::new(header.alg);
    // Issuer, audience and times are checked below, against the one clock of the process.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let decoded = jsonwebtoken::decode::<ClaimSet>(token, &key.decoding, &validation);
    let claims = decoded.map_err(|_| Refusal::Signature)?.claims;
    if claims.get("iss").and_then(serde_json::Value::as_str) != Some(issuer.url()) {
        return Err(Refusal::Issuer(String::new()));
    }
    let ends_at = time(&claims, "exp").ok_or(Refusal::Lacks("exp"))?;
    if ends_at.saturating_add(skew) <= now {
        return Err(Refusal::Expired);
    }
    let begins = ["nbf", "iat"].map(|name| (claims.contains_key(name), time(&claims, name)));
    for (is_there, begin) in begins {
        match begin {
            Some(begin) if begin <= now.saturating_add(skew) => {}
            Some(_) => return Err(Refusal::TooEarly),
            None if is_there => return Err(Refusal::Malformed),
            None => {}
        }
    }
    let issued_at = time(&claims, "iat").unwrap_or(i64::MIN);
    Ok(Checked { claims, kind: header.typ, ends_at: ends_at.saturating_add(skew), issued_at })
}
