use std::sync::Arc;

use super::{
    AuthError, DocumentError, Identity, IssuerKeyDocument, KeyInfo, NameError, Passphrase, PasswordHasher,
    PeopleAnswer, PeopleRequest, RecordError, RecordKind, RecordOutcome, RecordStore, RobotDocument, RobotInfo,
    RobotName, UserDocument, UserInfo, UserName,
};
use crate::model::Clock;
use keppel_federation::vocabulary::IssuerKeyId;

/// The shortest password, in characters.
const PASSWORD_CHARS_MIN: usize = 8;
/// The longest password, in bytes.
const PASSWORD_BYTES_MAX: usize = 1024;
/// How often a change is tried again when someone else was first.
const ATTEMPTS_MAX: usize = 8;
/// The longest list.
const LIST_MAX: usize = 10_000;

/// Why nothing came of a [`PeopleRequest`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeopleError {
    /// The name is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A field is not valid.
    #[error(transparent)]
    Invalid(#[from] DocumentError),
    /// There is one already.
    #[error("there is already a user or robot {0:?}")]
    Taken(String),
    /// There is none.
    #[error("there is no user or robot {0:?}")]
    NotFound(String),
    /// There is no such key.
    #[error("there is no key {0:?}; keys that are gone sign nothing that is accepted")]
    NoKey(String),
    /// Someone else changes it all the time.
    #[error("it is being changed by someone else; try again")]
    Conflict,
    /// The password could not be hashed.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The change could not be decided.
    #[error(transparent)]
    Store(#[from] RecordError),
}

/// Makes, changes and removes users and robots. Cheap to clone.
#[derive(Clone)]
pub struct People {
    store: Arc<dyn RecordStore>,
    hasher: PasswordHasher,
    clock: Arc<dyn Clock>,
}

impl People {
    /// Over these records.
    pub fn new(store: Arc<dyn RecordStore>, hasher: PasswordHasher, clock: Arc<dyn Clock>) -> Self {
        Self { store, hasher, clock }
    }

    /// Does what is asked.
    ///
    /// Cancel safety: dropping the future leaves open whether it is done.
    ///
    /// # Errors
    /// [`PeopleError`].
    pub async fn carry_out(&self, request: PeopleRequest) -> Result<PeopleAnswer, PeopleError> {
        use PeopleRequest as R;
        let now = self.clock.now();
        match request {
            R::AddUser { name, password, operator, roles } => {
                let password_hash = match password {
                    Some(password) => Some(self.hash(password).await?),
                    None => None,
                };
                let user = UserDocument { password_hash, operator, roles, ..UserDocument::fresh() };
                self.create(&user_id(&name)?, &name, user.to_bytes()).await
            }
            R::SetPassword { name, password } => {
                let hash = self.hash(password).await?;
                self.change_user(&name, |user| {
                    user.set_password(hash.clone());
                    Ok(())
                })
                .await
                .map(done)
            }
            R::SetRole { name, tenant, role } => {
                let change = |user: &mut UserDocument| {
                    match role {
                        Some(role) => user.roles.insert(tenant.clone(), role),
                        None => user.roles.remove(&tenant),
                    };
                    Ok(())
                };
                self.change_user(&name, change).await.map(done)
            }
            R::SetOperator { name, operator } => self
                .change_user(&name, |user| {
                    user.operator = operator;
                    Ok(())
                })
                .await
                .map(done),
            R::SetDisabled { name, disabled } => self
                .change_user(&name, |user| {
                    user.disabled = disabled;
                    Ok(())
                })
                .await
                .map(done),
            R::AddToken { name, description, actions, lifetime_seconds } => {
                let (actions, end) = (actions.into_iter().collect(), end(now, lifetime_seconds));
                let (id, secret) =
                    self.change_user(&name, |user| user.add_token(&description, actions, end, now)).await?;
                Ok(PeopleAnswer::Secret { id: Some(id), secret: Passphrase(secret) })
            }
            R::RevokeTokens { name, id: None } => {
                let revoke = |user: &mut UserDocument| {
                    user.revoke_all();
                    user.end_session(now);
                    Ok(())
                };
                self.change_user(&name, revoke).await.map(done)
            }
            R::RevokeTokens { name, id: Some(id) } => {
                match self.change_user(&name, |user| Ok(user.revoke_token(&id))).await? {
                    true => Ok(PeopleAnswer::Done),
                    false => Err(PeopleError::NotFound(id)),
                }
            }
            R::RemoveUser { name } => self.remove(&user_id(&name)?, &name).await,
            R::ListUsers => Ok(PeopleAnswer::Users(self.users())),
            R::AddRobot { name, description, scopes, lifetime_seconds } => {
                let expires_at = end(now, lifetime_seconds);
                let mut robot = RobotDocument { description, scopes, expires_at, ..RobotDocument::fresh() };
                robot.check()?;
                let secret = robot.rotate_secret(now, 0);
                self.create(&robot_id(&name)?, &name, robot.to_bytes()).await?;
                Ok(PeopleAnswer::Secret { id: None, secret: Passphrase(secret) })
            }
            R::RotateRobot { name, overlap_seconds } => {
                let secret = self.change_robot(&name, |robot| Ok(robot.rotate_secret(now, overlap_seconds))).await?;
                Ok(PeopleAnswer::Secret { id: None, secret: Passphrase(secret) })
            }
            R::RevokeRobot { name } => self
                .change_robot(&name, |robot| {
                    robot.revoke_all();
                    Ok(())
                })
                .await
                .map(done),
            R::RemoveRobot { name } => self.remove(&robot_id(&name)?, &name).await,
            R::ListRobots => Ok(PeopleAnswer::Robots(self.robots())),
            R::ListKeys => Ok(PeopleAnswer::Keys(self.keys())),
            R::RevokeKey { id } => self.revoke_key(&id).await.map(done),
        }
    }

    fn keys(&self) -> Vec<KeyInfo> {
        let records = self.store.list(RecordKind::IssuerKey, "", LIST_MAX);
        let shown = records.into_iter().filter_map(|(id, record)| {
            let IssuerKeyDocument { created_at, expires_at, revoked, .. } =
                IssuerKeyDocument::from_bytes(&record.body).ok()?;
            let node = IssuerKeyId::parse(&id).ok().map(|id| id.node());
            Some(KeyInfo { id, node, created_at, expires_at, revoked })
        });
        shown.collect()
    }

    /// The record stays until the key's time is over, so that its node does not publish it again.
    async fn revoke_key(&self, asked: &str) -> Result<(), PeopleError> {
        let unknown = || PeopleError::NoKey(asked.to_owned());
        // The name of the key is enough: it is a hash.
        let is_asked = |id: &String| id == asked || IssuerKeyId::parse(id).is_ok_and(|id| id.name() == asked);
        let keys = self.store.list(RecordKind::IssuerKey, "", LIST_MAX);
        let id = &keys.into_iter().map(|(id, _)| id).find(is_asked).ok_or_else(unknown)?;
        for _ in 0..ATTEMPTS_MAX {
            let record = self.store.get(RecordKind::IssuerKey, id).ok_or_else(unknown)?;
            let key = IssuerKeyDocument::from_bytes(&record.body).map_err(|_| unknown())?;
            let revoked = IssuerKeyDocument { revoked: true, ..key }.to_bytes();
            match self.store.put(RecordKind::IssuerKey, id, revoked, Some(record.revision)).await? {
                RecordOutcome::Done => return Ok(()),
                RecordOutcome::Conflict => {}
            }
        }
        Err(PeopleError::Conflict)
    }

    async fn hash(&self, password: Passphrase) -> Result<String, PeopleError> {
        let text = password.0.reveal();
        if text.chars().count() < PASSWORD_CHARS_MIN || text.len() > PASSWORD_BYTES_MAX {
            let reason =
                format!("must have at least {PASSWORD_CHARS_MIN} characters and {PASSWORD_BYTES_MAX} bytes at most");
            return Err(DocumentError::new("password", reason).into());
        }
        Ok(self.hasher.hash(password.0).await?)
    }

    async fn create(&self, id: &str, name: &str, body: Vec<u8>) -> Result<PeopleAnswer, PeopleError> {
        match self.store.put(RecordKind::User, id, body, Some(0)).await? {
            RecordOutcome::Done => Ok(PeopleAnswer::Done),
            RecordOutcome::Conflict => Err(PeopleError::Taken(name.to_owned())),
        }
    }

    async fn change_user<T>(
        &self,
        name: &str,
        change: impl Fn(&mut UserDocument) -> Result<T, DocumentError>,
    ) -> Result<T, PeopleError> {
        let changed = |bytes: &[u8]| {
            let mut user = UserDocument::from_bytes(bytes)?;
            let given = change(&mut user)?;
            Ok((given, user.to_bytes()))
        };
        self.change(&user_id(name)?, name, changed).await
    }

    async fn change_robot<T>(
        &self,
        name: &str,
        change: impl Fn(&mut RobotDocument) -> Result<T, DocumentError>,
    ) -> Result<T, PeopleError> {
        let changed = |bytes: &[u8]| {
            let mut robot = RobotDocument::from_bytes(bytes)?;
            let given = change(&mut robot)?;
            Ok((given, robot.to_bytes()))
        };
        self.change(&robot_id(name)?, name, changed).await
    }

    /// Changes a record as it is now; from the start again when someone else was first.
    async fn change<T>(
        &self,
        id: &str,
        name: &str,
        change: impl Fn(&[u8]) -> Result<(T, Vec<u8>), DocumentError>,
    ) -> Result<T, PeopleError> {
        for _ in 0..ATTEMPTS_MAX {
            let record = self.store.get(RecordKind::User, id).ok_or_else(|| PeopleError::NotFound(name.to_owned()))?;
            let (given, body) = change(&record.body)?;
            match self.store.put(RecordKind::User, id, body, Some(record.revision)).await? {
                RecordOutcome::Done => return Ok(given),
                RecordOutcome::Conflict => {}
            }
        }
        Err(PeopleError::Conflict)
    }

    async fn remove(&self, id: &str, name: &str) -> Result<PeopleAnswer, PeopleError> {
        for _ in 0..ATTEMPTS_MAX {
            let record = self.store.get(RecordKind::User, id).ok_or_else(|| PeopleError::NotFound(name.to_owned()))?;
            if self.store.remove(RecordKind::User, id, record.revision).await? == RecordOutcome::Done {
                return Ok(PeopleAnswer::Done);
            }
        }
        Err(PeopleError::Conflict)
    }

    fn users(&self) -> Vec<UserInfo> {
        let users = self.all().into_iter().filter_map(|(identity, body)| match identity {
            Identity::User(name) => Some((name, UserDocument::from_bytes(&body).ok()?)),
            Identity::Anonymous | Identity::Robot(_) => None,
        });
        let info = |(name, user): (UserName, UserDocument)| UserInfo {
            name: name.to_string(),
            operator: user.operator,
            disabled: user.disabled,
            roles: user.roles,
            tokens: user.tokens.into_iter().map(|token| (token.id, token.description)).collect(),
        };
        users.map(info).collect()
    }

    fn robots(&self) -> Vec<RobotInfo> {
        let robots = self.all().into_iter().filter_map(|(identity, body)| match identity {
            Identity::Robot(name) => Some((name, RobotDocument::from_bytes(&body).ok()?)),
            Identity::Anonymous | Identity::User(_) => None,
        });
        let info = |(name, robot): (RobotName, RobotDocument)| RobotInfo {
            name: name.to_string(),
            description: robot.description,
            scopes: robot.scopes,
            expires_at: robot.expires_at,
        };
        robots.map(info).collect()
    }

    fn all(&self) -> Vec<(Identity, bytes::Bytes)> {
        let records = self.store.list(RecordKind::User, "", LIST_MAX);
        records.into_iter().filter_map(|(id, record)| Some((Identity::from_subject(&id)?, record.body))).collect()
    }
}

fn done(_: impl Sized) -> PeopleAnswer {
    PeopleAnswer::Done
}

fn end(now: i64, lifetime_seconds: Option<i64>) -> Option<i64> {
    lifetime_seconds.map(|seconds| now.saturating_add(seconds))
}

fn user_id(name: &str) -> Result<String, NameError> {
    UserName::parse(name).map(|name| Identity::User(name).subject())
}

fn robot_id(name: &str) -> Result<String, NameError> {
    RobotName::parse(name).map(|name| Identity::Robot(name).subject())
}

#[cfg(test)]
mod tests {
    use super::super::password::tests::quick_hasher;
    use std::collections::BTreeMap;

    use super::super::{Action, AuthDriver, Credentials, LocalDriver, MemoryRecords, RobotScope, Role};
    use super::*;
    use crate::model::ManualClock;
    use crate::model::policy::Secret;

    fn people() -> (People, LocalDriver) {
        let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(1000)));
        let people = People::new(records.clone(), quick_hasher(), clock.clone());
        (people, LocalDriver::new(records, quick_hasher(), clock, 16))
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase(Secret::new(text))
    }

    fn add(name: &str, password: &str) -> PeopleRequest {
        let password = Some(passphrase(password));
        PeopleRequest::AddUser { name: name.into(), password, operator: false, roles: BTreeMap::new() }
    }

    #[tokio::test]
    async fn a_user_is_made_changed_and_removed() {
        let (people, driver) = people();
        let login =
            async |password: &str| driver.authenticate(&Credentials::new("alice", password).unwrap()).await.is_ok();
        let ask = |request| people.carry_out(request);
        assert_eq!(ask(add("alice", "swordfish")).await, Ok(PeopleAnswer::Done));
        assert_eq!(ask(add("alice", "swordfish")).await, Err(PeopleError::Taken("alice".into())));
        assert!(login("swordfish").await && !login("trout-trout").await);
        let name = || "alice".to_owned();
        ask(PeopleRequest::SetPassword { name: name(), password: passphrase("trout-trout") }).await.unwrap();
        assert!(!login("swordfish").await && login("trout-trout").await);
        let (tenant, role) = ("acme".parse().unwrap(), Some(Role::Admin));
        ask(PeopleRequest::SetRole { name: name(), tenant, role }).await.unwrap();
        ask(PeopleRequest::SetOperator { name: name(), operator: true }).await.unwrap();
        let token = PeopleRequest::AddToken {
            name: name(),
            description: "ci".into(),
            actions: vec![Action::Pull],
            lifetime_seconds: Some(60),
        };
        let Ok(PeopleAnswer::Secret { id: Some(id), secret }) = ask(token).await else { panic!("no token") };
        assert!(login(secret.0.reveal()).await);
        let Ok(PeopleAnswer::Users(users)) = ask(PeopleRequest::ListUsers).await else { panic!("no list") };
        assert_eq!(users[0].tokens, [(id.clone(), "ci".to_owned())]);
        assert!(users[0].operator && users[0].roles.len() == 1);
        ask(PeopleRequest::RevokeTokens { name: name(), id: Some(id) }).await.unwrap();
        assert!(!login(secret.0.reveal()).await);
        ask(PeopleRequest::SetDisabled { name: name(), disabled: true }).await.unwrap();
        assert!(!login("trout-trout").await);
        ask(PeopleRequest::RemoveUser { name: name() }).await.unwrap();
        let gone = ask(PeopleRequest::RemoveUser { name: name() }).await;
        assert_eq!(gone, Err(PeopleError::NotFound("alice".into())));
    }

    #[tokio::test]
    async fn a_robot_is_made_rotated_and_revoked() {
        let (people, driver) = people();
        let login = async |secret: &Passphrase| {
            driver.authenticate(&Credentials::new("acme+ci", secret.0.reveal()).unwrap()).await.is_ok()
        };
        let scope =
            |pattern: &str| RobotScope { account: None, match_repository: pattern.into(), actions: vec![Action::Pull] };
        let add = |pattern: &str| PeopleRequest::AddRobot {
            name: "acme+ci".into(),
            description: String::new(),
            scopes: vec![scope(pattern)],
            lifetime_seconds: None,
        };
        assert!(matches!(people.carry_out(add("(")).await, Err(PeopleError::Invalid(_))));
        let Ok(PeopleAnswer::Secret { secret: first, .. }) = people.carry_out(add(".*")).await else {
            panic!("no robot")
        };
        let rotate = PeopleRequest::RotateRobot { name: "acme+ci".into(), overlap_seconds: 60 };
        let Ok(PeopleAnswer::Secret { secret: second, .. }) = people.carry_out(rotate).await else {
            panic!("no secret")
        };
        assert!(login(&first).await && login(&second).await);
        people.carry_out(PeopleRequest::RevokeRobot { name: "acme+ci".into() }).await.unwrap();
        assert!(!login(&first).await && !login(&second).await);
        let Ok(PeopleAnswer::Robots(robots)) = people.carry_out(PeopleRequest::ListRobots).await else {
            panic!("no list")
        };
        assert_eq!(robots.len(), 1);
    }

    #[tokio::test]
    async fn bad_names_and_passwords_are_refused_and_never_printed() {
        let (people, _) = people();
        assert!(matches!(people.carry_out(add("a b", "swordfish")).await, Err(PeopleError::Name(_))));
        assert!(matches!(people.carry_out(add("alice", "short")).await, Err(PeopleError::Invalid(_))));
        let robot = PeopleRequest::RevokeRobot { name: "alice".into() };
        assert!(matches!(people.carry_out(robot).await, Err(PeopleError::Name(_))));
        let request = add("alice", "swordfish");
        assert!(!format!("{request:?}").contains("swordfish"));
        let text = serde_json::to_string(&request).unwrap();
        assert!(matches!(serde_json::from_str(&text).unwrap(), PeopleRequest::AddUser { .. }));
    }
}
