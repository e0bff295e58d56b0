//! One region: its settings, and its process while it runs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::harness::Client;
use crate::harness::process::Daemon;
use crate::network::Place;

/// How long anything may take that has no bound of its own: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(20);

/// The program, with no variable of ours set.
pub fn keppel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEPPEL_") {
            command.env_remove(name);
        }
    }
    command
}

/// A port that nothing listens on, for TCP and UDP.
pub fn free_port() -> u16 {
    loop {
        let port = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Times with which a federation on one machine notices a loss quickly.
const BRISK: [&str; 6] = [
    "federation.probe_interval=400ms",
    "federation.probe_round_trip=150ms",
    "federation.suspicion=1500ms",
    "federation.heartbeat_interval=150ms",
    "federation.election_timeout_min=750ms",
    "federation.election_timeout_max=1500ms",
];

/// A region.
pub struct Region {
    pub name: String,
    pub data: PathBuf,
    pub address: SocketAddr,
    /// `serve` or `witness`.
    pub command: &'static str,
    settings: Vec<String>,
    network: Option<PathBuf>,
    log: PathBuf,
    process: Option<Daemon>,
    client: Client,
}

impl Region {
    /// A region on a free port of this machine, with brisk times. The one named `eu` founds.
    pub fn new(folder: &Path, name: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut region = Self::with_default_times(folder, name, address);
        region.settings.extend(BRISK.map(str::to_owned));
        region
    }

    /// A region in a place of a network of the test's own, with the times that operators get.
    pub fn at(folder: &Path, name: &str, place: &Place) -> Self {
        let mut region = Self::with_default_times(folder, name, SocketAddr::from((IpAddr::V4(place.address), 5000)));
        region.network = Some(place.namespace());
        region
    }

    fn with_default_times(folder: &Path, name: &str, address: SocketAddr) -> Self {
        let settings = vec![
            format!("federation.region={name}"),
            format!("federation.listen={address}"),
            format!("federation.found={}", name == "eu"),
            "registry.create_accounts_on_push=true".into(),
            "node.shutdown_grace=3s".into(),
            "log.filter=warn".into(),
        ];
        let (data, log) = (folder.join(name), folder.join(format!("{name}.log")));
        let client = Client::new(&format!("http://{address}"));
        Self { name: name.into(), data, address, command: "serve", settings, network: None, log, process: None, client }
    }

    /// Adds a setting, as KEY=VALUE.
    pub fn set(&mut self, setting: String) {
        self.settings.push(setting);
    }

    fn arguments(&self) -> Vec<String> {
        let set = self.settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]);
        ["--data".to_owned(), self.data.display().to_string()].into_iter().chain(set).collect()
    }

    /// Starts the process. On the test's own thread, with whose end it would end.
    pub fn launch(&mut self) {
        let mut command = keppel();
        command.arg(self.command).args(self.arguments()).args(["--listen", &self.address.to_string()]);
        if let Some(namespace) = &self.network {
            inside(&mut command, namespace);
        }
        self.process = Some(Daemon::start(&mut command, &self.log, GRACE));
        // Connections to the process of before are not tried again.
        self.client = Client::new(&format!("http://{}", self.address));
    }

    /// Waits until the process answers its operator, and takes connections of clients where it does that at all.
    pub fn wait(&mut self) {
        let (start, data) = (Instant::now(), self.data.clone());
        let (witness, address) = (self.command == "witness", self.address);
        let takes_clients = || witness || TcpStream::connect(address).is_ok();
        while !(takes_clients() && self.operate(&["members"]).status.success()) {
            let alive = self.process.as_mut().is_some_and(Daemon::is_running);
            assert!(alive && start.elapsed() < PATIENCE, "{} does not serve:\n{}", data.display(), self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    pub fn start(&mut self) {
        self.launch();
        self.wait();
    }

    /// SIGKILL: no time to tidy anything.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        self.process.as_ref().expect("it runs").pause();
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.process.as_ref().expect("it runs").resume();
    }

    /// SIGTERM; whether it ended in order.
    pub fn stop(&mut self) -> bool {
        self.process.take().is_some_and(|mut process| process.stop())
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `keppel federation ...` on this region.
    pub fn operate(&self, arguments: &[&str]) -> Output {
        let mut command = keppel();
        command.arg("federation").args(arguments).args(self.arguments());
        if let Some(namespace) = &self.network {
            inside(&mut command, namespace);
        }
        command.stdin(Stdio::null()).output().expect("it runs")
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn told(&self, arguments: &[&str]) -> String {
        let output = self.operate(arguments);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {arguments:?}: {words}", self.name);
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// The same, which must be refused with these words.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.operate(arguments);
        assert_eq!(output.status.code(), Some(1), "{}: {arguments:?}", self.name);
        String::from_utf8(output.stderr).expect("text")
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.told(&["status", "--json"])).expect("JSON")
    }

    pub fn voters(&self) -> usize {
        self.status()["voters"].as_array().expect("a list").len()
    }

    pub fn is_healthy(&self) -> bool {
        self.status()["quorum"]["healthy"] == true
    }

    /// How this region sees another.
    pub fn health_of(&self, name: &str) -> String {
        let status = self.status();
        let members = status["members"].as_array().expect("a list");
        let member = members.iter().find(|member| member["region"] == name);
        member.map_or_else(String::new, |member| member["health"].as_str().expect("a word").to_owned())
    }

    /// The region that leads, as this one knows; empty: none.
    pub fn leader(&self) -> String {
        let status = self.status();
        let members = status["members"].as_array().expect("a list");
        let leader = members.iter().find(|member| member["leader"] == true);
        leader.map_or_else(String::new, |leader| leader["region"].as_str().expect("a word").to_owned())
    }

    /// The place in the log, and the hash of all that is agreed on there.
    pub fn state(&self) -> (u64, String) {
        let state = self.status()["state"].clone();
        (state["applied"].as_u64().expect("a number"), state["hash"].as_str().expect("a hash").to_owned())
    }

    /// All accounts this region knows: name and the region that owns it.
    pub fn accounts(&self) -> Vec<(String, String)> {
        let listed: serde_json::Value = serde_json::from_str(&self.told(&["accounts", "--json"])).expect("JSON");
        let word = |value: &serde_json::Value| value.as_str().expect("a word").to_owned();
        let listed = listed.as_array().expect("a list").iter();
        listed.map(|account| (word(&account["name"]), word(&account["region"]))).collect()
    }

    /// Makes an account, which claims its name: 200 when it is this region's. Gives the status, `Retry-After` and the time.
    pub async fn claim(&self, account: &str) -> Claimed {
        let begin = Instant::now();
        let request = self.client().request(reqwest::Method::PUT, &format!("/keppel/v1/accounts/{account}"));
        let request = request.json(&serde_json::json!({"account": {"auth_tenant_id": "default"}}));
        match crate::harness::client::try_send(request).await {
            Ok(answer) => Claimed {
                status: answer.status,
                retry_after: answer.header("retry-after").to_owned(),
                words: answer.text(),
                took: begin.elapsed(),
            },
            Err(error) => {
                Claimed { status: 0, retry_after: String::new(), words: error.to_string(), took: begin.elapsed() }
            }
        }
    }
}

/// What came of a claim.
#[derive(Debug)]
pub struct Claimed {
    /// 0: no answer.
    pub status: u16,
    pub retry_after: String,
    pub words: String,
    pub took: Duration,
}

impl Drop for Region {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("--- the log of {} ---\n{}", self.name, &log[log.len().saturating_sub(6000)..]);
        }
        self.kill();
    }
}

/// Lets a command run in a network namespace.
fn inside(command: &mut Command, namespace: &Path) {
    let namespace = std::fs::File::open(namespace).expect("the namespace is there");
    // SAFETY: setns is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(move || {
            use std::os::fd::AsRawFd as _;
            match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
}

/// Waits for something, and says how long that took.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    start.elapsed()
}

/// Starts all, lets them join by invitations of the first, and waits until so many vote and all are well.
pub fn federate(regions: &mut [Region], voters: usize) {
    regions.iter_mut().for_each(Region::launch);
    regions.iter_mut().for_each(Region::wait);
    let (first, others) = regions.split_first().expect("at least one");
    for other in others {
        let mut invite = vec!["invite", "--region", &other.name];
        if other.command == "witness" {
            invite.extend(["--role", "witness"]);
        }
        other.told(&["join", &first.told(&invite)]);
    }
    until("they vote and are well", || regions.iter().all(|region| region.voters() == voters && region.is_healthy()));
}

/// Waits until all hold the same state at the same place of the log.
#[track_caller]
pub fn until_equal(regions: &[Region]) -> Duration {
    let mut seen = Vec::new();
    let start = Instant::now();
    loop {
        seen.clear();
        seen.extend(regions.iter().map(Region::state));
        if seen.iter().all(|state| *state == seen[0]) {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "the states did not become equal: {seen:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
