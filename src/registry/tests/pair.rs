//! A primary and a region that follows it, in one process, and what they know of claims.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keppel_federation::vocabulary::NodeId;

use super::*;
use crate::metadata::{PulledNames, Told};
use crate::model::uptime;

/// The other region as the replica reaches it; counts the questions.
pub(super) struct Way {
    pub(super) primary: Registry,
    pub(super) asked: Arc<AtomicUsize>,
    /// Who asks, and who is primary; `None`: it is always the other.
    pub(super) claim: Option<(NodeId, Arc<Claim>)>,
}

/// Which node is the primary, in which epoch; and which claim of the name it is, 0 while nobody has it.
pub(super) struct Claim(pub(super) std::sync::Mutex<(NodeId, u64)>, pub(super) AtomicU64);

impl Claim {
    /// The first claim of the name.
    pub(super) fn of(node: NodeId) -> Self {
        Self(std::sync::Mutex::new((node, 1)), AtomicU64::new(1))
    }

    pub(super) fn get(&self) -> (NodeId, u64) {
        *self.0.lock().unwrap()
    }

    pub(super) fn number(&self) -> Option<u64> {
        Some(self.1.load(Ordering::SeqCst)).filter(|number| *number > 0)
    }
}

pub(super) fn primary_node() -> NodeId {
    NodeId::from_public_key([1; 32])
}

pub(super) fn replica_node() -> NodeId {
    NodeId::from_public_key([2; 32])
}

impl Way {
    fn ask(&self) -> &Registry {
        self.asked.fetch_add(1, Ordering::SeqCst);
        &self.primary
    }
}

#[async_trait]
impl Upstream for Way {
    fn primary(&self, _: &AccountName) -> Option<Primary> {
        let node = match &self.claim {
            Some((asker, claim)) => Some(claim.get().0).filter(|owner| owner != asker && claim.number().is_some())?,
            None => primary_node(),
        };
        Some(Primary { node, region: "eu".into() })
    }

    fn node(&self) -> NodeId {
        NodeId::from_public_key([2; 32])
    }

    fn told_by(&self, account: &AccountName, node: NodeId) -> Option<Told> {
        let told = |claim: &Claim| Told { epoch: claim.get().1, claim: claim.number().unwrap_or_default() };
        let told = self.claim.as_ref().map_or(Told::default(), |(_, claim)| told(claim));
        self.primary(account).filter(|primary| primary.node == node).map(|_| told)
    }

    fn others(&self, _: &AccountName) -> Vec<Primary> {
        Vec::new()
    }

    async fn sums(&self, _: &Primary, account: &AccountName, after: &str) -> Result<AccountSums, RegistryError> {
        self.ask().account_sums(account, after).await
    }

    async fn note_pulls(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        pulled: &PulledNames,
    ) -> Result<(), RegistryError> {
        self.ask().note_pulls_elsewhere(repository, pulled.clone()).await
    }

    async fn manifest(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        reference: &Reference,
        known: Option<&Digest>,
    ) -> Result<RemoteManifest, RegistryError> {
        let manifest = self.ask().load_manifest(repository, reference).await?;
        let bytes = (known != Some(&manifest.digest)).then(|| manifest.bytes.clone());
        let media_type = String::from_utf8(manifest.media_type.to_vec()).unwrap();
        let facts = self.primary.get_manifest_facts(repository, &manifest.digest, reference.tag()).await?;
        let (digest, is_stale, layers_created_at) = (manifest.digest, manifest.is_stale, manifest.layer_times);
        Ok(RemoteManifest { digest, media_type, bytes, is_stale, layers_created_at, facts })
    }

    async fn blob_size_bytes(&self, _: &Primary, _: &RepositoryName, _: &Digest) -> Result<u64, RegistryError> {
        Err(RegistryError::Interrupted)
    }

    async fn open_blob(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &Digest,
        _: BlobOpening,
    ) -> Result<RemoteBlob, RegistryError> {
        Err(RegistryError::Interrupted)
    }

    async fn blob_part(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &Digest,
        _: Range<u64>,
        _: Duration,
        _: Priority,
    ) -> Result<Bytes, RegistryError> {
        Err(RegistryError::Interrupted)
    }

    async fn tags(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<String>, RegistryError> {
        self.ask().list_tags(repository, after, limit).await
    }

    async fn referrers(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<Referrer>, RegistryError> {
        self.ask().list_referrers(repository, subject, artifact_type, after, limit).await
    }

    async fn mount(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        self.ask().mount_blob(repository, digest, from).await
    }

    async fn put_manifest(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        target: &ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        self.ask().put_manifest(repository, target.clone(), media_type, bytes).await
    }

    async fn delete(&self, _: &Primary, repository: &RepositoryName, what: &Deletion) -> Result<(), RegistryError> {
        match what {
            Deletion::Manifest(digest) => self.ask().delete_manifest(repository, digest).await,
            Deletion::Tag(tag) => self.ask().delete_tag(repository, tag).await,
            Deletion::Blob(digest) => self.ask().delete_blob(repository, digest).await,
            Deletion::Repository => self.ask().delete_repository(repository).await,
        }
    }
}

/// What the replica knows of claims: another region has every name.
struct NotOurs;

#[async_trait]
impl AccountClaims for NotOurs {
    async fn ensure_primary(&self, _: &AccountName, _: bool) -> Result<(), ClaimRefusal> {
        Err(ClaimRefusal::Elsewhere { region: "eu".into() })
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        None
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        false
    }

    fn is_primary(&self, _: &AccountName) -> bool {
        false
    }

    fn majority_asked_at(&self) -> Option<Duration> {
        Some(keppel_federation::vocabulary::uptime())
    }

    async fn confirm_majority(&self) -> bool {
        true
    }
}

/// A primary and a region that follows it, without a network between them.
pub(super) struct Pair {
    pub(super) primary: Bench,
    pub(super) replica: Bench,
    /// The primary and the replica.
    pub(super) nodes: (NodeId, NodeId),
    pub(super) asked: Arc<AtomicUsize>,
    pub(super) session: u64,
    pub(super) told: BTreeMap<AccountName, Place>,
}

impl Pair {
    pub(super) fn new(lease: Duration) -> Self {
        let options = || RegistryOptions { lease, events_kept_max: 40, ..options() };
        let primary = open_in(tempfile::tempdir().unwrap(), options());
        let directory = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
        let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
        let clock = Arc::new(ManualClock::new(1_000_000));
        let registry = Registry::new(options(), metadata, storage, clock.clone(), Arc::new(NotOurs));
        let replica = Bench { registry, clock, directory };
        let asked = Arc::new(AtomicUsize::new(0));
        let way = Way { primary: primary.registry.clone(), asked: asked.clone(), claim: None };
        replica.registry.connect(Arc::new(way));
        replica.registry.want_copy(&AccountName::parse("acme").unwrap());
        let nodes = (primary_node(), replica_node());
        Self { primary, replica, nodes, asked, session: 0, told: BTreeMap::new() }
    }

    pub(super) fn break_off(&mut self) {
        self.told.clear();
    }

    /// One question and its answer, applied. Gives whether anything was new.
    pub(super) async fn exchange(&mut self) -> bool {
        let is_first = self.told.is_empty();
        if is_first {
            self.session += 1;
            self.replica.registry.begin_copy_session(self.nodes.0);
        }
        let mut places = self.replica.registry.copy_places();
        places.retain(|(account, place)| self.told.get(account) != Some(place));
        self.told.extend(places.iter().cloned());
        let request = FollowRequest { session: self.session, is_first, wait_ms: 0, places, dropped: Vec::new() };
        let sent = uptime();
        match self.primary.registry.follow(self.nodes.1, request).await.unwrap() {
            FollowAnswer::UnknownSession => {
                self.break_off();
                true
            }
            FollowAnswer::News { lease_ms, news } => {
                let is_new = !news.is_empty();
                for news in news {
                    match self.replica.registry.apply_news(self.nodes.0, news).await {
                        Err(RegistryError::AccountMoving { .. }) => {
                            self.break_off();
                            return false;
                        }
                        applied => applied.unwrap(),
                    }
                }
                let lease = Duration::from_millis(lease_ms.into());
                self.replica.registry.renew_copy_lease(self.nodes.0, sent + lease);
                is_new
            }
        }
    }

    pub(super) async fn catch_up(&mut self) {
        while self.exchange().await {}
    }

    pub(super) fn questions(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// All manifests and tags of a registry.
    pub(super) async fn content(registry: &Registry) -> BTreeMap<String, Vec<String>> {
        let read = registry.metadata().read(|reader| {
            let mut content = BTreeMap::new();
            let account = AccountName::parse("acme").unwrap();
            let Some((account, _)) = reader.get_event_head(&account)? else { return Ok(content) };
            let mut after = String::new();
            while let Some((id, name)) = reader.get_next_repository(account, &after)? {
                let (manifests, _) = reader.list_manifest_copies(id, None, 10_000, usize::MAX)?;
                let mut lines: Vec<String> = manifests.iter().map(|manifest| format!("{manifest:?}")).collect();
                let tags = reader.list_tag_copies(id, "", 10_000)?;
                lines.extend(tags.iter().map(|tag| format!("{} {}", tag.name, tag.digest)));
                if !lines.is_empty() {
                    content.insert(name.clone(), lines);
                }
                after = name;
            }
            Ok::<_, RegistryError>(content)
        });
        read.await.unwrap()
    }
}

pub(super) async fn push(registry: &Registry, name: &str, to: &str, mark: &str) -> Result<Digest, RegistryError> {
    let name = repository(name);
    let config = put_blob(registry, &name, b"{}").await;
    Ok(registry.put_manifest(&name, tag(to), Some(OCI), image(&config, mark)).await?.digest)
}
