//! Whole nodes over the in-memory network, on real databases and real time.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::transport::memory::MemoryNetwork;
use crate::transport::{Channel, Handler};
use crate::vocabulary::{AccountName, Region, TenantId};
use crate::wire::Body;

/// Hands requests to the claims once they have started.
#[derive(Default)]
pub(super) struct Door(OnceLock<Arc<Claims>>);

impl Door {
    pub(super) fn open(&self, claims: Arc<Claims>) {
        let _ = self.0.set(claims);
    }
}

#[async_trait]
impl Handler for Door {
    async fn handle(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Body, String> {
        let claims = self.0.get().ok_or("not yet started")?;
        let answer = match channel {
            Channel::Consensus => claims.handle_consensus(from, request).await,
            Channel::Command => claims.handle_command(from, request).await,
            Channel::Admission | Channel::Status | Channel::Content | Channel::Bulk | Channel::Background => {
                Err("not here".into())
            }
        };
        answer.map(Body::from)
    }

    fn handle_datagram(&self, _: NodeId, _: Bytes) {}
}

pub(super) fn node_id(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

pub(super) fn member(number: u8, region: &str) -> NewMember {
    NewMember {
        node: node_id(number),
        region: Region::parse(region).unwrap(),
        role: Role::Full,
        addresses: vec![([127, 0, 0, 1], 7000 + u16::from(number)).into()],
        api_url: format!("https://{region}.example.org"),
    }
}

pub(super) fn account(name: &str) -> AccountName {
    AccountName::parse(name).unwrap()
}

pub(super) fn claim(name: &str, owner: u8) -> Command {
    let tenant = TenantId::parse("tenant").unwrap();
    Command::Claim { name: account(name), tenant, settings: Opaque::from(&b"{}"[..]), owner: node_id(owner) }
}

/// Starts node `number` in a directory of its own; the first one founds.
async fn start(network: &MemoryNetwork, directory: &Path, number: u8, options: ClaimsOptions) -> Arc<Claims> {
    let transport = network.join(node_id(number));
    let door = Arc::new(Door::default());
    transport.serve(door.clone());
    let path = directory.join(format!("node{number}"));
    let claims = Arc::new(Claims::start(options, transport, &path).await.unwrap());
    door.open(claims.clone());
    claims
}

fn founding(number: u8, region: &str) -> ClaimsOptions {
    ClaimsOptions { found: Some(member(number, region)), ..ClaimsOptions::short() }
}

const REGIONS: [&str; 5] = ["eu", "us", "ap", "sa", "af"];

/// Founds with node 1 and admits the others, one region each.
async fn federation(network: &MemoryNetwork, directory: &Path, count: u8) -> Vec<Arc<Claims>> {
    let mut nodes = vec![start(network, directory, 1, founding(1, REGIONS[0])).await];
    for number in 2..=count {
        nodes.push(start(network, directory, number, ClaimsOptions::short()).await);
        let admit = Command::Admit(member(number, REGIONS[usize::from(number) - 1]));
        assert!(matches!(decided(&nodes[0], admit).await.outcome, Outcome::Admitted(_)));
    }
    nodes
}

/// Has a command decided, however many elections come in between: nodes of a busy machine lose sight of each other.
async fn decided(node: &Claims, command: Command) -> Decision {
    let (request, deadline) = (RequestId::random(), Instant::now() + Duration::from_secs(60));
    loop {
        match node.submit_as(request.clone(), command.clone()).await {
            Ok(decision) => return decision,
            Err(cause) => assert!(Instant::now() < deadline, "{cause}"),
        }
        // A refusal may come at once, and the nodes share this thread.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until something holds; fails with what was seen last.
async fn eventually<T: std::fmt::Debug>(what: &str, mut see: impl FnMut() -> (bool, T)) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let (holds, seen) = see();
        if holds {
            return;
        }
        assert!(Instant::now() < deadline, "{what} did not come about: {seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn voters_become(nodes: &[Arc<Claims>], count: usize) {
    for node in nodes {
        eventually("the number of voters", || {
            let status = node.status();
            (status.voters.len() == count && !status.voters_changing, status)
        })
        .await;
    }
}

async fn all_agree(nodes: &[Arc<Claims>]) {
    eventually("agreement", || {
        // Hashes are taken only where the place in the log is the same: taking them again and again would leave the
        // nodes, which share this thread, no time to come to agree.
        let applied: Vec<_> = nodes.iter().map(|node| node.state().applied()).collect();
        let hashes = || nodes.iter().map(|node| node.state().hash()).collect::<Vec<_>>();
        let equal = applied.iter().all(|index| *index == applied[0]);
        (equal && hashes().windows(2).all(|pair| pair[0] == pair[1]), applied)
    })
    .await;
}

async fn stop(nodes: Vec<Arc<Claims>>) {
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_single_node_is_a_federation_of_one_and_keeps_what_it_acknowledged() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let node =
        start(&network, directory.path(), 1, ClaimsOptions { found: Some(member(1, "eu")), ..Default::default() });
    let node = node.await;
    assert_eq!(node.status().part, Part::Leader);
    assert_eq!(node.state().members().len(), 1);
    let won = decided(&node, claim("acme", 1)).await;
    assert!(matches!(won.outcome, Outcome::Won { created: true, .. }), "{won:?}");
    let again = decided(&node, claim("acme", 1)).await;
    assert!(matches!(again.outcome, Outcome::Won { created: false, .. }), "{again:?}");
    let before = node.state().account(&account("acme"));
    node.shutdown().await;
    drop(node);

    let node = start(&network, directory.path(), 1, ClaimsOptions::default()).await;
    assert_eq!(node.status().part, Part::Leader);
    assert_eq!(node.state().account(&account("acme")), before);
    assert!(node.linearize().await.is_ok());
    node.shutdown().await;
}

#[tokio::test]
async fn three_regions_vote_together_and_any_node_takes_commands() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let nodes = federation(&network, directory.path(), 3).await;
    voters_become(&nodes, 3).await;
    for (number, node) in (1..).zip(&nodes) {
        let won = decided(node, claim(&format!("acme{number}"), number)).await;
        assert!(matches!(won.outcome, Outcome::Won { .. }), "{won:?}");
        let taken = decided(node, claim("acme1", 2)).await.outcome;
        assert!(matches!(&taken, Outcome::Taken { node, .. } if *node == node_id(1)) || number == 1, "{taken:?}");
    }
    let seen = loop {
        // An election may run.
        if let Ok(seen) = nodes[2].linearize().await {
            break seen;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(seen.accounts_len(), 3);
    all_agree(&nodes).await;
    stop(nodes).await;
}

#[tokio::test]
async fn a_request_asked_twice_is_done_once() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let nodes = federation(&network, directory.path(), 1).await;
    let put = || Command::PutDocument {
        kind: DocumentKind::User,
        id: "alice".into(),
        body: Opaque::from(&b"1"[..]),
        expected_revision: None,
    };
    let request = RequestId::random();
    let first = nodes[0].submit_as(request.clone(), put()).await.unwrap();
    assert_eq!(nodes[0].submit_as(request, put()).await.unwrap(), first);
    assert_ne!(decided(&nodes[0], put()).await, first);
    stop(nodes).await;
}

/// So many commands, several at a time, so that they fill some log entries.
async fn claim_many(node: &Arc<Claims>, prefix: &str, count: usize) {
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let (node, prefix) = (node.clone(), prefix.to_owned());
        lanes.spawn(async move {
            for number in (lane..count).step_by(8) {
                decided(&node, claim(&format!("{prefix}{number}"), 1)).await;
            }
        });
    }
    while let Some(done) = lanes.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_was_away_for_a_thousand_commands_catches_up_by_log_and_after_compaction_by_snapshot() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let keeping = |entries: u64, found: bool| ClaimsOptions {
        snapshot_interval_entries: entries,
        log_entries_kept: entries,
        snapshot_piece_size_bytes: 4096,
        found: found.then(|| member(1, "eu")),
        ..ClaimsOptions::short()
    };
    let first = start(&network, directory.path(), 1, keeping(5000, true)).await;
    let second = start(&network, directory.path(), 2, keeping(5000, false)).await;
    decided(&first, Command::Admit(member(2, "us"))).await;
    all_agree(&[first.clone(), second.clone()]).await;
    second.shutdown().await;

    claim_many(&first, "log", 1000).await;
    assert_eq!(first.status().purged, 0);
    let second = start(&network, directory.path(), 2, keeping(5000, false)).await;
    let before = second.status().last_log;
    all_agree(&[first.clone(), second.clone()]).await;
    assert_eq!((second.state().accounts_len(), second.state().snapshots_installed()), (1000, 0), "it came by log");
    assert!(second.status().last_log > before);
    second.shutdown().await;
    let held = second.status().last_log;
    drop(second);

    first.shutdown().await;
    drop(first);
    let first = start(&network, directory.path(), 1, keeping(20, false)).await;
    claim_many(&first, "snapshot", 1000).await;
    eventually("the compaction of what the other lacks", || (first.status().purged > held, first.status())).await;
    let second = start(&network, directory.path(), 2, keeping(20, false)).await;
    all_agree(&[first.clone(), second.clone()]).await;
    assert_eq!(second.state().accounts_len(), 2000);
    assert!(second.state().snapshots_installed() >= 1, "the log did not reach back to where it was");
    stop(vec![first, second]).await;
}

#[tokio::test]
async fn a_removed_voter_leaves_and_the_rest_goes_on() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let nodes = federation(&network, directory.path(), 4).await;
    voters_become(&nodes, 3).await;
    let leader = nodes[0].status().leader.unwrap();
    let voter = *nodes[0].status().voters.iter().find(|voter| **voter != leader).unwrap();
    decided(&nodes[0], Command::Remove { node: voter }).await;
    let rest: Vec<_> = nodes.iter().filter(|node| node.status().node != voter).cloned().collect();
    for node in &rest {
        eventually("the removal", || {
            let status = node.status();
            let gone = !status.voters.contains(&voter) && !status.learners.contains(&voter);
            (gone && status.voters.len() == 3, status)
        })
        .await;
    }
    decided(&rest[0], claim("acme", rest[0].status().node.public_key()[0])).await;
    all_agree(&rest).await;
    stop(nodes).await;
}

#[tokio::test]
async fn when_the_majority_is_lost_for_good_a_node_recovers_alone() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let nodes = federation(&network, directory.path(), 3).await;
    voters_become(&nodes, 3).await;
    decided(&nodes[0], claim("mine", 2)).await;
    decided(&nodes[0], claim("theirs", 3)).await;
    all_agree(&nodes).await;
    let path = directory.path().join("node2");
    assert!(recover(&path, node_id(2), false).is_err(), "a running node is not recovered");
    stop(nodes).await;
    for number in [1, 3] {
        network.leave(node_id(number));
    }
    let told = recover(&path, node_id(2), false).unwrap();
    assert_eq!((told.accounts, told.orphaned, told.dropped.len()), (2, 1, 2), "{told}");
    assert_eq!(recover(&path, node_id(2), true).unwrap(), told);

    let node = start(&network, directory.path(), 2, ClaimsOptions::short()).await;
    assert_eq!(node.status().part, Part::Leader);
    assert_eq!(node.state().members().len(), 1);
    assert!(node.state().account(&account("mine")).is_some());
    let moved = node.submit(Command::MovePrimary {
        name: account("theirs"),
        to: node_id(2),
        expected_epoch: node.state().account(&account("theirs")).unwrap().epoch,
    });
    assert!(matches!(moved.await.unwrap().outcome, Outcome::Moved { .. }));
    // A lost member comes back with an empty database.
    forget(&directory.path().join("node3")).unwrap();
    let third = start(&network, directory.path(), 3, ClaimsOptions::short()).await;
    decided(&node, Command::Admit(member(3, "ap"))).await;
    all_agree(&[node.clone(), third.clone()]).await;
    stop(vec![node, third]).await;
}

#[tokio::test]
async fn watchers_hear_of_changes_and_slow_ones_are_told_to_look_again() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let options = ClaimsOptions { changes_buffered_max: 4, ..founding(1, "eu") };
    let node = start(&network, directory.path(), 1, options).await;
    let (mut quick, mut slow) = (node.state().watch_changes(), node.state().watch_changes());
    let decision = decided(&node, claim("acme", 1)).await;
    let change = Change::Account(account("acme"));
    assert_eq!(quick.next().await, Some(Notice::Changed { index: decision.applied, change }));
    for number in 0..20 {
        decided(&node, claim(&format!("acme{number}"), 1)).await;
    }
    assert_eq!(slow.next().await, Some(Notice::Resync));
    node.shutdown().await;
}

#[tokio::test]
async fn a_log_of_large_entries_is_compacted_by_its_size() {
    let (network, directory) = (MemoryNetwork::new(0), tempfile::tempdir().unwrap());
    let options = ClaimsOptions { log_size_max_bytes: 4 * 1024 * 1024, ..founding(1, "eu") };
    let node = start(&network, directory.path(), 1, options).await;
    for _ in 0..80 {
        let command = Command::PutDocument {
            kind: DocumentKind::Setting,
            id: "large".into(),
            body: Opaque::from(vec![1; 100 * 1024]),
            expected_revision: None,
        };
        assert!(matches!(decided(&node, command).await.outcome, Outcome::Stored { .. }));
    }
    eventually("compaction", || {
        let status = node.status();
        (status.purged > 10, status)
    })
    .await;
    let before = node.state().hash();
    node.shutdown().await;
    drop(node);
    let node = start(&network, directory.path(), 1, ClaimsOptions::short()).await;
    assert_eq!(node.state().document(DocumentKind::Setting, "large").unwrap().body.as_bytes().len(), 100 * 1024);
    assert!(node.state().hash().0 >= before.0);
    node.shutdown().await;
}
