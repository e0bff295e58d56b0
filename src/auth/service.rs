use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keppel_federation::vocabulary::{AccountName, RepositoryName, TenantId};

use super::caller::{API, KEPPEL, REPOSITORY};
use super::policy_cache::{Policies, PolicyCache};
use super::proof::Proof;
use super::token::Verified;
use super::verdicts::Verdicts;
use super::{
    Access, AccountView, Action, ActionSet, AuthDriver, AuthError, Caller, Credentials, Identity, Login, LoginHint,
    Records, Shown, TokenError, TokenKind, Tokens, decide,
};
use crate::model::Clock;
use crate::model::policy::CompiledPolicies;

/// Bounds of what is remembered. Times are in seconds.
#[derive(Debug, Clone)]
pub struct AuthOptions {
    /// How many verdicts on credentials are remembered.
    pub verdicts_max: usize,
    /// How long a good password is taken without checking it again.
    pub accepted_seconds: i64,
    /// How long a bad one is refused without checking it again.
    pub refused_seconds: i64,
    /// How much of compiled policies is kept, in units of a small policy.
    pub policies_weight_max: u64,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self { verdicts_max: 4096, accepted_seconds: 60, refused_seconds: 10, policies_weight_max: 512 * 1024 }
    }
}

/// Tells who callers are, decides what they may do, and issues tokens. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    driver: Arc<dyn AuthDriver>,
    records: Arc<dyn Records>,
    pub(super) tokens: Tokens,
    verdicts: Verdicts,
    policies: PolicyCache,
    clock: Arc<dyn Clock>,
    is_cut_off: AtomicBool,
}

impl Auth {
    /// Puts the parts together.
    pub fn new(
        options: &AuthOptions,
        driver: Arc<dyn AuthDriver>,
        records: Arc<dyn Records>,
        tokens: Tokens,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let AuthOptions { verdicts_max, accepted_seconds, refused_seconds, policies_weight_max } = *options;
        let verdicts = Verdicts::new(verdicts_max, accepted_seconds, refused_seconds, clock.clone());
        let policies = PolicyCache::new(policies_weight_max);
        Self {
            inner: Arc::new(Inner {
                driver,
                records,
                tokens,
                verdicts,
                policies,
                clock,
                is_cut_off: AtomicBool::new(false),
            }),
        }
    }

    /// The name of the driver.
    pub fn driver_name(&self) -> &'static str {
        self.inner.driver.name()
    }

    /// Whether everybody may do everything.
    pub fn is_open(&self) -> bool {
        self.inner.driver.is_open()
    }

    /// Where people log in, if not here.
    pub fn login_hint(&self) -> Option<LoginHint> {
        self.inner.driver.login_hint()
    }

    /// Whether nobody who logs in can be trusted any more, since what this region knows of them is too old. Gives whether that
    /// is new.
    pub fn set_cut_off(&self, is_cut_off: bool) -> bool {
        self.inner.is_cut_off.swap(is_cut_off, Ordering::Relaxed) != is_cut_off
    }

    fn refuse_cut_off(&self) -> Result<(), AuthError> {
        match self.inner.is_cut_off.load(Ordering::Relaxed) {
            true => Err(AuthError::CutOff),
            false => Ok(()),
        }
    }

    /// The tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.inner.tokens
    }

    /// Tells who the caller is by what they show, as far as memory goes: `None` when a slow check is needed, which
    /// [`Self::identify`] makes.
    pub fn recall<'a>(&self, shown: impl Into<Shown<'a>>) -> Option<Result<Caller, AuthError>> {
        if self.is_open() {
            return Some(self.anonymous());
        }
        match Proof::parse(shown.into()) {
            Err(error) => Some(Err(error)),
            Ok(Proof::None) => Some(self.anonymous()),
            Ok(Proof::Token(token)) => Some(self.by_token(token)),
            Ok(Proof::Credentials(credentials)) => {
                let verdict = self.inner.verdicts.recall(&*self.inner.driver, &credentials)?;
                Some(verdict.and_then(|login| self.by_login(login)))
            }
        }
    }

    /// Tells who the caller at an address is by what they show.
    ///
    /// Cancel safety: may be dropped.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn identify<'a>(&self, shown: impl Into<Shown<'a>>, address: IpAddr) -> Result<Caller, AuthError> {
        let shown = shown.into();
        if let Some(known) = self.recall(shown) {
            return known;
        }
        match Proof::parse(shown)? {
            Proof::Credentials(credentials) => self.by_credentials(&credentials, address).await,
            Proof::None => self.anonymous(),
            Proof::Token(token) => self.by_token(token),
        }
    }

    /// What a caller may do in a repository, from an address. From memory.
    pub fn access(&self, caller: &Caller, repository: &RepositoryName, address: IpAddr) -> Access {
        let limit = caller.limit_on(REPOSITORY, repository.as_str());
        self.full_access(caller, repository, address).narrowed(limit)
    }

    /// What a caller may do in a repository by way of the registry's own API, from an address. From memory.
    pub fn api_access(&self, caller: &Caller, repository: &RepositoryName, address: IpAddr) -> Access {
        self.full_access(caller, repository, address).narrowed(caller.limit_on(KEPPEL, API))
    }

    /// The tenant of an account and its policies; `None`: there is no such account, or its policies cannot be used.
    pub fn account(&self, name: &AccountName) -> Option<(TenantId, Arc<CompiledPolicies>)> {
        let (tenant, policies) = self.policies(name)?;
        Some((tenant, policies.compiled.clone()?))
    }

    /// Whether a caller may pull from every repository of an account, whatever its name: by office, and where no policy
    /// could forbid one. From memory.
    pub fn may_pull_anything(&self, caller: &Caller, account: &AccountName) -> bool {
        if self.is_open() {
            return true;
        }
        let by_credentials = !caller.has_token() && caller.limit.contains(Action::Pull);
        let authority = caller.authority();
        by_credentials
            && match self.policies(account) {
                None => authority.operator,
                Some((tenant, policies)) => {
                    let unrestricted = policies.compiled.as_ref().is_some_and(|policies| !policies.has_rbac());
                    unrestricted && (authority.operator || authority.role(&tenant).is_some())
                }
            }
    }

    pub(super) fn full_access(&self, caller: &Caller, repository: &RepositoryName, address: IpAddr) -> Access {
        if self.is_open() {
            return Access { actions: ActionSet::ALL, see: true, first_pull: true };
        }
        let found = self.policies(&repository.account());
        let account = found.as_ref().and_then(|(tenant, policies)| {
            policies.compiled.as_deref().map(|policies| AccountView { tenant, policies })
        });
        decide(&caller.identity, caller.authority(), account, repository, address)
    }

    fn policies(&self, name: &AccountName) -> Option<(TenantId, Arc<Policies>)> {
        self.inner.policies.of(&*self.inner.records, name)
    }

    pub(super) async fn by_credentials(&self, credentials: &Credentials, address: IpAddr) -> Result<Caller, AuthError> {
        let login = self.inner.verdicts.decide(&*self.inner.driver, credentials, address).await?;
        self.by_login(login)
    }

    fn by_login(&self, login: Login) -> Result<Caller, AuthError> {
        self.refuse_cut_off()?;
        let Login { identity, credential, limit, ends_at } = login;
        let standing = self.inner.driver.standing(&identity).ok_or(AuthError::InvalidCredentials)?;
        // A remembered verdict must not outlive the credential.
        let now = self.inner.clock.now();
        if ends_at.is_some_and(|end| end <= now) || !standing.honours(standing.epoch, credential.as_deref(), now) {
            return Err(AuthError::InvalidCredentials);
        }
        Ok(Caller { identity: Arc::new(identity), standing, credential, limit, access: None, ends_at })
    }

    fn by_token(&self, token: &str) -> Result<Caller, AuthError> {
        let verified = self.inner.tokens.verify(token, TokenKind::Access)?;
        let mut caller = self.by_claims(&verified)?;
        caller.access = Some(verified);
        Ok(caller)
    }

    pub(super) fn by_claims(&self, verified: &Verified) -> Result<Caller, AuthError> {
        let Verified { claims, identity, limit, .. } = verified;
        if **identity != Identity::Anonymous {
            self.refuse_cut_off()?;
        }
        let (identity, limit) = (identity.clone(), *limit);
        let standing = self.inner.driver.standing(&identity).ok_or(TokenError::Revoked)?;
        if !standing.honours(claims.epoch, claims.credential.as_deref(), self.inner.clock.now()) {
            return Err(TokenError::Revoked.into());
        }
        Ok(Caller { identity, standing, credential: claims.credential.clone(), limit, access: None, ends_at: None })
    }

    pub(super) fn anonymous(&self) -> Result<Caller, AuthError> {
        let standing = self.inner.driver.standing(&Identity::Anonymous).ok_or(AuthError::InvalidCredentials)?;
        let (identity, limit) = (Arc::new(Identity::Anonymous), ActionSet::ALL);
        Ok(Caller { identity, standing, credential: None, limit, access: None, ends_at: None })
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("driver", &self.driver_name()).finish_non_exhaustive()
    }
}
