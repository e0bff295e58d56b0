//! Asks other regions for what this one does not have.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keppel_federation::Federation;
use keppel_federation::claims::{Member, Role};
use keppel_federation::content::Urgency;
use keppel_federation::membership::Health;
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, Reference, RepositoryName, UploadId};
use tokio::time::Instant;

use super::forwarding::Clocks;
use super::messages::{Answer, ExternalAnswer, Question, Target, encode, kind_of};
use super::parts::decode_answer;
use super::refusals::{confused, reason_of, refused};
use super::silence::{Need, Silences};
use crate::external::{ExternalManifest, ManifestAnswer};
use crate::metadata::{ListedRepository, PulledNames, Told};
use crate::registry::{
    AccountSums, AccountsElsewhere, BlobOpening, Deletion, ManifestEntry, ManifestTarget, Page, Primary, Priority,
    PutManifest, Referrer, RegistryError, RemoteBlob, RemoteManifest, UploadStep, Upstream,
};

/// How long a question about metadata may take, the connection being made included, and a primary that waits for the
/// lease of a silent region.
const METADATA_DEADLINE: Duration = Duration::from_secs(7);
/// The same for a deletion, which waits for other regions.
const DELETION_PATIENCE: Duration = Duration::from_secs(60);
/// The same for a node that the membership has given up: it is asked all the same, since it may be back already.
const DOWN_DEADLINE: Duration = Duration::from_secs(1);
/// How long a part of a blob may take: a slow link is not a dead one.
const PART_DEADLINE: Duration = Duration::from_secs(45);
/// How long a blob is waited for that its primary fetches from a registry outside.
const FETCH_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How long a pushed manifest, or a repository to be deleted, may take: the primary may have to fetch large blobs first, or
/// have much to delete.
const PUSH_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The other regions, through the federation.
pub struct FederationUpstream {
    pub(super) federation: Federation,
    pub(super) clocks: Clocks,
    silences: Silences<Federation>,
}

impl FederationUpstream {
    /// Asks members of this federation.
    pub fn new(federation: Federation) -> Self {
        Self { silences: Silences::new(federation.clone()), federation, clocks: Clocks::default() }
    }

    pub(super) async fn ask(
        &self,
        whom: &Primary,
        repository: &RepositoryName,
        question: &Question,
        deadline: Duration,
    ) -> Result<Answer, RegistryError> {
        self.ask_on(Urgency::Prompt, whom, repository, question, deadline).await
    }

    pub(super) async fn ask_on(
        &self,
        urgency: Urgency,
        whom: &Primary,
        repository: &RepositoryName,
        question: &Question,
        deadline: Duration,
    ) -> Result<Answer, RegistryError> {
        metrics::counter!("keppel_questions_total", "kind" => kind_of(question)).increment(1);
        let asked = self.federation.ask_on(urgency, whom.node, encode(question), deadline).await;
        let unreachable = |reason: String| RegistryError::PrimaryUnreachable {
            account: repository.account(),
            region: whom.region.clone(),
            reason,
        };
        let answer = asked.map_err(|error| unreachable(reason_of(&error)))?;
        self.silences.heard(whom.node);
        match decode_answer(&answer) {
            Ok(Answer::Refused(refusal)) => Err(refused(refusal, repository, question, &unreachable)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(unreachable(error.to_string())),
        }
    }

    /// Whether a member keeps content and may live.
    fn is_usable(&self, member: &Member) -> bool {
        member.role == Role::Full && self.federation.health_of(member.node) != Some(Health::Down)
    }

    /// Asks for what takes no time to say, and does not wait for a node from which nothing comes.
    async fn ask_briefly(
        &self,
        whom: &Primary,
        repository: &RepositoryName,
        question: &Question,
        need: Need,
    ) -> Result<Answer, RegistryError> {
        let deadline = match self.federation.health_of(whom.node) {
            Some(Health::Down) => DOWN_DEADLINE,
            _ => METADATA_DEADLINE,
        };
        tokio::select! {
            answer = self.ask(whom, repository, question, deadline) => answer,
            () = self.silences.in_vain(whom.node, need) => {
                let (account, region) = (repository.account(), whom.region.clone());
                Err(RegistryError::PrimaryUnreachable { account, region, reason: "nothing comes from it".into() })
            }
        }
    }
}

/// How far down the list of an account a node is: evenly spread, and the same wherever it is asked.
fn rank(account: &AccountName, node: NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(account.as_str().as_bytes()).update(&[0]).update(node.to_string().as_bytes());
    *hasher.finalize().as_bytes()
}

pub(super) fn page_limit(limit: usize) -> u32 {
    u32::try_from(limit).unwrap_or(u32::MAX)
}

#[async_trait]
impl Upstream for FederationUpstream {
    fn primary(&self, account: &AccountName) -> Option<Primary> {
        let claimed = self.federation.state().account(account)?;
        let is_ours = claimed.owner == self.federation.node();
        (!is_ours).then(|| Primary { node: claimed.owner, region: claimed.region.to_string() })
    }

    fn told_by(&self, account: &AccountName, node: NodeId) -> Option<Told> {
        let claimed = self.federation.state().account(account).filter(|claimed| claimed.owner == node)?;
        Some(Told { epoch: claimed.epoch, claim: claimed.claim_id })
    }

    fn others(&self, account: &AccountName) -> Vec<Primary> {
        let claimed = self.federation.state().account(account);
        let owner = claimed.as_ref().map(|account| account.owner);
        let is_replica = |node| claimed.as_ref().is_some_and(|account| account.replicas.contains_key(&node));
        let us = self.federation.node();
        let mut others: Vec<_> = self.federation.members();
        others.retain(|member| member.node != us && Some(member.node) != owner && member.role == Role::Full);
        others.retain(|member| self.federation.health_of(member.node) != Some(Health::Down));
        others.sort_by_key(|member| (!is_replica(member.node), member.region != *self.federation.region()));
        let other = |member: Member| Primary { node: member.node, region: member.region.to_string() };
        others.into_iter().map(other).collect()
    }

    fn silent_regions(&self) -> Vec<String> {
        let members = self.federation.members().into_iter().filter(|member| member.role == Role::Full);
        let silent = members.filter(|member| self.federation.health_of(member.node) == Some(Health::Down));
        silent.map(|member| member.region.to_string()).collect()
    }

    fn node(&self) -> NodeId {
        self.federation.node()
    }

    fn region(&self) -> Option<String> {
        Some(self.federation.region().to_string())
    }

    fn neighbours(&self) -> Vec<Primary> {
        let (us, region) = (self.federation.node(), self.federation.region());
        let members = self.federation.members().into_iter();
        let near = members.filter(|member| member.node != us && member.region == *region && self.is_usable(member));
        near.map(|member| Primary { node: member.node, region: member.region.to_string() }).collect()
    }

    fn holder(&self, node: NodeId) -> Option<Primary> {
        let member = self.federation.state().member(node)?;
        let is_other = node != self.federation.node() && self.is_usable(&member);
        is_other.then(|| Primary { node, region: member.region.to_string() })
    }

    fn is_down(&self, node: NodeId) -> bool {
        self.federation.health_of(node) == Some(Health::Down)
    }

    fn round_trip(&self, node: NodeId) -> Option<Duration> {
        self.federation.round_trip_to(node)
    }

    fn keeps_content(&self, account: &AccountName) -> bool {
        let claimed = self.federation.state().account(account);
        claimed.is_some_and(|claimed| claimed.replicas.contains_key(&self.federation.node()))
    }

    fn keepers(&self, account: &AccountName) -> Vec<Primary> {
        let us = self.federation.node();
        let mut members = self.federation.members();
        members.retain(|member| member.role == Role::Full && member.region != *self.federation.region());
        members.retain(|member| member.node != us && self.federation.health_of(member.node) != Some(Health::Down));
        // Those that answer come first; among them always the same, as far as they are there.
        members.sort_by_key(|member| {
            let is_alive = self.federation.health_of(member.node) == Some(Health::Alive);
            (!is_alive, rank(account, member.node), member.node)
        });
        let mut regions = BTreeSet::new();
        members.retain(|member| regions.insert(member.region.clone()));
        let keeper = |member: Member| Primary { node: member.node, region: member.region.to_string() };
        members.into_iter().map(keeper).collect()
    }

    async fn keep(&self, at: &Primary, repository: &RepositoryName, blobs: &[Digest]) -> Result<bool, RegistryError> {
        let question = Question::Keep { repository: repository.clone(), blobs: blobs.to_vec() };
        match self.ask(at, repository, &question, PART_DEADLINE).await? {
            Answer::Kept(all) => Ok(all),
            _ => Err(confused(at, repository)),
        }
    }

    async fn sums(&self, from: &Primary, account: &AccountName, after: &str) -> Result<AccountSums, RegistryError> {
        self.ask_for_sums(from, account, after).await
    }

    async fn account_repositories(
        &self,
        from: &Primary,
        account: &AccountName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ListedRepository>, RegistryError> {
        self.ask_for_account_repositories(from, account, after, limit).await
    }

    async fn manifests(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<ManifestEntry>, RegistryError> {
        self.ask_for_manifests(from, repository, after, limit).await
    }

    async fn external_manifest(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<ManifestAnswer, RegistryError> {
        let (name, known) = (repository.clone(), known.copied());
        let question = Question::External { repository: name, reference: reference.to_string(), known };
        match self.ask(at, repository, &question, PART_DEADLINE).await? {
            Answer::External(ExternalAnswer::Absent) => Ok(ManifestAnswer::Absent),
            Answer::External(ExternalAnswer::Same) if known.is_some() => Ok(ManifestAnswer::Same),
            Answer::External(ExternalAnswer::Found { digest, media_type, bytes }) => {
                Ok(ManifestAnswer::Found(ExternalManifest { digest, media_type, bytes: bytes.into() }))
            }
            _ => Err(confused(at, repository)),
        }
    }

    async fn note_pulls(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        pulled: &PulledNames,
    ) -> Result<(), RegistryError> {
        let question = Question::NotePulls { repository: repository.clone(), pulled: pulled.clone() };
        match self.ask(at, repository, &question, METADATA_DEADLINE).await? {
            Answer::Noted => Ok(()),
            _ => Err(confused(at, repository)),
        }
    }

    async fn needed_blobs(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<Digest>,
    ) -> Result<Page<(Digest, u64)>, RegistryError> {
        let question = Question::NeededBlobs { repository: repository.clone(), after };
        match self.ask(from, repository, &question, PART_DEADLINE).await? {
            Answer::NeededBlobs { items, more } => Ok(Page { items, more, is_stale: false }),
            _ => Err(confused(from, repository)),
        }
    }

    async fn manifest(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<RemoteManifest, RegistryError> {
        let (name, known) = (repository.clone(), known.copied());
        let question = Question::Manifest { repository: name, reference: reference.to_string(), known };
        let need = if known.is_some() { Need::Slight } else { Need::Great };
        let answer = self.ask_briefly(from, repository, &question, need).await?;
        answer.into_manifest().ok_or_else(|| confused(from, repository))
    }

    async fn blob_size_bytes(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, RegistryError> {
        let question = Question::BlobSize { repository: repository.clone(), digest: *digest };
        match self.ask_briefly(from, repository, &question, Need::Great).await? {
            Answer::BlobSize(size_bytes) => Ok(size_bytes),
            _ => Err(confused(from, repository)),
        }
    }

    async fn open_blob(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        opening: BlobOpening,
    ) -> Result<RemoteBlob, RegistryError> {
        let BlobOpening { beginning_bytes, with_tree, to_lead } = opening;
        let name = repository.clone();
        let question = Question::OpenBlob { repository: name, digest: *digest, beginning_bytes, with_tree, to_lead };
        let start = Instant::now();
        let answer = loop {
            match self.ask(from, repository, &question, PART_DEADLINE).await {
                // The primary is fetching it from a registry outside, and has waited for a while already.
                Err(RegistryError::BlobOnTheWay { .. }) if start.elapsed() < FETCH_PATIENCE => {}
                answer => break answer?,
            }
        };
        answer.into_blob().ok_or_else(|| confused(from, repository))
    }

    async fn blob_part(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
        wait: Duration,
        priority: Priority,
    ) -> Result<Bytes, RegistryError> {
        let (offset, size_bytes) = (range.start, range.end - range.start);
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let name = repository.clone();
        let question = Question::FlightPart { repository: name, digest: *digest, offset, size_bytes, wait_ms };
        let urgency = match priority {
            Priority::Background => Urgency::Background,
            Priority::Push | Priority::Pull => Urgency::Bulk,
        };
        match self.ask_on(urgency, from, repository, &question, PART_DEADLINE + wait).await? {
            Answer::BlobPart(bytes) => Ok(bytes),
            _ => Err(confused(from, repository)),
        }
    }

    async fn tags(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<String>, RegistryError> {
        let (name, after) = (repository.clone(), after.map(str::to_owned));
        let question = Question::Tags { repository: name, after, limit: page_limit(limit) };
        match self.ask_briefly(from, repository, &question, Need::Slight).await? {
            Answer::Tags { items, more } => Ok(Page { items, more, is_stale: false }),
            _ => Err(confused(from, repository)),
        }
    }

    async fn referrers(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<Referrer>, RegistryError> {
        let question = Question::Referrers {
            repository: repository.clone(),
            subject: *subject,
            artifact_type: artifact_type.map(str::to_owned),
            after: after.copied(),
            limit: page_limit(limit),
        };
        let Answer::Referrers { items, more } = self.ask_briefly(from, repository, &question, Need::Slight).await?
        else {
            return Err(confused(from, repository));
        };
        let items = items.into_iter().map(|item| Referrer {
            media_type: item.media_type,
            digest: item.digest,
            size: item.size,
            artifact_type: item.artifact_type,
            annotations: item.annotations.into_iter().collect(),
        });
        Ok(Page { items: items.collect(), more, is_stale: false })
    }

    async fn mount(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        let question = Question::Mount { repository: repository.clone(), digest: *digest, from: from.cloned() };
        match self.forward(at, repository, &question, METADATA_DEADLINE).await? {
            Answer::Mount(mounted) => Ok(mounted),
            _ => Err(confused(at, repository)),
        }
    }

    async fn put_manifest(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        target: &ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let target = match target {
            ManifestTarget::Tag(tag) => Target::Tag(tag.clone()),
            ManifestTarget::Digest { digest, tags } => Target::Digest { digest: *digest, tags: tags.clone() },
        };
        let (name, media_type) = (repository.clone(), media_type.map(str::to_owned));
        let question = Question::PutManifest { repository: name, target, media_type, bytes: bytes.to_vec() };
        let answer = self.forward(at, repository, &question, PUSH_PATIENCE).await?;
        answer.into_put().ok_or_else(|| confused(at, repository))
    }

    async fn has_blobs(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        blobs: &[Digest],
    ) -> Result<Vec<Digest>, RegistryError> {
        let question = Question::HasBlobs { repository: repository.clone(), blobs: blobs.to_vec() };
        match self.ask_briefly(at, repository, &question, Need::Great).await? {
            Answer::HasBlobs(found) => Ok(found),
            _ => Err(confused(at, repository)),
        }
    }

    fn upload_holder(&self, id: &UploadId) -> Option<Primary> {
        self.holder_of_upload(id)
    }

    async fn step_upload(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        id: &UploadId,
        step: UploadStep,
    ) -> Result<Option<u64>, RegistryError> {
        self.ask_about_upload(at, repository, id, step).await
    }

    fn primaries(&self, within: Option<&AccountName>) -> Vec<AccountsElsewhere> {
        self.accounts_elsewhere(within)
    }

    async fn repositories(
        &self,
        from: &Primary,
        within: Option<&AccountName>,
        after: &str,
        limit: usize,
    ) -> Result<Page<String>, String> {
        self.ask_for_repositories(from, within, after, page_limit(limit)).await
    }

    async fn delete(&self, at: &Primary, repository: &RepositoryName, what: &Deletion) -> Result<(), RegistryError> {
        let name = repository.clone();
        let patience = match what {
            Deletion::Repository => PUSH_PATIENCE,
            Deletion::Manifest(_) | Deletion::Tag(_) | Deletion::Blob(_) => DELETION_PATIENCE,
        };
        let question = match what {
            Deletion::Repository => Question::DeleteRepository { repository: name },
            Deletion::Manifest(digest) => Question::DeleteManifest { repository: name, digest: *digest },
            Deletion::Tag(tag) => Question::DeleteTag { repository: name, tag: tag.clone() },
            Deletion::Blob(digest) => Question::DeleteBlob { repository: name, digest: *digest },
        };
        match self.forward(at, repository, &question, patience).await? {
            Answer::Deleted => Ok(()),
            _ => Err(confused(at, repository)),
        }
    }
}
