//! A network of a test's own: places in network namespaces, joined by a bridge, between which ways can be cut, each
//! direction by itself.
//!
//! The namespaces have no names: the kernel takes them away with the last process in them, however the test ends.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::process::{Daemon, require};

/// Where no frame arrives: an address that no device of the bridge has.
const NOWHERE: &str = "02:00:00:00:00:fd";

/// Moves this thread, and all it starts from now on, into a network namespace of its own.
pub fn enter() {
    require("ip");
    // SAFETY: takes a flag and changes nothing but the namespace of this thread.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(
        moved,
        0,
        "this test makes network namespaces, so run it as root (in a container with CAP_NET_ADMIN and CAP_SYS_ADMIN): {}",
        io::Error::last_os_error()
    );
    ip(&["link", "set", "lo", "up"]);
}

/// The places of a network. The test itself is in the middle and reaches all of them, whatever is cut.
pub struct Network {
    pub places: Vec<Place>,
}

/// A place.
pub struct Place {
    pub address: Ipv4Addr,
    holder: Daemon,
}

impl Network {
    /// A network of so many places. Moves this thread into the middle of it.
    pub fn new(count: u8, folder: &Path) -> Self {
        enter();
        ip(&["link", "add", "hub", "type", "bridge"]);
        ip(&["address", "add", "10.77.0.254/24", "dev", "hub"]);
        ip(&["link", "set", "hub", "up"]);
        let places = (1..=count).map(|number| Place::new(number, folder)).collect();
        Self { places }
    }

    /// Lets nothing through from one place to another; the other direction stays. Nobody is told: packets vanish.
    pub fn cut(&self, from: usize, to: usize) {
        let to = self.places[to].address.to_string();
        self.places[from].ip(&["neighbor", "replace", &to, "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"]);
    }

    /// Lets nothing through between a place and all others.
    pub fn isolate(&self, place: usize) {
        for other in (0..self.places.len()).filter(|other| *other != place) {
            self.cut(place, other);
            self.cut(other, place);
        }
    }

    /// Lets a place send so many bits a second at most.
    pub fn limit(&self, place: usize, mbit: u32) {
        let rate = format!("{mbit}mbit");
        let shape =
            ["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "64kb", "latency", "50ms"];
        self.places[place].run("tc", &shape);
    }

    /// How many bytes have left a place, headers and all.
    pub fn sent_bytes(&self, place: usize) -> u64 {
        let way = format!("way{}", place + 1);
        let mut command = Command::new("ip");
        let output = command.args(["-json", "-statistics", "link", "show", "dev", &way]).output().expect("ip runs");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        // What a place sends, its end in the middle receives.
        told[0]["stats64"]["rx"]["bytes"].as_u64().unwrap_or_else(|| panic!("no figures in {told}"))
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        for place in &self.places {
            place.ip(&["neighbor", "flush", "dev", "eth0", "nud", "permanent"]);
        }
    }
}

impl Place {
    fn new(number: u8, folder: &Path) -> Self {
        let mut command = Command::new("sleep");
        command.arg("infinity");
        // SAFETY: unshare is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let holder = Daemon::start(&mut command, &folder.join("places.log"), Duration::from_secs(1));
        let place = Self { address: Ipv4Addr::new(10, 77, 0, number), holder };
        let (way, pid) = (format!("way{number}"), place.holder.pid().to_string());
        ip(&["link", "add", &way, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["link", "set", &way, "master", "hub", "up"]);
        place.ip(&["link", "set", "lo", "up"]);
        place.ip(&["address", "add", &format!("{}/24", place.address), "dev", "eth0"]);
        place.ip(&["link", "set", "eth0", "up"]);
        place
    }

    /// The file by which a process gets in.
    pub fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.pid()).into()
    }

    fn ip(&self, arguments: &[&str]) {
        self.run("ip", arguments);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let namespace = File::open(self.namespace()).expect("the namespace is there");
        let mut command = Command::new(program);
        // SAFETY: setns is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        run(command.args(arguments));
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let output = command.output().expect("ip and tc run (Debian's package: iproute2)");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
