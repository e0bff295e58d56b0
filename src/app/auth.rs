//! Builds the auth room, and keeps its keys and password file fresh while the node runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::auth::{
    Auth, AuthDriver, HtpasswdDriver, KeyRing, MemoryRecords, OpenDriver, PasswordHasher, RecordKind, Tokens,
};
use crate::config::{AuthDriverName, Config};
use crate::model::{Clock, SystemClock};

/// The file in the data folder that holds the keys that tokens are signed with.
const KEY_FILE: &str = "token-keys.json";
/// How often the password file is looked at, and whether the next key is due.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps keys and password file fresh until it is stopped.
pub(super) struct AuthKeeper {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl AuthKeeper {
    /// Ends the upkeep.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// Builds the auth room as configured.
pub(super) async fn start(config: &Config) -> Result<(Auth, AuthKeeper), StartError> {
    let config = config.clone();
    let built = tokio::task::spawn_blocking(move || build(&config)).await;
    let (auth, records, htpasswd) = built.unwrap_or_else(|_| Err(StartError::Panicked))?;
    let stop = CancellationToken::new();
    let task = tokio::spawn(keep(auth.clone(), records, htpasswd, stop.clone()));
    Ok((auth, AuthKeeper { stop, task }))
}

type Parts = (Auth, Arc<MemoryRecords>, Option<Arc<HtpasswdDriver>>);

fn build(config: &Config) -> Result<Parts, StartError> {
    let clock = Arc::new(SystemClock);
    let records = Arc::new(MemoryRecords::default());
    let key_file = config.node.data.join(KEY_FILE);
    let hasher = PasswordHasher::new(config.password_options());
    let (driver, htpasswd, keys): (Arc<dyn AuthDriver>, _, _) = match (config.auth.driver, &config.auth.htpasswd_file) {
        (AuthDriverName::Htpasswd, Some(path)) => {
            let driver = Arc::new(HtpasswdDriver::open(path, hasher)?);
            (driver.clone(), Some(driver), KeyRing::open(&key_file, config.key_options(), clock.now())?)
        }
        // Tokens of an open registry open nothing that is not open anyway, so that their keys need not outlive it.
        (AuthDriverName::Open | AuthDriverName::Htpasswd, _) => {
            (Arc::new(OpenDriver::default()), None, KeyRing::in_memory(config.key_options(), clock.now())?)
        }
    };
    let tokens = Tokens::new(config.token_options(), keys, records.clone(), clock.clone());
    publish(&records, &tokens);
    Ok((Auth::new(&config.auth_options(), driver, records.clone(), tokens, clock), records, htpasswd))
}

fn publish(records: &MemoryRecords, tokens: &Tokens) {
    for (id, document) in tokens.keys().documents() {
        records.put(RecordKind::IssuerKey, &id, document.to_bytes());
    }
}

async fn keep(auth: Auth, records: Arc<MemoryRecords>, htpasswd: Option<Arc<HtpasswdDriver>>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let (auth, records, htpasswd) = (auth.clone(), records.clone(), htpasswd.clone());
        let _ = tokio::task::spawn_blocking(move || upkeep(&auth, &records, htpasswd.as_deref())).await;
    }
}

fn upkeep(auth: &Auth, records: &MemoryRecords, htpasswd: Option<&HtpasswdDriver>) {
    match htpasswd.map(HtpasswdDriver::reload) {
        Some(Ok(true)) => tracing::info!("the password file has changed and was read again"),
        Some(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the password file cannot be read; the users of before are still let in");
        }
        Some(Ok(false)) | None => {}
    }
    match auth.tokens().keys().maintain(SystemClock.now()) {
        Ok(true) => {
            publish(records, auth.tokens());
            tracing::info!("the next key to sign tokens with was made");
        }
        Ok(false) => {}
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the next key to sign tokens with cannot be made; the last one goes on");
        }
    }
}
