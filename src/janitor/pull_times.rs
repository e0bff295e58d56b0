//! Writes the pull times that were gathered in memory, and tells primaries in other regions of them.

use crate::registry::{Registry, RegistryError};

/// Runs once.
///
/// # Errors
/// Our own trouble; what could not be written is lost.
pub async fn run(registry: Registry) -> Result<(), RegistryError> {
    registry.flush_pull_times().await
}

/// Tells the primaries of the accounts that are followed here what was pulled, so that their retention counts it.
///
/// # Errors
/// Our own trouble; what could not be told is told the next time.
pub async fn tell(registry: Registry) -> Result<(), RegistryError> {
    for (account, _) in registry.copy_places() {
        match registry.hand_over_pull_times(&account).await {
            Ok(_) => {}
            Err(error @ RegistryError::PrimaryUnreachable { .. }) => {
                tracing::debug!(%account, %error, "the primary is told of pulls the next time");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
