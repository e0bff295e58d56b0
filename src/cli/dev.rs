//! `keppel dev`: a registry to play with, nothing to configure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use clap::Args;

use super::Failure;
use super::overrides::Overrides;
use crate::api::serve::ListenAddress;
use crate::app::{self, RunningNode};
use crate::config::{self, Preset};

/// What `keppel dev` starts from. `config/dev.toml` says the same; a test compares them.
pub(super) const PRESET: Preset = Preset {
    command: "keppel dev",
    values: &[
        ("node.data", "\"keppel-data\""),
        ("node.shutdown_grace", "\"5s\""),
        ("http.listen", "[\"127.0.0.1:5000\"]"),
        ("registry.default_account", "\"library\""),
        ("registry.create_accounts_on_push", "true"),
        ("log.filter", "\"warn\""),
    ],
};

#[derive(Debug, Args)]
#[command(after_help = "Without flags it listens on 127.0.0.1:5000 and keeps its data in ./keppel-data.")]
pub(super) struct Dev {
    #[command(flatten)]
    overrides: Overrides,
    /// Keep everything in memory and forget it at the end.
    #[arg(long, conflicts_with = "data")]
    ephemeral: bool,
    /// Start so many regions in this one process, which form a federation: on ports 5001, 5002 and so on.
    #[arg(long, value_name = "NUMBER", conflicts_with = "listen", value_parser = clap::value_parser!(u16).range(1..=5))]
    regions: Option<u16>,
}

const REGIONS: [&str; 5] = ["eu", "us", "ap", "sa", "af"];
const FIRST_PORT: u16 = 5001;

impl Dev {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut sources = self.overrides.sources(None)?;
        sources.preset = Some(PRESET);
        // Lives until the end of this function, and then takes what is in it along.
        let scratch = self.ephemeral.then(|| tempfile::Builder::new().prefix("keppel-dev-").tempdir()).transpose()?;
        if let Some(folder) = &scratch {
            sources.flags.push(ephemeral("storage.driver", "memory"));
            sources.flags.push(ephemeral("node.data", &folder.path().to_string_lossy()));
        }
        if let Some(count) = self.regions {
            return run_regions(&sources, count, scratch.is_some());
        }
        let loaded = config::load(&sources)?;
        let doors = Doors::of(&loaded.config);
        app::run(loaded, |node| eprint!("{}", banner(node, doors, scratch.is_some())))?;
        Ok(())
    }
}

/// The regions share all settings but their name, folder and ports.
fn run_regions(sources: &config::Sources, count: u16, ephemeral: bool) -> Result<(), Failure> {
    let data = config::load(sources)?.config.node.data;
    let of_region = |(name, port): (&str, u16)| {
        let address = format!("127.0.0.1:{port}");
        let folder = data.join(name);
        let mut sources = sources.clone();
        let keys = [
            ("node.data", folder.to_string_lossy().into_owned()),
            ("http.listen", address.clone()),
            ("federation.region", name.to_owned()),
            ("federation.listen", address.clone()),
            ("federation.api_url", format!("http://{address}")),
            ("federation.found", (port == FIRST_PORT).to_string()),
        ];
        let flag = |(key, value): (&str, String)| config::Flag { name: "--regions".into(), key: key.into(), value };
        sources.flags.extend(keys.map(flag));
        config::load(&sources)
    };
    let mut all = REGIONS.into_iter().zip(FIRST_PORT..).take(count.into()).map(of_region);
    let first = all.next().expect("there is at least one region")?;
    let others: Result<Vec<_>, _> = all.map(|loaded| loaded.map(|loaded| loaded.config)).collect();
    app::run_regions(first, others?, |nodes| eprint!("{}", regions_banner(nodes, &data, ephemeral)))?;
    Ok(())
}

fn regions_banner(nodes: &[RunningNode], data: &Path, ephemeral: bool) -> String {
    let mut text = format!("\nA federation of {} regions is ready:\n\n", nodes.len());
    for node in nodes {
        let address = node.addresses().first().map_or_else(String::new, ToString::to_string);
        let _ = writeln!(text, "  {:<4} http://{address}", node.region());
    }
    let first = nodes.first().map_or_else(String::new, |node| node.data().path().display().to_string());
    let mut hosts = nodes.iter().filter_map(|node| node.addresses().first());
    if let Some(here) = hosts.next() {
        let there = hosts.next().unwrap_or(here);
        let _ = writeln!(text, "\nTry, in another terminal, what you have: push to one, pull from another");
        let _ = writeln!(text, "  docker pull alpine && docker tag alpine {here}/alpine && docker push {here}/alpine");
        let _ = writeln!(text, "  docker pull {there}/library/alpine");
        let (from, to) = ("docker://docker.io/library/alpine", format!("docker://{here}/library/alpine"));
        let _ = writeln!(text, "  skopeo copy --dest-tls-verify=false {from} {to}");
        let _ = writeln!(text, "  skopeo copy --src-tls-verify=false docker://{there}/library/alpine oci:alpine");
    }
    let _ = writeln!(text, "\nSee how it fares: keppel federation status --data {first}");
    if nodes.len() > 1 {
        let _ = writeln!(text, "Move an account:  keppel account move library --to us --data {first}");
    }
    if !ephemeral {
        let _ = writeln!(text, "Data: {}", data.display());
    }
    text.push_str("Stop: Ctrl-C\n\n");
    text
}

fn ephemeral(key: &str, value: &str) -> config::Flag {
    config::Flag { name: "--ephemeral".to_owned(), key: key.to_owned(), value: value.to_owned() }
}

/// How one comes in.
#[derive(Debug, Clone, Copy)]
struct Doors {
    /// Addresses serve HTTPS.
    tls: bool,
    /// Anyone may do anything.
    open: bool,
}

impl Doors {
    fn of(config: &config::Config) -> Self {
        let open = config.auth.driver == config::AuthDriverName::Open;
        Self { tls: config.http.tls_certificate.is_some(), open }
    }
}

fn banner(node: &RunningNode, doors: Doors, ephemeral: bool) -> String {
    let data = match ephemeral {
        true => "in memory; forgotten at the end".to_owned(),
        false => node.data().path().display().to_string(),
    };
    match (node.addresses().first(), node.listens().first()) {
        (Some(address), _) => words(*address, &data, doors),
        (None, Some(ListenAddress::Unix(path))) => socket_words(path, &data),
        (None, _) => String::new(),
    }
}

/// What to type next, for a registry on a Unix socket, which clients of images do not speak.
fn socket_words(path: &Path, data: &str) -> String {
    let path = path.display();
    format!(
        "\nKeppel is ready at unix:{path}\n\nTry, in another terminal:\n  curl --unix-socket {path} \
         http://localhost/v2/_catalog\n\nData: {data}\nStop: Ctrl-C\n\n"
    )
}

/// What to type next, for a registry at `address`.
fn words(address: SocketAddr, data: &str, doors: Doors) -> String {
    let Doors { tls, open } = doors;
    let host = SocketAddr::new(reachable(address.ip()), address.port());
    let scheme = if tls { "https" } else { "http" };
    let (podman, skopeo) = if tls { ("", "") } else { (" --tls-verify=false", " --dest-tls-verify=false") };
    let mut text = format!("\nKeppel is ready at {scheme}://{host}\n\nTry, in another terminal, what you have:\n");
    let lines = [
        format!("docker pull alpine && docker tag alpine {host}/alpine && docker push {host}/alpine"),
        format!("podman pull docker.io/library/alpine && podman push{podman} docker.io/library/alpine {host}/alpine"),
        format!("skopeo copy{skopeo} docker://docker.io/library/alpine docker://{host}/alpine"),
        format!("curl {scheme}://{host}/v2/_catalog"),
    ];
    if !open {
        let _ = writeln!(text, "  docker login {host}");
    }
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    let _ = match open {
        true => writeln!(text, "\nAnyone who can reach this address may push and pull."),
        false => writeln!(text, "\nOnly those who log in may push and pull."),
    };
    let _ = writeln!(text, "Data: {data}\nStop: Ctrl-C\n");
    text
}

/// An address by which this machine reaches a server that listens on `ip`.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        // A socket on all IPv6 addresses takes IPv4 too, and clients trust 127.0.0.1 without TLS.
        IpAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_name_an_address_that_clients_can_type() {
        let words = words("[::]:5001".parse().expect("an address"), "/data", Doors { tls: false, open: true });
        assert!(words.contains("docker push 127.0.0.1:5001/alpine"), "{words}");
        assert!(words.contains("podman push --tls-verify=false"), "{words}");
        assert!(!words.contains("[::]"), "{words}");
    }

    #[test]
    fn a_guarded_registry_is_not_said_to_be_open() {
        let guarded = Doors { tls: false, open: false };
        let words = words("127.0.0.1:5001".parse().expect("an address"), "/data", guarded);
        assert!(words.contains("docker login 127.0.0.1:5001"), "{words}");
        assert!(!words.contains("Anyone"), "{words}");
    }

    #[test]
    fn the_file_for_development_says_what_the_command_does() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let file = config::Sources { file: Some(folder.join("dev.toml")), ..config::Sources::default() };
        let preset = config::Sources { preset: Some(PRESET), folder, ..config::Sources::default() };
        let load = |sources| config::load(&sources).expect("valid").config;
        assert_eq!(load(file), load(preset));
    }
}
