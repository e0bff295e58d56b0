//! Regions as processes on this machine.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::images::random_bytes;
use crate::harness::{Client, Server};

/// How long a region may answer without hearing from a primary.
pub const LEASE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(40);

/// A region with its server and a client of it.
pub struct Region {
    pub server: Server,
    pub client: Client,
    /// Where other regions reach it.
    pub address: SocketAddr,
}

impl Region {
    fn start(name: &str, is_first: bool) -> Self {
        Self::start_with(name, is_first, &[])
    }

    fn start_with(name: &str, is_first: bool, more: &[&str]) -> Self {
        Self::start_on(None, name, is_first, more)
    }

    /// On a data folder of the test's own, where one is given.
    fn start_on(data: Option<&Path>, name: &str, is_first: bool, more: &[&str]) -> Self {
        let port = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let settings = [
            format!("federation.region={name}"),
            format!("federation.listen=127.0.0.1:{port}"),
            format!("federation.found={is_first}"),
            format!("federation.lease={}ms", LEASE.as_millis()),
            "federation.probe_interval=400ms".into(),
            "federation.probe_round_trip=150ms".into(),
            "federation.suspicion=1500ms".into(),
            // An election may come in between on a busy machine.
            "federation.command_timeout=5s".into(),
            "federation.heartbeat_interval=150ms".into(),
            "federation.election_timeout_min=750ms".into(),
            "federation.election_timeout_max=1500ms".into(),
            "external.plain_http_hosts=[\"127.0.0.1\"]".into(),
            "external.tag_freshness=0s".into(),
        ];
        let settings = settings.iter().map(String::as_str).chain(more.iter().copied());
        let options: Vec<_> = settings.flat_map(|setting| ["--set", setting]).collect();
        let server = match data {
            None => Server::start_with_options(&options),
            Some(data) => Server::start_on_with(data, &options),
        };
        Self { client: server.client(), server, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// What `keppel federation ...` says about this region.
    pub fn told(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.arg("federation").args(arguments).arg("--data").arg(self.server.data()).stdin(Stdio::null());
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// What another command of the operator says about this region, which must succeed.
    pub fn operate(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(arguments).arg("--data").arg(self.server.data()).stdin(Stdio::null());
        let output = command.output().expect("it runs");
        let words = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{arguments:?}: {words}\n{said}");
        said
    }

    /// What another command of the operator says, which must fail.
    pub fn refuse(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("it runs");
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A command of the operator about this region, not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
        command.args(arguments).arg("--data").arg(self.server.data()).stdin(Stdio::null());
        command
    }

    /// The region that is primary of an account, as this region knows.
    pub fn primary_of(&self, account: &str) -> String {
        let accounts: serde_json::Value = serde_json::from_str(&self.told(&["accounts", "--json"])).expect("JSON");
        let accounts = accounts.as_array().expect("a list");
        let found = accounts.iter().find(|it| it["name"] == account);
        found.map_or(String::new(), |it| it["region"].as_str().expect("a name").to_owned())
    }

    /// Starts it again on its data; connections of before are not tried again.
    pub fn restart(&mut self) {
        self.server.restart();
        self.client = self.server.client();
    }

    /// A counter of this region, summed over its labels.
    pub async fn counter(&self, name: &str) -> u64 {
        let metrics = self.client.get("/metrics").await.expect(200).text();
        let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = metrics.lines().filter(is_it).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum::<f64>() as u64
    }

    /// How many questions of a kind it has put to other regions.
    pub async fn questions(&self, kind: &str) -> u64 {
        let metrics = self.client.get("/metrics").await.expect(200).text();
        let name = format!("keppel_questions_total{{kind=\"{kind}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child that has not been collected yet cannot reach another process.
        let sent = unsafe { libc::kill(self.server.pid().cast_signed(), signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// Whether it takes the only node of another region for alive.
    pub fn sees_alive(&self, region: &str) -> bool {
        let status: serde_json::Value = serde_json::from_str(&self.told(&["status", "--json"])).expect("JSON");
        let all = status["members"].as_array().expect("members");
        all.iter().any(|member| member["region"] == region && member["health"] == "alive")
    }

    fn knows_all(&self, members: usize) -> bool {
        let status: serde_json::Value = serde_json::from_str(&self.told(&["status", "--json"])).expect("JSON");
        let all = status["members"].as_array().expect("members");
        all.len() == members && all.iter().all(|member| member["health"] == "alive")
    }

    fn votes(&self) -> usize {
        let status: serde_json::Value = serde_json::from_str(&self.told(&["status", "--json"])).expect("JSON");
        match status["quorum"]["healthy"] == true {
            true => status["voters"].as_array().map_or(0, Vec::len),
            false => 0,
        }
    }
}

/// Bytes that are quickly made, each MiB another.
pub fn large_blob(mebibytes: u8) -> Vec<u8> {
    let one = random_bytes(1, 1 << 20);
    let mut bytes = Vec::with_capacity(usize::from(mebibytes) << 20);
    for number in 0..mebibytes {
        bytes.push(number);
        bytes.extend_from_slice(&one[1..]);
    }
    bytes
}

/// Waits for what must become true.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A primary, and three nodes of another region.
pub fn one_and_three() -> (Region, [Region; 3]) {
    let primary = Region::start("eu", true);
    let near = [(); 3].map(|()| Region::start("us", false));
    for region in &near {
        let invitation = primary.told(&["invite", "--region", "us"]);
        region.told(&["join", &invitation]);
    }
    until("four nodes know each other", || {
        primary.knows_all(4) && near.iter().all(|region| region.knows_all(4) && region.votes() > 0)
    });
    (primary, near)
}

/// Three regions that are one federation.
pub fn three_regions() -> [Region; 3] {
    three_regions_with(&[])
}

/// Three regions that are one federation, with more settings.
pub fn three_regions_with(more: &[&str]) -> [Region; 3] {
    three_regions_on([None; 3], more)
}

/// The same with data folders of the test's own, where they are given.
pub fn three_regions_on(data: [Option<&Path>; 3], more: &[&str]) -> [Region; 3] {
    let mut data = data.into_iter();
    let regions = [("eu", true), ("us", false), ("ap", false)];
    let regions = regions.map(|(name, is_first)| Region::start_on(data.next().flatten(), name, is_first, more));
    for (region, name) in [(&regions[1], "us"), (&regions[2], "ap")] {
        let invitation = regions[0].told(&["invite", "--region", name]);
        region.told(&["join", &invitation]);
    }
    until("three regions vote", || regions.iter().all(|region| region.votes() == 3));
    regions
}
