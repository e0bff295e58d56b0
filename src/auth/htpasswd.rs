use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use async_trait::async_trait;

use super::grants::authority_of;
use super::{
    ActionSet, AuthDriver, AuthError, Authority, Credentials, HtpasswdGrant, Identity, Login, PasswordHasher, Standing,
    UserName,
};

/// The largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// The costliest hash that is checked: two to the power of this many rounds.
const COST_MAX: u32 = 16;

/// What tells one state of the file from another: modification time and length.
type Stamp = (SystemTime, u64);

/// Users of a bcrypt password file, as the plain Docker registry has it. What they may do is granted by the configuration
/// and by the policies of accounts.
pub struct HtpasswdDriver {
    path: PathBuf,
    hasher: PasswordHasher,
    grants: Vec<HtpasswdGrant>,
    users: RwLock<Arc<Users>>,
    standing_of_nobody: Arc<Standing>,
}

#[derive(Debug, Default)]
struct Users {
    hashes: HashMap<UserName, Entry>,
    /// A hash of a random text, checked for those who are not known, so that they cost the same time.
    nobody: String,
    seen: Option<Stamp>,
}

#[derive(Debug)]
struct Entry {
    hash: String,
    standing: Arc<Standing>,
}

/// Why a password file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum HtpasswdError {
    /// It could not be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A line is not `name:bcrypt hash`.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl HtpasswdDriver {
    /// Reads the file. Blocks.
    ///
    /// # Errors
    /// [`HtpasswdError`].
    pub fn open(path: &Path, hasher: PasswordHasher, grants: Vec<HtpasswdGrant>) -> Result<Self, HtpasswdError> {
        let users = RwLock::new(Arc::new(read(path, &grants)?));
        Ok(Self { path: path.to_owned(), hasher, grants, users, standing_of_nobody: Arc::default() })
    }

    /// Reads the file and sees whether [`Self::open`] could use it. Blocks.
    ///
    /// # Errors
    /// [`HtpasswdError`].
    pub fn check(path: &Path) -> Result<(), HtpasswdError> {
        read_hashes(path, &[]).map(|_| ())
    }

    /// Reads the file again when it has changed. Blocks; called every few seconds. A file that cannot be read changes
    /// nothing: those who could log in still can.
    ///
    /// # Errors
    /// [`HtpasswdError`].
    pub fn reload(&self) -> Result<bool, HtpasswdError> {
        if stamp_of(&self.path).ok() == self.users().seen {
            return Ok(false);
        }
        let fresh = Arc::new(read(&self.path, &self.grants)?);
        *self.users.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    fn users(&self) -> Arc<Users> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn stamp_of(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len()))
}

fn read(path: &Path, grants: &[HtpasswdGrant]) -> Result<Users, HtpasswdError> {
    let (hashes, seen) = read_hashes(path, grants)?;
    let costs = hashes.values().filter_map(|entry| entry.hash.parse::<bcrypt::HashParts>().ok());
    let cost = costs.map(|parts| parts.get_cost()).max().unwrap_or(4);
    let nobody = bcrypt::hash(rand::random::<[u8; 16]>(), cost).unwrap_or_default();
    Ok(Users { hashes, nobody, seen: Some(seen) })
}

fn read_hashes(path: &Path, grants: &[HtpasswdGrant]) -> Result<(HashMap<UserName, Entry>, Stamp), HtpasswdError> {
    let io = |source| HtpasswdError::Io { path: path.to_owned(), source };
    let seen = stamp_of(path).map_err(io)?;
    if seen.1 > FILE_BYTES_MAX {
        return Err(io(std::io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes"))));
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    let hashes =
        parse(&text, grants).map_err(|(line, reason)| HtpasswdError::Line { path: path.to_owned(), line, reason })?;
    Ok((hashes, seen))
}

fn parse(text: &str, grants: &[HtpasswdGrant]) -> Result<HashMap<UserName, Entry>, (usize, String)> {
    let mut hashes = HashMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let refuse = |reason: String| (at + 1, reason);
        let (name, hash) = line.split_once(':').ok_or_else(|| refuse("it is not name:hash".into()))?;
        let name = UserName::parse(name).map_err(|error| refuse(error.to_string()))?;
        check_hash(hash).map_err(refuse)?;
        let entry = Entry { hash: hash.to_owned(), standing: Arc::new(standing(hash, authority_of(&name, grants))) };
        if hashes.insert(name, entry).is_some() {
            return Err(refuse("the name is there twice".into()));
        }
    }
    Ok(hashes)
}

fn check_hash(hash: &str) -> Result<(), String> {
    let known = ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix));
    match hash.parse::<bcrypt::HashParts>() {
        Ok(parts) if known && parts.get_cost() <= COST_MAX => Ok(()),
        Ok(parts) if known => Err(format!("the hash has cost {}: {COST_MAX} is the most", parts.get_cost())),
        _ => Err("the hash is not of bcrypt: make it with htpasswd -B".into()),
    }
}

/// The epoch of a user is a part of the hash of their line: a new password ends all tokens.
fn standing(hash: &str, authority: Authority) -> Standing {
    let digest = blake3::hash(hash.as_bytes());
    let [a, b, c, d, e, f, ..] = *digest.as_bytes();
    Standing { authority, epoch: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]), credentials: Vec::new() }
}

#[async_trait]
impl AuthDriver for HtpasswdDriver {
    fn name(&self) -> &'static str {
        "htpasswd"
    }

    async fn authenticate(&self, credentials: &Credentials) -> Result<Login, AuthError> {
        let Ok(name) = UserName::parse(&credentials.username) else { return Err(AuthError::InvalidCredentials) };
        let users = self.users();
        let entry = users.hashes.get(&name);
        let (known, hash) = (entry.is_some(), entry.map_or(&users.nobody, |entry| &entry.hash).clone());
        let secret = credentials.secret.clone();
        let fits = self.hasher.run(move || bcrypt::verify(secret.reveal().as_bytes(), &hash).unwrap_or(false)).await?;
        match known && fits {
            true => {
                Ok(Login { identity: Identity::User(name), credential: None, limit: ActionSet::ALL, ends_at: None })
            }
            false => Err(AuthError::InvalidCredentials),
        }
    }

    fn stamp(&self, username: &str) -> u64 {
        let name = UserName::parse(username).ok();
        let users = self.users();
        name.and_then(|name| users.hashes.get(&name).map(|entry| entry.standing.epoch)).unwrap_or(0)
    }

    fn standing(&self, identity: &Identity) -> Option<Arc<Standing>> {
        match identity {
            Identity::Anonymous => Some(self.standing_of_nobody.clone()),
            Identity::User(name) => self.users().hashes.get(name).map(|entry| entry.standing.clone()),
            Identity::Robot(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::password::tests::quick_hasher;
    use super::*;

    fn line(name: &str, password: &str) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
    }

    #[tokio::test]
    async fn those_in_the_file_log_in_and_a_changed_file_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        std::fs::write(&path, format!("# people\n\n{}{}", line("alice", "one"), line("bob", "two"))).unwrap();
        let driver = HtpasswdDriver::open(&path, quick_hasher(), vec!["alice=operator".parse().unwrap()]).unwrap();
        let login = async |username: &str, password: &str| {
            driver.authenticate(&Credentials::new(username, password).unwrap()).await.map(|login| login.identity)
        };
        let alice = Identity::from_username("alice").unwrap();
        assert_eq!(login("alice", "one").await, Ok(alice.clone()));
        for (username, password) in [("alice", "two"), ("carol", "one"), ("", ""), ("alice", "")] {
            assert_eq!(login(username, password).await, Err(AuthError::InvalidCredentials));
        }
        let before = driver.standing(&alice).unwrap();
        assert!(before.authority.operator);
        for other in [Identity::Anonymous, Identity::from_username("bob").unwrap()] {
            let authority = &driver.standing(&other).unwrap().authority;
            assert!(!authority.operator && authority.roles.is_empty(), "{other:?} is nothing by office");
        }
        assert!(!driver.reload().unwrap());
        std::fs::write(&path, format!("{}{}", line("alice", "three"), line("carol", "longer-than-before"))).unwrap();
        std::fs::File::open(&path)
            .unwrap()
            .set_modified(SystemTime::now() + std::time::Duration::from_secs(5))
            .unwrap();
        assert!(driver.reload().unwrap());
        assert!(login("alice", "one").await.is_err() && login("alice", "three").await.is_ok());
        assert!(
            login("bob", "two").await.is_err() && driver.standing(&Identity::from_username("bob").unwrap()).is_none()
        );
        assert!(!driver.standing(&alice).unwrap().honours(before.epoch, None, 0), "tokens of the old password end");
        std::fs::write(&path, "broken").unwrap();
        assert!(driver.reload().is_err() && login("alice", "three").await.is_ok());
    }

    #[test]
    fn lines_that_are_wrong_are_named() {
        for (text, number, reason) in [
            ("alice", 1, "name:hash"),
            ("# x\nalice:$apr1$abc$def", 2, "htpasswd -B"),
            ("a b:$2y$05$x", 1, "user name"),
            ("alice:$2y$31$Xm2UaUBbHTcqkDR3MzVEIeHo3d9tbBh3E6WJ0m2JQOXvDnWKNuBBq", 1, "cost"),
        ] {
            let (line, error) = parse(text, &[]).unwrap_err();
            assert!(line == number && error.contains(reason), "{text}: {line} {error}");
        }
        let twice = line("a", "x").repeat(2);
        assert_eq!(parse(&twice, &[]).unwrap_err().0, 2);
    }
}
