//! `keppel policy`: the policies of an account.

use std::io::Read as _;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::super::federation::failure;
use super::super::{Failure, say};
use super::Target;
use super::account::{load, path, save};
use super::output::{cell, print, print_json};

/// The longest file, in bytes: that of the settings of an account.
const FILE_BYTES_MAX: u64 = 256 * 1024;

#[derive(Debug, Args)]
pub(in super::super) struct Policy {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the policies of an account.
    List {
        /// The account.
        account: String,
        /// Of this kind only.
        kind: Option<Kind>,
    },
    /// Replace all policies of a kind.
    Set {
        /// The account.
        account: String,
        /// The kind.
        kind: Kind,
        /// The policies as a JSON list, in a file or (-) on standard input.
        #[arg(value_name = "FILE")]
        file: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Who may do what.
    Rbac,
    /// What is removed and what stays.
    Gc,
    /// Which tags may be pushed, moved and deleted.
    Tag,
    /// What vulnerabilities mean.
    Scan,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Rbac, Self::Gc, Self::Tag, Self::Scan];

    fn word(self) -> &'static str {
        match self {
            Self::Rbac => "rbac",
            Self::Gc => "gc",
            Self::Tag => "tag",
            Self::Scan => "scan",
        }
    }

    /// The field of the account; `None`: they have a path of their own.
    fn field(self) -> Option<&'static str> {
        match self {
            Self::Rbac => Some("rbac_policies"),
            Self::Gc => Some("gc_policies"),
            Self::Tag => Some("tag_policies"),
            Self::Scan => None,
        }
    }
}

fn scan_path(account: &str) -> String {
    format!("{}/security_scan_policies", path(account))
}

impl Policy {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.target.run(async |client, json| match command {
            Command::List { account, kind } => {
                let wanted = |kind_here: &Kind| kind.is_none_or(|kind| kind == *kind_here);
                let fields = load(client, &account).await?;
                let (mut document, mut rows) = (json!({}), Vec::new());
                for kind in Kind::ALL.into_iter().filter(wanted) {
                    let policies = match kind.field() {
                        Some(field) => fields.get(field).cloned(),
                        None => client.get(&scan_path(&account)).await?.get("policies").cloned(),
                    };
                    let policies = policies.unwrap_or_else(|| json!([]));
                    for (at, policy) in policies.as_array().into_iter().flatten().enumerate() {
                        rows.push([kind.word().to_owned(), (at + 1).to_string(), cell(policy)]);
                    }
                    document[kind.word()] = policies;
                }
                print(json, &document, ["KIND", "NO", "POLICY"], rows)
            }
            Command::Set { account, kind, file } => {
                let policies = read_json(&file)?;
                let Some(number) = policies.as_array().map(Vec::len) else {
                    return Err(failure(format!("{file} does not hold a JSON list")));
                };
                let written = match kind.field() {
                    Some(field) => {
                        let mut fields = load(client, &account).await?;
                        fields.insert(field.to_owned(), policies);
                        save(client, &account, fields, None).await?.get(field).cloned().unwrap_or_else(|| json!([]))
                    }
                    None => client.put(&scan_path(&account), &json!({ "policies": policies }), None).await?,
                };
                match json {
                    true => print_json(&written),
                    false => say(&format!("account {account} has {number} policies of this kind\n")),
                }
            }
        })
    }
}

/// Reads JSON from a file, or from standard input for `-`.
pub(super) fn read_json(file: &str) -> Result<Value, Failure> {
    let mut text = String::new();
    match file {
        "-" => std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?,
        path => {
            let file = std::fs::File::open(path).with_context(|| format!("cannot open {path}"))?;
            file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?
        }
    };
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failure(format!("{file} has more than {FILE_BYTES_MAX} bytes")));
    }
    serde_json::from_str(&text).map_err(|error| failure(format!("{file} is not JSON: {error}")))
}
