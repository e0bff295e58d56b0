//! `keppel config`: about a configuration, without starting anything.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::overrides::Overrides;
use super::{Failure, say};
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Say "ok", or everything that is wrong, with file, line and key.
    Check(Named),
    /// Print what is in force, each value with what set it.
    Show(Named),
    /// Print a commented file with every key at its default.
    Example,
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The configuration file; without it, what variables and defaults give.
    #[arg(env = "KEPPEL_CONFIG")]
    file: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

impl Config {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Check(named) => {
                for warning in named.load()?.warnings {
                    eprintln!("warning: {warning}");
                }
                say("ok\n")
            }
            Self::Show(named) => say(&config::show(&named.load()?.entries)),
            Self::Example => say(&config::example()),
        }
    }
}

impl Named {
    fn load(self) -> Result<config::Loaded, Failure> {
        Ok(config::load(&self.overrides.sources(self.file)?)?)
    }
}
