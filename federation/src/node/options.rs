use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::admission::IntroductionError;
use crate::claims::{ClaimsError, ClaimsOptions, Role};
use crate::identity::IdentityError;
use crate::membership::MembershipOptions;
use crate::membership::seeds::Seed;
use crate::transport::quic::{QuicError, QuicOptions};
use crate::vocabulary::Region;

/// What a node is, and how it behaves towards others.
#[derive(Debug, Clone)]
pub struct FederationOptions {
    /// Where the node's key and the federation's state are kept. No two nodes may share it.
    pub data_dir: PathBuf,
    /// Where the node runs.
    pub region: Region,
    /// What it takes part in.
    pub role: Role,
    /// Whether to found a federation of one on a first start. Without it the node waits to join.
    pub found: bool,
    /// The UDP addresses to listen on. None: the node stays on its own and opens no port.
    pub listen: Vec<SocketAddr>,
    /// Where other nodes reach it, where that is not what it listens on: behind a translated address, or by name.
    pub advertise: Vec<Seed>,
    /// Where clients reach its API, without a slash at the end; empty when it has none.
    pub api_url: String,
    /// Where members may be found whose addresses have all changed.
    pub seeds: Vec<Seed>,
    /// The version of the program, shown to others.
    pub version: String,
    /// What it can do beyond what every node can.
    pub capabilities: Vec<String>,
    /// How long the others may take to answer for `status`.
    pub status_timeout: Duration,
    /// How long a member that was asked for admission may take.
    pub join_timeout: Duration,
    /// How often the node checks that the federation knows its right addresses.
    pub record_interval: Duration,
    /// How many events a slow reader may lag behind before it is told to look at everything again.
    pub events_buffered_max: usize,
    /// The transport; its `listen` is replaced by the one above.
    pub quic: QuicOptions,
    /// The watch over other members.
    pub membership: MembershipOptions,
    /// Consensus; its `found` is decided here.
    pub claims: ClaimsOptions,
}

impl FederationOptions {
    /// A full member in `region` that founds a federation of one and opens no port; to be changed from there.
    pub fn new(data_dir: &Path, region: Region) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            region,
            role: Role::Full,
            found: true,
            listen: Vec::new(),
            advertise: Vec::new(),
            api_url: String::new(),
            seeds: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Vec::new(),
            status_timeout: Duration::from_secs(2),
            join_timeout: Duration::from_secs(10),
            record_interval: Duration::from_secs(30),
            events_buffered_max: 1024,
            quic: QuicOptions::default(),
            membership: MembershipOptions::default(),
            claims: ClaimsOptions::default(),
        }
    }
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its key cannot be used.
    #[error("the node's key cannot be used")]
    Identity(#[from] IdentityError),
    /// The network cannot be used.
    #[error("the federation's port cannot be used")]
    Transport(#[from] QuicError),
    /// The replicated state cannot be used.
    #[error("the federation's state cannot be used")]
    Claims(#[from] ClaimsError),
    /// What an interrupted join left cannot be read or finished.
    #[error("a join that was interrupted cannot be finished")]
    Introduction(#[from] IntroductionError),
    /// The state of the former federation of one cannot be removed.
    #[error("a join that was interrupted cannot be finished: {0}")]
    Forget(String),
}
