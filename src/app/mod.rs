//! Builds a node out of the rooms, runs it, and ends it.
//!
//! [`start`] gives a [`RunningNode`]; several can live in one process, since nothing here is global but the metrics and
//! the log. [`run`] is what a command does: threads, log, a node, and the signals that end it.
//!
//! Order of building: the folder and its lock, storage, metadata, the federation, registry, who may do what, the HTTP
//! door last, so that whoever is let in finds everything there, and the janitor, whose first task finishes what a crash
//! left. Order of ending: the door first, requests that run are finished within the grace period, then the janitor, the
//! federation, pull times, metadata, and the lock.
//!
//! A witness ([`run_witness`]) is a node with the federation alone: it votes and keeps no content.

pub mod admin;
mod allocator;
mod auth;
mod data_folder;
mod error;
mod federation;
mod file_limit;
mod logging;
mod metrics;
mod opening;
mod runtime;
mod service;
mod signals;

use std::net::SocketAddr;
use std::sync::Arc;

use keppel_federation::Federation;
use keppel_federation::claims::Role;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::api::serve::ListenAddress;
use crate::config::{Config, Loaded};
use crate::external::ExternalClient;
use crate::janitor::Janitor;
use crate::metadata::Metadata;
use crate::model::SystemClock;
use crate::peering::accounts::FederationAccounts;
use crate::peering::backfill::Backfill;
use crate::peering::claims::FederationClaims;
use crate::peering::content::RegistryContent;
use crate::peering::follow::Follower;
use crate::peering::upstream::FederationUpstream;
use crate::registry::{Accounts, Registry};
use crate::storage::Storage;

use self::admin::AdminServer;
use self::auth::AuthKeeper;

pub use data_folder::{DataFolder, DataFolderError};
pub use error::{RunError, StartError};
pub use federation::{OfflineError, init, join, recover, reset_identity};

/// A node that serves. End it with [`RunningNode::shutdown`]; dropped, its door stays open as long as the runtime lives.
pub struct RunningNode {
    server: api::serve::Server,
    listens: Vec<ListenAddress>,
    serving: CancellationToken,
    janitor: Janitor,
    follower: Follower,
    backfill: Backfill,
    auth: AuthKeeper,
    registry: Registry,
    federation: Federation,
    admin: AdminServer,
    // Last, so that it is let go when all else has gone.
    data: DataFolder,
}

/// Starts a node; once this comes back, it serves. Must be called within a Tokio runtime.
///
/// # Errors
/// [`StartError`]; then nothing of it runs.
pub async fn start(config: &Config) -> Result<RunningNode, StartError> {
    let metrics = metrics::handle();
    let (data, metadata, storage) = opening::open(config).await?;
    let (federation, admin) = federation::start(config, Role::Full).await?;
    let parts = Parts { metrics, metadata, storage, federation, admin, data };
    let federation = parts.federation.clone();
    let started = finish(config, parts).await;
    if started.is_err() {
        federation.shutdown().await;
    }
    started
}

/// What a node is made of before its door opens.
struct Parts {
    metrics: PrometheusHandle,
    metadata: Metadata,
    storage: Storage,
    federation: Federation,
    admin: AdminServer,
    data: DataFolder,
}

async fn finish(config: &Config, parts: Parts) -> Result<RunningNode, StartError> {
    let Parts { metrics, metadata, storage, federation, admin, data } = parts;
    let (auth, keeper) = auth::start(config, &federation).await?;
    let claims = Arc::new(FederationClaims::new(Arc::new(federation.clone()), auth.clone()));
    let registry = Registry::new(config.registry_options(), metadata, storage, Arc::new(SystemClock), claims);
    admin.audit_with(registry.clone());
    registry.recall_leases().await?;
    registry.recall_primacies().await?;
    registry.recall_follows().await?;
    registry.tend_leases().await?;
    registry.connect(Arc::new(FederationUpstream::new(federation.clone())));
    let authorities = config.external.ca_file.as_ref().map(std::fs::read).transpose();
    let authorities = authorities.map_err(StartError::ExternalAuthorities)?.unwrap_or_default();
    let external = ExternalClient::new(config.external_options(), &authorities).map_err(StartError::External)?;
    registry.connect_external(external);
    federation.serve_content(Arc::new(RegistryContent::new(registry.clone(), federation.clone())));
    registry.ensure_accounts(config.registry.accounts.clone()).await?;
    registry.ensure_tenants().await?;
    let accounts = Accounts::new(registry.clone(), Arc::new(FederationAccounts::new(federation.clone())));
    let serving = CancellationToken::new();
    let server = match api::spawn(config.api_options(), accounts.clone(), auth, metrics, serving.clone()) {
        Ok(server) => server,
        Err(error) => {
            keeper.stop().await;
            return Err(error.into());
        }
    };
    let listens = listens(&config.http.listen, server.addresses());
    let janitor = Janitor::spawn(registry.clone(), Some(accounts), &config.janitor_options());
    admin.janitor_is(janitor.work().clone());
    let follower = Follower::spawn(federation.clone(), registry.clone(), config.federation.lease);
    let backfill = Backfill::spawn(federation.clone(), registry.clone());
    Ok(RunningNode {
        server,
        listens,
        serving,
        janitor,
        follower,
        backfill,
        auth: keeper,
        registry,
        federation,
        admin,
        data,
    })
}

/// The addresses as configured, TCP ones with the ports in use.
fn listens(configured: &[ListenAddress], in_use: &[SocketAddr]) -> Vec<ListenAddress> {
    let mut in_use = in_use.iter().copied();
    let resolve = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) => ListenAddress::Tcp(in_use.next().unwrap_or(*address)),
        ListenAddress::Unix(path) => ListenAddress::Unix(path.clone()),
    };
    configured.iter().map(resolve).collect()
}

impl RunningNode {
    /// Where it listens, Unix sockets included, in the order of the configuration.
    pub fn listens(&self) -> &[ListenAddress] {
        &self.listens
    }

    /// The TCP addresses among them, with the ports in use.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// The folder that holds what it keeps.
    pub fn data(&self) -> &DataFolder {
        &self.data
    }

    /// The region it is in.
    pub fn region(&self) -> &keppel_federation::vocabulary::Region {
        self.federation.region()
    }

    /// Its part in the federation.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// Ends it: no new connections, requests that run are finished within the grace period of the configuration, pull
    /// times are written, the data folder is let go. Dropping this future half-way leaves the rest to the process's end,
    /// which loses no acknowledged write.
    pub async fn shutdown(self) {
        self.serving.cancel();
        self.server.stopped().await;
        self.auth.stop().await;
        drop(self.admin);
        self.janitor.stop().await;
        self.backfill.stop().await;
        self.follower.stop().await;
        self.federation.shutdown().await;
        if let Err(error) = self.registry.flush_audit().await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the last events of the audit log cannot be written");
        }
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
    let begin = async |config: &Config| {
        let node = start(config).await?;
        let addresses: Vec<String> = node.listens().iter().map(ToString::to_string).collect();
        tracing::info!(version = env!("CARGO_PKG_VERSION"), data = %node.data().path().display(), listen = addresses.join(" "), "serving");
        Ok(node)
    };
    run_until_signalled(loaded, begin, ready, RunningNode::shutdown)
}

/// Runs a witness in this thread until a signal ends it: a node that votes and keeps no content.
///
/// # Errors
/// [`RunError`].
pub fn run_witness(loaded: Loaded) -> Result<(), RunError> {
    let begin = async |config: &Config| {
        let folder = config.node.data.clone();
        let opened = tokio::task::spawn_blocking(move || DataFolder::open(&folder)).await;
        let data = opened.map_err(|_| StartError::Panicked)??;
        let (federation, admin) = federation::start(config, Role::Witness).await?;
        tracing::info!(node = %federation.node(), member = !federation.members().is_empty(), "this witness votes");
        Ok((federation, admin, data))
    };
    let end = async |(federation, admin, _data): (Federation, AdminServer, DataFolder)| {
        drop(admin);
        federation.shutdown().await;
    };
    run_until_signalled(loaded, begin, |_| (), end)
}

/// Runs several nodes in this thread until a signal ends them: `first` founds a federation, `others` join it by
/// invitation, where they have not before. `ready` is called once all serve.
///
/// # Errors
/// [`RunError`].
pub fn run_regions(first: Loaded, others: Vec<Config>, ready: impl FnOnce(&[RunningNode])) -> Result<(), RunError> {
    let begin = async |first: &Config| {
        let mut nodes = vec![start(first).await?];
        for config in &others {
            nodes.push(start(config).await?);
        }
        let (door, rest) = nodes.split_first().expect("one was started");
        for node in rest {
            federation::ensure_member(door.federation(), node.federation()).await?;
        }
        Ok(nodes)
    };
    let end = async |nodes: Vec<RunningNode>| {
        for node in nodes.into_iter().rev() {
            node.shutdown().await;
        }
    };
    run_until_signalled(first, begin, |nodes| ready(nodes), end)
}

fn run_until_signalled<N>(
    loaded: Loaded,
    begin: impl AsyncFnOnce(&Config) -> Result<N, StartError>,
    ready: impl FnOnce(&N),
    end: impl AsyncFnOnce(N),
) -> Result<(), RunError> {
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
        let running = begin(&config).await?;
        service::notify("READY=1");
        ready(&running);
        let signal = signals.next().await;
        tracing::info!(signal, grace = ?config.node.shutdown_grace, "ending; requests that run are finished first");
        service::notify("STOPPING=1");
        tokio::select! {
            () = end(running) => {
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

/// Runs work of a command that needs the async threads, but no node.
///
/// # Errors
/// When the system has no threads to give, as the error of the work.
pub fn block_on<T, E: From<RunError>>(config: &Config, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = runtime::build(&config.node)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests;
