//! Has regions hold everything of an image.

use std::time::Duration;

use futures_util::future::join_all;
use keppel_federation::Federation;
use keppel_federation::claims::{Member, Role};
use keppel_federation::vocabulary::{Digest, Reference, Region, RepositoryName};

use super::messages::{Answer, Question, Refusal, decode, encode};
use super::refusals::reason_of;
use crate::registry::{ImageHolding, Registry};

/// How long one look may take; transfers go on beyond it.
const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// How much of an image a node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionHolding {
    /// The node's region.
    pub region: Region,
    /// How much; an error in words where that is not known.
    pub holding: Result<ImageHolding, String>,
}

/// The digest of an image, and how much of it all nodes of these regions hold, after they were told to fetch the rest.
///
/// Cancel safety: transfers that have begun go on.
///
/// # Errors
/// In words: there is no such image, or no node in one of the regions.
pub async fn hold_image(
    federation: &Federation,
    registry: &Registry,
    repository: &RepositoryName,
    reference: &Reference,
    regions: &[Region],
) -> Result<(Digest, Vec<RegionHolding>), String> {
    let manifest = registry.load_manifest(repository, reference).await.map_err(|error| error.to_string())?;
    let digest = manifest.digest;
    let members: Vec<Member> = federation.members().into_iter().filter(|member| member.role == Role::Full).collect();
    if let Some(region) = regions.iter().find(|region| !members.iter().any(|member| member.region == **region)) {
        return Err(format!("no node of the federation is in region {region}"));
    }
    let asked = members.iter().filter(|member| regions.contains(&member.region));
    let holding = asked.map(|member| async move {
        let holding = match member.node == federation.node() {
            true => registry.hold_image(repository, &digest).await.map_err(|error| error.to_string()),
            false => ask(federation, member, repository, digest).await,
        };
        RegionHolding { region: member.region.clone(), holding }
    });
    Ok((digest, join_all(holding).await))
}

async fn ask(
    federation: &Federation,
    member: &Member,
    repository: &RepositoryName,
    digest: Digest,
) -> Result<ImageHolding, String> {
    let question = Question::Hold { repository: repository.clone(), digest };
    let answer = federation.ask(member.node, encode(&question), LOOK_DEADLINE).await;
    match decode(&answer.map_err(|error| reason_of(&error))?).map_err(|error| error.to_string())? {
        Answer::Held { manifests, blobs, missing } => Ok(ImageHolding { manifests, blobs, missing }),
        // The manifest is on its way.
        Answer::Refused(Refusal::ManifestUnknown | Refusal::RepositoryUnknown) => {
            Ok(ImageHolding { missing: 1, ..ImageHolding::default() })
        }
        Answer::Refused(refusal) => Err(format!("{refusal:?}")),
        _ => Err("its answer does not fit the question".into()),
    }
}
