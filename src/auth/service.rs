use std::net::IpAddr;
use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, RepositoryName, TenantId};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::flow::rfc3339;
use super::verdicts::Verdicts;
use super::{
    Access, AccountView, ActionSet, AuthDriver, AuthError, Authority, Claims, Credentials, Grant, Identity, Login,
    Records, Resource, Right, Scope, ScopeClaim, Standing, TokenError, TokenKind, TokenRequest, TokenResponse, Tokens,
    decide,
};
use crate::model::Clock;
use crate::model::policy::{AccountSettings, CompiledPolicies};

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

/// A caller whose proof of identity was accepted, or who showed none.
#[derive(Debug, Clone)]
pub struct Caller {
    identity: Identity,
    standing: Arc<Standing>,
    credential: Option<String>,
    limit: ActionSet,
    /// What the token allows; `None`: there is no token, and the limit is all there is.
    access: Option<Vec<ScopeClaim>>,
}

impl Caller {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a bearer token was shown.
    pub fn has_token(&self) -> bool {
        self.access.is_some()
    }

    /// What they are by office.
    pub fn authority(&self) -> &Authority {
        &self.standing.authority
    }

    /// The most that the credential or token allows on something.
    fn limit_on(&self, kind: &str, name: &str) -> ActionSet {
        match &self.access {
            None => self.limit,
            Some(access) => access
                .iter()
                .filter(|claim| claim.kind == kind && claim.name == name)
                .flat_map(|claim| claim.actions.iter().copied())
                .collect::<ActionSet>()
                .intersection(self.limit),
        }
    }

    /// Whether the list of repositories may be asked for; it shows only what the caller may see.
    pub fn may_list(&self) -> bool {
        !self.limit_on(REGISTRY, CATALOG).is_empty()
    }

    /// Whether something may be done with a tenant.
    pub fn has(&self, right: Right, tenant: &TenantId) -> bool {
        let limit = self.limit_on(KEPPEL, API);
        let allowed = match right {
            Right::ViewAccount | Right::ViewQuota => limit.contains(super::Action::Pull),
            Right::EditAccount | Right::EditRobots | Right::EditQuota | Right::EditTenant => limit == ActionSet::ALL,
        };
        allowed && self.authority().has(right, tenant)
    }
}

const REPOSITORY: &str = "repository";
const REGISTRY: &str = "registry";
const CATALOG: &str = "catalog";
const KEPPEL: &str = "keppel";
const API: &str = "api";

/// Tells who callers are, decides what they may do, and issues tokens. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    driver: Arc<dyn AuthDriver>,
    records: Arc<dyn Records>,
    tokens: Tokens,
    verdicts: Verdicts,
    policies: Cache<AccountName, Arc<Policies>, ByWeight>,
    clock: Arc<dyn Clock>,
}

/// The policies of an account at a revision; `None`: they cannot be used.
struct Policies {
    revision: u64,
    compiled: Option<Arc<CompiledPolicies>>,
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<AccountName, Arc<Policies>> for ByWeight {
    fn weight(&self, _: &AccountName, policies: &Arc<Policies>) -> u64 {
        policies.compiled.as_ref().map_or(1, |compiled| compiled.weight())
    }
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
        let policies = Cache::with_weighter(4096, policies_weight_max.max(1024), ByWeight);
        Self { inner: Arc::new(Inner { driver, records, tokens, verdicts, policies, clock }) }
    }

    /// The name of the driver.
    pub fn driver_name(&self) -> &'static str {
        self.inner.driver.name()
    }

    /// Whether everybody may do everything.
    pub fn is_open(&self) -> bool {
        self.inner.driver.is_open()
    }

    /// The tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.inner.tokens
    }

    /// Tells who the caller is by the `Authorization` header, as far as memory goes: `None` when a slow check is
    /// needed, which [`Self::identify`] makes.
    pub fn recall(&self, authorization: Option<&str>) -> Option<Result<Caller, AuthError>> {
        if self.is_open() {
            return Some(self.anonymous());
        }
        match Proof::parse(authorization) {
            Err(error) => Some(Err(error)),
            Ok(Proof::None) => Some(self.anonymous()),
            Ok(Proof::Token(token)) => Some(self.by_token(token)),
            Ok(Proof::Credentials(credentials)) => {
                let verdict = self.inner.verdicts.recall(&*self.inner.driver, &credentials)?;
                Some(verdict.and_then(|login| self.by_login(login)))
            }
        }
    }

    /// Tells who the caller is by the `Authorization` header.
    ///
    /// Cancel safety: may be dropped.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn identify(&self, authorization: Option<&str>) -> Result<Caller, AuthError> {
        if let Some(known) = self.recall(authorization) {
            return known;
        }
        match Proof::parse(authorization)? {
            Proof::Credentials(credentials) => self.by_credentials(&credentials).await,
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
        let by_credentials = !caller.has_token() && caller.limit.contains(super::Action::Pull);
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

    /// Answers a request for a token. `resolve` turns a repository name as the client wrote it into a full one.
    ///
    /// Cancel safety: may be dropped.
    ///
    /// # Errors
    /// [`AuthError`].
    pub async fn issue(
        &self,
        request: TokenRequest,
        address: IpAddr,
        resolve: impl Fn(&str) -> Option<RepositoryName>,
    ) -> Result<TokenResponse, AuthError> {
        let service = &self.inner.tokens.options().service;
        if request.service.as_ref().is_some_and(|asked| asked != service) {
            return Err(AuthError::BadRequest(format!("service is not {service:?}")));
        }
        let caller = match &request.grant {
            _ if self.is_open() => self.anonymous()?,
            Grant::Anonymous => self.anonymous()?,
            Grant::Password(credentials) => self.by_credentials(credentials).await?,
            Grant::RefreshToken(token) => {
                self.by_claims(&self.inner.tokens.verify(token.reveal(), TokenKind::Refresh)?)?
            }
        };
        let access = self.grant(&caller, &request.scopes, address, resolve);
        let scope = request.oauth2.then(|| {
            let shown = access.iter().map(|claim| {
                let actions: Vec<&str> = claim.actions.iter().map(|action| action.as_str()).collect();
                format!("{}:{}:{}", claim.kind, claim.name, actions.join(","))
            });
            shown.collect::<Vec<_>>().join(" ")
        });
        let refresh_token = match &request.grant {
            Grant::RefreshToken(token) => Some(token.reveal().to_owned()),
            Grant::Password(_) if request.offline && caller.identity != Identity::Anonymous => {
                Some(self.sign(&caller, TokenKind::Refresh, Vec::new())?.0)
            }
            Grant::Password(_) | Grant::Anonymous => None,
        };
        let (token, claims) = self.sign(&caller, TokenKind::Access, access)?;
        Ok(TokenResponse {
            access_token: token.clone(),
            token,
            expires_in: claims.exp - claims.iat,
            issued_at: rfc3339(claims.iat),
            refresh_token,
            scope,
        })
    }

    /// The scopes that are granted, narrowed to what is allowed; what is not allowed at all is left out.
    fn grant(
        &self,
        caller: &Caller,
        scopes: &[Scope],
        address: IpAddr,
        resolve: impl Fn(&str) -> Option<RepositoryName>,
    ) -> Vec<ScopeClaim> {
        let mut granted: Vec<ScopeClaim> = Vec::new();
        for scope in scopes {
            let known = caller.identity != Identity::Anonymous || self.is_open();
            let (kind, name, allowed) = match &scope.resource {
                Resource::Repository(name) => {
                    let Some(repository) = resolve(name) else { continue };
                    let allowed = self.full_access(caller, &repository, address).narrowed(caller.limit).actions;
                    (REPOSITORY, repository.as_str().to_owned(), allowed)
                }
                Resource::Catalog if known => (REGISTRY, CATALOG.to_owned(), ActionSet::ALL),
                Resource::Api if known => (KEPPEL, API.to_owned(), caller.limit),
                Resource::Catalog | Resource::Api | Resource::Other => continue,
            };
            let actions: Vec<_> = allowed.intersection(scope.actions).iter().collect();
            if actions.is_empty() {
                continue;
            }
            match granted.iter_mut().find(|claim| claim.kind == kind && claim.name == name) {
                Some(claim) => claim.actions.extend(actions),
                None => granted.push(ScopeClaim { kind: kind.to_owned(), name, actions }),
            }
        }
        for claim in &mut granted {
            claim.actions.sort_unstable();
            claim.actions.dedup();
        }
        granted
    }

    fn full_access(&self, caller: &Caller, repository: &RepositoryName, address: IpAddr) -> Access {
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
        let record = self.inner.records.get_account(name)?;
        let known = self.inner.policies.get(name).filter(|policies| policies.revision == record.settings_revision);
        let policies = known.unwrap_or_else(|| {
            let compiled = AccountSettings::from_stored(&record.settings)
                .and_then(|settings| CompiledPolicies::compile(&settings))
                .inspect_err(|error| {
                    tracing::error!(account = %name, %error, "an account's policies cannot be used; it is closed to all but operators");
                });
            let policies = Arc::new(Policies { revision: record.settings_revision, compiled: compiled.ok().map(Arc::new) });
            self.inner.policies.insert(name.clone(), policies.clone());
            policies
        });
        Some((record.tenant, policies))
    }

    fn sign(&self, caller: &Caller, kind: TokenKind, access: Vec<ScopeClaim>) -> Result<(String, Claims), AuthError> {
        let claims = Claims {
            iss: String::new(),
            sub: caller.identity.subject(),
            aud: String::new(),
            exp: 0,
            nbf: 0,
            iat: 0,
            jti: String::new(),
            access,
            kind,
            epoch: caller.standing.epoch,
            credential: caller.credential.clone(),
            limit: caller.limit.iter().collect(),
        };
        self.inner.tokens.issue(claims).map_err(|error| AuthError::Unavailable(error.to_string()))
    }

    async fn by_credentials(&self, credentials: &Credentials) -> Result<Caller, AuthError> {
        let login = self.inner.verdicts.decide(&*self.inner.driver, credentials).await?;
        self.by_login(login)
    }

    fn by_login(&self, login: Login) -> Result<Caller, AuthError> {
        let Login { identity, credential, limit } = login;
        let standing = self.inner.driver.standing(&identity).ok_or(AuthError::InvalidCredentials)?;
        // A remembered verdict must not outlive the credential.
        if !standing.honours(standing.epoch, credential.as_deref(), self.inner.clock.now()) {
            return Err(AuthError::InvalidCredentials);
        }
        Ok(Caller { identity, standing, credential, limit, access: None })
    }

    fn by_token(&self, token: &str) -> Result<Caller, AuthError> {
        let claims = self.inner.tokens.verify(token, TokenKind::Access)?;
        let mut caller = self.by_claims(&claims)?;
        caller.access = Some(claims.access);
        Ok(caller)
    }

    fn by_claims(&self, claims: &Claims) -> Result<Caller, AuthError> {
        let identity = Identity::from_subject(&claims.sub).ok_or(TokenError::Malformed)?;
        let standing = self.inner.driver.standing(&identity).ok_or(TokenError::Revoked)?;
        if !standing.honours(claims.epoch, claims.credential.as_deref(), self.inner.clock.now()) {
            return Err(TokenError::Revoked.into());
        }
        let limit = claims.limit.iter().copied().collect();
        Ok(Caller { identity, standing, credential: claims.credential.clone(), limit, access: None })
    }

    fn anonymous(&self) -> Result<Caller, AuthError> {
        let standing = self.inner.driver.standing(&Identity::Anonymous).ok_or(AuthError::InvalidCredentials)?;
        Ok(Caller { identity: Identity::Anonymous, standing, credential: None, limit: ActionSet::ALL, access: None })
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("driver", &self.driver_name()).finish_non_exhaustive()
    }
}

/// What an `Authorization` header shows.
enum Proof<'a> {
    None,
    Token(&'a str),
    Credentials(Credentials),
}

impl<'a> Proof<'a> {
    fn parse(header: Option<&'a str>) -> Result<Self, AuthError> {
        let Some(header) = header else { return Ok(Self::None) };
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let rest = rest.trim();
        match scheme {
            scheme if scheme.eq_ignore_ascii_case("bearer") => Ok(Self::Token(rest)),
            scheme if scheme.eq_ignore_ascii_case("basic") => Credentials::from_basic(rest).map(Self::Credentials),
            _ => Err(AuthError::BadHeader("its scheme is neither Basic nor Bearer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::tests::quick_hasher;
    use super::super::{
        Action, KeyOptions, KeyRing, LocalDriver, MemoryRecords, OpenDriver, RecordKind, RobotDocument, RobotScope,
        Role, TokenOptions, UserDocument,
    };
    use super::*;
    use crate::model::ManualClock;
    use crate::model::policy::Secret;
    use data_encoding::BASE64;
    use serde_json::json;

    const NOW: i64 = 1_000_000;

    struct Region {
        auth: Auth,
        records: Arc<MemoryRecords>,
        clock: Arc<ManualClock>,
    }

    fn region_over(records: Arc<MemoryRecords>, clock: Arc<ManualClock>) -> Region {
        let keys = KeyRing::in_memory(KeyOptions::default(), NOW).unwrap();
        for (id, document) in keys.documents() {
            records.put(RecordKind::IssuerKey, &id, document.to_bytes());
        }
        let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
        let driver = Arc::new(LocalDriver::new(records.clone(), quick_hasher(), clock.clone(), 100));
        let auth = Auth::new(&AuthOptions::default(), driver, records.clone(), tokens, clock.clone());
        Region { auth, records, clock }
    }

    async fn region() -> Region {
        let region = region_over(Arc::default(), Arc::new(ManualClock::new(NOW)));
        let mut alice = UserDocument::default();
        alice.set_password(quick_hasher().hash(Secret::new("swordfish")).await.unwrap());
        alice.roles.insert("acme".parse().unwrap(), Role::Editor);
        region.records.put(RecordKind::User, "user:alice", alice.to_bytes());
        let settings = json!({"rbac_policies": [{"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]});
        put_account(&region.records, "acme-prod", "acme", settings);
        put_account(&region.records, "other", "others", json!({}));
        region
    }

    fn put_account(records: &MemoryRecords, name: &str, tenant: &str, fields: serde_json::Value) {
        let settings = AccountSettings::from_request(fields).unwrap().to_stored();
        records.put_account(name.parse().unwrap(), tenant.parse().unwrap(), settings);
    }

    fn home() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    fn basic(username: &str, secret: &str) -> String {
        format!("Basic {}", BASE64.encode(format!("{username}:{secret}").as_bytes()))
    }

    async fn token_for(auth: &Auth, query: &str, basic: Option<(&str, &str)>) -> TokenResponse {
        let basic = basic.map(|(username, secret)| Credentials::new(username, secret).unwrap());
        let request = TokenRequest::from_query(query, basic).unwrap();
        auth.issue(request, home(), |name| RepositoryName::parse(name).ok()).await.unwrap()
    }

    fn allowed(auth: &Auth, header: &str, repository: &str) -> Vec<Action> {
        let caller = auth.recall(Some(header)).unwrap().unwrap();
        auth.access(&caller, &repository.parse().unwrap(), home()).actions.iter().collect()
    }

    #[tokio::test]
    async fn a_token_allows_what_was_asked_for_and_is_allowed_and_no_more() {
        let Region { auth, .. } = region().await;
        let query = "service=keppel&scope=repository:acme-prod/web:pull,push&scope=repository:other/web:pull\
                     &scope=repository:absent/web:pull&scope=repository:Bad:pull";
        let response = token_for(&auth, query, Some(("alice", "swordfish"))).await;
        assert_eq!((response.expires_in, response.refresh_token.is_none()), (600, true));
        assert_eq!(response.issued_at, "1970-01-12T13:46:40Z");
        let header = format!("Bearer {}", response.token);
        assert_eq!(allowed(&auth, &header, "acme-prod/web"), [Action::Pull, Action::Push]);
        assert_eq!(allowed(&auth, &header, "acme-prod/api"), []);
        assert_eq!(allowed(&auth, &header, "other/web"), []);
        let caller = auth.recall(Some(&header)).unwrap().unwrap();
        assert!(!caller.may_list() && !caller.has(Right::ViewAccount, &"acme".parse().unwrap()));
        let request = TokenRequest::from_query("service=elsewhere", None).unwrap();
        assert!(matches!(auth.issue(request, home(), |_| None).await, Err(AuthError::BadRequest(_))));
    }

    #[tokio::test]
    async fn basic_credentials_are_checked_once_and_then_from_memory() {
        let Region { auth, .. } = region().await;
        let header = basic("alice", "swordfish");
        assert!(auth.recall(Some(&header)).is_none());
        auth.identify(Some(&header)).await.unwrap();
        assert_eq!(allowed(&auth, &header, "acme-prod/web"), Action::ALL);
        assert_eq!(allowed(&auth, &header, "other/web"), []);
        for (username, secret) in [("alice", "wrong"), ("nobody", "swordfish")] {
            assert_eq!(auth.identify(Some(&basic(username, secret))).await.unwrap_err(), AuthError::InvalidCredentials);
        }
        for bad in ["Digest x", "Basic", "Basic ***", "Basic YWJj", "", "Bearer"] {
            assert!(auth.identify(Some(bad)).await.is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn nobody_known_gets_what_anonymous_policies_grant() {
        let Region { auth, records, .. } = region().await;
        let query = "scope=repository:acme-prod/public/web:pull,push&scope=repository:acme-prod/web:pull\
                     &scope=registry:catalog:*&scope=keppel:api:*";
        let header = format!("Bearer {}", token_for(&auth, query, None).await.token);
        assert_eq!(allowed(&auth, &header, "acme-prod/public/web"), [Action::Pull]);
        assert_eq!(allowed(&auth, &header, "acme-prod/web"), []);
        assert!(!auth.recall(Some(&header)).unwrap().unwrap().may_list());
        // A policy that changes decides at once, for tokens that are out too.
        put_account(&records, "acme-prod", "acme", json!({}));
        assert_eq!(allowed(&auth, &header, "acme-prod/public/web"), []);
    }

    #[tokio::test]
    async fn hidden_and_absent_repositories_look_the_same() {
        let Region { auth, .. } = region().await;
        let caller = auth.identify(Some(&basic("alice", "swordfish"))).await.unwrap();
        for caller in [&caller, &auth.identify(None).await.unwrap()] {
            let access = |name: &str| auth.access(caller, &name.parse().unwrap(), home());
            assert_eq!(access("other/web"), access("absent/web"));
            assert_eq!(access("other/web"), Access::NONE);
        }
    }

    #[tokio::test]
    async fn refresh_tokens_give_access_in_every_region_until_the_user_is_revoked() {
        let Region { auth, records, clock } = region().await;
        let elsewhere = region_over(records.clone(), clock.clone()).auth;
        let response = token_for(&auth, "offline_token=true", Some(("alice", "swordfish"))).await;
        let refresh = response.refresh_token.unwrap();
        let exchange = async |auth: &Auth| {
            let form =
                format!("grant_type=refresh_token&refresh_token={refresh}&scope=repository:acme-prod/web:pull,fly");
            let request = TokenRequest::from_form(form.as_bytes(), None).unwrap();
            auth.issue(request, home(), |name| RepositoryName::parse(name).ok()).await
        };
        clock.advance(24 * 3600);
        let fresh = exchange(&elsewhere).await.unwrap();
        assert_eq!(fresh.scope.as_deref(), Some("repository:acme-prod/web:pull"));
        let header = format!("Bearer {}", fresh.token);
        assert_eq!(allowed(&auth, &header, "acme-prod/web"), [Action::Pull]);
        assert!(
            auth.recall(Some(&format!("Bearer {refresh}"))).unwrap().is_err(),
            "a refresh token opens nothing itself"
        );

        let record = records.get(super::super::RecordKind::User, "user:alice").unwrap();
        let mut alice = UserDocument::from_bytes(&record.body).unwrap();
        alice.revoke_all();
        records.put(RecordKind::User, "user:alice", alice.to_bytes());
        for auth in [&auth, &elsewhere] {
            assert_eq!(exchange(auth).await.unwrap_err(), AuthError::Token(TokenError::Revoked));
            assert_eq!(auth.recall(Some(&header)).unwrap().unwrap_err(), AuthError::Token(TokenError::Revoked));
        }
        records.remove(RecordKind::User, "user:alice");
        assert!(auth.recall(Some(&header)).unwrap().is_err());
        assert!(auth.recall(Some(&basic("alice", "swordfish"))).is_none_or(|verdict| verdict.is_err()));
    }

    #[tokio::test]
    async fn a_robot_token_ends_with_its_secret_and_reaches_its_own_tenant_only() {
        let Region { auth, records, clock } = region().await;
        let mut robot = RobotDocument {
            scopes: vec![RobotScope {
                account: None,
                match_repository: "web|public/.*".into(),
                actions: vec![Action::Pull, Action::Push],
            }],
            ..RobotDocument::default()
        };
        let secret = robot.rotate_secret(NOW, 0);
        records.put(RecordKind::User, "robot:acme+ci", robot.to_bytes());
        let query = "scope=repository:acme-prod/web:*&scope=repository:other/web:*&scope=repository:acme-prod/api:*";
        let response = token_for(&auth, query, Some(("acme+ci", secret.reveal()))).await;
        let header = format!("Bearer {}", response.token);
        assert_eq!(allowed(&auth, &header, "acme-prod/web"), [Action::Pull, Action::Push]);
        for other in ["other/web", "acme-prod/api"] {
            assert_eq!(allowed(&auth, &header, other), []);
        }
        let next = robot.rotate_secret(NOW, 100);
        records.put(RecordKind::User, "robot:acme+ci", robot.to_bytes());
        clock.advance(99);
        assert!(auth.recall(Some(&header)).unwrap().is_ok());
        clock.advance(1);
        assert!(auth.recall(Some(&header)).unwrap().is_err(), "the secret that the token came from has ended");
        assert!(auth.identify(Some(&basic("acme+ci", next.reveal()))).await.is_ok());
        assert!(auth.identify(Some(&basic("acme+ci", secret.reveal()))).await.is_err());
    }

    #[tokio::test]
    async fn policies_that_cannot_be_used_close_an_account() {
        let Region { auth, records, .. } = region().await;
        records.put_account("acme-prod".parse().unwrap(), "acme".parse().unwrap(), b"{broken".to_vec());
        let header = basic("alice", "swordfish");
        auth.identify(Some(&header)).await.unwrap();
        assert_eq!(allowed(&auth, &header, "acme-prod/web"), []);
        assert!(auth.account(&"acme-prod".parse().unwrap()).is_none());
    }

    #[tokio::test]
    async fn an_open_registry_asks_nobody_for_anything() {
        let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(NOW)));
        let keys = KeyRing::in_memory(KeyOptions::default(), NOW).unwrap();
        let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
        let auth = Auth::new(&AuthOptions::default(), Arc::new(OpenDriver::default()), records, tokens, clock);
        for header in [None, Some("Basic ***"), Some("Bearer x")] {
            let caller = auth.recall(header).unwrap().unwrap();
            assert!(auth.access(&caller, &"any/thing".parse().unwrap(), home()).allows(Action::Delete));
            assert!(caller.has(Right::EditTenant, &"any".parse().unwrap()) && caller.may_list());
        }
        let response = token_for(&auth, "offline_token=1&scope=repository:a/b:pull", Some(("any", "body"))).await;
        assert!(!response.token.is_empty());
    }
}
