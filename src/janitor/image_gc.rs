//! Deletes the images that an account's retention policies say so about, and notes on all others why they stay.
//!
//! It is the primary that decides; the other regions follow. Images are looked at page by page, so that a repository may
//! have any number of them. An image is deleted only while it is still what it was when that was decided.

use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};

use crate::metadata::{ManifestId, MetadataError};
use crate::model::policy::{CompiledPolicies, ImageFacts, Reason, Retention, Verdict};
use crate::registry::{Registry, RegistryError, image_facts};

use super::report::RunReport;

/// Images that are looked at together.
const PAGE: usize = 200;

/// An image and what was last noted about it.
struct Image {
    id: ManifestId,
    facts: ImageFacts,
    status: Option<String>,
}

/// Runs once over a repository. A dry run only tells, image by image, what would become of it and why.
///
/// # Errors
/// Our own trouble; the next run goes on.
pub async fn run(registry: &Registry, repository: &RepositoryName, dry_run: bool) -> Result<RunReport, RegistryError> {
    let mut report = RunReport::default();
    if registry.is_elsewhere(&repository.account()) {
        return Ok(report);
    }
    registry.flush_pull_times().await?;
    let policies = registry.policies(&repository.account())?;
    let policies: Arc<CompiledPolicies> = policies.unwrap_or_default();
    let mut retention = Retention::new(&policies, repository.path(), registry.now());
    while retention.wants_to_see_all() {
        let mut after = None;
        while let Some(images) = page(registry, repository, &mut after).await? {
            images.iter().for_each(|image| retention.show(&image.facts));
        }
        retention.close();
    }
    let mut after = None;
    while let Some(images) = page(registry, repository, &mut after).await? {
        report.looked_at += images.len() as u64;
        let (mut delete, mut told) = (Vec::new(), Vec::new());
        for Image { id, facts, status } in images {
            let verdict = retention.decide(&facts);
            if dry_run {
                report.changed += u64::from(verdict.delete);
                report.say(explain(repository, &facts, &verdict));
                continue;
            }
            let text = serde_json::to_string(&verdict.status).unwrap_or_else(|_| "{}".to_owned());
            match verdict.delete {
                true => delete.push((id, facts)),
                false if status.as_ref() == Some(&text) => {}
                false => told.push((id, text)),
            }
        }
        if !delete.is_empty() {
            let (gone, bytes) = registry.collect_images(repository, delete).await?;
            report.changed += gone.len() as u64;
            report.reclaimed_bytes += bytes;
            for facts in gone {
                tracing::info!(%repository, digest = %facts.digest, tags = facts.tags.join(" "), "retention deleted an image");
            }
        }
        if !told.is_empty() {
            let noted = registry.metadata().write(move |transaction| {
                told.iter().try_for_each(|(id, status)| transaction.put_gc_status(*id, status))
            });
            noted.await.map_err(|error: MetadataError| RegistryError::from(error))?;
        }
    }
    Ok(report)
}

/// What is said of an account that this region does not decide about.
pub(super) fn decided_elsewhere(account: &AccountName, region: &str) -> String {
    format!("{account}: its images are collected where its primary is: ask in region {region}")
}

/// The images that follow, in the order of their digests; `None` at the end.
async fn page(
    registry: &Registry,
    repository: &RepositoryName,
    after: &mut Option<Digest>,
) -> Result<Option<Vec<Image>>, RegistryError> {
    let (name, from) = (repository.clone(), *after);
    let read = registry.metadata().read(move |reader| {
        let Some(id) = reader.get_repository(&name)? else { return Ok::<_, MetadataError>(Vec::new()) };
        let mut images = Vec::with_capacity(PAGE);
        for row in reader.list_images(id, from.as_ref(), PAGE)? {
            if let Some(facts) = image_facts(reader, row.id)? {
                images.push(Image { id: row.id, facts, status: row.gc_status });
            }
        }
        Ok(images)
    });
    let images = read.await.map_err(RegistryError::Metadata)?;
    let Some(last) = images.last() else { return Ok(None) };
    *after = Some(last.facts.digest);
    Ok(Some(images))
}

/// One line on what becomes of an image, and why.
fn explain(repository: &RepositoryName, facts: &ImageFacts, verdict: &Verdict) -> String {
    let what = if verdict.delete { "delete" } else { "keep  " };
    let tags = if facts.tags.is_empty() { "untagged".to_owned() } else { facts.tags.join(" ") };
    let why = match (verdict.reason, verdict.delete) {
        (Reason::RecentUpload, _) => "it was pushed less than 10 minutes ago".to_owned(),
        (Reason::Parent(parent), _) => format!("it is part of {parent}"),
        (Reason::Subject(subject), _) => format!("it is about {subject}, which is here"),
        (Reason::TagPolicy(at), _) => format!("account.tag_policies[{at}] guards a tag on it"),
        (Reason::Policy(at), true) => format!("account.gc_policies[{at}] deletes it"),
        (Reason::Policy(at), false) => format!("account.gc_policies[{at}] protects it"),
        (Reason::SubjectGone, _) => "what it is about was deleted, and no tag names it".to_owned(),
        (Reason::NoPolicy, _) => "no policy is about it".to_owned(),
    };
    format!("{what}  {repository}@{} ({tags}): {why}", facts.digest)
}
