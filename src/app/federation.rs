//! The node's part in the federation: started with it, and what an operator does to it while it does not run.

use std::path::Path;
use std::time::Duration;

use keppel_federation::admission::Invitation;
use keppel_federation::claims::{self, Role};
use keppel_federation::identity::NodeKey;
use keppel_federation::vocabulary::{NodeId, Region};
use keppel_federation::{Federation, FederationOptions};

use super::admin::AdminServer;
use super::{DataFolder, RunError, StartError, auth};
use crate::config::Config;

/// Long enough for two nodes of one process to meet.
const INVITATION_LIFETIME: Duration = Duration::from_secs(60);

/// Starts the node's part in the federation, and the operator's socket.
pub(super) async fn start(config: &Config, role: Role) -> Result<(Federation, AdminServer), StartError> {
    let federation = Federation::start(config.federation_options(role)).await?;
    let served = AdminServer::spawn(&config.node.data, federation.clone(), auth::people(config, &federation));
    match served {
        Ok(admin) => Ok((federation, admin)),
        Err(error) => {
            federation.shutdown().await;
            Err(StartError::Admin(error))
        }
    }
}

/// Lets one node of this process into the federation of another, unless it is in it.
pub(super) async fn ensure_member(door: &Federation, node: &Federation) -> Result<(), StartError> {
    let is_member = || door.members().iter().any(|member| member.node == node.node());
    // A door that has just started may not know yet what was decided before.
    if is_member() || !node.members().is_empty() {
        return Ok(());
    }
    let invitation = door.invite(node.region().clone(), Role::Full, INVITATION_LIFETIME).await?;
    node.join(&invitation).await?;
    Ok(())
}

/// Why something could not be done to a node that does not run.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The data folder cannot be used: a node runs on it, for one.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The invitation is none.
    #[error(transparent)]
    Invitation(#[from] keppel_federation::admission::InvitationError),
    /// The node was not let in.
    #[error(transparent)]
    Join(#[from] keppel_federation::JoinError),
    /// The system gave no threads.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The node's state cannot be changed.
    #[error("{0}")]
    Recover(String),
}

/// Makes the node's key and founds a federation of one, where that has not been done.
///
/// # Errors
/// [`OfflineError`].
pub async fn init(config: &Config) -> Result<(NodeId, Region), OfflineError> {
    let (_data, federation) = start_quietly(config, Role::Full, false).await?;
    let found = (federation.node(), federation.region().clone());
    federation.shutdown().await;
    Ok(found)
}

/// Joins a federation before the node runs.
///
/// # Errors
/// [`OfflineError`].
pub async fn join(config: &Config, invitation: &str) -> Result<(NodeId, Region), OfflineError> {
    let invitation = Invitation::parse(invitation)?;
    let (_data, federation) = start_quietly(config, invitation.role, true).await?;
    let joined = federation.join(&invitation).await;
    federation.shutdown().await;
    let member = joined?;
    Ok((member.node, member.region))
}

/// What a recovery keeps and may lose, in words; with `confirmed`, it is done.
///
/// # Errors
/// [`OfflineError`].
pub fn recover(config: &Config, confirmed: bool) -> Result<String, OfflineError> {
    let data = DataFolder::open(&config.node.data).map_err(StartError::from)?;
    let key = load_key(data.path())?;
    let recovery = claims::recover(data.path(), key.id(), confirmed);
    recovery.map(|recovery| recovery.to_string()).map_err(|error| OfflineError::Recover(error.to_string()))
}

/// What this node gives up with its identity, in words; with `confirmed`, it does: its next start makes it another node.
///
/// # Errors
/// [`OfflineError`].
pub fn reset_identity(config: &Config, confirmed: bool) -> Result<String, OfflineError> {
    let data = DataFolder::open(&config.node.data).map_err(StartError::from)?;
    // Whoever has a copy of the former node's keys must not sign as the new one.
    let keys = data.path().join(auth::KEY_FILE);
    match if confirmed { std::fs::remove_file(&keys) } else { Ok(()) } {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(OfflineError::Recover(format!("{} cannot be removed: {error}", keys.display())));
        }
        _ => {}
    }
    let retired = keppel_federation::retire(data.path(), confirmed);
    retired.map(|retired| retired.to_string()).map_err(|error| OfflineError::Recover(error.to_string()))
}

fn load_key(data: &Path) -> Result<NodeKey, StartError> {
    NodeKey::load_or_create(data).map_err(|error| StartError::Federation(error.into()))
}

async fn start_quietly(config: &Config, role: Role, listen: bool) -> Result<(DataFolder, Federation), StartError> {
    let data = DataFolder::open(&config.node.data)?;
    let mut options: FederationOptions = config.federation_options(role);
    if !listen {
        options.listen.clear();
    }
    Ok((data, Federation::start(options).await?))
}
