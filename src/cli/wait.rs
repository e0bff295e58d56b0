//! `keppel wait`: returns when regions hold everything of an image.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use keppel_federation::vocabulary::{Reference, Region, RepositoryName};

use super::federation::{ask_node, failure, lifetime, unexpected};
use super::overrides::Overrides;
use super::{Failure, say};
use crate::app::admin::{Answer, HoldingInfo, Request};
use crate::config;

/// Between two looks at what is missing.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// The configuration file of a node that runs; it says where its data folder is.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// The image, as ACCOUNT/NAME:TAG or ACCOUNT/NAME@DIGEST.
    image: String,
    /// A region that is to hold it; may be given several times. What it does not have is fetched.
    #[arg(long = "region", value_name = "REGION", required = true)]
    regions: Vec<String>,
    /// How long to wait, such as 30s, 10m or 2h.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = lifetime)]
    timeout: Duration,
}

impl Wait {
    pub(super) fn run(self) -> Result<(), Failure> {
        let config = config::load(&self.overrides.sources(self.config)?)?.config;
        let (repository, mut reference) = parse_image(&self.image)?;
        let regions = self.regions.iter().map(|region| Region::parse(region)).collect::<Result<Vec<_>, _>>();
        let regions = regions.context("--region")?;
        let start = Instant::now();
        loop {
            let (repository, regions) = (repository.clone(), regions.clone());
            let request = Request::Hold { repository, reference: reference.to_string(), regions };
            let (digest, holdings) = match ask_node(&config, &request)? {
                Answer::Held { digest, holdings } => (digest, holdings),
                other => return Err(unexpected(&other)),
            };
            // From now on it is this image, whatever becomes of the tag.
            reference = Reference::Digest(digest);
            if holdings.iter().all(|holding| holding.missing == Some(0)) {
                let lines = holdings.iter().map(|holding| {
                    format!("{}: {} manifests, {} blobs\n", holding.region, holding.manifests, holding.blobs)
                });
                return say(&format!("{digest}\n{}", lines.collect::<String>()));
            }
            if start.elapsed() >= self.timeout {
                let words: Vec<String> = holdings.iter().filter_map(in_words).collect();
                return Err(failure(format!("not within {:?}: {}", self.timeout, words.join("; "))));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

/// What a region lacks.
fn in_words(holding: &HoldingInfo) -> Option<String> {
    match (&holding.problem, holding.missing) {
        (Some(problem), _) => Some(format!("{} cannot be asked: {problem}", holding.region)),
        (None, Some(0)) => None,
        (None, missing) => Some(format!("{} lacks {} parts", holding.region, missing.unwrap_or_default())),
    }
}

fn parse_image(text: &str) -> Result<(RepositoryName, Reference), Failure> {
    let (name, reference) = match text.split_once('@') {
        Some((name, digest)) => (name, digest),
        None => text.rsplit_once(':').ok_or_else(|| failure(format!("{text:?} names no tag and no digest")))?,
    };
    let repository = RepositoryName::parse(name).context("the image")?;
    let reference = Reference::parse(reference).context("the image")?;
    Ok((repository, reference))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_tag_or_digest() {
        let parsed = |text: &str| parse_image(text).map(|(name, reference)| format!("{name} {reference}")).ok();
        assert_eq!(parsed("acme/app:v1").as_deref(), Some("acme/app v1"));
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(parsed(&format!("acme/app@{digest}")), Some(format!("acme/app {digest}")));
        assert_eq!(parsed("acme/app"), None);
        assert_eq!(parsed("acme/app@v1:"), None);
    }
}
