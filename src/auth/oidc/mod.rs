//! Callers whom an OpenID Connect provider knows: people by their ID tokens, workloads by tokens that a cluster or a
//! build service gave them.
//!
//! | file | its job |
//! | --- | --- |
//! | `issuer` | an issuer's keys: found by discovery, remembered, fetched again but not too often |
//! | `verify` | whether a token is what it says |
//! | `claims`, `rules` | what it says, and who that is by the rules of the configuration |
//! | `session` | people, recorded for all regions when they log in |
//!
//! A person's roles come from their groups and are recorded as those of any other user, so that every region decides
//! alike and an operator can end or forbid a session; a session ends by itself when its time is over, whatever refresh
//! tokens are out. A workload leaves no trace but the tokens it got: these end with the token they were made from, or
//! when the rule that let them in is no longer in the configuration.
//!
//! Users, personal tokens and robots of the registry itself are let in as well, so that nobody is locked out when the
//! provider is. Invariants: nothing in a token chooses how it is checked but the id of a key that its issuer publishes;
//! a name that belongs to someone here is never given to someone whom a provider calls so.

mod claims;
mod issuer;
mod rules;
mod session;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::Arc;

use async_trait::async_trait;

use self::claims::{ClaimSet, one, texts};
use self::issuer::Issuer;
use self::session::Person;
use self::verify::{Checked, Refusal, looks_like_token, unverified_issuer, verify};
use super::flow::TOKEN_USERNAME;
use super::{
    ActionSet, AuthDriver, AuthError, Authority, Credentials, Identity, LocalDriver, Login, LoginHint, RecordKind,
    RecordStore, Standing, UserName,
};
use crate::model::Clock;

pub use rules::{GroupRule, WorkloadRule};
pub use session::OidcSession;

/// How people log in with a provider.
#[derive(Debug, Clone)]
pub struct ProviderOptions {
    /// Its `issuer`.
    pub issuer: String,
    /// What this registry is called there: ID tokens must be made for it.
    pub client_id: String,
    /// What is asked for at a login.
    pub scopes: Vec<String>,
    /// The claim that holds the user name.
    pub username_claim: String,
    /// The claim that holds the groups.
    pub groups_claim: String,
    /// What members of groups are.
    pub roles: Vec<GroupRule>,
    /// Whether people without a role are let in.
    pub roleless_users: bool,
    /// How long after a login they need not log in again, in seconds.
    pub session_seconds: i64,
}

/// Whom the driver lets in.
#[derive(Debug, Clone, Default)]
pub struct OidcOptions {
    /// The provider that knows people.
    pub provider: Option<ProviderOptions>,
    /// The rules about workloads. No two are about one robot.
    pub workloads: Vec<WorkloadRule>,
    /// By how much the clocks of issuers may differ from ours, in seconds.
    pub skew_seconds: i64,
    /// Certificates to trust besides those of the system, in PEM.
    pub authorities_pem: Option<Vec<u8>>,
}

/// Why there is no such driver.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The certificates cannot be read, or the HTTP client not be made.
    #[error("the HTTP client for issuers of tokens cannot be made")]
    Http(#[from] reqwest::Error),
}

/// Lets in whom an OpenID Connect provider knows, and those whom the registry itself knows.
pub struct OidcDriver {
    provider: Option<ProviderOptions>,
    workloads: Vec<(WorkloadRule, Arc<Standing>)>,
    skew_seconds: i64,
    issuers: Vec<Issuer>,
    local: LocalDriver,
    store: Arc<dyn RecordStore>,
    clock: Arc<dyn Clock>,
}

impl OidcDriver {
    /// A driver that records people in `store`, over which `local` knows those of the registry itself.
    ///
    /// # Errors
    /// [`OidcError`].
    pub fn new(
        options: OidcOptions,
        local: LocalDriver,
        store: Arc<dyn RecordStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OidcError> {
        let authorities = match &options.authorities_pem {
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem)?,
            None => Vec::new(),
        };
        let mut urls: Vec<&str> = options.workloads.iter().map(|rule| rule.issuer.as_str()).collect();
        urls.extend(options.provider.iter().map(|provider| provider.issuer.as_str()));
        urls.sort_unstable();
        urls.dedup();
        let issuer = |url: &&str| Issuer::new(url, &authorities, clock.clone());
        let issuers = urls.iter().map(issuer).collect::<Result<_, _>>()?;
        let with_standing = |rule: WorkloadRule| {
            let standing = Arc::new(rule.standing());
            (rule, standing)
        };
        let workloads = options.workloads.into_iter().map(with_standing).collect();
        let OidcOptions { provider, skew_seconds, .. } = options;
        Ok(Self { provider, workloads, skew_seconds, issuers, local, store, clock })
    }

    async fn by_token(&self, username: &str, token: &str) -> Result<Login, Refusal> {
        let claimed = unverified_issuer(token).ok_or(Refusal::Malformed)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.url() == claimed);
        let issuer = issuer.ok_or_else(|| Refusal::Issuer(claimed.chars().take(128).collect()))?;
        let checked = verify(issuer, token, self.clock.now(), self.skew_seconds).await?;
        let rule = self.workloads.iter().map(|(rule, _)| rule).find(|rule| rule.matches(issuer.url(), &checked.claims));
        match (rule, &self.provider) {
            (Some(rule), _) => self.workload(rule, username, &checked),
            (None, Some(provider)) if provider.issuer == issuer.url() => {
                self.person(provider, username, &checked).await
            }
            (None, _) => Err(Refusal::NoRule),
        }
    }

    fn workload(&self, rule: &WorkloadRule, username: &str, checked: &Checked) -> Result<Login, Refusal> {
        let identity = Identity::Robot(rule.robot.clone());
        if username != TOKEN_USERNAME && username != rule.robot.as_str() {
            return Err(Refusal::OtherUsername);
        }
        if self.store.get(RecordKind::User, &identity.subject()).is_some() {
            return Err(Refusal::Taken(rule.robot.to_string()));
        }
        let credential = Some(rule.id().to_owned());
        Ok(Login { identity, credential, limit: ActionSet::ALL, ends_at: Some(checked.ends_at) })
    }

    async fn person(&self, provider: &ProviderOptions, username: &str, checked: &Checked) -> Result<Login, Refusal> {
        let person = read_person(provider, checked)?;
        if username != TOKEN_USERNAME && username != person.name.as_str() {
            return Err(Refusal::OtherUsername);
        }
        if !provider.roleless_users && !person.operator && person.roles.is_empty() {
            return Err(Refusal::NoRole(person.name.to_string()));
        }
        session::begin(&*self.store, &person, self.clock.now(), provider.session_seconds).await?;
        let credential = Some(person.credential());
        let identity = Identity::User(person.name);
        Ok(Login { identity, credential, limit: ActionSet::ALL, ends_at: None })
    }
}

/// Who an ID token is about.
///
/// Source: OpenID Connect Core 1.0, section 3.1.3.7.
fn read_person(provider: &ProviderOptions, checked: &Checked) -> Result<Person, Refusal> {
    let claims = &checked.claims;
    if checked.kind.as_ref().is_some_and(|kind| !kind.eq_ignore_ascii_case("jwt")) || claims.contains_key("events") {
        return Err(Refusal::NotAnIdToken);
    }
    let audiences = texts(claims, "aud");
    let presented_by = claims.get("azp").map(|azp| azp.as_str().unwrap_or_default());
    let ours = audiences.contains(&provider.client_id)
        && presented_by.map_or(audiences.len() == 1, |azp| azp == provider.client_id);
    if !ours {
        return Err(Refusal::Audience);
    }
    let subject = one(claims, "sub").filter(|subject| !subject.is_empty()).ok_or(Refusal::Lacks("sub"))?;
    if !claims.contains_key("iat") {
        return Err(Refusal::Lacks("iat"));
    }
    let name = one(claims, &provider.username_claim).unwrap_or_default();
    let name = UserName::parse(name).map_err(|_| Refusal::Username(name.chars().take(64).collect()))?;
    if provider.username_claim == "email" && !is_verified(claims) {
        return Err(Refusal::Unverified);
    }
    let groups = texts(claims, &provider.groups_claim);
    let mut authority = Authority::default();
    provider.roles.iter().for_each(|rule| rule.apply(&groups, &mut authority));
    Ok(Person {
        name,
        issuer: provider.issuer.clone(),
        subject: subject.to_owned(),
        operator: authority.operator,
        roles: authority.roles,
        issued_at: checked.issued_at,
    })
}

fn is_verified(claims: &ClaimSet) -> bool {
    texts(claims, "email_verified") == ["true"]
}

/// Whether a URL may name an issuer or its keys: `https`, or plain `http` on this very machine.
pub fn is_usable_url(url: &str) -> bool {
    let visible = url.len() <= 512 && url.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    let rest = url.strip_prefix("https://").unwrap_or_default();
    visible && ((!rest.is_empty() && !rest.starts_with('/')) || is_loopback(url))
}

fn is_loopback(url: &str) -> bool {
    let host = url.strip_prefix("http://").map(|rest| rest.split(['/', '?', '#']).next().unwrap_or(rest));
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let without_port =
        |host: &str| host.rsplit_once(':').filter(|(_, port)| is_port(port)).map(|(name, _)| name.to_owned());
    let host = host.map(|host| without_port(host).unwrap_or_else(|| host.to_owned()));
    host.as_deref().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
}

#[async_trait]
impl AuthDriver for OidcDriver {
    fn name(&self) -> &'static str {
        "oidc"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Login, AuthError> {
        let secret = credentials.secret.reveal();
        if !looks_like_token(secret) {
            return self.local.authenticate(credentials).await;
        }
        match self.by_token(&credentials.username, secret).await {
            Ok(login) => Ok(login),
            Err(Refusal::Issuers(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a token cannot be checked, since the keys of its issuer cannot be had");
                Err(AuthError::Unavailable("the keys of the token's issuer cannot be fetched".to_owned()))
            }
            Err(refusal @ Refusal::Store(_)) => Err(AuthError::Unavailable(refusal.to_string())),
            Err(refusal) => {
                // The client is told nothing, so whoever runs the registry must be.
                tracing::info!(reason = %refusal, "a token of another issuer was refused");
                Err(AuthError::InvalidCredentials)
            }
        }
    }

    fn stamp(&self, username: &str) -> u64 {
        self.local.stamp(username)
    }

    fn standing(&self, identity: &Identity) -> Option<Arc<Standing>> {
        if let Some(standing) = self.local.standing(identity) {
            return Some(standing);
        }
        let Identity::Robot(name) = identity else { return None };
        let known = self.workloads.iter().find(|(rule, _)| rule.robot == *name);
        // A robot that is recorded, and may not log in, may not do so by a rule either.
        known.filter(|_| self.store.get(RecordKind::User, &identity.subject()).is_none()).map(|(_, s)| s.clone())
    }

    fn login_hint(&self) -> Option<LoginHint> {
        let provider = self.provider.as_ref()?;
        Some(LoginHint {
            issuer: provider.issuer.clone(),
            client_id: provider.client_id.clone(),
            scopes: provider.scopes.clone(),
        })
    }
}
