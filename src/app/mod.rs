//! Builds a node out of the rooms, runs it, and ends it.
//!
//! [`start`] gives a [`RunningNode`]; several can live in one process, since nothing here is global but the metrics and
//! the log. [`run`] is what a command does: threads, log, a node, and the signals that end it.
//!
//! Order of building: the folder and its lock, metadata, storage, registry, the HTTP door last, so that whoever is let
//! in finds everything there, and the janitor, whose first task finishes what a crash left. Order of ending: the door first,
//! requests that run are finished within the grace period, then the janitor, pull times, metadata, and the lock.

mod allocator;
mod auth;
mod data_folder;
mod error;
mod file_limit;
mod logging;
mod metrics;
mod runtime;
mod service;
mod signals;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::api;
use crate::config::{Config, Loaded, StorageDriver};
use crate::janitor::Janitor;
use crate::metadata::Metadata;
use crate::model::SystemClock;
use crate::registry::{LocalClaims, Registry};
use crate::storage::Storage;

use self::auth::AuthKeeper;

pub use data_folder::{DataFolder, DataFolderError};
pub use error::{RunError, StartError};

/// A node that serves. End it with [`RunningNode::shutdown`]; dropped, its door stays open as long as the runtime lives.
pub struct RunningNode {
    server: api::serve::Server,
    serving: CancellationToken,
    janitor: Janitor,
    auth: AuthKeeper,
    registry: Registry,
    // Last, so that it is let go when all else has gone.
    data: DataFolder,
}

/// Starts a node; once this comes back, it serves. Must be called within a Tokio runtime.
///
/// # Errors
/// [`StartError`]; then nothing of it runs.
pub async fn start(config: &Config) -> Result<RunningNode, StartError> {
    let metrics = metrics::handle();
    let (data, metadata, storage) = open(config.clone()).await?;
    let registry =
        Registry::new(config.registry_options(), metadata, storage, Arc::new(SystemClock), Arc::new(LocalClaims));
    registry.ensure_accounts(config.registry.accounts.clone()).await?;
    let (auth, keeper) = auth::start(config).await?;
    let serving = CancellationToken::new();
    let server = api::spawn(config.api_options(), registry.clone(), auth, metrics, serving.clone())?;
    let janitor = Janitor::spawn(registry.clone(), &config.janitor_options());
    Ok(RunningNode { server, serving, janitor, auth: keeper, registry, data })
}

/// Opens what is on disk, off the async threads.
async fn open(config: Config) -> Result<(DataFolder, Metadata, Storage), StartError> {
    let opened = tokio::task::spawn_blocking(move || {
        let data = DataFolder::open(&config.node.data)?;
        let metadata = Metadata::open(&config.metadata_path(), &config.metadata_options())?;
        let storage = match config.storage.driver {
            StorageDriver::Filesystem => Storage::filesystem(config.filesystem_options())?,
            StorageDriver::Memory => Storage::memory(config.memory_options()),
        };
        Ok((data, metadata, storage))
    });
    opened.await.unwrap_or_else(|_| Err(StartError::Panicked))
}

impl RunningNode {
    /// Where it listens, with the ports in use.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// The folder that holds what it keeps.
    pub fn data(&self) -> &DataFolder {
        &self.data
    }

    /// Ends it: no new connections, requests that run are finished within the grace period of the configuration, pull
    /// times are written, the data folder is let go. Dropping this future half-way leaves the rest to the process's end,
    /// which loses no acknowledged write.
    pub async fn shutdown(self) {
        self.serving.cancel();
        self.server.stopped().await;
        self.auth.stop().await;
        self.janitor.stop().await;
        if let Err(error) = self.registry.flush_pull_times().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the times of the last pulls cannot be written");
        }
    }
}

/// Runs a node in this thread until a signal ends it; `ready` is called once it serves.
///
/// # Errors
/// [`RunError`].
pub fn run(loaded: Loaded, ready: impl FnOnce(&RunningNode)) -> Result<(), RunError> {
    let Loaded { config, warnings, .. } = loaded;
    logging::install(&config.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    file_limit::raise(config.http.connections_max);
    allocator::share_arenas();
    let runtime = runtime::build(&config.node)?;
    let outcome = runtime.block_on(async {
        let mut signals = signals::EndSignals::catch().map_err(RunError::Runtime)?;
        let node = start(&config).await?;
        let addresses: Vec<String> = node.addresses().iter().map(SocketAddr::to_string).collect();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), data = %node.data().path().display(), listen = addresses.join(" "), "serving");
        service::notify("READY=1");
        ready(&node);
        let signal = signals.next().await;
        tracing::info!(signal, grace = ?config.node.shutdown_grace, "ending; requests that run are finished first");
        service::notify("STOPPING=1");
        tokio::select! {
            () = node.shutdown() => {
                tracing::info!("ended");
                Ok(())
            }
            signal = signals.next() => Err(RunError::CutShort { signal }),
        }
    });
    // What still runs there was cut short, or is a read nobody waits for.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests;
