//! Closes the files of upload sessions that wait for their client. They can be continued, at the price of reading their
//! bytes once more.

use crate::registry::{Registry, RegistryError};

/// Runs once.
///
/// # Errors
/// None.
pub async fn run(registry: Registry) -> Result<(), RegistryError> {
    registry.close_idle_uploads();
    Ok(())
}
