use std::collections::BTreeMap;

use keppel_federation::vocabulary::TenantId;
use serde::{Deserialize, Serialize};

use super::{Action, ActionSet, Authority, DocumentError, OidcSession, Role, Standing, UserName};
use crate::model::policy::Secret;

/// The most personal tokens of a user.
const TOKENS_MAX: usize = 64;
/// What personal tokens begin with, so that scanners for leaked secrets find them.
pub(super) const TOKEN_PREFIX: &str = "kpt_";

/// What all regions share about a user. Kept as JSON under the subject of the user's identity.
///
/// Fields that a later version adds are passed over here and lost when this version writes the document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserDocument {
    /// The argon2id hash of the password in PHC form; without one, the user logs in by other means only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_hash: Option<String>,
    /// The role in each tenant.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<TenantId, Role>,
    /// Whether they run the registry.
    #[serde(default)]
    pub operator: bool,
    /// Whether they may not log in.
    #[serde(default)]
    pub disabled: bool,
    /// Random at first, so that no token of somebody who had the name before counts; grows when all tokens of the user
    /// are revoked.
    #[serde(default)]
    pub epoch: u64,
    /// Their personal tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<PersonalToken>,
    /// The provider that knows them, when they are none of the registry's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcSession>,
}

/// A secret that a user made for a program, in place of the password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalToken {
    /// Names it, so that it can be revoked.
    pub id: String,
    /// The BLAKE3 hash of the secret in hexadecimal; the secret is random, so that a quick hash is enough.
    pub hash: String,
    /// What it is for, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// When it ends, in UNIX seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// The most that may be done with it.
    pub actions: Vec<Action>,
}

impl UserDocument {
    /// The document of somebody new.
    pub fn fresh() -> Self {
        Self { epoch: rand::random(), ..Self::default() }
    }

    /// Reads a stored document.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(bytes).map_err(|error| DocumentError::new("user", error.to_string()))
    }

    /// The form that is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Takes a new password by its hash. All tokens made before end.
    pub fn set_password(&mut self, hash: String) {
        self.password_hash = Some(hash);
        self.revoke_all();
    }

    /// Ends every token that was issued to the user, personal ones included.
    pub fn revoke_all(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.tokens.clear();
    }

    /// Ends the session of someone whom a provider knows: they have to log in there again.
    pub fn end_session(&mut self, now: i64) {
        if let Some(session) = &mut self.oidc {
            session.ends_at = now;
            session.revoked_at = now;
        }
    }

    /// Makes a personal token for at most `actions`, and gives its secret, which is kept nowhere.
    ///
    /// # Errors
    /// [`DocumentError`] when there are too many.
    pub fn add_token(
        &mut self,
        description: &str,
        actions: ActionSet,
        expires_at: Option<i64>,
        now: i64,
    ) -> Result<(String, Secret), DocumentError> {
        self.tokens.retain(|token| token.expires_at.is_none_or(|end| end > now));
        if self.tokens.len() >= TOKENS_MAX {
            return Err(DocumentError::new("tokens", format!("there are {TOKENS_MAX} already: revoke one first")));
        }
        let (id, secret) = new_secret(TOKEN_PREFIX);
        self.tokens.push(PersonalToken {
            id: id.clone(),
            hash: hash_of(secret.reveal()),
            description: description.chars().filter(|c| !c.is_control()).take(128).collect(),
            expires_at,
            actions: actions.iter().collect(),
        });
        Ok((id, secret))
    }

    /// Ends a personal token and what was issued for it. Whether there was one.
    pub fn revoke_token(&mut self, id: &str) -> bool {
        let before = self.tokens.len();
        self.tokens.retain(|token| token.id != id);
        self.tokens.len() != before
    }

    /// The personal token with this secret, if it is good now.
    pub(super) fn token_with(&self, secret: &Secret, now: i64) -> Option<&PersonalToken> {
        let hash = blake3::hash(secret.reveal().as_bytes());
        self.tokens.iter().find(|token| {
            blake3::Hash::from_hex(&token.hash).is_ok_and(|kept| kept == hash)
                && token.expires_at.is_none_or(|end| end > now)
        })
    }

    /// How the user stands; `None`: they may not log in.
    pub(super) fn standing(&self, _: &UserName) -> Option<Standing> {
        let tokens = self.tokens.iter().map(|token| (token.id.clone(), token.expires_at));
        let session = self.oidc.iter().map(|session| (session.credential(), Some(session.ends_at)));
        (!self.disabled).then(|| Standing {
            authority: Authority { operator: self.operator, roles: self.roles.clone(), grants: Vec::new() },
            epoch: self.epoch,
            credentials: tokens.chain(session).collect(),
        })
    }
}

/// A fresh secret of 256 random bits with a prefix, and an id for it.
pub(super) fn new_secret(prefix: &str) -> (String, Secret) {
    let (id, secret): (u64, [u8; 32]) = (rand::random(), rand::random());
    (format!("{id:016x}"), Secret::new(format!("{prefix}{}", data_encoding::HEXLOWER.encode(&secret))))
}

/// The hash under which a random secret is kept.
pub(super) fn hash_of(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}
