//! People whom a provider knows, recorded for all regions when they log in.

use keppel_federation::vocabulary::TenantId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::verify::Refusal;
use crate::auth::{Identity, RecordKind, RecordOutcome, RecordStore, Role, UserDocument, UserName};

/// How often a change is tried again when someone else was first.
const ATTEMPTS_MAX: usize = 8;

/// What is recorded about someone whom a provider knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OidcSession {
    /// The provider.
    pub issuer: String,
    /// Its name for them, which stays when their user name changes hands.
    pub subject: String,
    /// When they have to log in with the provider again, in UNIX seconds.
    pub ends_at: i64,
    /// Tokens of the provider from before do not count, in UNIX seconds.
    #[serde(default)]
    pub revoked_at: i64,
}

impl OidcSession {
    /// The credential that tokens of the session name.
    pub(in crate::auth) fn credential(&self) -> String {
        credential(&self.issuer, &self.subject)
    }
}

/// Names one person of one provider, so that no token of theirs is good for somebody who has their name after them.
fn credential(issuer: &str, subject: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("keppel 2026 session of a provider");
    hasher.update(&(issuer.len() as u64).to_le_bytes()).update(issuer.as_bytes()).update(subject.as_bytes());
    format!("oidc:{}", data_encoding::HEXLOWER.encode(&hasher.finalize().as_bytes()[..16]))
}

impl Person {
    /// The credential that their tokens name.
    pub(super) fn credential(&self) -> String {
        credential(&self.issuer, &self.subject)
    }
}

/// Someone whose ID token was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) name: UserName,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) operator: bool,
    pub(super) roles: BTreeMap<TenantId, Role>,
    /// When their token was made, in UNIX seconds.
    pub(super) issued_at: i64,
}

/// Records who they are by the word of their provider, and begins or prolongs their session. Writes only when something
/// is to be changed or a quarter of the session is over, so that frequent logins cost no decision of the federation.
pub(super) async fn begin(
    store: &dyn RecordStore,
    person: &Person,
    now: i64,
    session_seconds: i64,
) -> Result<(), Refusal> {
    let id = Identity::User(person.name.clone()).subject();
    let name = || person.name.to_string();
    let mut last_error = String::new();
    for _ in 0..ATTEMPTS_MAX {
        let record = store.get(RecordKind::User, &id);
        let revision = record.as_ref().map_or(0, |record| record.revision);
        let mut user = match &record {
            None => UserDocument::fresh(),
            Some(record) => {
                UserDocument::from_bytes(&record.body).map_err(|error| Refusal::Store(error.to_string()))?
            }
        };
        match (&user.oidc, &record) {
            (None, None) => {}
            (Some(known), _) if known.issuer == person.issuer && known.subject == person.subject => {
                if known.revoked_at >= person.issued_at {
                    return Err(Refusal::Revoked(name()));
                }
            }
            _ => return Err(Refusal::Taken(name())),
        }
        if user.disabled {
            return Err(Refusal::Disabled(name()));
        }
        let as_before = user.operator == person.operator && user.roles == person.roles;
        let known_end = user.oidc.as_ref().map_or(0, |known| known.ends_at);
        if as_before && known_end >= now.saturating_add(session_seconds / 4 * 3) {
            return Ok(());
        }
        let revoked_at = user.oidc.as_ref().map_or(0, |known| known.revoked_at);
        user.operator = person.operator;
        user.roles.clone_from(&person.roles);
        user.oidc = Some(OidcSession {
            issuer: person.issuer.clone(),
            subject: person.subject.clone(),
            ends_at: now.saturating_add(session_seconds),
            revoked_at,
        });
        match store.put(RecordKind::User, &id, user.to_bytes(), Some(revision)).await {
            Ok(RecordOutcome::Done) => return Ok(()),
            Ok(RecordOutcome::Conflict) => last_error = "someone else changes it all the time".to_owned(),
            // Without a majority nothing can be recorded; a session that is as it was goes on.
            Err(_) if as_before && known_end > now => return Ok(()),
            Err(error) => return Err(Refusal::Store(error.to_string())),
        }
    }
    Err(Refusal::Store(last_error))
}
