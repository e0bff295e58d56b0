//! Writes the events of the audit log that were gathered in memory.

use crate::registry::{Registry, RegistryError};

/// Runs once.
///
/// # Errors
/// Our own trouble; then the events wait for the next time.
pub async fn run(registry: Registry) -> Result<(), RegistryError> {
    registry.flush_audit().await
}
