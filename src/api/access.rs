//! The one place where a request is told who it comes from, and let through or refused.
//!
//! Every endpoint asks here, before it looks at anything else. A verdict on credentials that takes work (a signature, a
//! password hash) is made once and remembered by the auth room, so that most requests are decided from memory. Whoever
//! may not see a repository gets the same answer as for one that does not exist.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, Uri, header::AUTHORIZATION};
use keppel_federation::vocabulary::{AccountName, RepositoryName, TenantId};

use super::{
    audit::{Change, Pending},
    error::ApiError,
    forwarded,
    host::Place,
    serve::Peer,
    service::ApiState,
};
use crate::auth::{
    Access, AuthError, Caller, Challenge, ChallengeError, PASSWORD_HEADER, Right, Shown, USERNAME_HEADER,
};
use crate::registry::{FirstPull, RegistryError};

pub(crate) use crate::auth::Action;

/// Where tokens are to be had, below the host.
pub(crate) const TOKEN_PATH: &str = "/keppel/v1/auth";

/// What a request is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope<'a> {
    /// Only asks whether this is a registry, and whether its credentials are good.
    Base,
    /// List repositories.
    Catalog,
    /// Use the registry's own API: read with `Pull`, change with `Push`. What exactly may be done there depends on roles.
    Api { action: Action },
    /// Do something in a repository, named as in the URL.
    Repository { name: &'a str, action: Action },
}

/// Who a request comes from, and from where.
pub(crate) struct Visitor<'a> {
    state: &'a ApiState,
    headers: &'a HeaderMap,
    uri: &'a Uri,
    place: Place,
    caller: Caller,
    peer: &'a Peer,
    address: IpAddr,
}

impl Scope<'_> {
    /// The scope of a token that is good for it, as clients ask for it; `within`: the account whose host was asked, where
    /// whoever issues tokens does not know of that.
    pub(super) fn wanted(self, within: Option<&AccountName>) -> Option<String> {
        match self {
            Self::Base => None,
            Self::Catalog => Some("registry:catalog:*".to_owned()),
            Self::Api { action: Action::Pull } => Some("keppel:api:pull".to_owned()),
            Self::Api { .. } => Some("keppel:api:*".to_owned()),
            Self::Repository { name, action } => {
                // Whoever pushes reads as well: what is there need not be sent again.
                let actions = match action {
                    Action::Pull => "pull",
                    Action::Push => "pull,push",
                    Action::Delete => "delete",
                };
                let account = within.map(|account| format!("{account}/")).unwrap_or_default();
                Some(format!("repository:{account}{name}:{actions}"))
            }
        }
    }
}

impl<'a> Visitor<'a> {
    /// Tells who a request comes from, as far as memory goes. `None`: not known without work, or refused.
    pub(crate) fn recall(state: &'a ApiState, headers: &'a HeaderMap, uri: &'a Uri, peer: &'a Peer) -> Option<Self> {
        let caller = state.auth().recall(shown(headers).ok()?)?.ok()?;
        let place = place(state, headers, uri, peer);
        Some(Self { state, headers, uri, place, caller, peer, address: address(peer) })
    }

    /// Tells who a request comes from.
    ///
    /// # Errors
    /// When what it shows to prove that is not good, or cannot be checked now.
    pub(crate) async fn identify(
        state: &'a ApiState,
        headers: &'a HeaderMap,
        uri: &'a Uri,
        peer: &'a Peer,
        scope: Scope<'_>,
    ) -> Result<Self, ApiError> {
        let caller = match shown(headers) {
            Ok(shown) => state.auth().identify(shown, address(peer)).await,
            Err(error) => Err(error),
        };
        match caller {
            Ok(caller) => {
                let place = place(state, headers, uri, peer);
                Ok(Self { state, headers, uri, place, caller, peer, address: address(peer) })
            }
            Err(error) => {
                let invalid = matches!(error, AuthError::Token(_)).then_some(ChallengeError::InvalidToken);
                Err(with_challenge(state, headers, uri, peer, scope, invalid, |challenge| {
                    ApiError::from_auth(&error, challenge)
                }))
            }
        }
    }

    /// Lets the request through.
    ///
    /// # Errors
    /// A challenge to those who can do better with a token, a plain refusal to others.
    pub(crate) fn authorize(&self, scope: Scope<'_>) -> Result<(), ApiError> {
        if self.state.auth().is_open() {
            return Ok(());
        }
        let allowed = match scope {
            // Whoever shows nothing is asked to, so that a login is not taken for good without being looked at.
            Scope::Base => !self.is_anonymous() || self.caller.has_token(),
            Scope::Catalog => self.caller.may_list() && !self.is_anonymous(),
            Scope::Api { .. } => !self.is_anonymous() && (!self.caller.has_token() || self.caller.may_use_api()),
            Scope::Repository { name, action } => {
                let repository = self.place.parse(self.state, name);
                self.may(&repository.map_err(|error| ApiError::name_invalid(&error))?, action)
            }
        };
        match (allowed, self.is_anonymous() && !self.caller.has_token(), self.caller.has_token()) {
            (true, _, _) => Ok(()),
            (false, true, _) => Err(self.unauthorized(scope, None)),
            (false, false, true) => Err(self.unauthorized(scope, Some(ChallengeError::InsufficientScope))),
            (false, false, false) => Err(ApiError::denied(scope, self.sees(scope))),
        }
    }

    /// Whether they may know that what a request is about exists.
    fn sees(&self, scope: Scope<'_>) -> bool {
        match scope {
            Scope::Repository { name, .. } => self.parse(name).is_ok_and(|repository| self.access(&repository).see),
            Scope::Base | Scope::Catalog | Scope::Api { .. } => true,
        }
    }

    /// Reads a repository's name as it is written at the host that was asked.
    ///
    /// # Errors
    /// When it is no name.
    pub(crate) fn parse(&self, name: &str) -> Result<RepositoryName, ApiError> {
        self.place.parse(self.state, name).map_err(|error| ApiError::name_invalid(&error))
    }

    /// The account that the host stands for, within which names are.
    pub(crate) fn account(&self) -> Option<&AccountName> {
        self.place.account()
    }

    /// What may be done in a repository.
    pub(crate) fn access(&self, repository: &RepositoryName) -> Access {
        self.state.auth().access(&self.caller, repository, self.address)
    }

    /// What may be done in a repository through the registry's own API, which has a scope of its own.
    pub(crate) fn api_access(&self, repository: &RepositoryName) -> Access {
        self.state.auth().api_access(&self.caller, repository, self.address)
    }

    /// Whether something may be done in a repository.
    pub(crate) fn may(&self, repository: &RepositoryName, action: Action) -> bool {
        self.state.auth().is_open() || self.access(repository).allows(action)
    }

    /// Whether their pull may have something fetched from a registry outside.
    pub(crate) fn first_pull(&self, repository: &RepositoryName) -> FirstPull {
        match self.state.auth().is_open() || self.access(repository).first_pull {
            true => FirstPull::Allowed,
            false => FirstPull::Refused,
        }
    }

    /// The refusal of a first pull: whoever shows nothing is asked to, since others may have things fetched.
    pub(crate) fn refuse_first_pull(&self, name: &str, error: RegistryError) -> ApiError {
        match error {
            RegistryError::FirstPullRefused { .. } if self.is_anonymous() => {
                let scope = Scope::Repository { name, action: Action::Pull };
                let error = self.caller.has_token().then_some(ChallengeError::InsufficientScope);
                self.unauthorized(scope, error)
            }
            other => other.into(),
        }
    }

    /// Whether every repository of an account may be pulled from, whatever its name.
    pub(crate) fn may_pull_anything(&self, account: &AccountName) -> bool {
        self.state.auth().may_pull_anything(&self.caller, account)
    }

    /// Whether everything there is may be seen.
    pub(crate) fn sees_everything(&self) -> bool {
        self.state.auth().is_open()
    }

    /// Whether they run the registry, and their credentials allow all of that.
    pub(crate) fn is_operator(&self) -> bool {
        self.state.auth().is_open() || self.caller.is_operator()
    }

    /// Takes down that they are about to change something.
    pub(super) fn pending(&self, change: Change, request_id: &http::HeaderValue) -> Pending<'a> {
        let actor = self.caller.identity().subject();
        Pending::begin(self.state, change, actor, self.peer_text(), self.headers, request_id)
    }

    fn peer_text(&self) -> String {
        self.peer.header.to_str().unwrap_or_default().to_owned()
    }

    /// Whether something may be done with a tenant and its accounts.
    pub(crate) fn has(&self, right: Right, tenant: &TenantId) -> bool {
        self.caller.has(right, tenant)
    }

    /// The name of who it is, if that is known.
    pub(crate) fn username(&self) -> Option<&str> {
        self.caller.identity().username()
    }

    fn is_anonymous(&self) -> bool {
        self.caller.identity().username().is_none()
    }

    fn unauthorized(&self, scope: Scope<'_>, error: Option<ChallengeError>) -> ApiError {
        with_challenge(self.state, self.headers, self.uri, self.peer, scope, error, ApiError::unauthorized)
    }
}

fn place(state: &ApiState, headers: &HeaderMap, uri: &Uri, peer: &Peer) -> Place {
    Place::of(&state.options().public_hosts, peer, headers, uri)
}

/// What a request shows of who it comes from.
fn shown(headers: &HeaderMap) -> Result<Shown<'_>, AuthError> {
    let authorization = headers.get(AUTHORIZATION).map(|value| value.to_str());
    let authorization = authorization.transpose().map_err(|_| AuthError::BadHeader("it is not ASCII"))?;
    let text = |name: &str| {
        let value = headers.get(name).map(|value| std::str::from_utf8(value.as_bytes()));
        value.transpose().map_err(|_| AuthError::BadHeader("it refers to headers that are not UTF-8"))
    };
    match authorization {
        Some(scheme) if Shown::asks_for_own_headers(scheme) => {
            Ok(Shown { authorization, username: text(USERNAME_HEADER)?, password: text(PASSWORD_HEADER)? })
        }
        _ => Ok(authorization.into()),
    }
}

/// The address that policies look at; whoever comes through a socket of this machine comes from it.
pub(crate) fn address(peer: &Peer) -> IpAddr {
    peer.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Makes a refusal that says where to get a token for a scope.
fn with_challenge(
    state: &ApiState,
    headers: &HeaderMap,
    uri: &Uri,
    peer: &Peer,
    scope: Scope<'_>,
    error: Option<ChallengeError>,
    refuse: impl FnOnce(&Challenge<'_>) -> ApiError,
) -> ApiError {
    // A token endpoint elsewhere does not know what this host stands for.
    let place = state.options().token_url.as_ref().map(|_| place(state, headers, uri, peer));
    let scope = scope.wanted(place.as_ref().and_then(Place::account));
    let realm = token_url(state, headers, uri, peer);
    let service = &state.auth().tokens().options().service;
    refuse(&Challenge { realm: &realm, service, scope, error })
}

/// Where the client gets its tokens: as configured, or at the host it spoke to.
fn token_url(state: &ApiState, headers: &HeaderMap, uri: &Uri, peer: &Peer) -> String {
    if let Some(url) = &state.options().token_url {
        return url.clone();
    }
    let host = forwarded::host(peer, headers, uri).unwrap_or("localhost");
    let serves_tls = state.options().server.listen.iter().any(|listen| listen.tls.is_some());
    let scheme = forwarded::scheme(peer, headers).unwrap_or(if serves_tls { "https" } else { "http" });
    format!("{scheme}://{host}{TOKEN_PATH}")
}
