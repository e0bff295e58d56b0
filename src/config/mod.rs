//! Turns a TOML file, `KEPPEL_*` variables and flags into one typed [`Config`], before anything is opened.
//!
//! - Every key is listed once, in `settings`, with its words, type, default and bounds; the example file is made from it.
//! - Unknown keys, bad values and missing files are refused, all of them at once, each with file, line and key.
//! - Texts get their types here; what leaves this room needs no second look. Relative paths of a file start at its folder.
//! - Strength: defaults, then a command's preset, then the file, then the environment, then flags.
//!
//! It opens no port, makes no folder and starts nothing.

mod example;
mod files;
mod options;
mod problem;
mod settings;
mod source;
mod table;
mod value;

pub use example::{example, show};
pub use problem::{Origin, Problem, Problems};
pub use settings::*;
pub use source::{Flag, Preset, Sources};
pub use table::{Entry, Key, Section};
pub use value::{ByteSize, UdpAddress};

use crate::auth::is_usable_url;
use table::Assembler;

/// A configuration, and how it came to be.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// Each key with its value and origin, in the order of the example.
    pub entries: Vec<Entry>,
    /// What looks wrong without being so for certain: variables with our prefix that name no key.
    pub warnings: Vec<Problem>,
}

/// Loads a configuration from all its sources.
///
/// # Errors
/// Everything that is wrong in any of them, overridden values included.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut assembler = Assembler::default();
    let mut warnings = Vec::new();
    if let Some(preset) = &sources.preset {
        source::read_preset(preset, &sources.folder, &mut assembler);
    }
    if let Some(path) = &sources.file {
        source::read_file(path, SECTIONS, &mut assembler);
    }
    source::read_environment(&sources.environment, &sources.folder, SECTIONS, &mut assembler, &mut warnings);
    source::read_flags(&sources.flags, &sources.folder, SECTIONS, &mut assembler);
    finish(assembler, warnings)
}

fn finish(mut assembler: Assembler, warnings: Vec<Problem>) -> Result<Loaded, Problems> {
    let config = Config::assemble(&mut assembler);
    let Assembler { mut problems, entries, .. } = assembler;
    check_together(&config, &entries, &mut problems);
    if problems.is_empty() {
        return Ok(Loaded { config, entries, warnings });
    }
    // The order of a reader: by file and line; variables and flags after them, in the order they were looked at.
    problems.sort_by_key(|problem| match &problem.origin {
        Origin::File { line, .. } => *line,
        _ => usize::MAX,
    });
    Err(Problems(problems))
}

/// Checks what a single value cannot show: pairs of keys, and files that must be there.
fn check_together(config: &Config, entries: &[Entry], problems: &mut Vec<Problem>) {
    let origin = |path: &str| {
        let entry = entries.iter().find(|entry| entry.key.path() == path);
        entry.map_or(Origin::Default, |entry| entry.origin.clone())
    };
    if config.http.listen.is_empty() {
        let message = "there must be at least one address to listen on";
        problems.push(Problem::of_key(origin("http.listen"), "http.listen", message));
    }
    files::check_tls(&config.http, &origin, problems);
    check_auth(config, &origin, problems);
    if let Some(url) = config.audit.webhook_url.as_ref().filter(|url| !is_usable_url(url)) {
        let message = format!("{url:?} is not an https URL (http is for this machine only)");
        problems.push(Problem::of_key(origin("audit.webhook_url"), "audit.webhook_url", message));
    }
    let permits = config.storage.concurrent_reads_max + config.storage.concurrent_writes_max + config.metadata.readers;
    if config.node.blocking_threads_max <= permits {
        let message = format!(
            "{} is too few: it must be more than storage.concurrent_reads_max, storage.concurrent_writes_max and \
             metadata.readers together, which is {permits}",
            config.node.blocking_threads_max
        );
        problems.push(Problem::of_key(origin("node.blocking_threads_max"), "node.blocking_threads_max", message));
    }
    check_federation(config, &origin, problems);
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.filter) {
        let message = format!("{:?} is not a filter: {error}", config.log.filter);
        problems.push(Problem::of_key(origin("log.filter"), "log.filter", message));
    }
}

/// Checks that the auth driver has what it needs.
fn check_auth(config: &Config, origin: &impl Fn(&str) -> Origin, problems: &mut Vec<Problem>) {
    let auth = &config.auth;
    let mut refuse = |key: &str, message: String| problems.push(Problem::of_key(origin(key), key, message));
    match (auth.driver, &auth.htpasswd_file) {
        (AuthDriverName::Htpasswd, None) => {
            refuse("auth.driver", "\"htpasswd\" needs its file: set auth.htpasswd_file too".to_owned());
        }
        (AuthDriverName::Htpasswd, Some(path)) => {
            if let Err(message) = files::check_htpasswd(path) {
                refuse("auth.htpasswd_file", message);
            } else if auth.htpasswd_grants.is_empty() {
                let message = "it is empty, so that nobody could ever do anything: name an operator, or write \
                               \"*=operator\" to let every user of the password file do everything";
                refuse("auth.htpasswd_grants", message.to_owned());
            }
        }
        (AuthDriverName::Open | AuthDriverName::Local | AuthDriverName::Oidc, _) => {}
    }
    if auth.driver == AuthDriverName::Oidc && auth.oidc_issuer.is_none() && auth.workloads.is_empty() {
        let message = "\"oidc\" needs to know whom to let in: set auth.oidc_issuer, auth.workloads or both";
        refuse("auth.driver", message.to_owned());
    }
    if let Some(url) = auth.oidc_issuer.as_ref().filter(|url| !is_usable_url(url)) {
        refuse("auth.oidc_issuer", format!("{url:?} is not an https URL"));
    }
    if auth.driver == AuthDriverName::Oidc
        && let Some(path) = &auth.oidc_ca_file
        && let Err(error) = std::fs::File::open(path)
    {
        refuse("auth.oidc_ca_file", format!("{} cannot be read: {error}", path.display()));
    }
    if let Some(path) = &config.external.ca_file
        && let Err(error) = std::fs::File::open(path)
    {
        refuse("external.ca_file", format!("{} cannot be read: {error}", path.display()));
    }
    let mut robots: Vec<&str> = auth.workloads.iter().map(|rule| rule.robot().as_str()).collect();
    robots.sort_unstable();
    if let Some(twice) = robots.windows(2).find(|pair| pair[0] == pair[1]) {
        refuse("auth.workloads", format!("two rules are about robot {}: give each its own", twice[0]));
    }
    if auth.service.is_empty()
        || auth.service.len() > 255
        || auth.service.bytes().any(|b| !b.is_ascii_graphic() || b == b'"')
    {
        refuse("auth.service", format!("{:?} must have 1 to 255 visible characters without quotes", auth.service));
    }
    if let Some(url) = &auth.token_url {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if rest.is_none_or(str::is_empty) || url.bytes().any(|b| !b.is_ascii_graphic() || b == b'"') {
            refuse("auth.token_url", format!("{url:?} is not an http or https URL"));
        }
    }
}

/// Checks the times of the federation against each other.
fn check_federation(config: &Config, origin: &impl Fn(&str) -> Origin, problems: &mut Vec<Problem>) {
    let federation = &config.federation;
    let mut demand = |holds: bool, key: &str, message: &str| {
        if !holds {
            problems.push(Problem::of_key(origin(key), key, message));
        }
    };
    let probes = federation.probe_interval >= federation.probe_round_trip * 2;
    demand(
        probes,
        "federation.probe_interval",
        "it goes with federation.probe_round_trip, of which it must be twice or more",
    );
    let heartbeats = federation.election_timeout_min >= federation.heartbeat_interval * 2;
    demand(
        heartbeats,
        "federation.election_timeout_min",
        "it goes with federation.heartbeat_interval, of which it must be twice or more",
    );
    let elections = federation.election_timeout_max > federation.election_timeout_min;
    demand(
        elections,
        "federation.election_timeout_max",
        "it goes with federation.election_timeout_min, than which it must be more",
    );
    let alive = federation.idle_timeout >= federation.keep_alive * 2;
    demand(alive, "federation.keep_alive", "it goes with federation.idle_timeout, of which it must be half or less");
}

#[cfg(test)]
mod tests;
