//! `keppel dev`: a registry to play with, nothing to configure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::Args;

use super::Failure;
use super::overrides::Overrides;
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
}

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
        let loaded = config::load(&sources)?;
        let tls = loaded.config.http.tls_certificate.is_some();
        app::run(loaded, |node| eprint!("{}", banner(node, tls, scratch.is_some())))?;
        Ok(())
    }
}

fn ephemeral(key: &str, value: &str) -> config::Flag {
    config::Flag { name: "--ephemeral".to_owned(), key: key.to_owned(), value: value.to_owned() }
}

fn banner(node: &RunningNode, tls: bool, ephemeral: bool) -> String {
    let address = node.addresses().first().copied();
    let data = match ephemeral {
        true => "in memory; forgotten at the end".to_owned(),
        false => node.data().path().display().to_string(),
    };
    match address {
        Some(address) => words(address, &data, tls),
        None => format!("\nKeppel is ready on its Unix socket\nData: {data}\nStop: Ctrl-C\n\n"),
    }
}

/// What to type next, for a registry at `address`.
fn words(address: SocketAddr, data: &str, tls: bool) -> String {
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
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(text, "\nAnyone who can reach this address may push and pull.");
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
        let words = words("[::]:5001".parse().expect("an address"), "/data", false);
        assert!(words.contains("docker push 127.0.0.1:5001/alpine"), "{words}");
        assert!(words.contains("podman push --tls-verify=false"), "{words}");
        assert!(!words.contains("[::]"), "{words}");
    }

    #[test]
    fn the_file_for_development_says_what_the_command_does() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let file = config::Sources { file: Some(folder.join("dev.toml")), ..config::Sources::default() };
        let preset = config::Sources { preset: Some(PRESET), folder, ..config::Sources::default() };
        let load = |sources| config::load(&sources).expect("valid").config;
        assert_eq!(load(file), load(preset));
    }
}
