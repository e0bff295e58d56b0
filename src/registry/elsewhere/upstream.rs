//! Where the content of an account comes from when another region is its primary.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, Reference, RepositoryName, Tag, UploadId};

use super::{AccountSums, Priority};
use crate::external::ManifestAnswer;
use crate::metadata::{ListedRepository, ManifestFacts, PulledNames, Told};
use crate::registry::{ManifestEntry, ManifestTarget, Page, PutManifest, Referrer, RegistryError};

/// The node that decides about an account's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Its name.
    pub node: NodeId,
    /// Where it is, for messages.
    pub region: String,
}

/// The accounts that another node decides about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountsElsewhere {
    /// The node.
    pub primary: Primary,
    /// Its accounts.
    pub accounts: BTreeSet<AccountName>,
}

/// A manifest that another region has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteManifest {
    /// Its name.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// The bytes as pushed; `None` when the asker said that it has them.
    pub bytes: Option<Bytes>,
    /// Whether it may have been replaced: the other region cannot be sure that this is the newest.
    pub is_stale: bool,
    /// When the oldest and the newest of its layers were made, in UNIX seconds.
    pub layers_created_at: Option<(i64, i64)>,
    /// What else is known of it there; only with its bytes.
    pub facts: Option<ManifestFacts>,
}

/// What is asked about a blob before its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobOpening {
    /// How many bytes of its beginning: none, [`BEGINNING_BYTES`](crate::storage::BEGINNING_BYTES), or whole groups.
    pub beginning_bytes: u64,
    /// Whether its tree is wanted.
    pub with_tree: bool,
    /// Whether a node that does not have it is to fetch it, for the asker as well.
    pub to_lead: bool,
}

/// A blob that another node has, with what tells right bytes from wrong ones. Nothing of it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBlob {
    /// Its size.
    pub size_bytes: u64,
    /// The root of its BLAKE3 tree.
    pub root: [u8; 32],
    /// The pairs of that tree; empty where they were not asked for.
    pub tree: Bytes,
    /// Bytes from its beginning: as many as were asked for, or all, or none.
    pub beginning: Bytes,
    /// What proves the beginning where it is no whole group.
    pub proof: Vec<[u8; 32]>,
    /// Other nodes that probably have it.
    pub holders: Vec<NodeId>,
}

/// Something to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// A manifest with its tags.
    Manifest(Digest),
    /// A tag only.
    Tag(Tag),
    /// A blob in one repository.
    Blob(Digest),
    /// A repository with all that it holds.
    Repository,
}

/// What is done with an upload session that another node holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadStep {
    /// Say how far it is.
    Status,
    /// Append; when that is answered, the bytes are on disk there.
    Append {
        /// The place where they belong, where it is known.
        offset: Option<u64>,
        /// Some of the blob.
        bytes: Bytes,
    },
    /// End it: what has arrived becomes this blob of the repository there.
    Finish(Digest),
    /// Give it up.
    Cancel,
}

/// The other regions, as the registry sees them.
///
/// What is not a look-up in memory asks a node and waits for its answer, with a deadline of its own; dropping the future
/// abandons the question. All may fail with [`RegistryError::PrimaryUnreachable`], which says that nothing is known, and
/// with what the other node refused.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// The primary of an account, when that is another node. A look-up in memory.
    fn primary(&self, account: &AccountName) -> Option<Primary>;

    /// Under which claim a node is the primary of an account; `None`: it is not. A look-up in memory.
    fn told_by(&self, account: &AccountName, node: NodeId) -> Option<Told> {
        self.primary(account).filter(|primary| primary.node == node).map(|_| Told::default())
    }

    /// Nodes other than the primary that may hold content of an account, the likeliest first. A look-up in memory.
    fn others(&self, account: &AccountName) -> Vec<Primary>;

    /// This node. A look-up in memory.
    fn node(&self) -> NodeId;

    /// The region of this node. A look-up in memory.
    fn region(&self) -> Option<String> {
        None
    }

    /// Other nodes of this node's region that keep content and are not down. A look-up in memory.
    fn neighbours(&self) -> Vec<Primary> {
        Vec::new()
    }

    /// Another node, where it keeps content and is not down. A look-up in memory.
    fn holder(&self, node: NodeId) -> Option<Primary> {
        let _ = node;
        None
    }

    /// Whether a node is known to be down. A look-up in memory.
    fn is_down(&self, node: NodeId) -> bool {
        let _ = node;
        false
    }

    /// How long a packet to a node and back takes, where that is known. A look-up in memory.
    fn round_trip(&self, node: NodeId) -> Option<Duration> {
        let _ = node;
        None
    }

    /// Whether what this node holds of another's account is to stay, since it holds a replica. A look-up in memory.
    fn keeps_content(&self, account: &AccountName) -> bool {
        let _ = account;
        false
    }

    /// Nodes that may be asked to hold copies of what is pushed to an account of this node: one for each region but ours,
    /// the best first. Which are best depends on the account, and on who is there, on nothing else. A look-up in memory.
    fn keepers(&self, account: &AccountName) -> Vec<Primary> {
        let _ = account;
        Vec::new()
    }

    /// Has another node fetch blobs from here and hold them for good; gives whether all of them are on its disk. If not,
    /// they are on their way, and it may be asked again.
    async fn keep(&self, at: &Primary, repository: &RepositoryName, blobs: &[Digest]) -> Result<bool, RegistryError> {
        let _ = blobs;
        let (account, region) = (repository.account(), at.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// What an account has, from the repository on that follows a name; see
    /// [`Registry::account_sums`](crate::registry::Registry::account_sums).
    async fn sums(&self, from: &Primary, account: &AccountName, after: &str) -> Result<AccountSums, RegistryError> {
        let _ = after;
        let (account, region) = (account.clone(), from.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// The blobs that manifests of a repository need; see
    /// [`Registry::needed_blobs`](crate::registry::Registry::needed_blobs).
    async fn needed_blobs(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<Digest>,
    ) -> Result<Page<(Digest, u64)>, RegistryError> {
        let _ = after;
        let (account, region) = (repository.account(), from.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// Has another node ask the registry outside that an account of this one mirrors; nothing is kept there.
    async fn external_manifest(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<ManifestAnswer, RegistryError> {
        let _ = (reference, known);
        let (account, region) = (repository.account(), at.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// Tells the primary when manifests and tags were pulled here.
    async fn note_pulls(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        pulled: &PulledNames,
    ) -> Result<(), RegistryError> {
        let _ = pulled;
        let (account, region) = (repository.account(), at.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// A manifest. Its bytes are left out when it is still `known`.
    async fn manifest(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<RemoteManifest, RegistryError>;

    /// The size of a blob, in bytes.
    async fn blob_size_bytes(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, RegistryError>;

    /// What a blob is, and its beginning.
    async fn open_blob(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        opening: BlobOpening,
    ) -> Result<RemoteBlob, RegistryError>;

    /// A part of a blob, not verified: exactly these bytes. A node that has only some of the blob yet waits so long for
    /// the part to come, then says [`RegistryError::BlobOnTheWay`]. The link carries what is urgent first.
    async fn blob_part(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
        wait: Duration,
        priority: Priority,
    ) -> Result<Bytes, RegistryError>;

    /// Names of tags, as [`Registry::list_tags`](crate::registry::Registry::list_tags) gives them.
    async fn tags(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<String>, RegistryError>;

    /// What is about a manifest, as [`Registry::list_referrers`](crate::registry::Registry::list_referrers) gives it.
    async fn referrers(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<Referrer>, RegistryError>;

    /// The repositories of an account, as
    /// [`Registry::list_account_repositories`](crate::registry::Registry::list_account_repositories) gives them.
    async fn account_repositories(
        &self,
        from: &Primary,
        account: &AccountName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ListedRepository>, RegistryError> {
        let _ = (after, limit);
        let (account, region) = (account.clone(), from.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// The manifests of a repository, as [`Registry::list_manifests`](crate::registry::Registry::list_manifests) gives them.
    async fn manifests(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<ManifestEntry>, RegistryError> {
        let _ = (after, limit);
        let (account, region) = (repository.account(), from.region.clone());
        Err(RegistryError::PrimaryUnreachable { account, region, reason: "there is no way to it".into() })
    }

    /// Has the primary mount a blob.
    async fn mount(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError>;

    /// Hands a manifest to the primary, which fetches from here the blobs that it lacks.
    async fn put_manifest(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        target: &ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError>;

    /// Which of these blobs another node has in the repository; it keeps them for a push that refers to them.
    async fn has_blobs(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        blobs: &[Digest],
    ) -> Result<Vec<Digest>, RegistryError> {
        let _ = (at, repository, blobs);
        Ok(Vec::new())
    }

    /// The other member that holds an upload session, if there is one. A look-up in memory.
    fn upload_holder(&self, id: &UploadId) -> Option<Primary> {
        let _ = id;
        None
    }

    /// Has that member do something with the session; gives how far it is then, unless it has ended.
    async fn step_upload(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        id: &UploadId,
        step: UploadStep,
    ) -> Result<Option<u64>, RegistryError> {
        let _ = (at, repository, step);
        Err(RegistryError::UploadUnknown { id: id.clone() })
    }

    /// Regions with nodes that are known not to answer.
    fn silent_regions(&self) -> Vec<String> {
        Vec::new()
    }

    /// The accounts of each other node that is a primary; `within`: no other account than that. A look-up in memory.
    fn primaries(&self, within: Option<&AccountName>) -> Vec<AccountsElsewhere> {
        let _ = within;
        Vec::new()
    }

    /// Full names of repositories after `after` in accounts of which the other node is the primary, or what is in the way.
    async fn repositories(
        &self,
        from: &Primary,
        within: Option<&AccountName>,
        after: &str,
        limit: usize,
    ) -> Result<Page<String>, String> {
        let _ = (from, within, after, limit);
        Err("there is no way to it".into())
    }

    /// Has the primary delete something.
    async fn delete(&self, at: &Primary, repository: &RepositoryName, what: &Deletion) -> Result<(), RegistryError>;
}
