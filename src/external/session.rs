//! What is remembered of one account at one registry: tokens, and when it may be asked again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::Digest as _;
use tokio::time::Instant;

use super::{ExternalClient, ExternalError, Origin};
use crate::model::policy::Secret;

/// Sessions kept; those that nobody uses go first.
const SESSIONS_MAX: usize = 1024;
/// Tokens kept in a session: one for each repository.
const TOKENS_MAX: usize = 1024;
/// How long to wait after a 429 that does not say, and at most.
const WAIT_DEFAULT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// An account, its upstream and its credentials there, as a hash: with new credentials everything begins anew.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Holder([u8; 32]);

impl Holder {
    pub(super) fn of(origin: &Origin) -> Self {
        let mut hasher = sha2::Sha256::new();
        let source = &origin.source;
        for part in [origin.account.as_str(), &source.url, &source.username, source.password.reveal()] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }
}

#[derive(Default)]
pub(super) struct Session {
    /// Held by the one who fetches a token, so that the others who lack it wait for that.
    pub(super) login: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By scope.
    tokens: HashMap<String, Token>,
    wants_basic: bool,
    not_before: Option<Instant>,
    /// Blobs may be asked for all the same.
    spares_blobs: bool,
    trouble: Option<Trouble>,
}

struct Token {
    value: Secret,
    until: Instant,
}

/// What was logged last, so that it is logged once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Unreachable,
    Refused,
    Limited,
    Unusable,
}

impl Session {
    /// What to show at once: a token that is good for this scope, or the password if that is what was asked for last time.
    pub(super) fn authorization(&self, origin: &Origin, scope: &str) -> Option<Secret> {
        let state = self.lock();
        let token = state.tokens.get(scope).filter(|token| token.until > Instant::now());
        match token {
            Some(token) => Some(Secret::new(format!("Bearer {}", token.value.reveal()))),
            None if state.wants_basic => basic(origin),
            None => None,
        }
    }

    pub(super) fn keep_token(&self, scope: &str, value: Secret, lifetime: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.tokens.len() >= TOKENS_MAX {
            state.tokens.retain(|_, token| token.until > now);
            if state.tokens.len() >= TOKENS_MAX {
                state.tokens.clear();
            }
        }
        state.tokens.insert(scope.to_owned(), Token { value, until: now + lifetime });
    }

    pub(super) fn drop_token(&self, scope: &str) {
        self.lock().tokens.remove(scope);
    }

    pub(super) fn ask_by_password(&self) {
        self.lock().wants_basic = true;
    }

    /// Whether it may be asked, for a blob or for something else.
    pub(super) fn check_wait(&self, for_blob: bool) -> Result<(), ExternalError> {
        let state = self.lock();
        if for_blob && state.spares_blobs {
            return Ok(());
        }
        let left = state.not_before.map(|until| until.saturating_duration_since(Instant::now()));
        match left.filter(|left| !left.is_zero()) {
            Some(retry_after) => Err(ExternalError::Limited { retry_after }),
            None => Ok(()),
        }
    }

    /// It is tried whether blobs may be had while nothing else may be asked for. A blob that is refused ends it.
    pub(super) fn spare_blobs(&self) {
        self.lock().spares_blobs = true;
    }

    /// Takes down that it may not be asked for a while.
    pub(super) fn wait(&self, said: Option<Duration>) -> ExternalError {
        let retry_after = said.unwrap_or(WAIT_DEFAULT).clamp(Duration::from_secs(1), WAIT_MAX);
        let mut state = self.lock();
        state.not_before = Some(Instant::now() + retry_after);
        state.spares_blobs = false;
        drop(state);
        ExternalError::Limited { retry_after }
    }

    /// Logs what has changed since the last answer: trouble once, and its end.
    pub(super) fn note(&self, origin: &Origin, outcome: Result<(), &ExternalError>) {
        let now = outcome.err().map(|error| match error {
            ExternalError::Unreachable { .. } => Trouble::Unreachable,
            ExternalError::Refused { .. } => Trouble::Refused,
            ExternalError::Limited { .. } => Trouble::Limited,
            ExternalError::Unusable { .. } => Trouble::Unusable,
        });
        let before = std::mem::replace(&mut self.lock().trouble, now);
        let (account, upstream) = (&origin.account, origin.url());
        match outcome {
            Err(error) if before != now => {
                tracing::warn!(%account, upstream, "a registry outside {error}");
            }
            Ok(()) if before.is_some() => tracing::info!(%account, upstream, "a registry outside answers again"),
            Ok(()) | Err(_) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The header of HTTP's own login; `None`: we are nobody there.
pub(super) fn basic(origin: &Origin) -> Option<Secret> {
    let source = &origin.source;
    if source.username.is_empty() {
        return None;
    }
    let pair = format!("{}:{}", source.username, source.password.reveal());
    Some(Secret::new(format!("Basic {}", data_encoding::BASE64.encode(pair.as_bytes()))))
}

impl ExternalClient {
    pub(super) fn session(&self, origin: &Origin) -> Arc<Session> {
        let holder = Holder::of(origin);
        let mut sessions = self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX && !sessions.contains_key(&holder) {
            sessions.retain(|_, session| Arc::strong_count(session) > 1 || session.check_wait(false).is_err());
            if sessions.len() >= SESSIONS_MAX {
                sessions.clear();
            }
        }
        sessions.entry(holder).or_default().clone()
    }
}
