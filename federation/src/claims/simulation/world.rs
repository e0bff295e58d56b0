//! The nodes of a simulated federation, and what can be done to them from outside.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::model::{NewMember, Role};
use super::super::options::ClaimsOptions;
use super::super::tests::{Door, node_id};
use super::super::{Claims, ClaimsError, Command};
use super::{Defect, SimulatedDisk, chance};
use crate::transport::Transport as _;
use crate::transport::memory::{Faults, MemoryNetwork};
use crate::vocabulary::{NodeId, Region};

/// How long nodes may take to come to agree, in simulated time.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub(super) struct World {
    pub(super) network: MemoryNetwork,
    nodes: Rc<RefCell<Vec<SimulatedNode>>>,
    defect: Option<Defect>,
}

struct SimulatedNode {
    id: NodeId,
    disk: SimulatedDisk,
    /// None: it is down.
    claims: Option<Arc<Claims>>,
}

fn member(number: u8) -> NewMember {
    NewMember {
        node: node_id(number),
        region: Region::parse(&format!("region{number}")).unwrap(),
        role: Role::Full,
        addresses: Vec::new(),
        api_url: String::new(),
    }
}

impl World {
    /// Three or five nodes in as many regions, all of them voters.
    pub(super) async fn found(seed: u64, defect: Option<Defect>) -> Self {
        let world = Self { network: MemoryNetwork::new(seed), nodes: Rc::default(), defect };
        let count = if chance::below(3) == 0 { 5 } else { 3 };
        for number in 1..=count {
            let node = SimulatedNode {
                id: node_id(number),
                disk: SimulatedDisk::new(Duration::from_millis(10)),
                claims: None,
            };
            world.nodes.borrow_mut().push(node);
            world.start(usize::from(number) - 1).await;
        }
        let first = world.claims(0).unwrap();
        for number in 2..=count {
            first.submit(Command::Admit(member(number))).await.unwrap();
        }
        world
            .until("all nodes vote", |claims| {
                let status = claims.status();
                status.voters.len() == usize::from(count) && !status.voters_changing
            })
            .await
            .unwrap();
        world
    }

    fn options(&self, index: usize, disk: &SimulatedDisk) -> ClaimsOptions {
        ClaimsOptions {
            found: (index == 0).then(|| member(1)),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(500),
            election_timeout_max: Duration::from_millis(1000),
            command_timeout: Duration::from_millis(1500),
            snapshot_interval_entries: 25,
            log_entries_kept: 25,
            snapshot_piece_size_bytes: 2048,
            snapshot_piece_timeout: Duration::from_millis(500),
            voters_review_interval: Duration::from_millis(500),
            voter_absence_max: Duration::from_secs(3600),
            majority_contact_interval: Duration::ZERO,
            defect: self.defect,
            simulated: Some(disk.clone()),
            ..ClaimsOptions::default()
        }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    pub(super) fn id(&self, index: usize) -> NodeId {
        self.nodes.borrow()[index].id
    }

    /// The node's claims, if it is up.
    pub(super) fn claims(&self, index: usize) -> Option<Arc<Claims>> {
        self.nodes.borrow()[index].claims.clone()
    }

    /// Starts a node from what its disk holds.
    pub(super) async fn start(&self, index: usize) {
        let (id, disk) = {
            let nodes = self.nodes.borrow();
            if nodes[index].claims.is_some() {
                return;
            }
            (nodes[index].id, nodes[index].disk.clone())
        };
        let transport = self.network.join(id);
        let door = Arc::new(Door::default());
        transport.serve(door.clone());
        let started = match disk.open() {
            Ok(connection) => Claims::start_on(self.options(index, &disk), transport, connection).await,
            Err(cause) => Err(ClaimsError::Storage(cause.to_string())),
        };
        match started {
            Ok(claims) => {
                let claims = Arc::new(claims);
                door.open(claims.clone());
                self.nodes.borrow_mut()[index].claims = Some(claims);
            }
            // A broken promise may leave a database that makes no sense; the node stays down.
            Err(cause) => assert!(self.defect.is_some(), "a node does not start: {cause}"),
        }
    }

    /// Cuts a node's power.
    pub(super) fn crash(&self, index: usize) {
        let mut nodes = self.nodes.borrow_mut();
        let node = &mut nodes[index];
        let Some(claims) = node.claims.take() else { return };
        self.network.leave(node.id);
        node.disk = node.disk.crash();
        // What is left of it can neither be heard nor write; it only has to go away.
        tokio::spawn(async move { claims.shutdown().await });
    }

    /// Ends all faults.
    pub(super) async fn repair(&self) {
        self.network.heal();
        self.network.set_faults(Faults::default());
        for index in 0..self.len() {
            self.start(index).await;
        }
    }

    /// Waits until all nodes hold the same state.
    pub(super) async fn agree(&self) -> Result<(), String> {
        let all_equal = || {
            let nodes = self.nodes.borrow();
            let views: Vec<_> = nodes.iter().map(|node| node.claims.as_ref().map(|c| c.state())).collect();
            // The hash takes time, so it is taken only where the place in the log is the same.
            let applied: Vec<_> = views.iter().map(|view| view.as_ref().map(|view| view.applied())).collect();
            let equal =
                applied.iter().all(|applied| applied.is_some() && *applied == views[0].as_ref().map(|v| v.applied()));
            equal && {
                let hashes: Vec<_> = views.iter().flatten().map(|view| view.hash()).collect();
                hashes.iter().all(|hash| *hash == hashes[0])
            }
        };
        self.wait("all nodes agree", all_equal).await
    }

    async fn until(&self, what: &str, holds: impl Fn(&Claims) -> bool) -> Result<(), String> {
        let all = || self.nodes.borrow().iter().all(|node| node.claims.as_ref().is_some_and(|claims| holds(claims)));
        self.wait(what, all).await
    }

    async fn wait(&self, what: &str, holds: impl Fn() -> bool) -> Result<(), String> {
        let started = tokio::time::Instant::now();
        while !holds() {
            if started.elapsed() > AGREEMENT_TIMEOUT {
                let nodes = self.nodes.borrow();
                let seen: Vec<_> =
                    nodes.iter().map(|node| node.claims.as_ref().map(|c| (c.status(), c.state().hash()))).collect();
                return Err(format!("not within {AGREEMENT_TIMEOUT:?}: {what}: {seen:#?}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Frees the memory of the disks.
    pub(super) fn discard(&self) {
        for node in self.nodes.borrow().iter() {
            node.disk.discard();
        }
    }
}
