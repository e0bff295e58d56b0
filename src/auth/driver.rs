use std::sync::Arc;

use async_trait::async_trait;
use data_encoding::BASE64;

use super::{ActionSet, AuthError, Authority, Identity};
use crate::model::policy::Secret;

/// The longest user name that is looked at, in bytes.
const USERNAME_BYTES_MAX: usize = 256;
/// The longest password or token that is looked at, in bytes. A longer one would only cost time.
const SECRET_BYTES_MAX: usize = 12 * 1024;

/// A name and a secret, as a client shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Who they say they are.
    pub username: String,
    /// What is to prove it.
    pub secret: Secret,
}

impl Credentials {
    /// Takes a name and a secret.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredentials`] when they are longer than any of ours.
    pub fn new(username: &str, secret: &str) -> Result<Self, AuthError> {
        match username.len() > USERNAME_BYTES_MAX || secret.len() > SECRET_BYTES_MAX {
            true => Err(AuthError::InvalidCredentials),
            false => Ok(Self { username: username.to_owned(), secret: Secret::new(secret) }),
        }
    }

    /// Reads what follows `Basic ` in a header.
    ///
    /// Source: RFC 7617.
    ///
    /// # Errors
    /// [`AuthError::BadHeader`] and those of [`Self::new`].
    pub fn from_basic(encoded: &str) -> Result<Self, AuthError> {
        if encoded.len() > 2 * (USERNAME_BYTES_MAX + SECRET_BYTES_MAX) {
            return Err(AuthError::InvalidCredentials);
        }
        let bytes = BASE64.decode(encoded.as_bytes()).map_err(|_| AuthError::BadHeader("it is not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| AuthError::BadHeader("it is not UTF-8"))?;
        let (username, secret) = text.split_once(':').ok_or(AuthError::BadHeader("it has no colon"))?;
        Self::new(username, secret)
    }
}

/// A proof of identity that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Who it is.
    pub identity: Identity,
    /// Which of their credentials was shown, where it can be revoked on its own.
    pub credential: Option<String>,
    /// The most that may be done with this credential.
    pub limit: ActionSet,
    /// When the proof ends, in UNIX seconds, where it can be renewed by nobody here: then it gives no refresh token, and
    /// no token that outlives it.
    pub ends_at: Option<i64>,
}

/// The OpenID Connect provider by which people log in, as far as a client has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginHint {
    /// Its `issuer`.
    pub issuer: String,
    /// What this registry is called there.
    pub client_id: String,
    /// What to ask for.
    pub scopes: Vec<String>,
}

/// How someone stands at the moment.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// What they are by office.
    pub authority: Authority,
    /// Grows when all their tokens are revoked at once; a token holds the one of its making.
    pub epoch: u64,
    /// The credentials that can be revoked on their own: ids and when they end, in UNIX seconds.
    pub credentials: Vec<(String, Option<i64>)>,
}

impl Standing {
    /// Whether a token made in `epoch` from `credential` still counts.
    pub fn honours(&self, epoch: u64, credential: Option<&str>, now: i64) -> bool {
        self.epoch == epoch
            && credential.is_none_or(|shown| {
                self.credentials.iter().any(|(id, expires_at)| id == shown && expires_at.is_none_or(|end| end > now))
            })
    }
}

/// A way to tell who a caller is.
#[async_trait]
pub trait AuthDriver: Send + Sync + 'static {
    /// Its name, as configured and as told to clients.
    fn name(&self) -> &'static str;

    /// Whether everybody may do everything, so that no credentials are asked for.
    fn is_open(&self) -> bool {
        false
    }

    /// Checks credentials. May take as long as a password hash takes.
    ///
    /// Cancel safety: may be dropped; the check runs to its end and is forgotten.
    ///
    /// # Errors
    /// [`AuthError::InvalidCredentials`], [`AuthError::Overloaded`], [`AuthError::Unavailable`].
    async fn authenticate(&self, credentials: &Credentials) -> Result<Login, AuthError>;

    /// Changes when the verdict on this user's credentials may change. From memory.
    fn stamp(&self, username: &str) -> u64;

    /// How someone stands; `None`: they are not known, or no longer, or may not log in. From memory.
    fn standing(&self, identity: &Identity) -> Option<Arc<Standing>>;

    /// Where people log in, if not here.
    fn login_hint(&self) -> Option<LoginHint> {
        None
    }
}
