use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a registry outside the federation gave nothing. What it does not have is no error.
///
/// The words are for the client and the operator; they go on with the registry's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ExternalError {
    /// It cannot be reached, is too slow, or is in trouble itself.
    #[error("cannot be asked now: {reason}")]
    Unreachable {
        /// What is in the way.
        reason: String,
    },
    /// It does not let us in: a mistake in the account's settings, or there.
    #[error(
        "refuses us ({reason}): the account's replication.upstream needs a username and a password that may pull there"
    )]
    Refused {
        /// What it answered.
        reason: String,
    },
    /// We have asked it as often as we may.
    #[error("has been asked too often: it may be asked again in {} s", .retry_after.as_secs().max(1))]
    Limited {
        /// How long to wait.
        retry_after: Duration,
    },
    /// Its answer makes no sense, or is not what was asked for.
    #[error("gave an answer that cannot be used: {reason}")]
    Unusable {
        /// What is wrong.
        reason: String,
    },
}

impl ExternalError {
    pub(crate) fn unusable(reason: impl Into<String>) -> Self {
        Self::Unusable { reason: reason.into() }
    }

    pub(crate) fn unreachable(reason: impl Into<String>) -> Self {
        Self::Unreachable { reason: reason.into() }
    }
}

impl From<reqwest::Error> for ExternalError {
    /// The URL is left out: a redirect's may hold a signature.
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut reason = match (error.is_connect(), error.is_timeout()) {
            (_, true) => "no answer in time".to_owned(),
            (true, false) => "no connection".to_owned(),
            (false, false) => error.to_string(),
        };
        // The innermost cause says what happened; those in between only that something did.
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause.and_then(|cause| cause.source()) {
            cause = Some(inner);
        }
        if let Some(cause) = cause.map(ToString::to_string).filter(|cause| !reason.contains(cause)) {
            reason = format!("{reason}: {cause}");
        }
        Self::Unreachable { reason }
    }
}
