use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use super::AuthError;
use crate::model::policy::Secret;

/// How passwords are hashed.
#[derive(Debug, Clone)]
pub struct PasswordOptions {
    /// How many are hashed at once; each takes a core and `memory_kib`.
    pub parallel_max: usize,
    /// How many may wait; more are turned away.
    pub waiting_max: usize,
    /// How long one waits at most.
    pub wait_timeout: Duration,
    /// Memory for one hash, in KiB.
    pub memory_kib: u32,
    /// How often that memory is gone through.
    pub passes: u32,
}

impl Default for PasswordOptions {
    /// The second choice of the OWASP recommendation for argon2id: 19 MiB, two passes.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            parallel_max: cores.max(2) / 2,
            waiting_max: 256,
            wait_timeout: Duration::from_secs(10),
            memory_kib: 19 * 1024,
            passes: 2,
        }
    }
}

/// Hashes and checks passwords on threads that may be slow, a bounded number at a time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PasswordHasher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: PasswordOptions,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl PasswordHasher {
    /// A hasher with these bounds.
    pub fn new(options: PasswordOptions) -> Self {
        let permits = Arc::new(Semaphore::new(options.parallel_max.max(1)));
        Self { inner: Arc::new(Inner { options, permits, waiting: AtomicUsize::new(0) }) }
    }

    /// The argon2id hash of a password, with a fresh salt, in PHC form.
    ///
    /// # Errors
    /// [`AuthError::Overloaded`], [`AuthError::Unavailable`].
    pub async fn hash(&self, password: Secret) -> Result<String, AuthError> {
        let algorithm = self.algorithm()?;
        let hashed = self
            .run(move || algorithm.hash_password(password.reveal().as_bytes()).map(|hash| hash.to_string()))
            .await?;
        hashed.map_err(|error| AuthError::Unavailable(error.to_string()))
    }

    /// Whether a password has this hash. `None` stands for the hash of someone who is not known: it takes as long,
    /// and never fits.
    ///
    /// # Errors
    /// [`AuthError::Overloaded`], [`AuthError::Unavailable`].
    pub async fn verify(&self, password: Secret, hash: Option<String>) -> Result<bool, AuthError> {
        let algorithm = self.algorithm()?;
        self.run(move || match hash {
            Some(hash) => algorithm.verify_password(password.reveal().as_bytes(), hash.as_str()).is_ok(),
            None => {
                let _ = algorithm.hash_password(password.reveal().as_bytes());
                false
            }
        })
        .await
    }

    /// Runs slow work on a thread of its own, when it is its turn.
    ///
    /// # Errors
    /// [`AuthError::Overloaded`] when too many wait, or this one waited too long.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let inner = &self.inner;
        let permit = {
            let _waiting = Waiting::enter(&inner.waiting, inner.options.waiting_max)?;
            let permit = inner.permits.clone().acquire_owned();
            let granted = tokio::time::timeout(inner.options.wait_timeout, permit).await;
            granted.map_err(|_| AuthError::Overloaded)?.map_err(|_| AuthError::Overloaded)?
        };
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.map_err(|_| AuthError::Unavailable("the check was cut short".to_owned()))
    }

    fn algorithm(&self) -> Result<Argon2<'static>, AuthError> {
        let PasswordOptions { memory_kib, passes, .. } = self.inner.options;
        let params = Params::new(memory_kib, passes, 1, None)
            .map_err(|error| AuthError::Unavailable(format!("argon2 refuses its parameters: {error}")))?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

/// Counts one who waits, as long as they wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, limit: usize) -> Result<Self, AuthError> {
        let waiting = Self(count);
        match count.fetch_add(1, Ordering::Relaxed) < limit {
            true => Ok(waiting),
            false => Err(AuthError::Overloaded),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A hasher that is quick enough for tests.
    pub(in crate::auth) fn quick_hasher() -> PasswordHasher {
        PasswordHasher::new(PasswordOptions { memory_kib: 64, passes: 1, ..PasswordOptions::default() })
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only() {
        let hasher = quick_hasher();
        let hash = hasher.hash(Secret::new("swordfish")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"));
        assert_ne!(hash, hasher.hash(Secret::new("swordfish")).await.unwrap(), "salts differ");
        assert!(hasher.verify(Secret::new("swordfish"), Some(hash.clone())).await.unwrap());
        assert!(!hasher.verify(Secret::new("Swordfish"), Some(hash)).await.unwrap());
        assert!(!hasher.verify(Secret::new("swordfish"), Some("$argon2id$broken".into())).await.unwrap());
        assert!(!hasher.verify(Secret::new(""), None).await.unwrap());
    }

    #[tokio::test]
    async fn those_beyond_the_queue_are_turned_away() {
        let hasher = PasswordHasher::new(PasswordOptions {
            parallel_max: 1,
            waiting_max: 1,
            wait_timeout: Duration::from_secs(60),
            ..PasswordOptions::default()
        });
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let (started, running) = tokio::sync::oneshot::channel();
        let busy = {
            let hasher = hasher.clone();
            tokio::spawn(async move {
                hasher
                    .run(move || {
                        let _ = started.send(());
                        let _ = blocked.recv();
                    })
                    .await
            })
        };
        running.await.unwrap();
        let mut second = Box::pin(hasher.run(|| ()));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(hasher.run(|| ()).await, Err(AuthError::Overloaded));
        release.send(()).unwrap();
        assert_eq!(second.await, Ok(()));
        assert_eq!(busy.await.unwrap(), Ok(()));
        assert_eq!(hasher.inner.waiting.load(Ordering::Relaxed), 0);
    }
}
