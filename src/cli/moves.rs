//! `keppel account move`, `failover` and `divergent`: one primary after another, asked of a node that runs here.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use keppel_federation::vocabulary::{AccountName, Region};

use super::client::ask;
use super::federation::{ask_node, failure, unexpected};
use super::federation_tables::table;
use super::overrides::Overrides;
use super::{Failure, say};
use crate::app::admin::{Answer, CandidateInfo, DivergentEntry, Readiness, Request};
use crate::config::{self, Config};

/// Looks at which nothing more had come, after which it is said that nothing comes.
const FRUITLESS_MAX: u32 = 3;
/// Between two looks at a node that is catching up.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Entries that are listed.
const ENTRIES_MAX: usize = 1000;

/// The node that is asked.
#[derive(Debug, Args)]
struct Node {
    /// The configuration file of a node that runs; it says where its data folder is.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

impl Node {
    fn config(self) -> Result<Config, Failure> {
        Ok(config::load(&self.overrides.sources(self.config)?)?.config)
    }
}

fn account(name: &str) -> Result<AccountName, Failure> {
    Ok(AccountName::parse(name).context("the account")?)
}

fn find(config: &Config, account: &AccountName, to: &str) -> Result<CandidateInfo, Failure> {
    let region = Region::parse(to).context("--to")?;
    match ask_node(config, &Request::FindCandidate { account: account.clone(), region })? {
        Answer::Candidate { candidate } => Ok(candidate),
        other => Err(unexpected(&other)),
    }
}

fn install(
    config: &Config,
    account: &AccountName,
    to: &CandidateInfo,
    (by_force, regardless): (bool, bool),
) -> Result<(), Failure> {
    let request = Request::Install { account: account.clone(), node: to.node, epoch: to.epoch, by_force, regardless };
    match ask_node(config, &request)? {
        Answer::Moved { epoch } => {
            say(&format!("region {} is the primary of account {account} now, in epoch {epoch}\n", to.region))
        }
        other => Err(unexpected(&other)),
    }
}

#[derive(Debug, Args)]
pub(super) struct Move {
    /// The account.
    name: String,
    /// The region that is to be the primary.
    #[arg(long, value_name = "REGION")]
    to: String,
    /// Move it although blobs are missing there that no region gives.
    #[arg(long)]
    without_missing: bool,
    #[command(flatten)]
    node: Node,
}

impl Move {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.node.config()?;
        let account = account(&self.name)?;
        let to = find(&config, &account, &self.to)?;
        let mut bar = Bar::new();
        let (mut least, mut fruitless) = (None, 0);
        loop {
            let request = Request::Prepare { account: account.clone(), node: to.node };
            let readiness = match ask_node(&config, &request)? {
                Answer::Prepared { readiness } => readiness,
                other => return Err(unexpected(&other)),
            };
            bar.show(&readiness)?;
            if readiness.is_complete && readiness.missing_blobs == 0 {
                break;
            }
            let left = (!readiness.is_complete, readiness.missing_blobs, std::cmp::Reverse(readiness.manifests));
            fruitless = if least.is_none_or(|least| left < least) { 0 } else { fruitless + 1 };
            least = Some(least.map_or(left, |least| left.min(least)));
            if fruitless >= FRUITLESS_MAX {
                if readiness.is_complete && self.without_missing {
                    break;
                }
                bar.end()?;
                return Err(failure(stuck(&account, &readiness)));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        bar.end()?;
        install(&config, &account, &to, (false, false))
    }
}

fn stuck(account: &AccountName, readiness: &Readiness) -> String {
    match readiness.is_complete {
        false => format!(
            "the region does not get the manifests of account {account}: its primary cannot be followed\n  \
             `keppel federation status` tells more"
        ),
        true => format!(
            "{} blobs of account {account} are missing there, and no region gives them\n  \
             run this again when more regions can be reached, or add --without-missing",
            readiness.missing_blobs
        ),
    }
}

/// Tells how far a region is: a line that is written over on a terminal, and a few lines elsewhere.
struct Bar {
    is_terminal: bool,
    last: String,
}

impl Bar {
    fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), last: String::new() }
    }

    fn show(&mut self, readiness: &Readiness) -> Result<(), Failure> {
        let line = progress(readiness);
        if line != self.last {
            match self.is_terminal {
                true => eprint!("\r\x1b[K{line}"),
                false => eprintln!("{line}"),
            }
            std::io::stderr().flush()?;
            self.last = line;
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Failure> {
        if self.is_terminal && !self.last.is_empty() {
            eprintln!();
        }
        Ok(())
    }
}

fn progress(readiness: &Readiness) -> String {
    let Readiness { blobs, blob_bytes, missing_blobs, missing_bytes, manifests, .. } = *readiness;
    if !readiness.is_complete {
        return format!("manifests and tags come: {manifests} manifests so far");
    }
    let (here, here_bytes) = (blobs - missing_blobs.min(blobs), blob_bytes - missing_bytes.min(blob_bytes));
    let share = if blob_bytes == 0 { 1.0 } else { here_bytes as f64 / blob_bytes as f64 };
    let filled = (share * 20.0) as usize;
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(20 - filled.min(20)));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!("[{bar}] {here} of {blobs} blobs, {:.1} of {:.1} MiB", mib(here_bytes), mib(blob_bytes))
}

#[derive(Debug, Args)]
pub(super) struct Failover {
    /// The account.
    name: String,
    /// The region that is to be the primary.
    #[arg(long, value_name = "REGION")]
    to: String,
    /// Do it without asking.
    #[arg(long)]
    yes: bool,
    /// Do it although the region has no whole copy of the account, or another one may have more: what it does not have is not
    /// served any more.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    node: Node,
}

impl Failover {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = self.node.config()?;
        let account = account(&self.name)?;
        let to = find(&config, &account, &self.to)?;
        say(&what_may_be_lost(&account, &to))?;
        if !to.readiness.is_complete && !self.force {
            let advice = "choose a region that follows it, or add --force to lose what is not there";
            return Err(failure(format!("region {} has no whole copy of account {account}\n  {advice}", to.region)));
        }
        let what = format!("account {account} over to region {}", to.region);
        ask(self.yes, "fail", &what, "nothing was changed")?;
        install(&config, &account, &to, (true, self.force))
    }
}

fn what_may_be_lost(account: &AccountName, to: &CandidateInfo) -> String {
    let Readiness { behind_events, behind_ms, missing_blobs, missing_bytes, blobs, manifests, is_complete, .. } =
        to.readiness;
    let mut text = format!("Account {account}: region {} is the primary, region {} would be.\n", to.primary, to.region);
    if to.primary_answers {
        text.push_str("The primary answers: `keppel account move` would lose nothing.\n");
    }
    match (is_complete, behind_events, behind_ms) {
        (false, ..) => text.push_str(&format!("Its copy is not whole: it has {manifests} manifests.\n")),
        (true, events, Some(ms)) => text.push_str(&format!(
            "Its copy has {manifests} manifests and was last known to be whole {:.1} s ago; {} changes that it has heard of are not in it.\n",
            ms as f64 / 1000.0,
            events.unwrap_or_default()
        )),
        (true, ..) => text.push_str(&format!(
            "Its copy has {manifests} manifests; since that region started it has not heard from the primary.\n"
        )),
    }
    text.push_str(&format!("Of {blobs} blobs that it needs, {missing_blobs} are not there ({missing_bytes} bytes).\n"));
    text.push_str(&format!(
        "What the primary or another region has beyond that is listed there once it follows region {}: see \
         `keppel account divergent` there. What only a region has that never returns is lost.\n",
        to.region
    ));
    text
}

#[derive(Debug, Args)]
pub(super) struct Divergent {
    /// The account.
    name: String,
    /// Push it to the primary. Tags that were moved there since are moved back.
    #[arg(long, conflicts_with = "drop")]
    push: bool,
    /// Drop it for good.
    #[arg(long)]
    drop: bool,
    /// Do not ask before it is dropped.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    node: Node,
}

impl Divergent {
    pub(super) fn run(self, json: bool) -> Result<(), Failure> {
        let config = self.node.config()?;
        let account = account(&self.name)?;
        if self.push {
            return push(&config, &account);
        }
        if self.drop {
            ask(self.yes, "drop", &format!("what only this region has of account {account}"), "nothing was dropped")?;
            return match ask_node(&config, &Request::DropDivergent { account })? {
                Answer::Dropped { count } => say(&format!("{count} changes were dropped\n")),
                other => Err(unexpected(&other)),
            };
        }
        match ask_node(&config, &Request::ListDivergent { account, limit: ENTRIES_MAX })? {
            Answer::Divergent { entries, .. } if json => {
                say(&format!("{}\n", serde_json::to_string_pretty(&entries).context("the list")?))
            }
            Answer::Divergent { entries, count } => {
                let mut text = entries_table(&entries);
                if count > entries.len() as u64 {
                    text.push_str(&format!("and {} more\n", count - entries.len() as u64));
                }
                say(&text)
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn entries_table(entries: &[DivergentEntry]) -> String {
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = entries.iter().map(|entry| {
        let DivergentEntry { at, repository, what, tag, digest, there } = entry.clone();
        let (digest, there) = (digest.map(|digest| digest.to_string()), there.map(|digest| digest.to_string()));
        [repository, what, dash(tag), dash(digest), at.to_string(), dash(there)]
    });
    table(["REPOSITORY", "WHAT", "TAG", "MANIFEST", "AT", "THE PRIMARY'S TAG"], rows)
}

/// Step by step, as long as something is taken.
fn push(config: &Config, account: &AccountName) -> Result<(), Failure> {
    let mut pushed = 0;
    loop {
        let outcome = match ask_node(config, &Request::PushDivergent { account: account.clone() })? {
            Answer::PushedAgain { outcome } => outcome,
            other => return Err(unexpected(&other)),
        };
        pushed += outcome.pushed;
        if outcome.is_over || outcome.pushed == 0 {
            say(&format!("{pushed} changes were pushed\n"))?;
            let words = |(entry, reason): &(DivergentEntry, String)| {
                let name = entry.tag.clone().or(entry.digest.map(|digest| digest.to_string())).unwrap_or_default();
                format!("{} {} {name}: {reason}", entry.what, entry.repository)
            };
            let failed: Vec<String> = outcome.failed.iter().map(words).collect();
            return match failed.is_empty() {
                true => Ok(()),
                false => Err(failure(format!("{} stay on the list:\n  {}", failed.len(), failed.join("\n  ")))),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_blobs_and_bytes() {
        let readiness = Readiness {
            is_complete: true,
            blobs: 4,
            blob_bytes: 8 << 20,
            missing_blobs: 1,
            missing_bytes: 2 << 20,
            ..Readiness::default()
        };
        assert_eq!(progress(&readiness), "[###############.....] 3 of 4 blobs, 6.0 of 8.0 MiB");
        assert_eq!(
            progress(&Readiness { is_complete: true, ..Readiness::default() }),
            "[####################] 0 of 0 blobs, 0.0 of 0.0 MiB"
        );
    }
}
