//! Writes the pull times that were gathered in memory.

use crate::registry::{Registry, RegistryError};

/// Runs once.
///
/// # Errors
/// Our own trouble; what could not be written is lost.
pub async fn run(registry: Registry) -> Result<(), RegistryError> {
    registry.flush_pull_times().await
}
