//! Measures a federation: commit latency of claims, look-ups, memory, disk, and how long a new node takes to join.
//!
//! Every node is a whole one, on real QUIC, with its own database on the real disk, and the times that operators get.
//! Between the far ones stands a proxy that holds up every packet. `scripts/figures-federation` runs it.

mod delay;

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keppel_federation::claims::{Opaque, Outcome, Role};
use keppel_federation::vocabulary::{AccountName, Region, TenantId};
use keppel_federation::{Federation, FederationOptions};

const HELP: &str = "usage: figures [--accounts N] [--directory DIR]

Prints figures of a federation, each a line: what it is, and how much. --accounts says how many accounts the large one
has (100000), --directory where the nodes keep their data while it runs (the system's temporary folder).";

/// The size of an account's settings.
const SETTINGS_SIZE: usize = 512;
const ONE_WAY: Duration = Duration::from_millis(40);
const HOUR: Duration = Duration::from_secs(3600);
/// Claims that are under way at a time where many are made.
const AT_ONCE: usize = 1000;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn say(what: &str, how_much: impl std::fmt::Display) {
    println!("{what:<66} {how_much}");
}

fn main() -> Result<(), Failure> {
    let (mut accounts, mut directory) = (100_000, std::env::temp_dir());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("a value is missing; see --help");
        match argument.as_str() {
            "--accounts" => accounts = value()?.parse()?,
            "--directory" => directory = PathBuf::from(value()?),
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(format!("unknown argument {other}; see --help").into()),
        }
    }
    let directory = directory.join(format!("federation-figures-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        alone(&directory.join("alone")).await?;
        three(&directory.join("near"), false).await?;
        three(&directory.join("far"), true).await?;
        many(accounts, &directory.join("many")).await
    });
    std::fs::remove_dir_all(&directory)?;
    result
}

fn free_address() -> Result<SocketAddr, Failure> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

/// Starts a node; a far one is reached by others through a proxy only.
async fn start(directory: &Path, number: u8, far: bool) -> Result<Federation, Failure> {
    let region = format!("region{number}");
    let address = free_address()?;
    let mut options = FederationOptions::new(&directory.join(&region), Region::parse(&region)?);
    options.found = number == 1;
    options.listen = vec![address];
    if far {
        options.advertise = vec![delay::spawn(address, ONE_WAY).await?.to_string().parse()?];
    }
    Ok(Federation::start(options).await?)
}

async fn join(door: &Federation, node: &Federation) -> Result<(), Failure> {
    let invitation = door.invite(node.region().clone(), Role::Full, HOUR).await?;
    node.join(&invitation).await?;
    Ok(())
}

async fn claim(node: &Federation, name: &str) -> Result<(), Failure> {
    let (name, tenant) = (AccountName::parse(name)?, TenantId::parse("tenant")?);
    match node.claim(name, tenant, Opaque::from(vec![b'x'; SETTINGS_SIZE])).await?.outcome {
        Outcome::Won { .. } => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// p50 and p99 of so many claims, one after another, asked on `node`.
async fn latency(what: &str, node: &Federation, count: usize) -> Result<(), Failure> {
    let mut times = Vec::with_capacity(count);
    let letters = what.replace(|c: char| !c.is_ascii_alphanumeric(), "");
    // The ends of the descriptions tell them apart; a name has room for no more.
    let prefix = &letters[letters.len().saturating_sub(40)..];
    for number in 0..count {
        let asked = Instant::now();
        claim(node, &format!("{prefix}{number}")).await?;
        times.push(asked.elapsed());
    }
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let (p50, p99) = (ms(times[count / 2]), ms(times[count * 99 / 100]));
    say(what, format_args!("p50 {p50:.1} ms, p99 {p99:.1} ms"));
    Ok(())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<Duration, Failure> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > Duration::from_secs(300) {
            return Err(format!("not within five minutes: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(start.elapsed())
}

async fn alone(directory: &Path) -> Result<(), Failure> {
    let asked = Instant::now();
    let node = start(directory, 1, false).await?;
    say("a federation of one, first start", format_args!("{:.1?}", asked.elapsed()));
    node.shutdown().await;
    drop(node);
    let asked = Instant::now();
    let node = start(directory, 1, false).await?;
    say("a federation of one, later start", format_args!("{:.1?}", asked.elapsed()));
    latency("claim, federation of one", &node, 500).await?;
    node.shutdown().await;
    Ok(())
}

/// Three nodes that vote.
async fn three(directory: &Path, far: bool) -> Result<(), Failure> {
    let mut nodes = Vec::new();
    for number in 1..=3 {
        nodes.push(start(directory, number, far).await?);
    }
    for node in &nodes[1..] {
        join(&nodes[0], node).await?;
    }
    loop {
        let status = futures_util::future::join_all(nodes.iter().map(Federation::status)).await;
        if status.iter().all(|status| status.voters.len() == 3 && status.quorum.healthy) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (where_, count) = if far { ("with round trips of 80 ms", 100) } else { ("on one machine", 500) };
    latency(&format!("claim, three nodes {where_}, asked on the leader"), &nodes[0], count).await?;
    latency(&format!("claim, three nodes {where_}, asked on another"), &nodes[1], count).await?;
    for node in nodes.iter().rev() {
        node.shutdown().await;
    }
    Ok(())
}

/// What many accounts take, how quickly they are looked up, and how long a node takes that joins.
async fn many(accounts: usize, directory: &Path) -> Result<(), Failure> {
    let first = start(directory, 1, false).await?;
    let before = resident_bytes();
    let asked = Instant::now();
    let mut claiming = tokio::task::JoinSet::new();
    for number in 0..accounts {
        if claiming.len() >= AT_ONCE {
            claiming.join_next().await.transpose()?.transpose()?;
        }
        let node = first.clone();
        claiming.spawn(async move { claim(&node, &format!("account{number}")).await });
    }
    while let Some(done) = claiming.join_next().await {
        done??;
    }
    let rate = accounts as f64 / asked.elapsed().as_secs_f64();
    say(&format!("{accounts} claims, {AT_ONCE} at a time"), format_args!("{rate:.0} per second"));
    let grown = resident_bytes().saturating_sub(before) >> 20;
    say(&format!("memory for {accounts} accounts with {SETTINGS_SIZE} bytes of settings"), format_args!("{grown} MiB"));
    say("disk for them, with the log", format_args!("{} MiB", disk_bytes(&directory.join("region1")) >> 20));

    let view = first.state();
    let names: Vec<AccountName> =
        (0..1000).map(|n| AccountName::parse(&format!("account{}", n * 97 % accounts))).collect::<Result<_, _>>()?;
    let (asked, mut found) = (Instant::now(), 0_usize);
    for round in 0..1_000_000 {
        found += usize::from(view.account(&names[round % names.len()]).is_some());
    }
    say("look-ups on one thread", format_args!("{:.0} per second", found as f64 / asked.elapsed().as_secs_f64()));
    let asked = Instant::now();
    view.hash();
    say("hash of the state", format_args!("{:.1?}", asked.elapsed()));

    let second = start(directory, 2, false).await?;
    let asked = Instant::now();
    join(&first, &second).await?;
    let admitted = asked.elapsed();
    until("it has all accounts", || second.state().accounts_len() == accounts).await?;
    say("a new node is a member after", format_args!("{admitted:.1?}"));
    say("a new node has everything after", format_args!("{:.1?}", asked.elapsed()));
    second.shutdown().await;
    first.shutdown().await;
    drop((first, second, view));
    let asked = Instant::now();
    let first = start(directory, 1, false).await?;
    say(&format!("start with {} accounts", first.state().accounts_len()), format_args!("{:.1?}", asked.elapsed()));
    first.shutdown().await;
    Ok(())
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn disk_bytes(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}
