//! The commands, and how their outcome is told: in words on standard error, and as an exit code.
//!
//! Exit codes: 0 done, 1 something failed while running, 2 the command line or the configuration is wrong.

mod client;
mod completion;
mod config;
mod dev;
mod federation;
mod federation_tables;
mod janitor;
mod moves;
mod overrides;
mod people;
mod serve;
mod tenants;
mod wait;
mod witness;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::{DataFolderError, RunError, StartError};
use crate::config::Problems;

/// A regionally federated container image registry.
#[derive(Debug, Parser)]
#[command(name = "keppel", version, max_term_width = 100, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a registry to play with: nothing to configure, anyone may push and pull.
    Dev(dev::Dev),
    /// Start a registry in production.
    Serve(serve::Serve),
    /// Start a node that only votes, for federations of two regions.
    Witness(witness::Witness),
    /// Invite nodes, join, remove, and see how the federation fares.
    Federation(federation::Federation),
    /// Make, change and remove users, and their tokens.
    User(people::User),
    /// Make, rotate and remove robots: accounts for programs.
    Robot(people::Robot),
    /// List tenants, show who belongs to them, and dissolve them.
    Tenant(tenants::Tenant),
    /// List the keys that tokens are signed with, and revoke them.
    Key(people::Key),
    /// Log in to a registry.
    Login(client::Login),
    /// Forget a login.
    Logout(client::Logout),
    /// List, show, make, change, move and delete accounts.
    Account(client::Account),
    /// List and delete repositories.
    Repo(client::Repo),
    /// List and delete tags.
    Tag(client::Tag),
    /// List, show and delete images.
    Manifest(client::Manifest),
    /// Show and set what a tenant may have.
    Quota(client::Quota),
    /// List and replace the policies of accounts.
    Policy(client::Policy),
    /// List the other nodes of a registry's federation.
    Peers(client::Peers),
    /// Show how the tasks fare that keep a node clean, and run them.
    Janitor(janitor::Janitor),
    /// Look at all that an account keeps on a node, and have repaired what is bad.
    Scrub(janitor::Scrub),
    /// Wait until regions hold everything of an image.
    Wait(wait::Wait),
    /// Print what a shell needs to complete these commands.
    Completion(completion::Completion),
    /// Check a configuration, show what is in force, or print an example.
    #[command(subcommand)]
    Config(config::Config),
    /// Print the version.
    Version,
}

/// Why a command did not do its job.
#[derive(Debug)]
enum Failure {
    /// The configuration is wrong.
    Config(Problems),
    /// Something failed while running.
    Runtime(anyhow::Error),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Runtime(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::Runtime(with_advice(error))
    }
}

/// Adds what to do about it, where that is known.
fn with_advice(error: RunError) -> anyhow::Error {
    let advice = match &error {
        RunError::Start(error) if error.is_address_in_use() => {
            "another program listens there; end it, or choose another address, such as --listen 127.0.0.1:5001"
        }
        RunError::Start(StartError::DataFolder(DataFolderError::Locked { .. })) => {
            "end the other keppel, or choose another folder with --data"
        }
        RunError::Start(StartError::DataFolder(DataFolderError::Io { .. })) => {
            "choose a folder that you may write to, with --data or node.data"
        }
        RunError::Start(StartError::MetadataLost { .. }) => {
            "put the database back, or name its place with metadata.path; to begin anew, move the storage folder away"
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("{:#}\n  {advice}", anyhow::Error::from(error))
}

/// Writes to standard output. A reader that has seen enough (`keppel config show | head`) is no failure.
fn say(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs the command that `arguments` (the program's name first) ask for, to its end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too, and are no failure. Where nobody listens there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let outcome = match arguments.command {
        Command::Dev(dev) => dev.run(),
        Command::Serve(serve) => serve.run(),
        Command::Witness(witness) => witness.run(),
        Command::Federation(federation) => federation.run(),
        Command::User(user) => user.run(),
        Command::Robot(robot) => robot.run(),
        Command::Tenant(tenant) => tenant.run(),
        Command::Key(key) => key.run(),
        Command::Login(login) => login.run(),
        Command::Logout(logout) => logout.run(),
        Command::Account(account) => account.run(),
        Command::Repo(repo) => repo.run(),
        Command::Tag(tag) => tag.run(),
        Command::Manifest(manifest) => manifest.run(),
        Command::Quota(quota) => quota.run(),
        Command::Policy(policy) => policy.run(),
        Command::Peers(peers) => peers.run(),
        Command::Janitor(janitor) => janitor.run(),
        Command::Scrub(scrub) => scrub.run(),
        Command::Wait(wait) => wait.run(),
        Command::Completion(completion) => completion.run(),
        Command::Config(config) => config.run(),
        Command::Version => say(&format!("keppel {}\n", env!("CARGO_PKG_VERSION"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(problems)) => {
            eprintln!("{problems}");
            let count = problems.0.len();
            eprintln!("error: the configuration has {count} problem{}", if count == 1 { "" } else { "s" });
            ExitCode::from(2)
        }
        Err(Failure::Runtime(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
