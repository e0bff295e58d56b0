use std::net::IpAddr;
use std::sync::Arc;

use quick_cache::sync::Cache;

use super::turns::Turns;
use super::{AuthDriver, AuthError, Credentials, Login};
use crate::model::Clock;

/// What was decided about some credentials, and until when that holds.
#[derive(Debug, Clone)]
struct Verdict {
    login: Option<Login>,
    ends_at: i64,
}

/// Remembers for a short while what a driver decided, so that a slow hash is not made for every request.
///
/// The key is a keyed hash of name, secret and the driver's stamp, under a key that only this process knows: the secret
/// is not kept, and a change of the user's record makes the verdict unreachable. Many requests with the same
/// credentials at once make one check.
pub(super) struct Verdicts {
    cache: Cache<[u8; 32], Arc<Verdict>>,
    key: [u8; 32],
    accepted_seconds: i64,
    refused_seconds: i64,
    clock: Arc<dyn Clock>,
    turns: Turns,
}

impl Verdicts {
    pub(super) fn new(entries_max: usize, accepted_seconds: i64, refused_seconds: i64, clock: Arc<dyn Clock>) -> Self {
        let cache = Cache::new(entries_max.max(16));
        Self { cache, key: rand::random(), accepted_seconds, refused_seconds, clock, turns: Turns::new() }
    }

    /// The verdict that is remembered.
    pub(super) fn recall(
        &self,
        driver: &dyn AuthDriver,
        credentials: &Credentials,
    ) -> Option<Result<Login, AuthError>> {
        let verdict = self.cache.get(&self.key_of(driver, credentials))?;
        (verdict.ends_at > self.clock.now()).then(|| answer(&verdict))
    }

    /// The verdict that is remembered, or the driver's. `address` is where the credentials come from.
    pub(super) async fn decide(
        &self,
        driver: &dyn AuthDriver,
        credentials: &Credentials,
        address: IpAddr,
    ) -> Result<Login, AuthError> {
        let key = self.key_of(driver, credentials);
        loop {
            match self.cache.get_value_or_guard_async(&key).await {
                Ok(verdict) if verdict.ends_at > self.clock.now() => return answer(&verdict),
                Ok(_) => {
                    self.cache.remove(&key);
                }
                Err(guard) => {
                    let _turn = self.turns.take(address).await?;
                    let (login, seconds) = match driver.authenticate(credentials).await {
                        Ok(login) => (Some(login), self.accepted_seconds),
                        Err(AuthError::InvalidCredentials) => (None, self.refused_seconds),
                        // Not a verdict: the next one asks again.
                        Err(error) => return Err(error),
                    };
                    let ends_at = self.clock.now() + seconds;
                    let proof_ends_at = login.as_ref().and_then(|login| login.ends_at);
                    let ends_at = proof_ends_at.map_or(ends_at, |end| end.min(ends_at));
                    let verdict = Arc::new(Verdict { login, ends_at });
                    let _ = guard.insert(verdict.clone());
                    return answer(&verdict);
                }
            }
        }
    }

    fn key_of(&self, driver: &dyn AuthDriver, credentials: &Credentials) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&driver.stamp(&credentials.username).to_le_bytes());
        hasher.update(&(credentials.username.len() as u64).to_le_bytes());
        hasher.update(credentials.username.as_bytes());
        hasher.update(credentials.secret.reveal().as_bytes());
        *hasher.finalize().as_bytes()
    }
}

fn answer(verdict: &Verdict) -> Result<Login, AuthError> {
    verdict.login.clone().ok_or(AuthError::InvalidCredentials)
}

#[cfg(test)]
mod tests {
    use super::super::{ActionSet, Identity, Standing};
    use super::*;
    use crate::model::ManualClock;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    fn home() -> IpAddr {
        Ipv4Addr::LOCALHOST.into()
    }

    #[derive(Default)]
    struct Counting {
        checks: AtomicUsize,
        stamp: AtomicU64,
    }

    #[async_trait::async_trait]
    impl AuthDriver for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }
        async fn authenticate(&self, credentials: &Credentials) -> Result<Login, AuthError> {
            self.checks.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            match credentials.secret.reveal() {
                "right" => {
                    Ok(Login { identity: Identity::Anonymous, credential: None, limit: ActionSet::ALL, ends_at: None })
                }
                "busy" => Err(AuthError::Overloaded),
                _ => Err(AuthError::InvalidCredentials),
            }
        }
        fn stamp(&self, _: &str) -> u64 {
            self.stamp.load(Ordering::SeqCst)
        }
        fn standing(&self, _: &Identity) -> Option<Arc<Standing>> {
            None
        }
    }

    #[tokio::test]
    async fn a_verdict_is_remembered_until_its_time_or_the_record_is_over() {
        let (driver, clock) = (Counting::default(), Arc::new(ManualClock::new(1000)));
        let verdicts = Verdicts::new(100, 60, 10, clock.clone());
        let right = Credentials::new("alice", "right").unwrap();
        let wrong = Credentials::new("alice", "wrong").unwrap();
        let busy = Credentials::new("alice", "busy").unwrap();
        assert!(verdicts.recall(&driver, &right).is_none());
        for _ in 0..3 {
            assert!(verdicts.decide(&driver, &right, home()).await.is_ok());
            assert_eq!(verdicts.decide(&driver, &wrong, home()).await, Err(AuthError::InvalidCredentials));
        }
        assert_eq!(driver.checks.load(Ordering::SeqCst), 2);
        clock.advance(11);
        assert!(verdicts.recall(&driver, &wrong).is_none() && verdicts.recall(&driver, &right).is_some());
        clock.advance(60);
        assert!(verdicts.decide(&driver, &right, home()).await.is_ok());
        assert_eq!(driver.checks.load(Ordering::SeqCst), 3);
        driver.stamp.store(1, Ordering::SeqCst);
        assert!(verdicts.recall(&driver, &right).is_none());
        for _ in 0..2 {
            assert_eq!(verdicts.decide(&driver, &busy, home()).await, Err(AuthError::Overloaded));
        }
        assert_eq!(driver.checks.load(Ordering::SeqCst), 5, "trouble of our own is no verdict");
    }

    #[tokio::test]
    async fn many_requests_at_once_make_one_check() {
        let (driver, clock) = (Counting::default(), Arc::new(ManualClock::new(1000)));
        let verdicts = Verdicts::new(100, 60, 10, clock);
        let right = Credentials::new("alice", "right").unwrap();
        let all = (0..50).map(|_| verdicts.decide(&driver, &right, home()));
        for verdict in futures_util::future::join_all(all).await {
            assert!(verdict.is_ok());
        }
        assert_eq!(driver.checks.load(Ordering::SeqCst), 1);
    }
}
