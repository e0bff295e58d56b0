//! The federation as its operator meets it: real processes, the commands, the words.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(40);

/// The program, with no variable of ours set.
fn keppel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEPPEL_") {
            command.env_remove(name);
        }
    }
    command
}

/// A port that nothing listens on, for TCP and UDP.
fn free_port() -> u16 {
    loop {
        let port = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A region: its settings, and its process while it runs.
struct Region {
    name: &'static str,
    data: PathBuf,
    port: u16,
    command: &'static str,
    process: Option<Child>,
}

impl Region {
    fn new(folder: &Path, name: &'static str) -> Self {
        Self { name, data: folder.join(name), port: free_port(), command: "serve", process: None }
    }

    fn settings(&self) -> Vec<String> {
        let set = [
            format!("federation.region={}", self.name),
            format!("federation.listen=127.0.0.1:{}", self.port),
            format!("federation.found={}", self.name == "eu"),
            "federation.probe_interval=400ms".into(),
            "federation.probe_round_trip=150ms".into(),
            "federation.suspicion=1500ms".into(),
            "federation.heartbeat_interval=150ms".into(),
            "federation.election_timeout_min=750ms".into(),
            "federation.election_timeout_max=1500ms".into(),
        ];
        let set = set.into_iter().flat_map(|setting| ["--set".to_owned(), setting]);
        ["--data".to_owned(), self.data.display().to_string()].into_iter().chain(set).collect()
    }

    fn start(&mut self) {
        let mut command = keppel();
        command.arg(self.command).args(self.settings()).args(["--set", "log.filter=warn"]);
        command.args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        self.process = Some(command.stdin(Stdio::null()).spawn().expect("it starts"));
        until("it answers its operator", || self.operate(&["members"]).status.success());
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("ended");
        }
    }

    /// `keppel federation ...` on this region.
    fn operate(&self, arguments: &[&str]) -> Output {
        keppel().arg("federation").args(arguments).args(self.settings()).stdin(Stdio::null()).output().expect("it runs")
    }

    fn told(&self, arguments: &[&str]) -> String {
        let output = self.operate(arguments);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {arguments:?}: {words}", self.name);
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.operate(arguments);
        assert_eq!(output.status.code(), Some(1), "{}: {arguments:?}", self.name);
        String::from_utf8(output.stderr).expect("text")
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.told(&["status", "--json"])).expect("JSON")
    }

    fn voters(&self) -> usize {
        self.status()["voters"].as_array().expect("a list").len()
    }

    fn is_healthy(&self) -> bool {
        self.status()["quorum"]["healthy"] == true
    }

    /// How this region sees another.
    fn health_of(&self, name: &str) -> String {
        let status = self.status();
        let members = status["members"].as_array().expect("a list");
        let member = members.iter().find(|member| member["region"] == name);
        member.map_or_else(String::new, |member| member["health"].as_str().expect("a word").to_owned())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.kill();
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn three_regions(folder: &Path) -> [Region; 3] {
    let mut regions = ["eu", "us", "ap"].map(|name| Region::new(folder, name));
    regions.iter_mut().for_each(Region::start);
    for joining in [1, 2] {
        let invitation = regions[0].told(&["invite", "--region", regions[joining].name]);
        regions[joining].told(&["join", &invitation]);
    }
    until("three regions vote", || regions.iter().all(|region| region.voters() == 3 && region.is_healthy()));
    regions
}

#[test]
fn three_processes_join_by_invitation_and_go_on_without_one_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let [eu, mut us, ap] = three_regions(folder.path());
    until("all are alive", || eu.health_of("us") == "alive" && eu.health_of("ap") == "alive");
    let table = ap.told(&["status"]);
    assert!(table.starts_with("decisions are taken; "), "{table}");
    assert!(table.contains("3 of 3 members vote"), "{table}");

    us.kill();
    until("the loss is seen", || eu.health_of("us") == "down" && ap.health_of("us") == "down");
    until("the rest decides", || eu.is_healthy() && eu.operate(&["invite", "--region", "sa"]).status.success());
    us.start();
    until("it is back", || us.is_healthy() && ap.health_of("us") == "alive");

    let id = eu.status()["members"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|member| member["region"] == "us")
        .map(|member| member["node"].as_str().expect("an id").to_owned());
    let id = id.expect("us is a member");
    assert!(eu.refused(&["remove", "zz"]).contains("no member has an id that begins with"));
    assert_eq!(eu.told(&["remove", &id[..12]]), "removed");
    until("it knows that it was removed", || us.status()["member"] == false);
    let words = us.refused(&["join", &eu.told(&["invite", "--region", "us"])]);
    assert!(words.contains("give it a new identity"), "{words}");
}

#[test]
fn invitations_are_refused_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut eu = Region::new(folder.path(), "eu");
    let mut us = Region::new(folder.path(), "us");
    assert!(eu.refused(&["status"]).contains("no keppel runs on the data folder"));
    eu.start();
    let invitation = eu.told(&["invite", "--region", "us", "--for", "1h"]);
    // Joining works before the node runs, too.
    assert!(us.told(&["join", &invitation]).contains("in region us"));
    us.start();
    until("it has the state", || us.is_healthy());

    let mut sa = Region::new(folder.path(), "sa");
    sa.start();
    assert!(sa.refused(&["join", &invitation]).contains("the invitation is for region us"));
    assert!(sa.refused(&["join", &invitation[..invitation.len() - 1]]).contains("is damaged"));
    assert!(sa.refused(&["join", "hello"]).contains("not an invitation"));
    let brief = eu.told(&["invite", "--region", "sa", "--for", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(sa.refused(&["join", &brief]).contains("has expired"));
    let other = Region::new(folder.path(), "us2");
    let data = other.data.display().to_string();
    let mut reused = keppel();
    reused.args(["federation", "join", &invitation, "--data", &data, "--set", "federation.region=us"]);
    let reused = reused.args(["--set", "federation.listen=127.0.0.1:0"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&reused.stderr).contains("used already"), "{reused:?}");
}

#[test]
fn two_regions_and_a_witness_survive_the_loss_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut eu = Region::new(folder.path(), "eu");
    let mut us = Region::new(folder.path(), "us");
    let mut witness = Region::new(folder.path(), "witness");
    witness.command = "witness";
    for region in [&mut eu, &mut us, &mut witness] {
        region.start();
    }
    us.told(&["join", &eu.told(&["invite", "--region", "us"])]);
    witness.told(&["join", &eu.told(&["invite", "--region", "witness", "--role", "witness"])]);
    until("all three vote", || us.voters() == 3 && us.is_healthy());
    assert!(!witness.data.join("metadata.db").exists(), "a witness keeps no content");
    eu.kill();
    until("decisions go on", || us.is_healthy() && us.operate(&["invite", "--region", "eu"]).status.success());
}

#[test]
fn two_regions_without_a_witness_say_why_decisions_stop_and_recover_by_hand() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut eu = Region::new(folder.path(), "eu");
    let mut us = Region::new(folder.path(), "us");
    eu.start();
    us.start();
    us.told(&["join", &eu.told(&["invite", "--region", "us"])]);
    until("it has the state", || us.is_healthy());
    eu.kill();
    until("it is noticed", || !us.is_healthy());
    // As long as the connection to the dead node is not known to be dead, nobody can say what became of a command.
    until("it says why and what to do", || {
        let words = us.refused(&["invite", "--region", "ap"]);
        words.contains("no majority") && words.contains("recover")
    });

    assert!(us.refused(&["recover", "--yes"]).contains("in use by another keppel"));
    us.kill();
    assert!(us.refused(&["recover"]).contains("nothing was changed"), "without the typed name nothing happens");
    let words = us.told(&["recover", "--yes"]);
    assert!(words.contains("Whatever other members decided after entry"), "{words}");
    us.start();
    until("it decides alone", || us.is_healthy() && us.voters() == 1);
    us.told(&["invite", "--region", "ap"]);
}

#[test]
fn a_node_alone_opens_no_udp_port_and_is_the_leader() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let data = data.display().to_string();
    let init = || keppel().args(["federation", "init", "--data", &data]).output().expect("it runs");
    let first = init();
    assert!(first.status.success(), "{first:?}");
    assert_eq!(init().stdout, first.stdout, "a second time changes nothing");
    let mut process = keppel();
    process.args(["serve", "--data", &data, "--listen", "127.0.0.1:0", "--set", "log.filter=warn"]);
    let mut process = process.stdin(Stdio::null()).spawn().expect("it starts");
    let status = || keppel().args(["federation", "status", "--data", &data]).output().expect("it runs");
    until("it answers", || status().status.success());
    let words = String::from_utf8(status().stdout).expect("text");
    assert!(words.starts_with("decisions are taken; local leads"), "{words}");
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("its files");
    let inodes: Vec<String> = sockets
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let udp = ["udp", "udp6"].map(|table| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default());
    let listens = udp
        .iter()
        .flat_map(|table| table.lines())
        .any(|line| line.split_whitespace().nth(9).is_some_and(|inode| inodes.iter().any(|own| own == inode)));
    assert!(!listens, "no UDP socket is open");
    process.kill().expect("killed");
    process.wait().expect("ended");
}
