//! Measures claims: commit latency, look-up rate, memory, disk, and the time a new node takes to join.
//!
//! Three nodes in one process on the in-memory network, each with its own database on the real disk. Run it with
//! `cargo run --release -p keppel-federation --example claims_figures [ACCOUNTS] [DIRECTORY]`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keppel_federation::claims::{Claims, ClaimsOptions, Command, NewMember, Opaque, Role};
use keppel_federation::transport::memory::{Faults, MemoryNetwork};
use keppel_federation::transport::{Channel, Handler, Transport as _};
use keppel_federation::vocabulary::{AccountName, NodeId, Region, TenantId};

/// The size of an account's settings.
const SETTINGS_SIZE: usize = 512;

type Failure = Box<dyn std::error::Error>;

#[derive(Default)]
struct Door(OnceLock<Arc<Claims>>);

#[async_trait::async_trait]
impl Handler for Door {
    async fn handle(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, String> {
        let claims = self.0.get().ok_or("not yet started")?;
        match channel {
            Channel::Consensus => claims.handle_consensus(from, request).await,
            Channel::Command => claims.handle_command(from, request).await,
            Channel::Admission | Channel::Status => Err("not here".into()),
        }
    }

    fn handle_datagram(&self, _: NodeId, _: Bytes) {}
}

fn member(number: u8) -> Result<NewMember, Failure> {
    Ok(NewMember {
        node: NodeId::from_public_key([number; 32]),
        region: Region::parse(&format!("region{number}"))?,
        role: Role::Full,
        addresses: Vec::new(),
        api_url: String::new(),
    })
}

async fn start(network: &MemoryNetwork, directory: &Path, number: u8) -> Result<Arc<Claims>, Failure> {
    let transport = network.join(NodeId::from_public_key([number; 32]));
    let door = Arc::new(Door::default());
    transport.serve(door.clone());
    let found = if number == 1 { Some(member(1)?) } else { None };
    let options = ClaimsOptions { found, voters_review_interval: Duration::from_millis(200), ..Default::default() };
    let claims = Arc::new(Claims::start(options, transport, &directory.join(format!("node{number}"))).await?);
    let _ = door.0.set(claims.clone());
    Ok(claims)
}

fn claim(name: &str) -> Result<Command, Failure> {
    Ok(Command::Claim {
        name: AccountName::parse(name)?,
        tenant: TenantId::parse(&format!("tenant{}", name.len()))?,
        settings: Opaque::from(vec![b'x'; SETTINGS_SIZE]),
        owner: NodeId::from_public_key([1; 32]),
    })
}

/// p50 and p99 of `count` claims, one after another, asked on `node`.
async fn latency(node: &Claims, prefix: &str, count: usize) -> Result<(Duration, Duration), Failure> {
    let mut times = Vec::with_capacity(count);
    for number in 0..count {
        let asked = Instant::now();
        node.submit(claim(&format!("{prefix}{number}"))?).await?;
        times.push(asked.elapsed());
    }
    times.sort();
    Ok((times[count / 2], times[count * 99 / 100]))
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    pages.unwrap_or(0) * 4096
}

fn disk_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let accounts: usize = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let directory = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = directory.join(format!("claims-figures-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(measure(accounts, &directory));
    std::fs::remove_dir_all(&directory)?;
    result
}

async fn measure(accounts: usize, directory: &Path) -> Result<(), Failure> {
    let network = MemoryNetwork::new(1);
    let asked = Instant::now();
    let first = start(&network, directory, 1).await?;
    println!("first start of a federation of one: ready in {:?}", asked.elapsed());
    first.shutdown().await;
    drop(first);
    let asked = Instant::now();
    let first = start(&network, directory, 1).await?;
    println!("later start of a federation of one: ready in {:?}", asked.elapsed());
    let (p50, p99) = latency(&first, "single", 300).await?;
    println!("claim on a federation of one: p50 {p50:?}, p99 {p99:?}");

    let mut nodes = vec![first];
    for number in 2..=3 {
        nodes.push(start(&network, directory, number).await?);
        nodes[0].submit(Command::Admit(member(number)?)).await?;
    }
    let settled = |node: &Claims| node.status().voters.len() == 3 && !node.status().voters_changing;
    while !nodes.iter().all(|node| settled(node)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (p50, p99) = latency(&nodes[0], "near", 300).await?;
    println!("claim on three nodes, asked on the leader: p50 {p50:?}, p99 {p99:?}");
    let (p50, p99) = latency(&nodes[1], "other", 300).await?;
    println!("claim on three nodes, asked on another: p50 {p50:?}, p99 {p99:?}");
    let one_way = Duration::from_millis(40);
    network.set_faults(Faults { delay: one_way..=one_way, ..Faults::default() });
    let (p50, p99) = latency(&nodes[0], "far", 60).await?;
    println!("the same with round trips of 80 ms, asked on the leader: p50 {p50:?}, p99 {p99:?}");
    let (p50, p99) = latency(&nodes[1], "farther", 60).await?;
    println!("the same with round trips of 80 ms, asked on another: p50 {p50:?}, p99 {p99:?}");
    network.set_faults(Faults::default());

    for node in nodes.split_off(1) {
        node.shutdown().await;
    }
    let first = nodes.remove(0);
    first.shutdown().await;
    drop(first);
    many(accounts, &directory.join("many")).await
}

/// What a hundred thousand accounts take, on a federation of one, and how long a second node takes to join.
async fn many(accounts: usize, directory: &Path) -> Result<(), Failure> {
    let network = MemoryNetwork::new(1);
    let first = start(&network, directory, 1).await?;
    let before = resident_bytes();
    let asked = Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..accounts {
        if waiting.len() >= 1000 {
            waiting.join_next().await.transpose()?;
        }
        let (first, command) = (first.clone(), claim(&format!("account{number}"))?);
        waiting.spawn(async move { first.submit(command).await.map(drop).map_err(|cause| cause.to_string()) });
    }
    while let Some(done) = waiting.join_next().await {
        done??;
    }
    let took = asked.elapsed();
    println!("{accounts} claims, 1000 at a time: {took:?}, {:.0} per second", accounts as f64 / took.as_secs_f64());
    println!("memory for them: {} MiB", (resident_bytes().saturating_sub(before)) >> 20);
    println!("disk for them: {} MiB", disk_bytes(&directory.join("node1")) >> 20);

    let view = first.state();
    let names: Vec<AccountName> =
        (0..1000).map(|n| AccountName::parse(&format!("account{}", n * 97 % accounts))).collect::<Result<_, _>>()?;
    let (asked, mut found) = (Instant::now(), 0usize);
    for round in 0..1_000_000 {
        found += usize::from(view.account(&names[round % names.len()]).is_some());
    }
    println!("look-ups on one thread: {:.0} per second", found as f64 / asked.elapsed().as_secs_f64());
    let asked = Instant::now();
    let (_, hash) = view.hash();
    println!("hash of the state ({}…): {:?}", &hash[..8], asked.elapsed());

    let second = start(&network, directory, 2).await?;
    let asked = Instant::now();
    let index = first.submit(Command::Admit(member(2)?)).await?.applied;
    second.state().wait_applied(index).await;
    println!("a new node has everything after {:?}", asked.elapsed());
    second.shutdown().await;
    first.shutdown().await;
    drop((first, view));
    let asked = Instant::now();
    let first = start(&network, directory, 1).await?;
    println!("start with {} accounts: {:?}", first.state().accounts_len(), asked.elapsed());
    first.shutdown().await;
    Ok(())
}
