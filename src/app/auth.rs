//! Builds the auth room, and keeps its keys and password file fresh while the node runs.

use std::sync::Arc;
use std::time::Duration;

use keppel_federation::Federation;
use keppel_federation::vocabulary::NodeId;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::StartError;
use crate::api::serve::ListenAddress;
use crate::auth::{
    Auth, AuthDriver, HtpasswdDriver, IssuerKeyDocument, KeyRing, LocalDriver, OidcDriver, OpenDriver, PasswordHasher,
    People, RecordKind, RecordOutcome, RecordStore, Records as _, Tokens,
};
use crate::config::{AuthDriverName, Config};
use crate::model::{Clock, SystemClock, uptime};
use crate::peering::records::FederationRecords;

/// The file in the data folder that holds the keys that tokens are signed with.
pub(super) const KEY_FILE: &str = "token-keys.json";
/// How often the password file is looked at, and whether the next key is due.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How many public keys are looked through for those whose time is over.
const KEYS_MAX: usize = 10_000;
/// How many users and robots are kept ready for use.
const USERS_CACHED_MAX: usize = 16 * 1024;

/// Keeps keys and password file fresh until it is stopped or dropped.
pub(super) struct AuthKeeper {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl AuthKeeper {
    /// Ends the upkeep.
    pub(super) async fn stop(self) {
        drop(self.stop);
        let _ = self.task.await;
    }
}

/// What changes users and robots.
pub(super) fn people(config: &Config, federation: &Federation) -> People {
    let records = Arc::new(FederationRecords::new(federation.clone()));
    People::new(records, PasswordHasher::new(config.password_options()), Arc::new(SystemClock))
}

/// Builds the auth room as configured.
pub(super) async fn start(config: &Config, federation: &Federation) -> Result<(Auth, AuthKeeper), StartError> {
    let records = Arc::new(FederationRecords::new(federation.clone()));
    let (settings, store, node) = (config.clone(), records.clone(), federation.node());
    let built = tokio::task::spawn_blocking(move || build(&settings, node, store)).await;
    let (auth, htpasswd) = built.unwrap_or_else(|_| Err(StartError::Panicked))?;
    let contact = matches!(config.auth.driver, AuthDriverName::Local | AuthDriverName::Oidc).then(|| Contact {
        federation: federation.clone(),
        since: uptime(),
        trusted_for: config.auth.trust_when_cut_off,
    });
    let upkeep = Upkeep { auth: auth.clone(), records, htpasswd, contact };
    // Before the door opens, so that the first token is good everywhere; without a majority, as soon as there is one.
    upkeep.publish_keys().await;
    let stop = CancellationToken::new();
    let task = tokio::spawn(upkeep.run(stop.clone()));
    Ok((auth, AuthKeeper { stop: stop.drop_guard(), task }))
}

fn build(
    config: &Config,
    node: NodeId,
    records: Arc<FederationRecords>,
) -> Result<(Auth, Option<Arc<HtpasswdDriver>>), StartError> {
    let clock = Arc::new(SystemClock);
    let hasher = PasswordHasher::new(config.password_options());
    let open_keys = || KeyRing::open(&config.node.data.join(KEY_FILE), node, config.key_options(), clock.now());
    let (driver, htpasswd, keys): (Arc<dyn AuthDriver>, _, _) = match (config.auth.driver, &config.auth.htpasswd_file) {
        (AuthDriverName::Htpasswd, Some(path)) => {
            let driver = Arc::new(HtpasswdDriver::open(path, hasher, config.auth.htpasswd_grants.clone())?);
            (driver.clone(), Some(driver), open_keys()?)
        }
        (AuthDriverName::Local, _) => {
            let driver = LocalDriver::new(records.clone(), hasher, clock.clone(), USERS_CACHED_MAX);
            (Arc::new(driver), None, open_keys()?)
        }
        (AuthDriverName::Oidc, _) => {
            let local = LocalDriver::new(records.clone(), hasher, clock.clone(), USERS_CACHED_MAX);
            let authorities = config.auth.oidc_ca_file.as_ref().map(std::fs::read).transpose();
            let authorities = authorities.map_err(StartError::Authorities)?;
            let driver = OidcDriver::new(config.oidc_options(authorities), local, records.clone(), clock.clone())?;
            (Arc::new(driver), None, open_keys()?)
        }
        // Tokens of an open registry open nothing that is not open anyway, so that their keys need not outlive it.
        (AuthDriverName::Open | AuthDriverName::Htpasswd, _) => {
            warn_if_open_to_all(config);
            (Arc::new(OpenDriver::default()), None, KeyRing::in_memory(node, config.key_options(), clock.now())?)
        }
    };
    let tokens = Tokens::new(config.token_options(), keys, records.clone(), clock.clone());
    Ok((Auth::new(&config.auth_options(), driver, records, tokens, clock), htpasswd))
}

fn warn_if_open_to_all(config: &Config) {
    let reachable = config.http.listen.iter().any(|address| match address {
        ListenAddress::Tcp(address) => !address.ip().is_loopback(),
        ListenAddress::Unix(_) => false,
    });
    if reachable {
        tracing::warn!("auth.driver is \"open\": whoever reaches this registry may push, pull and delete everything");
    }
}

/// What has to be looked at now and then.
struct Upkeep {
    auth: Auth,
    records: Arc<FederationRecords>,
    htpasswd: Option<Arc<HtpasswdDriver>>,
    /// Where people are what the federation says of them.
    contact: Option<Contact>,
}

/// How long ago most of the federation was heard.
struct Contact {
    federation: Federation,
    /// Counts as heard, as uptime: nothing was heard before the start.
    since: Duration,
    trusted_for: Duration,
}

impl Contact {
    /// Lets nobody in by what may be too old by now, and again once it is not.
    fn look_after(&self, auth: &Auth) {
        let silence = uptime().saturating_sub(self.federation.majority_asked_at().unwrap_or(self.since));
        let is_cut_off = silence > self.trusted_for;
        match auth.set_cut_off(is_cut_off) {
            true if is_cut_off => tracing::error!(
                ?silence,
                "most other regions have been silent for longer than auth.trust_when_cut_off: nobody who logs in is let in"
            ),
            true => tracing::info!("other regions are heard again: who logs in is let in as they say"),
            false => {}
        }
    }
}

impl Upkeep {
    async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Some(contact) = &self.contact {
                contact.look_after(&self.auth);
            }
            let (auth, records, htpasswd) = (self.auth.clone(), self.records.clone(), self.htpasswd.clone());
            let _ = tokio::task::spawn_blocking(move || look_at_files(&auth, &records, htpasswd.as_deref())).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.publish_keys() => {}
            }
        }
    }

    /// Makes the public keys of this node known to all regions, and forgets those whose time is over.
    async fn publish_keys(&self) {
        if self.auth.is_open() {
            return;
        }
        for (id, document) in self.auth.tokens().keys().documents() {
            let known = self.records.get(RecordKind::IssuerKey, &id);
            if known.as_ref().is_some_and(|record| is_settled(&record.body, &document)) {
                continue;
            }
            let revision = known.map_or(0, |record| record.revision);
            match self.records.put(RecordKind::IssuerKey, &id, document.to_bytes(), Some(revision)).await {
                Ok(RecordOutcome::Done) => tracing::info!(key = id, "tokens of this key are good in all regions now"),
                Ok(RecordOutcome::Conflict) => {}
                Err(error) => tracing::warn!(key = id, %error, "a key to sign tokens with cannot be published yet"),
            }
        }
        let now = SystemClock.now();
        for (id, record) in self.records.list(RecordKind::IssuerKey, "", KEYS_MAX) {
            let is_over = IssuerKeyDocument::from_bytes(&record.body).is_ok_and(|key| key.expires_at < now);
            if is_over && let Err(error) = self.records.remove(RecordKind::IssuerKey, &id, record.revision).await {
                tracing::debug!(key = id, %error, "a key whose time is over stays for now");
            }
        }
    }
}

/// Whether nothing is to be written: it is there already, or an operator has revoked it, which stays.
fn is_settled(stored: &[u8], document: &IssuerKeyDocument) -> bool {
    IssuerKeyDocument::from_bytes(stored).is_ok_and(|stored| stored.revoked || stored == *document)
}

fn look_at_files(auth: &Auth, records: &FederationRecords, htpasswd: Option<&HtpasswdDriver>) {
    match htpasswd.map(HtpasswdDriver::reload) {
        Some(Ok(true)) => tracing::info!("the password file has changed and was read again"),
        Some(Err(error)) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the password file cannot be read; the users of before are still let in");
        }
        Some(Ok(false)) | None => {}
    }
    let (keys, now) = (auth.tokens().keys(), SystemClock.now());
    let is_revoked = |id: &str| {
        let record = records.get(RecordKind::IssuerKey, id);
        record.is_some_and(|record| IssuerKeyDocument::from_bytes(&record.body).is_ok_and(|key| key.revoked))
    };
    match keys.retire(is_revoked, now) {
        Ok(true) => tracing::warn!("a key of this node was revoked; tokens are signed with another one now"),
        Ok(false) => {}
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "a revoked key cannot be replaced; this node gives out no tokens that count");
        }
    }
    match keys.maintain(now) {
        Ok(true) => tracing::info!("the next key to sign tokens with was made"),
        Ok(false) => {}
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the next key to sign tokens with cannot be made; the last one goes on");
        }
    }
}
