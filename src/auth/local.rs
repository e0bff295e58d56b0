use std::sync::Arc;

use async_trait::async_trait;
use quick_cache::sync::Cache;

use super::robot::SECRET_PREFIX;
use super::user::TOKEN_PREFIX;
use super::{
    ActionSet, AuthDriver, AuthError, Credentials, Identity, Login, PasswordHasher, RecordKind, Records, RobotDocument,
    Standing, UserDocument,
};
use crate::model::Clock;

/// Users, robots and personal tokens kept in the records that all regions share.
pub struct LocalDriver {
    records: Arc<dyn Records>,
    hasher: PasswordHasher,
    clock: Arc<dyn Clock>,
    decoded: Cache<String, Arc<Decoded>>,
}

/// A document as it was at a revision.
struct Decoded {
    revision: u64,
    document: Document,
    standing: Option<Arc<Standing>>,
}

enum Document {
    User(UserDocument),
    Robot(RobotDocument),
    /// It cannot be read: nobody logs in with it.
    Broken,
}

impl LocalDriver {
    /// A driver over `records` that keeps up to `entries_max` documents ready for use.
    pub fn new(records: Arc<dyn Records>, hasher: PasswordHasher, clock: Arc<dyn Clock>, entries_max: usize) -> Self {
        Self { records, hasher, clock, decoded: Cache::new(entries_max.max(16)) }
    }

    fn load(&self, identity: &Identity) -> Option<Arc<Decoded>> {
        let subject = identity.subject();
        let record = self.records.get(RecordKind::User, &subject)?;
        if let Some(decoded) = self.decoded.get(&subject)
            && decoded.revision == record.revision
        {
            return Some(decoded);
        }
        let (document, standing) = match identity {
            Identity::Anonymous => return None,
            Identity::User(name) => match UserDocument::from_bytes(&record.body) {
                Ok(user) => {
                    let standing = user.standing(name);
                    (Document::User(user), standing)
                }
                Err(error) => broken(&subject, &error),
            },
            Identity::Robot(name) => match RobotDocument::from_bytes(&record.body) {
                Ok(robot) => {
                    let standing = robot.standing(name);
                    (Document::Robot(robot), standing)
                }
                Err(error) => broken(&subject, &error),
            },
        };
        let decoded = Arc::new(Decoded { revision: record.revision, document, standing: standing.map(Arc::new) });
        self.decoded.insert(subject, decoded.clone());
        Some(decoded)
    }
}

fn broken(subject: &str, error: &super::DocumentError) -> (Document, Option<Standing>) {
    tracing::error!(subject, %error, "a user's document cannot be read; the user cannot log in");
    (Document::Broken, None)
}

#[async_trait]
impl AuthDriver for LocalDriver {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Login, AuthError> {
        let secret = &credentials.secret;
        let Ok(identity) = Identity::from_username(&credentials.username) else {
            return Err(AuthError::InvalidCredentials);
        };
        let decoded = self.load(&identity);
        let document = decoded.as_ref().filter(|decoded| decoded.standing.is_some()).map(|decoded| &decoded.document);
        let now = self.clock.now();
        if secret.reveal().starts_with(SECRET_PREFIX) || matches!(identity, Identity::Robot(_)) {
            let Some(Document::Robot(robot)) = document else { return Err(AuthError::InvalidCredentials) };
            let credential = robot.secret_id(secret, now).ok_or(AuthError::InvalidCredentials)?.to_owned();
            return Ok(Login { identity, credential: Some(credential), limit: ActionSet::ALL, ends_at: None });
        }
        let user = match document {
            Some(Document::User(user)) => Some(user),
            _ => None,
        };
        if secret.reveal().starts_with(TOKEN_PREFIX) {
            let token = user.and_then(|user| user.token_with(secret, now)).ok_or(AuthError::InvalidCredentials)?;
            let limit = token.actions.iter().copied().collect();
            return Ok(Login { credential: Some(token.id.clone()), limit, identity, ends_at: None });
        }
        // Someone who is not known, or has no password, costs the same time as a wrong password.
        let hash = user.and_then(|user| user.password_hash.clone());
        match self.hasher.verify(secret.clone(), hash).await? {
            true => Ok(Login { identity, credential: None, limit: ActionSet::ALL, ends_at: None }),
            false => Err(AuthError::InvalidCredentials),
        }
    }

    fn stamp(&self, username: &str) -> u64 {
        let identity = Identity::from_username(username).ok();
        let record = identity.and_then(|identity| self.records.get(RecordKind::User, &identity.subject()));
        record.map_or(0, |record| record.revision)
    }

    fn standing(&self, identity: &Identity) -> Option<Arc<Standing>> {
        match identity {
            Identity::Anonymous => Some(Arc::default()),
            known => self.load(known)?.standing.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::tests::quick_hasher;
    use super::super::{Action, MemoryRecords, RobotScope, Role};
    use super::*;
    use crate::model::ManualClock;
    use crate::model::policy::Secret;

    struct Fixture {
        records: Arc<MemoryRecords>,
        clock: Arc<ManualClock>,
        driver: LocalDriver,
    }

    fn fixture() -> Fixture {
        let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(1000)));
        let driver = LocalDriver::new(records.clone(), quick_hasher(), clock.clone(), 100);
        Fixture { records, clock, driver }
    }

    async fn login(driver: &LocalDriver, username: &str, secret: &str) -> Result<Login, AuthError> {
        driver.authenticate(&Credentials::new(username, secret).unwrap()).await
    }

    #[tokio::test]
    async fn users_log_in_with_password_or_personal_token_until_these_are_revoked() {
        let Fixture { records, clock, driver } = fixture();
        let mut user = UserDocument::default();
        user.set_password(quick_hasher().hash(Secret::new("swordfish")).await.unwrap());
        user.roles.insert("acme".parse().unwrap(), Role::Editor);
        let pull_only = [Action::Pull].into_iter().collect();
        let (id, token) = user.add_token("ci", pull_only, Some(2000), 1000).unwrap();
        records.put(RecordKind::User, "user:alice", user.to_bytes());

        let by_password = login(&driver, "alice", "swordfish").await.unwrap();
        assert_eq!((by_password.credential, by_password.limit), (None, ActionSet::ALL));
        let by_token = login(&driver, "alice", token.reveal()).await.unwrap();
        assert_eq!((by_token.credential.as_deref(), by_token.limit), (Some(id.as_str()), pull_only));
        let standing = driver.standing(&by_token.identity).unwrap();
        assert_eq!(standing.authority.role(&"acme".parse().unwrap()), Some(Role::Editor));
        assert!(standing.honours(user.epoch, Some(&id), 1999) && !standing.honours(user.epoch, Some(&id), 2000));
        assert!(!standing.honours(user.epoch + 1, None, 1000) && !standing.honours(user.epoch, Some("other"), 1000));

        for (username, secret) in [
            ("alice", "wrong"),
            ("alice", ""),
            ("bob", "swordfish"),
            ("Alice", "swordfish"),
            ("", ""),
            ("a b", "x"),
            ("bob", token.reveal()),
            ("alice", "kpt_00"),
            ("alice", "kpr_00"),
        ] {
            assert_eq!(login(&driver, username, secret).await, Err(AuthError::InvalidCredentials), "{username}");
        }
        clock.advance(1000);
        assert!(login(&driver, "alice", token.reveal()).await.is_err(), "the token has ended");

        user.disabled = true;
        records.put(RecordKind::User, "user:alice", user.to_bytes());
        assert!(login(&driver, "alice", "swordfish").await.is_err());
        assert!(driver.standing(&Identity::from_username("alice").unwrap()).is_none());
        records.put(RecordKind::User, "user:alice", b"\xff".to_vec());
        assert!(login(&driver, "alice", "swordfish").await.is_err());
        records.remove(RecordKind::User, "user:alice");
        assert!(driver.standing(&Identity::from_username("alice").unwrap()).is_none());
    }

    #[tokio::test]
    async fn robots_log_in_with_their_secrets_only() {
        let Fixture { records, driver, .. } = fixture();
        let mut robot = RobotDocument {
            scopes: vec![RobotScope { account: None, match_repository: ".*".into(), actions: vec![Action::Pull] }],
            ..RobotDocument::default()
        };
        let secret = robot.rotate_secret(1000, 0);
        records.put(RecordKind::User, "robot:acme+ci", robot.to_bytes());
        let accepted = login(&driver, "acme+ci", secret.reveal()).await.unwrap();
        assert_eq!(accepted.identity.username(), Some("acme+ci"));
        assert!(driver.standing(&accepted.identity).unwrap().honours(0, accepted.credential.as_deref(), 1000));
        assert!(login(&driver, "acme+ci", "kpr_guess").await.is_err());
        assert!(login(&driver, "acme+other", secret.reveal()).await.is_err());
        assert!(login(&driver, "acme", secret.reveal()).await.is_err());
        robot.revoke_all();
        records.put(RecordKind::User, "robot:acme+ci", robot.to_bytes());
        assert!(login(&driver, "acme+ci", secret.reveal()).await.is_err());
        assert!(!driver.standing(&accepted.identity).unwrap().honours(0, accepted.credential.as_deref(), 1000));
    }
}
