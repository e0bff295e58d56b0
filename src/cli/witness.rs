//! `keppel witness`: a node that only votes, for federations of two regions.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use super::overrides::Overrides;
use crate::{app, config};

#[derive(Debug, Args)]
#[command(after_help = "It keeps no content and needs a third place, a data folder and federation.listen. \
                        Let it in with `keppel federation invite --role witness` and `keppel federation join`.")]
pub(super) struct Witness {
    /// The configuration file; without it, variables and defaults decide.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

impl Witness {
    pub(super) fn run(self) -> Result<(), Failure> {
        let loaded = config::load(&self.overrides.sources(self.config)?)?;
        app::run_witness(loaded)?;
        Ok(())
    }
}
