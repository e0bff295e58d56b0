//! `keppel janitor` and `keppel scrub`: what a running node does to keep itself clean, for its operator.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use keppel_federation::vocabulary::AccountName;

use super::federation::{ask_node, failure, unexpected};
use super::federation_tables::table;
use super::overrides::Overrides;
use super::{Failure, say};
use crate::app::admin::{Answer, Request};
use crate::config;
use crate::janitor::{JanitorStatus, RunReport, ScrubProgress};

/// Between two looks at how far a scrub has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const BAR_WIDTH: u64 = 30;

#[derive(Debug, Args)]
pub(super) struct Janitor {
    /// The configuration file of the node; it says where its data folder is.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all tasks: what is due, what they did, what is wrong.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a task now.
    Run {
        /// The task, as `keppel janitor status` names it.
        task: String,
        /// Over one account only.
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
        /// Only tell what would be done, and why.
        #[arg(long)]
        dry_run: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Scrub {
    /// The configuration file of the node; it says where its data folder is.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// The account.
    #[arg(long, value_name = "NAME")]
    account: String,
    /// Begin now. Without it, only show how far the last scrub has come.
    #[arg(long)]
    now: bool,
    /// As JSON, when it has ended.
    #[arg(long)]
    json: bool,
}

impl Janitor {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = config::load(&self.overrides.sources(self.config)?)?.config;
        match self.command {
            Command::Status { json } => match ask_node(&config, &Request::JanitorStatus)? {
                Answer::JanitorStatus { status } if json => print_json(&status),
                Answer::JanitorStatus { status } => say(&status_text(&status)),
                other => Err(unexpected(&other)),
            },
            Command::Run { task, account, dry_run, json } => {
                let account = account.map(|name| AccountName::parse(&name)).transpose().context("--account")?;
                match ask_node(&config, &Request::JanitorRun { task, account, dry_run })? {
                    Answer::JanitorRun { report: Some(report) } if json => print_json(&report),
                    Answer::JanitorRun { report: Some(report) } => say(&report_text(&report, dry_run)),
                    Answer::JanitorRun { report: None } => {
                        say("it goes on; `keppel janitor status` shows when it has ended\n")
                    }
                    other => Err(unexpected(&other)),
                }
            }
        }
    }
}

impl Scrub {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = config::load(&self.overrides.sources(self.config)?)?.config;
        let account = AccountName::parse(&self.account).context("--account")?;
        if self.now {
            match ask_node(&config, &Request::Scrub { account: account.clone() })? {
                Answer::Done => {}
                other => return Err(unexpected(&other)),
            }
        }
        let draws = std::io::stderr().is_terminal() && !self.json;
        loop {
            let progress = match ask_node(&config, &Request::ScrubProgress { account: account.clone() })? {
                Answer::ScrubProgress { progress: Some(progress) } => progress,
                Answer::ScrubProgress { progress: None } => {
                    let words = format!("account {account} was not scrubbed since this node was started: add --now");
                    return Err(failure(words));
                }
                other => return Err(unexpected(&other)),
            };
            if draws {
                eprint!("\r{}", bar(&progress));
                std::io::stderr().flush()?;
            }
            if progress.done || !self.now {
                if draws {
                    eprintln!();
                }
                return end(&progress, self.json);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// Tells what a scrub found. That something is bad still is a failure of the command.
fn end(progress: &ScrubProgress, json: bool) -> Result<(), Failure> {
    match json {
        true => print_json(progress)?,
        false => say(&scrub_text(progress))?,
    }
    match (&progress.error, progress.bad.saturating_sub(progress.healed)) {
        (Some(error), _) => Err(failure(format!("the scrub ended early: {error}"))),
        (None, 0) => Ok(()),
        (None, left) => Err(failure(format!("{left} bad blobs could not be repaired"))),
    }
}

fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    say(&format!("{}\n", serde_json::to_string_pretty(document).context("the answer")?))
}

fn bar(progress: &ScrubProgress) -> String {
    let filled = match progress.bytes_total {
        0 => BAR_WIDTH,
        total => (progress.bytes_done.min(total) as f64 / total as f64 * BAR_WIDTH as f64) as u64,
    };
    let (full, rest) = ("#".repeat(filled as usize), ".".repeat((BAR_WIDTH - filled) as usize));
    let ScrubProgress { blobs_done, blobs_total, bad, healed, .. } = progress;
    format!("[{full}{rest}] {blobs_done}/{blobs_total} blobs, {bad} bad, {healed} repaired")
}

fn scrub_text(progress: &ScrubProgress) -> String {
    let ScrubProgress { manifests_done, blobs_done, blobs_total, bytes_done, bad, healed, .. } = progress;
    let mut text: String = progress.lines.iter().map(|line| format!("{line}\n")).collect();
    text.push_str(&format!(
        "{manifests_done} manifests and {blobs_done} of {blobs_total} blobs ({bytes_done} bytes) looked at; {bad} bad, \
         {healed} repaired\n"
    ));
    text
}

fn report_text(report: &RunReport, dry_run: bool) -> String {
    let RunReport { looked_at, changed, reclaimed_bytes, faults, .. } = report;
    let mut text: String = report.lines.iter().map(|line| format!("{line}\n")).collect();
    if report.truncated {
        text.push_str("… and more\n");
    }
    let (changes, back) = match dry_run {
        true => ("would be changed", String::new()),
        false => ("changed", format!(", {reclaimed_bytes} bytes given back")),
    };
    text.push_str(&format!("{looked_at} looked at, {changed} {changes}{back}, {faults} faults\n"));
    text
}

fn status_text(status: &JanitorStatus) -> String {
    let optional = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let rows = status.tasks.iter().map(|task| {
        [
            task.task.clone(),
            task.interval_seconds.to_string(),
            optional(task.due),
            optional(task.oldest_due_seconds),
            task.runs.to_string(),
            task.failures.to_string(),
            task.changed.to_string(),
            task.reclaimed_bytes.to_string(),
            task.last_run_at.map_or_else(|| "-".to_owned(), crate::auth::rfc3339),
            task.last_error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let head =
        ["TASK", "EVERY s", "DUE", "OLDEST s", "RUNS", "FAILED", "CHANGED", "BYTES BACK", "LAST RUN", "LAST ERROR"];
    let mut text = table(head, rows);
    for account in &status.deleting {
        let waits = account.waits_for.as_ref().map_or_else(String::new, |what| format!("; waits for {what}"));
        text.push_str(&format!(
            "deleting account {}: {} manifests, {} bytes left{waits}\n",
            account.account, account.manifests, account.size_bytes
        ));
    }
    let JanitorStatus { broken_blobs, invalid_manifests, .. } = status;
    text.push_str(&format!("{broken_blobs} bad blobs, {invalid_manifests} invalid manifests\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_filled_by_bytes_and_full_when_there_are_none() {
        let progress = |bytes_done, bytes_total| ScrubProgress { bytes_done, bytes_total, ..ScrubProgress::default() };
        let filled = |progress: &ScrubProgress| bar(progress).matches('#').count();
        assert_eq!(filled(&progress(0, 10)), 0);
        assert_eq!(filled(&progress(5, 10)), 15);
        assert_eq!(filled(&progress(20, 10)), 30);
        assert_eq!(filled(&progress(0, 0)), 30);
    }

    #[test]
    fn a_status_shows_accounts_on_their_way_out() {
        let deleting = crate::janitor::DeletingAccount {
            account: "acme".into(),
            manifests: 3,
            size_bytes: 70,
            waits_for: Some("replicas in us".into()),
        };
        let text = status_text(&JanitorStatus { deleting: vec![deleting], ..JanitorStatus::default() });
        assert!(text.contains("deleting account acme: 3 manifests, 70 bytes left; waits for replicas in us"), "{text}");
    }
}
