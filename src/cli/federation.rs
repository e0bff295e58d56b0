//! `keppel federation`: who is in it, how it fares, and what an operator decides.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};

use super::Failure;
use super::federation_tables::{accounts_table, copies_table, invitations_table, members_table, status_text};
use super::overrides::Overrides;
use crate::app::admin::{AccountInfo, AdminError, Answer, InvitedRole, Request, ask};
use crate::app::{self, OfflineError};
use crate::config::{self, Config};

const INVITATION_BYTES_MAX: u64 = 16 << 10;

#[derive(Debug, Args)]
pub(super) struct Federation {
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
    /// Make this node's key and found a federation of one. A first start does the same.
    Init,
    /// Make an invitation for one node, good once. Whoever has the text can use it.
    Invite {
        /// The region of the new node.
        #[arg(long)]
        region: String,
        /// What the new node is.
        #[arg(long, value_enum, default_value_t = RoleWord::Full)]
        role: RoleWord,
        /// How long it is good for, such as 30m, 24h or 7d.
        #[arg(long = "for", value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
        lifetime: Duration,
    },
    /// List the invitations that were made: open ones first. Removing a member takes back those that it made.
    Invitations {
        /// Take one back instead: its id, or the beginning of it.
        #[arg(long, value_name = "ID", conflicts_with = "json")]
        revoke: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Join the federation that made an invitation; whether this node runs or not.
    Join {
        /// The invitation, or - to read it from standard input.
        invitation: String,
    },
    /// List the members.
    Members,
    /// End a node's membership: it is cut off at once. Tokens that it signed and invitations that it made end with it.
    Remove {
        /// Its id, or the beginning of it.
        node: String,
    },
    /// Show how the federation fares.
    Status {
        /// As JSON, in full.
        #[arg(long)]
        json: bool,
    },
    /// Decide who votes.
    Voters {
        /// The nodes that vote, by id or its beginning; "auto" lets the federation choose.
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// List the accounts that are claimed, and where their primary is.
    Accounts {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make this node, which must not run, another node: after it was removed, or to join another federation.
    ResetIdentity {
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// When most voters are lost for good: make this node, which must not run, the only one of its federation.
    Recover {
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleWord {
    /// Stores content, may own accounts, may vote.
    Full,
    /// Only votes, for federations of two regions.
    Witness,
}

pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    let unit = text.chars().last().unwrap_or(' ');
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err("write a number and s, m, h or d, such as 24h".into()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| "write a number and s, m, h or d, such as 24h")?;
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| "that is too long".into())
}

impl Federation {
    pub(super) fn run(self) -> Result<(), Failure> {
        let loaded = config::load(&self.overrides.sources(self.config)?)?;
        let config = loaded.config;
        match self.command {
            Command::Init => init(&config),
            Command::Invite { region, role, lifetime } => invite(&config, &region, role, lifetime),
            Command::Invitations { revoke: Some(id), .. } => {
                expect_done(&config, &Request::RevokeInvitation { id }, "revoked")
            }
            Command::Invitations { json, .. } => invitations(&config, json),
            Command::Join { invitation } => join(&config, &invitation),
            Command::Members => members(&config),
            Command::Remove { node } => expect_done(&config, &Request::Remove { node }, "removed"),
            Command::Status { json } => status(&config, json),
            Command::Voters { nodes } => {
                let nodes = if nodes == ["auto"] { Vec::new() } else { nodes };
                expect_done(&config, &Request::SetVoters { nodes }, "decided")
            }
            Command::Accounts { json } => accounts(&config, json),
            Command::ResetIdentity { yes } => reset_identity(&config, yes),
            Command::Recover { yes } => recover(&config, yes),
        }
    }
}

/// Asks the node that runs; a refusal is a failure of the command.
pub(super) fn ask_node(config: &Config, request: &Request) -> Result<Answer, Failure> {
    match ask(&config.node.data, request) {
        Ok(Answer::Refused { reason }) => Err(failure(reason)),
        Ok(answer) => Ok(answer),
        Err(error @ AdminError::NotRunning { .. }) => {
            let advice = "start it with `keppel serve`, or name its data folder with --data or --config";
            Err(failure(format!("{error}\n  {advice}")))
        }
        Err(error) => Err(Failure::Runtime(error.into())),
    }
}

pub(super) fn failure(words: String) -> Failure {
    Failure::Runtime(anyhow::anyhow!(words))
}

pub(super) fn unexpected(answer: &Answer) -> Failure {
    failure(format!("the keppel that runs is of another version: it answered {answer:?}"))
}

fn expect_done(config: &Config, request: &Request, word: &str) -> Result<(), Failure> {
    match ask_node(config, request)? {
        Answer::Done => {
            println!("{word}");
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn init(config: &Config) -> Result<(), Failure> {
    let (node, region) = app::block_on(config, app::init(config)).map_err(offline)?;
    println!("node {node} in region {region}");
    Ok(())
}

fn offline(error: OfflineError) -> Failure {
    match error {
        OfflineError::Start(error) => app::RunError::from(error).into(),
        other => Failure::Runtime(other.into()),
    }
}

fn invite(config: &Config, region: &str, role: RoleWord, lifetime: Duration) -> Result<(), Failure> {
    let region = keppel_federation::vocabulary::Region::parse(region).context("--region")?;
    let role = match role {
        RoleWord::Full => InvitedRole::Full,
        RoleWord::Witness => InvitedRole::Witness,
    };
    match ask_node(config, &Request::Invite { region, role, lifetime_s: lifetime.as_secs() })? {
        Answer::Invitation { text } => {
            println!("{text}");
            if std::io::stdout().is_terminal() {
                eprintln!("\nOn the new node: keppel federation join INVITATION, with its own --config or --data.");
            }
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn join(config: &Config, invitation: &str) -> Result<(), Failure> {
    let mut text = invitation.to_owned();
    if invitation == "-" {
        text.clear();
        std::io::stdin().take(INVITATION_BYTES_MAX).read_to_string(&mut text)?;
    }
    let (node, region) = match ask(&config.node.data, &Request::Join { invitation: text.clone() }) {
        Ok(Answer::Joined { node, region }) => (node, region),
        Ok(Answer::Refused { reason }) => return Err(failure(reason)),
        Ok(other) => return Err(unexpected(&other)),
        Err(AdminError::NotRunning { .. }) => app::block_on(config, app::join(config, &text)).map_err(offline)?,
        Err(error) => return Err(Failure::Runtime(error.into())),
    };
    println!("joined as node {node} in region {region}");
    Ok(())
}

fn invitations(config: &Config, json: bool) -> Result<(), Failure> {
    match ask_node(config, &Request::Invitations)? {
        Answer::Invitations { invitations } if json => {
            println!("{}", serde_json::to_string_pretty(&invitations).context("the invitations")?);
            Ok(())
        }
        Answer::Invitations { invitations } => {
            print!("{}", invitations_table(&invitations));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn members(config: &Config) -> Result<(), Failure> {
    match ask_node(config, &Request::Members)? {
        Answer::Members { members } => {
            print!("{}", members_table(&members));
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}

fn status(config: &Config, json: bool) -> Result<(), Failure> {
    let (status, copies) = match ask_node(config, &Request::Status)? {
        Answer::Status { status, copies } => (status, copies),
        other => return Err(unexpected(&other)),
    };
    if json {
        let mut document = serde_json::to_value(&status).context("the status")?;
        document["copies"] = serde_json::to_value(&copies).context("the copies")?;
        println!("{}", serde_json::to_string_pretty(&document).context("the status")?);
    } else {
        print!("{}", status_text(&status));
        if !copies.is_empty() {
            print!("\n{}", copies_table(&copies));
        }
    }
    Ok(())
}

/// Page by page, so that a federation of any size is listed.
/// All accounts that are claimed.
pub(super) fn accounts_of(config: &Config) -> Result<Vec<AccountInfo>, Failure> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = match ask_node(config, &Request::Accounts { after })? {
            Answer::Accounts { accounts } => accounts,
            other => return Err(unexpected(&other)),
        };
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        all.extend(page);
    }
    Ok(all)
}

fn accounts(config: &Config, json: bool) -> Result<(), Failure> {
    let all = accounts_of(config)?;
    match json {
        true => println!("{}", serde_json::to_string_pretty(&all).context("the accounts")?),
        false => print!("{}", accounts_table(&all)),
    }
    Ok(())
}

fn reset_identity(config: &Config, yes: bool) -> Result<(), Failure> {
    let reset = |confirmed| app::reset_identity(config, confirmed).map_err(offline);
    println!("{}\n", reset(false)?);
    if !yes {
        confirm(config, "To go on")?;
    }
    reset(true)?;
    println!("The next start makes this another node.");
    Ok(())
}

/// Has the operator type the region's name.
fn confirm(config: &Config, so_that: &str) -> Result<(), Failure> {
    let word = config.federation.region.as_str();
    print!("{so_that}, type this region's name ({word}): ");
    std::io::stdout().flush()?;
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed)?;
    match typed.trim() == word {
        true => Ok(()),
        false => Err(failure("nothing was changed".to_owned())),
    }
}

fn recover(config: &Config, yes: bool) -> Result<(), Failure> {
    let recover = |confirmed| app::recover(config, confirmed).map_err(offline);
    println!("{}\n", recover(false)?);
    if !yes {
        confirm(config, "Only do this when the other voters are lost for good. To go on")?;
    }
    recover(true)?;
    println!("This node is now the only member and voter of its federation: start it, and invite the others anew.");
    Ok(())
}
