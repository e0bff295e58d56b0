//! Evicts what merely passed through this region when it takes more room than it may.

use crate::registry::{Registry, RegistryError};

/// Runs once.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(registry: Registry) -> Result<(), RegistryError> {
    let evicted_bytes = registry.evict_pulled().await?;
    if evicted_bytes > 0 {
        tracing::info!(evicted_bytes, "evicted blobs that were pulled once and not used for long");
    }
    Ok(())
}
