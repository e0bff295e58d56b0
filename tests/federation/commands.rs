//! The commands of the operator, and their words.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::region::{Region, federate, keppel, until};

fn three_regions(folder: &Path) -> [Region; 3] {
    let mut regions = ["eu", "us", "ap"].map(|name| Region::new(folder, name));
    federate(&mut regions, 3);
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
    let invitation = eu.told(&["invite", "--region", "us"]);
    let words = us.refused(&["join", &invitation]);
    assert!(words.contains("give it a new identity") && words.contains("reset-identity"), "{words}");

    assert!(us.refused(&["reset-identity", "--yes"]).contains("in use by another keppel"));
    assert!(us.stop(), "it ends in order");
    assert!(us.refused(&["reset-identity"]).contains("nothing was changed"), "without the typed name nothing happens");
    let words = us.told(&["reset-identity", "--yes"]);
    assert!(words.contains(&id) && words.contains("2 other members"), "{words}");
    us.start();
    assert!(us.told(&["join", &invitation]).contains("in region us"));
    until("all three vote again", || eu.voters() == 3 && us.voters() == 3 && us.is_healthy());
    assert!(!us.told(&["members"]).contains(&id), "it is another node now");
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
