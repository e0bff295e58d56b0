//! `keppel serve`: a node as its configuration says.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::overrides::Overrides;
use crate::{app, config};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The configuration file; without it, variables and defaults decide.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

impl Serve {
    pub(super) fn run(self) -> Result<(), Failure> {
        let loaded = config::load(&self.overrides.sources(self.config)?)?;
        app::run(loaded, |_| ())?;
        Ok(())
    }
}
