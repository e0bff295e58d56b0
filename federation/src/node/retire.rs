//! A new identity for a node that was removed, or that is to join another federation.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::admission::Introduction;
use crate::claims::{DATABASE_NAME, StoreError, held};
use crate::identity::{IdentityError, KEY_FILE, NodeKey};
use crate::vocabulary::NodeId;

/// Why a node keeps its identity.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// There is no identity yet.
    #[error("there is no node key in {}: the node has no identity to give up", .0.display())]
    Nothing(PathBuf),
    /// The key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node runs, or its state cannot be read.
    #[error("the federation's state cannot be set aside: {0}")]
    State(#[from] StoreError),
    /// A file could not be moved.
    #[error("{} cannot be set aside: {source}", .path.display())]
    Move {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What a node gives up with its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// The id that goes.
    pub node: NodeId,
    /// How many other members it knew.
    pub others: usize,
    /// How many accounts it owned, as far as it knew.
    pub owned: usize,
    /// Where the former key and state are kept, or would be.
    pub kept_in: PathBuf,
}

impl fmt::Display for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, others, owned, kept_in } = self;
        writeln!(f, "This node gives up its identity {node}, under which it knew {others} other members.")?;
        writeln!(f, "It starts anew as another node, with the same content, and may join a federation.")?;
        if *owned > 0 {
            writeln!(
                f,
                "It owned {owned} accounts, as far as it knows. They stay with the former identity, and nobody"
            )?;
            writeln!(f, "can push to them until their claims have been moved.")?;
        }
        if *others > 0 {
            writeln!(
                f,
                "If it is still a member, end that on another node: keppel federation remove {}",
                node.short()
            )?;
        }
        write!(f, "The former key and state are kept in {}", kept_in.display())
    }
}

/// Takes a stopped node's key and replicated state away, so that its next start makes it another node; with `confirmed`
/// false, only says what would be. What it stores stays. Blocks on the disk; may be called again after a failure.
///
/// # Errors
/// [`RetireError`]; in particular when the node runs.
pub fn retire(data_dir: &Path, confirmed: bool) -> Result<Retired, RetireError> {
    if !data_dir.join(KEY_FILE).exists() {
        return Err(RetireError::Nothing(data_dir.to_owned()));
    }
    let node = NodeKey::load_or_create(data_dir)?.id();
    let (members, owned) = held(data_dir, node)?;
    let others = members.iter().filter(|member| **member != node).count();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let kept_in = data_dir.join(format!("former-identity-{}-{}", node.short(), since.as_secs()));
    let retired = Retired { node, others, owned, kept_in };
    if !confirmed {
        return Ok(retired);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RetireError::Move { path, source }
    };
    std::fs::create_dir_all(&retired.kept_in).map_err(failed(&retired.kept_in))?;
    // The key goes last: as long as it is there, this can be done again.
    let state = ["-wal", "-shm", "-journal", ""].map(|suffix| format!("{DATABASE_NAME}{suffix}"));
    let files = state.into_iter().chain([Introduction::FILE.to_owned(), KEY_FILE.to_owned()]);
    for name in files {
        let (from, to) = (data_dir.join(&name), retired.kept_in.join(&name));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&from)(error)),
            _ => {}
        }
    }
    for folder in [&*retired.kept_in, data_dir] {
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    }
    Ok(retired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::{AccountName, Region, TenantId};
    use crate::{Federation, FederationOptions};

    #[tokio::test]
    async fn a_node_starts_as_another_one_after_it_gave_up_its_identity() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(retire(folder.path(), true), Err(RetireError::Nothing(_))));
        let options = FederationOptions::new(folder.path(), Region::parse("eu").unwrap());
        let node = Federation::start(options.clone()).await.unwrap();
        let former = node.node();
        let (name, tenant) = (AccountName::parse("acme").unwrap(), TenantId::parse("t").unwrap());
        node.claim(name, tenant, Default::default()).await.unwrap();
        assert!(matches!(retire(folder.path(), true), Err(RetireError::State(_))), "not while it runs");
        node.shutdown().await;
        drop(node);
        let told = retire(folder.path(), false).unwrap();
        assert_eq!((told.node, told.others, told.owned), (former, 0, 1));
        assert!(told.to_string().contains("It owned 1 accounts"), "{told}");
        assert!(!told.kept_in.exists() && folder.path().join(KEY_FILE).exists(), "nothing was changed yet");
        let done = retire(folder.path(), true).unwrap();
        assert!(done.kept_in.join(KEY_FILE).exists() && done.kept_in.join(DATABASE_NAME).exists());
        let node = Federation::start(options).await.unwrap();
        assert_ne!(node.node(), former);
        assert_eq!(node.state().accounts_len(), 0);
        node.shutdown().await;
    }
}
