//! The façade: one node of the federation, with everything it needs between regions.
//!
//! It ties the rooms together and keeps them in step: what consensus says about members goes to the transport (who may
//! connect) and to membership (whom to watch); what gossip says about addresses goes to the transport (where to try).
//! It deliberately has no rule of its own about either.

mod commands;
mod content;
mod events;
mod join;
mod options;
mod record;
mod retire;
mod roster;
mod seeding;
mod serve;
mod status;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use events::{FederationEvent, FederationEvents};
pub use join::{InviteError, JoinError};
pub use options::{FederationOptions, StartError};
pub use retire::{RetireError, Retired, retire};
pub use status::{FederationStatus, MemberStatus, QuorumStatus, StateStatus};

use crate::admission::Introduction;
use crate::claims::{Claims, NewMember, View};
use crate::content::Content;
use crate::identity::NodeKey;
use crate::membership::seeds::Resolver;
use crate::membership::{Card, Load, Membership, MembershipOptions};
use crate::transport::Transport;
use crate::transport::quic::{QuicOptions, QuicTransport};
use crate::vocabulary::{NodeId, Region};

/// One node of the federation. Cheap to clone; all clones are the same node.
///
/// A node on its own is a federation of one, on the same code path as any other. Look-ups ([`Federation::state`]) are
/// local and never wait for the network; decisions ([`Federation::submit`] and its named forms) need a majority.
#[derive(Clone)]
pub struct Federation {
    inner: Arc<Inner>,
    // The tasks hold the node, too: they end when the last of those whom the host has is dropped.
    _stop: Arc<DropGuard>,
}

struct Inner {
    options: FederationOptions,
    transport: Arc<dyn Transport>,
    /// What the transport listens on, as others see it; nothing for a transport without addresses.
    reachable: Box<dyn Fn() -> Vec<std::net::SocketAddr> + Send + Sync>,
    membership: Membership,
    claims: RwLock<Arc<Claims>>,
    introduction: Mutex<Option<Introduction>>,
    /// Held while the node joins.
    joining: tokio::sync::Mutex<()>,
    card: Mutex<Card>,
    resolver: Resolver,
    events: broadcast::Sender<FederationEvent>,
    /// What the host hands out. Taken away at the shutdown, since it may hold this node.
    content: Mutex<Option<Arc<dyn Content>>>,
    /// The claims were replaced, or something else happened that the roster has to look at.
    rearranged: Notify,
    started: Instant,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Federation {
    /// Starts the node: reads or makes its key, listens, and takes up where its data directory ends. On a first start
    /// with [`FederationOptions::found`] it founds a federation of one.
    ///
    /// # Errors
    /// [`StartError`]: the key, an address to listen on, or the database cannot be used.
    pub async fn start(options: FederationOptions) -> Result<Self, StartError> {
        let data_dir = options.data_dir.clone();
        let key = on_disk(move || NodeKey::load_or_create(&data_dir)).await?;
        let quic = QuicOptions { listen: options.listen.clone(), ..options.quic.clone() };
        let transport = Arc::new(QuicTransport::start(&key, quic)?);
        let listening = transport.clone();
        Self::start_with(options, transport, Box::new(move || listening.reachable())).await
    }

    /// Starts the node on a transport of one's own, for tests and examples: see
    /// [`MemoryNetwork`](crate::transport::memory::MemoryNetwork). The node's id is the transport's.
    ///
    /// # Errors
    /// Those of [`Federation::start`].
    pub async fn start_on(options: FederationOptions, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        Self::start_with(options, transport, Box::new(Vec::new)).await
    }

    async fn start_with(
        options: FederationOptions,
        transport: Arc<dyn Transport>,
        reachable: Box<dyn Fn() -> Vec<std::net::SocketAddr> + Send + Sync>,
    ) -> Result<Self, StartError> {
        let node = transport.local();
        let introduction = settle_introduction(&options.data_dir).await?;
        let resolver = Resolver::default();
        let addresses = advertised(&options, &resolver, &reachable).await;
        let found = (options.found && introduction.is_none()).then(|| NewMember {
            node,
            region: options.region.clone(),
            role: options.role,
            addresses: addresses.clone(),
            api_url: options.api_url.clone(),
        });
        let claims = start_claims(&options, found, &transport).await?;
        let card = Card {
            node,
            revision: 0,
            region: options.region.clone(),
            addresses,
            api_url: options.api_url.clone(),
            version: options.version.clone(),
            capabilities: options.capabilities.clone(),
            load: Load::default(),
        };
        let membership = Membership::start(options.membership.clone(), transport.clone(), card.clone());
        let inner = Arc::new(Inner {
            transport,
            reachable,
            membership,
            claims: RwLock::new(Arc::new(claims)),
            introduction: Mutex::new(introduction),
            joining: tokio::sync::Mutex::default(),
            card: Mutex::new(card),
            resolver,
            events: broadcast::Sender::new(options.events_buffered_max.max(1)),
            content: Mutex::default(),
            rearranged: Notify::new(),
            started: Instant::now(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            options,
        });
        roster::bring_in_step(&inner).await;
        inner.transport.serve(serve::dispatch(&inner));
        inner.spawn(roster::run(inner.clone()));
        inner.spawn(record::run(inner.clone()));
        inner.spawn(seeding::run(inner.clone()));
        let stop = Arc::new(inner.stop.clone().drop_guard());
        Ok(Self { inner, _stop: stop })
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.transport.local()
    }

    /// The region this node is configured for.
    pub fn region(&self) -> &Region {
        &self.inner.options.region
    }

    /// What the federation agreed on, as this node knows it: members, claims, settings. A local read.
    pub fn state(&self) -> View {
        self.inner.claims().state()
    }

    /// What changes from now on: members, claims, documents, and who is reachable.
    pub fn events(&self) -> FederationEvents {
        FederationEvents::new(self.inner.events.subscribe())
    }

    /// Tells the other members how busy this node is.
    pub async fn set_load(&self, load: Load) {
        let card = {
            let mut card = self.inner.card();
            card.load = load;
            card.clone()
        };
        self.inner.membership.publish(card).await;
    }

    /// Says farewell to the other members and stops. May be called again.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        self.inner.membership.shutdown().await;
        self.inner.claims().shutdown().await;
        self.inner.transport.shutdown().await;
        self.inner.content().take();
    }
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federation").field("node", &self.node()).finish_non_exhaustive()
    }
}

impl Inner {
    fn claims(&self) -> Arc<Claims> {
        self.claims.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn card(&self) -> std::sync::MutexGuard<'_, Card> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Content>>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn introduction(&self) -> std::sync::MutexGuard<'_, Option<Introduction>> {
        self.introduction.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task until it ends or the node stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    async fn advertised(&self) -> Vec<std::net::SocketAddr> {
        advertised(&self.options, &self.resolver, &self.reachable).await
    }
}

/// The addresses to tell others: those configured, or what this machine can find out.
async fn advertised(
    options: &FederationOptions,
    resolver: &Resolver,
    reachable: &(dyn Fn() -> Vec<std::net::SocketAddr> + Send + Sync),
) -> Vec<std::net::SocketAddr> {
    let mut addresses = match options.advertise.is_empty() {
        true => reachable(),
        false => resolver.resolve(&options.advertise).await,
    };
    addresses.truncate(crate::claims::ADDRESSES_MAX);
    addresses
}

async fn start_claims(
    options: &FederationOptions,
    found: Option<NewMember>,
    transport: &Arc<dyn Transport>,
) -> Result<Claims, StartError> {
    let mut claims = options.claims.clone();
    claims.found = found;
    Ok(Claims::start(claims, transport.clone(), &options.data_dir).await?)
}

/// Finishes a join that a crash interrupted between the admission and forgetting the former federation of one.
async fn settle_introduction(data_dir: &Path) -> Result<Option<Introduction>, StartError> {
    let data_dir: PathBuf = data_dir.to_owned();
    on_disk(move || {
        let Some(mut introduction) = Introduction::load(&data_dir)? else { return Ok(None) };
        if !introduction.forgotten {
            crate::claims::forget(&data_dir).map_err(|e| StartError::Forget(e.to_string()))?;
            introduction.forgotten = true;
            introduction.store(&data_dir)?;
        }
        Ok(Some(introduction))
    })
    .await
}

/// Runs what blocks on the disk aside.
async fn on_disk<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is being torn down: nobody waits for the answer.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Times between repetitions of background work, with up to a fifth taken off by chance so that nodes do not march.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - 0.2 * rand::random::<f64>())
}

impl FederationOptions {
    /// Options with short times, for tests and examples within one machine.
    pub fn short(data_dir: &Path, region: Region) -> Self {
        Self {
            membership: MembershipOptions::short(),
            claims: crate::claims::ClaimsOptions::short(),
            record_interval: Duration::from_millis(500),
            ..Self::new(data_dir, region)
        }
    }
}
