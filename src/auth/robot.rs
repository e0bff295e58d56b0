use keppel_federation::vocabulary::AccountName;
use serde::{Deserialize, Serialize};

use super::role::RobotGrant;
use super::user::{hash_of, new_secret};
use super::{Action, Authority, DocumentError, RobotName, Standing};
use crate::model::policy::{Pattern, Secret};

/// What robot secrets begin with, so that scanners for leaked secrets find them.
pub(super) const SECRET_PREFIX: &str = "kpr_";
/// The most scopes of a robot.
const SCOPES_MAX: usize = 64;

/// What all regions share about a robot account. Kept as JSON under the subject of the robot's identity.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RobotDocument {
    /// What it is for, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it may do.
    #[serde(default)]
    pub scopes: Vec<RobotScope>,
    /// When it ends, in UNIX seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// Whether it may not log in.
    #[serde(default)]
    pub disabled: bool,
    /// Random at first, so that no token of a robot that had the name before counts; grows when all tokens of the robot
    /// are revoked.
    #[serde(default)]
    pub epoch: u64,
    /// Its secrets: one, or two while one takes over from the other.
    #[serde(default)]
    pub(super) secrets: Vec<RobotSecret>,
}

/// Something that a robot may do, in accounts of its own tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RobotScope {
    /// In which account; without one, in every account of the tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// In which repositories, without the account: a regular expression for the whole name.
    pub match_repository: String,
    /// What.
    pub actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RobotSecret {
    id: String,
    hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
}

impl RobotDocument {
    /// The document of a new robot.
    pub fn fresh() -> Self {
        Self { epoch: rand::random(), ..Self::default() }
    }

    /// Reads a stored document.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(bytes).map_err(|error| DocumentError::new("robot", error.to_string()))
    }

    /// The form that is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Checks what a client wrote.
    ///
    /// # Errors
    /// The field at fault, as `robot.scopes[…]…`.
    pub fn check(&self) -> Result<(), DocumentError> {
        if self.scopes.len() > SCOPES_MAX {
            return Err(DocumentError::new("robot.scopes", format!("has more than {SCOPES_MAX} entries")));
        }
        for (at, scope) in self.scopes.iter().enumerate() {
            let field = |name: &str| format!("robot.scopes[{at}].{name}");
            if let Err(error) = Pattern::new(&scope.match_repository) {
                return Err(DocumentError::new(field("match_repository"), error.to_string()));
            }
            if scope.actions.is_empty() {
                return Err(DocumentError::new(field("actions"), "allows nothing"));
            }
        }
        Ok(())
    }

    /// Makes a new secret, and gives it; it is kept nowhere. The one before stays good for `overlap_seconds`, so that
    /// those who use it can be moved over; any older one ends now.
    pub fn rotate_secret(&mut self, now: i64, overlap_seconds: i64) -> Secret {
        let ends_at = now.saturating_add(overlap_seconds.max(0));
        let mut previous = self.secrets.pop().filter(|_| overlap_seconds > 0);
        if let Some(previous) = &mut previous {
            previous.expires_at = Some(previous.expires_at.map_or(ends_at, |end| end.min(ends_at)));
        }
        let (id, secret) = new_secret(SECRET_PREFIX);
        self.secrets = previous.into_iter().collect();
        self.secrets.push(RobotSecret { id, hash: hash_of(secret.reveal()), expires_at: None });
        secret
    }

    /// Ends every secret of the robot and every token that was issued to it.
    pub fn revoke_all(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.secrets.clear();
    }

    /// The id of the secret that was shown, if it is good now.
    pub(super) fn secret_id(&self, secret: &Secret, now: i64) -> Option<&str> {
        if self.disabled || self.expires_at.is_some_and(|end| end <= now) {
            return None;
        }
        let hash = blake3::hash(secret.reveal().as_bytes());
        let shown = self.secrets.iter().find(|kept| {
            blake3::Hash::from_hex(&kept.hash).is_ok_and(|kept| kept == hash)
                && kept.expires_at.is_none_or(|end| end > now)
        });
        shown.map(|secret| secret.id.as_str())
    }

    /// How the robot stands; `None`: it may not log in. A scope that cannot be read allows nothing.
    pub(super) fn standing(&self, name: &RobotName) -> Option<Standing> {
        if self.disabled {
            return None;
        }
        let grants = self.scopes.iter().filter_map(|scope| {
            Some(RobotGrant {
                tenant: name.tenant().clone(),
                account: scope.account.clone(),
                repository: Pattern::new(&scope.match_repository).ok()?,
                actions: scope.actions.iter().copied().collect(),
            })
        });
        let end = |expires_at: Option<i64>| match (expires_at, self.expires_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Some(Standing {
            authority: Authority { operator: false, roles: Default::default(), grants: grants.collect() },
            epoch: self.epoch,
            credentials: self.secrets.iter().map(|secret| (secret.id.clone(), end(secret.expires_at))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_secret_takes_over_with_an_overlap_and_ends_older_ones() {
        let mut robot = RobotDocument::default();
        let first = robot.rotate_secret(0, 100);
        let second = robot.rotate_secret(1000, 100);
        let good = |robot: &RobotDocument, secret: &Secret, now| robot.secret_id(secret, now).is_some();
        assert!(good(&robot, &first, 1099) && good(&robot, &second, 1099));
        assert!(!good(&robot, &first, 1100) && good(&robot, &second, 1100));
        let third = robot.rotate_secret(1050, 100);
        assert!(!good(&robot, &first, 1050) && good(&robot, &second, 1050) && good(&robot, &third, 1050));
        let fourth = robot.rotate_secret(1060, 0);
        assert!(!good(&robot, &third, 1060) && good(&robot, &fourth, 1060));
        let stored = RobotDocument::from_bytes(&robot.to_bytes()).unwrap();
        assert_eq!(stored, robot);
        assert!(!String::from_utf8(robot.to_bytes()).unwrap().contains(fourth.reveal()));
        robot.expires_at = Some(2000);
        assert!(good(&robot, &fourth, 1999) && !good(&robot, &fourth, 2000));
        robot.revoke_all();
        assert!(!good(&robot, &fourth, 1060));
    }

    #[test]
    fn robots_are_checked_field_by_field() {
        let scope = |pattern: &str, actions: &[Action]| RobotScope {
            account: None,
            match_repository: pattern.into(),
            actions: actions.to_vec(),
        };
        let robot = |scopes| RobotDocument { scopes, ..RobotDocument::default() };
        assert!(robot(vec![scope(".*", &[Action::Pull])]).check().is_ok());
        assert_eq!(
            robot(vec![scope("(", &[Action::Pull])]).check().unwrap_err().field,
            "robot.scopes[0].match_repository"
        );
        assert_eq!(robot(vec![scope("a", &[])]).check().unwrap_err().field, "robot.scopes[0].actions");
    }
}
