use super::ScopeError;

/// Why a caller could not be told who they are, or not be given what they asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The credentials are wrong, expired or revoked. Which of these is not said.
    #[error("the credentials are not valid")]
    InvalidCredentials,
    /// The `Authorization` header cannot be read.
    #[error("the Authorization header is not valid: {0}")]
    BadHeader(&'static str),
    /// The token is refused.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The request for a token cannot be read.
    #[error("the request for a token is not valid: {0}")]
    BadRequest(String),
    /// A scope cannot be read.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// More callers wait for their password to be checked than may.
    #[error("too many logins at once")]
    Overloaded,
    /// This region has been cut off from the others for longer than what it knows of people may be trusted.
    #[error(
        "this region has not heard from the others for longer than auth.trust_when_cut_off, so that it cannot know who may \
         still log in: try again later, or in another region"
    )]
    CutOff,
    /// Checking failed for reasons of our own.
    #[error("the credentials could not be checked: {0}")]
    Unavailable(String),
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is longer than any token of ours.
    #[error("the token is too long")]
    TooLong,
    /// It is not a token of ours.
    #[error("the token is not valid")]
    Malformed,
    /// Nobody we know signed it, or the key was revoked.
    #[error("the token was signed by an unknown key")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature is not valid")]
    BadSignature,
    /// It is meant for another service or another use.
    #[error("the token is not meant for this use")]
    WrongAudience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It would be good for longer than any of ours.
    #[error("the token would be good for too long")]
    TooLasting,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    TooEarly,
    /// Its owner or the credential it came from was revoked.
    #[error("the token was revoked")]
    Revoked,
}

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no keys.
    #[error("{path} holds no signing keys: move it away to make new ones")]
    Malformed {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The cryptographic library refused.
    #[error("the cryptographic library refused to make or use a key")]
    Crypto,
}

/// Why a document about a user, robot or key is not usable, or a change to it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct DocumentError {
    /// The field at fault.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl DocumentError {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}
