use std::net::IpAddr;

use keppel_federation::vocabulary::RepositoryName;

use super::caller::{API, CATALOG, KEPPEL, REGISTRY, REPOSITORY};
use super::flow::{ACCESS_TOKEN_TYPE, rfc3339};
use super::{
    ActionSet, Auth, AuthError, Caller, Claims, Grant, Identity, Resource, Scope, ScopeClaim, TokenKind, TokenRequest,
    TokenResponse,
};

impl Auth {
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
            Grant::Password(credentials) => self.by_credentials(credentials, address).await?,
            Grant::RefreshToken(token) => {
                self.by_claims(&*self.inner.tokens.verify(token.reveal(), TokenKind::Refresh)?)?
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
            Grant::Password(_)
                if request.offline && *caller.identity != Identity::Anonymous && caller.ends_at.is_none() =>
            {
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
            token_type: request.exchange.then_some("Bearer"),
            issued_token_type: request.exchange.then_some(ACCESS_TOKEN_TYPE),
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
            let known = *caller.identity != Identity::Anonymous || self.is_open();
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

    fn sign(&self, caller: &Caller, kind: TokenKind, access: Vec<ScopeClaim>) -> Result<(String, Claims), AuthError> {
        let claims = Claims {
            iss: String::new(),
            sub: caller.identity.subject(),
            aud: String::new(),
            exp: caller.ends_at.unwrap_or(i64::MAX),
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
}
