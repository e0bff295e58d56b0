//! Federations over real QUIC: formed from one node and invitations, restarted, moved, taken apart.

use std::path::Path;
use std::time::{Duration, Instant};

use keppel_federation::claims::{ClaimsError, ClaimsOptions, Opaque, Outcome, Role};
use keppel_federation::membership::Health;
use keppel_federation::vocabulary::{AccountName, NodeId, Region, TenantId};
use keppel_federation::{Federation, FederationOptions, JoinError};

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn region(name: &str) -> Region {
    Region::parse(name).unwrap()
}

fn options(dir: &Path, name: &str) -> FederationOptions {
    let short = FederationOptions::short(&dir.join(name), region(name));
    // Long enough for a machine that is busy with other tests.
    let claims = ClaimsOptions {
        heartbeat_interval: Duration::from_millis(200),
        election_timeout_min: Duration::from_millis(1000),
        election_timeout_max: Duration::from_millis(2000),
        ..short.claims.clone()
    };
    FederationOptions {
        claims,
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        api_url: format!("https://{name}.example"),
        ..short
    }
}

async fn start(dir: &Path, name: &str) -> Federation {
    Federation::start(options(dir, name)).await.unwrap()
}

async fn invite_and_join(door: &Federation, node: &Federation) {
    let start = Instant::now();
    let invitation = loop {
        match door.invite(node.region().clone(), Role::Full, HOUR).await {
            Ok(invitation) => break invitation,
            // An election runs.
            Err(e) => assert!(start.elapsed() < PATIENCE, "{e}"),
        }
    };
    node.join(&invitation).await.unwrap();
}

/// A federation of so many regions, of which the first invited all others.
async fn federation(dir: &Path, size: usize) -> Vec<Federation> {
    let mut nodes = vec![start(dir, "r0").await];
    for number in 1..size {
        let node = start(dir, &format!("r{number}")).await;
        // Every second newcomer is let in by the one before it, not by the founder.
        invite_and_join(&nodes[(number / 2) * 2 % number], &node).await;
        nodes.push(node);
    }
    nodes
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn stop(nodes: Vec<Federation>) {
    for node in nodes.into_iter().rev() {
        node.shutdown().await;
    }
}

async fn claim(node: &Federation, name: &str) -> Result<Outcome, ClaimsError> {
    let tenant = TenantId::parse("t").unwrap();
    Ok(node.claim(AccountName::parse(name).unwrap(), tenant, Opaque::default()).await?.outcome)
}

async fn all_agree(nodes: &[Federation]) {
    until("all know all members", async || nodes.iter().all(|node| node.members().len() == nodes.len())).await;
    for (number, node) in nodes.iter().enumerate() {
        let name = format!("account-{number}");
        until("a claim is won", async || matches!(claim(node, &name).await, Ok(Outcome::Won { .. }))).await;
        for other in nodes.iter().filter(|other| other.node() != node.node()) {
            until("others find it taken", async || match claim(other, &name).await {
                Ok(Outcome::Taken { node: owner, .. }) => owner == node.node(),
                Ok(other) => panic!("two owners: {other:?}"),
                Err(_) => false,
            })
            .await;
        }
    }
    until("all hold the same state", async || {
        // Hashes take time, so they are taken only where the place in the log is the same.
        let same_place = nodes.windows(2).all(|pair| pair[0].state().applied() == pair[1].state().applied());
        let hashes = || nodes.iter().map(|node| node.state().hash()).collect::<Vec<_>>();
        same_place && hashes().windows(2).all(|pair| pair[0] == pair[1])
    })
    .await;
    until("all see all alive", async || {
        for node in nodes {
            let status = node.status().await;
            let whole = status.quorum.healthy
                && status.members.len() == nodes.len()
                && status.members.iter().all(|member| member.health == Health::Alive && member.problem.is_none());
            if !whole {
                return false;
            }
        }
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_a_federation_and_agree() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = federation(dir.path(), 3).await;
    all_agree(&nodes).await;
    let status = serde_json::to_value(nodes[1].status().await).unwrap();
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert!(status["leader"].is_string() && status["term"].is_u64(), "{status}");
    until("three regions vote", async || nodes[2].status().await.voters.len() == 3).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_form_a_federation_and_agree() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = federation(dir.path(), 5).await;
    all_agree(&nodes).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_nodes_form_a_federation_and_agree() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = federation(dir.path(), 7).await;
    all_agree(&nodes).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_is_refused_with_the_reason_when_it_is_used_expired_or_altered() {
    let dir = tempfile::tempdir().unwrap();
    let (eu, us, ap) = (start(dir.path(), "eu").await, start(dir.path(), "us").await, start(dir.path(), "ap").await);
    let refusal = |outcome: Result<_, JoinError>| match outcome {
        Err(JoinError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };

    let for_us = eu.invite(region("us"), Role::Full, HOUR).await.unwrap();
    assert!(matches!(ap.join(&for_us).await, Err(JoinError::OtherRegion { .. })));
    us.join(&for_us).await.unwrap();
    let mut reused = for_us.clone();
    reused.region = region("ap");
    assert!(refusal(ap.join(&reused).await).contains("used already"));

    let brief = eu.invite(region("ap"), Role::Full, Duration::from_secs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(refusal(ap.join(&brief).await).contains("expired"));

    let mut altered = eu.invite(region("ap"), Role::Full, HOUR).await.unwrap();
    altered.secret = keppel_federation::admission::Secret::random();
    assert!(refusal(ap.join(&altered).await).contains("no such invitation"));
    let mut foreign = eu.invite(region("ap"), Role::Full, HOUR).await.unwrap();
    foreign.federation = keppel_federation::admission::FederationId::random();
    assert!(refusal(ap.join(&foreign).await).contains("another federation"));
    let log = eu.status().await.applied;
    for _ in 0..3 {
        altered.secret = keppel_federation::admission::Secret::random();
        assert!(refusal(ap.join(&altered).await).contains("no such invitation"));
    }
    assert_eq!(eu.status().await.applied, log, "guessing fills no log");
    let witness = eu.invite(region("ap"), Role::Witness, HOUR).await.unwrap();
    assert!(matches!(ap.join(&witness).await, Err(JoinError::OtherRole { .. })));
    assert!(matches!(us.join(&witness).await, Err(JoinError::OtherRegion { .. })));

    claim(&ap, "mine").await.unwrap();
    let fresh = eu.invite(region("ap"), Role::Full, HOUR).await.unwrap();
    assert!(matches!(ap.join(&fresh).await, Err(JoinError::OwnsAccounts { accounts: 1 })));
    until("the federation still has two members", async || eu.members().len() == 2 && us.members().len() == 2).await;
    stop(vec![eu, us, ap]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_cut_off_within_a_second_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = federation(dir.path(), 4).await;
    all_agree(&nodes).await;
    let removed = nodes[3].node();
    let connected = async |node: &Federation| {
        let status = node.status().await;
        status.members.iter().any(|member| member.node == removed && member.round_trip_ms.is_some())
    };
    let start = Instant::now();
    nodes[1].remove(removed).await.unwrap();
    for node in &nodes[..3] {
        until("no connection to it", async || !connected(node).await).await;
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(claim(&nodes[3], "late").await.is_err(), "it decides nothing any more");
    until("it finds out", async || !nodes[3].status().await.member).await;
    until("the rest goes on", async || matches!(claim(&nodes[0], "rest").await, Ok(Outcome::Won { .. }))).await;
    stop(nodes).await;
}

/// So many claims, several at a time, asked of one node until they are won.
async fn claim_many(node: &Federation, prefix: &str, count: usize) {
    let lanes = (0..8).map(async |lane| {
        for number in (lane..count).step_by(8) {
            let name = format!("{prefix}{number}");
            until("a claim is won", async || matches!(claim(node, &name).await, Ok(Outcome::Won { .. }))).await;
        }
    });
    futures_util::future::join_all(lanes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_a_thousand_claims_catches_up_by_log_and_after_compaction_by_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    // Addresses that stay: two of three restart at once, and could not find each other otherwise.
    let sockets: Vec<_> = (0..3).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    drop(sockets);
    let keeping = async |number: usize, entries: u64| {
        let mut options = options(dir.path(), &format!("r{number}"));
        options.listen = vec![addresses[number]];
        let free = async || std::net::UdpSocket::bind(addresses[number]).is_ok();
        until("the address of the node before is free", free).await;
        options.claims.snapshot_interval_entries = entries;
        options.claims.log_entries_kept = entries;
        Federation::start(options).await.unwrap()
    };
    let mut nodes = vec![keeping(0, 5000).await, keeping(1, 5000).await, keeping(2, 5000).await];
    for newcomer in [1, 2] {
        invite_and_join(&nodes[0], &nodes[newcomer]).await;
    }
    until("three regions vote", async || nodes[2].status().await.voters.len() == 3).await;
    all_agree(&nodes).await;
    let already = nodes[0].state().accounts_len();
    for (entries, prefix, by_snapshot) in [(5000, "log", false), (20, "snapshot", true)] {
        let away = nodes.pop().unwrap();
        let held = away.status().await.applied;
        away.shutdown().await;
        drop(away);
        for number in 0..2 {
            let node = nodes.remove(number);
            node.shutdown().await;
            drop(node);
            nodes.insert(number, keeping(number, entries).await);
        }
        claim_many(&nodes[1], prefix, 1000).await;
        let compacted = async || {
            let all = futures_util::future::join_all(nodes.iter().map(Federation::status)).await;
            all.iter().all(|status| status.state.compacted > held)
        };
        match by_snapshot {
            true => until("the log no longer reaches back", compacted).await,
            false => assert!(!compacted().await),
        }
        nodes.push(keeping(2, entries).await);
        let known = already + if by_snapshot { 2000 } else { 1000 };
        until("it has caught up", async || nodes[2].state().accounts_len() == known).await;
        let installed = nodes[2].state().snapshots_installed();
        assert_eq!(installed > 0, by_snapshot, "{prefix}: {installed} snapshots");
        all_agree(&nodes).await;
    }
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_restart_on_other_ports_find_each_other_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = federation(dir.path(), 3).await;
    all_agree(&nodes).await;
    let ids: Vec<NodeId> = nodes.iter().map(Federation::node).collect();
    // One after the other, each on a new port, as in a rolling upgrade.
    for number in 0..3 {
        nodes[number].shutdown().await;
        nodes[number] = start(dir.path(), &format!("r{number}")).await;
        assert_eq!(nodes[number].node(), ids[number], "the key stays");
        until("claims go on", async || {
            matches!(claim(&nodes[number], &format!("again-{number}")).await, Ok(Outcome::Won { .. }))
        })
        .await;
    }
    until("all agree on the new addresses", async || {
        let recorded =
            |node: &Federation| node.members().into_iter().map(|member| member.addresses).collect::<Vec<_>>();
        recorded(&nodes[0]) == recorded(&nodes[1]) && recorded(&nodes[1]) == recorded(&nodes[2])
    })
    .await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_moved_at_once_find_each_other_by_a_seed() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = federation(dir.path(), 3).await;
    all_agree(&nodes).await;
    stop(nodes).await;
    let meeting_place = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut nodes = Vec::new();
    for number in 0..3 {
        let name = format!("r{number}");
        let mut options = options(dir.path(), &name);
        if number == 0 {
            options.listen = vec![meeting_place];
        }
        options.seeds = vec![format!("localhost:{}", meeting_place.port()).parse().unwrap()];
        nodes.push(Federation::start(options).await.unwrap());
    }
    until("claims go on", async || matches!(claim(&nodes[2], "moved").await, Ok(Outcome::Won { .. }))).await;
    all_agree(&nodes).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_starts_quickly_and_opens_no_port() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), "eu");
    options.listen = Vec::new();
    Federation::start(options.clone()).await.unwrap().shutdown().await;
    let begin = Instant::now();
    let node = Federation::start(options).await.unwrap();
    let took = begin.elapsed();
    println!("start of a node alone: {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(matches!(claim(&node, "mine").await.unwrap(), Outcome::Won { .. }));
    until("it knows of its majority", async || node.status().await.quorum.healthy).await;
    let status = node.status().await;
    assert!(status.member && status.part == "leader", "{status:?}");
    assert!(status.members[0].addresses.is_empty());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_was_interrupted_is_finished_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let eu = start(dir.path(), "eu").await;
    let us = start(dir.path(), "us").await;
    let own = us.node();
    let invitation = eu.invite(region("us"), Role::Full, HOUR).await.unwrap();
    us.join(&invitation).await.unwrap();
    us.shutdown().await;
    // As a crash right after the admission leaves it: the introduction is there, the old state is not gone.
    let members = eu.members();
    let introduction =
        keppel_federation::admission::Introduction { federation: invitation.federation, members, forgotten: false };
    introduction.store(&dir.path().join("us")).unwrap();
    let us = start(dir.path(), "us").await;
    assert_eq!(us.node(), own);
    until("it has the state of the federation", async || us.members().len() == 2).await;
    until("a claim is won", async || matches!(claim(&us, "mine").await, Ok(Outcome::Won { .. }))).await;
    stop(vec![eu, us]).await;
}
