//! The threads of the process.

use tokio::runtime::{Builder, Runtime};

use super::RunError;
use crate::config::Node;

/// Async threads that serve requests, and a bounded number of threads for work that blocks.
///
/// # Errors
/// When the system has no threads to give.
pub fn build(options: &Node) -> Result<Runtime, RunError> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = options.threads {
        builder.worker_threads(threads);
    }
    builder
        .max_blocking_threads(options.blocking_threads_max)
        .thread_name("keppel")
        .enable_all()
        .build()
        .map_err(RunError::Runtime)
}
