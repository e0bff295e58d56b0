//! A registry with its tasks, policies that a test can change, and images to fill it with.

use super::*;

/// What becomes of a file's bytes; `None`: the file goes.
pub(super) type Damage = fn(&[u8]) -> Option<Vec<u8>>;

/// An account with policies that a test can change.
pub(super) struct Ruled {
    pub(super) policies: Mutex<Arc<CompiledPolicies>>,
    pub(super) deleting: Mutex<bool>,
}

#[async_trait::async_trait]
impl AccountClaims for Ruled {
    async fn ensure_primary(&self, _: &AccountName, _: bool) -> Result<(), ClaimRefusal> {
        match *self.deleting.lock().unwrap() {
            true => Err(ClaimRefusal::Deleting),
            false => Ok(()),
        }
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        *self.deleting.lock().unwrap()
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        let policies = Some(self.policies.lock().unwrap().clone());
        Some(AccountRules { tenant: TenantId::parse("payer").unwrap(), policies, quota: Quota::default() })
    }

    fn is_primary(&self, _: &AccountName) -> bool {
        true
    }

    fn majority_asked_at(&self) -> Option<std::time::Duration> {
        Some(keppel_federation::vocabulary::uptime())
    }

    async fn confirm_majority(&self) -> bool {
        true
    }
}

impl Ruled {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { policies: Mutex::default(), deleting: Mutex::new(false) })
    }

    pub(super) fn set(&self, settings: Value) {
        let settings = AccountSettings::from_request(settings).unwrap();
        *self.policies.lock().unwrap() = Arc::new(CompiledPolicies::compile(&settings).unwrap());
    }
}

pub(super) fn options(grace: i64) -> JanitorOptions {
    let grace = Duration::from_secs(grace.unsigned_abs());
    JanitorOptions { grace, io_budget_bytes_per_second: 1 << 40, ..JanitorOptions::default() }
}

pub(super) struct Bench {
    pub(super) registry: Registry,
    pub(super) work: JanitorWork,
    pub(super) rules: Arc<Ruled>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) directory: tempfile::TempDir,
}

pub(super) fn open_with(registry_options: RegistryOptions) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let (clock, rules) = (Arc::new(ManualClock::new(100 * DAY)), Ruled::new());
    let registry_options = RegistryOptions { create_accounts_on_push: true, ..registry_options };
    let registry = Registry::new(registry_options, metadata, storage, clock.clone(), rules.clone());
    let work = JanitorWork::new(registry.clone(), None, options(GRACE));
    Bench { registry, work, rules, clock, directory }
}

pub(super) fn open() -> Bench {
    open_with(RegistryOptions::default())
}

pub(super) fn repository(name: &str) -> RepositoryName {
    RepositoryName::parse(name).unwrap()
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

pub(super) async fn put_blob(
    registry: &Registry,
    repository: &RepositoryName,
    content: &[u8],
) -> Result<Digest, RegistryError> {
    let digest = digest_of(content);
    let body = stream::iter([Ok::<_, BodyError>(Bytes::copy_from_slice(content))]);
    registry.put_blob(repository, &digest, Some(content.len() as u64), body).await.map(|()| digest)
}

/// An image of some layers, told from others by `mark`.
pub(super) fn image(layers: &[Digest], mark: &str, subject: Option<&Digest>) -> Bytes {
    let layers: Vec<Value> =
        layers.iter().map(|digest| json!({"mediaType": "l", "digest": digest, "size": 1})).collect();
    let mut document = json!({
        "schemaVersion": 2, "mediaType": OCI, "layers": layers, "annotations": {"mark": mark},
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2},
    });
    if let Some(subject) = subject {
        document["subject"] = json!({"mediaType": OCI, "digest": subject, "size": 1});
    }
    document.to_string().into()
}

pub(super) fn index(children: &[Digest], media_type: &str) -> Bytes {
    let children: Vec<Value> =
        children.iter().map(|digest| json!({"mediaType": media_type, "digest": digest, "size": 1})).collect();
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}).to_string().into()
}

impl Bench {
    /// Pushes an image of these layers, under tags.
    pub(super) async fn push(
        &self,
        name: &str,
        layers: &[&[u8]],
        mark: &str,
        subject: Option<&Digest>,
        tags: &[&str],
    ) -> Digest {
        let app = repository(name);
        put_blob(&self.registry, &app, b"{}").await.unwrap();
        let mut digests = Vec::new();
        for layer in layers {
            digests.push(put_blob(&self.registry, &app, layer).await.unwrap());
        }
        self.put(name, image(&digests, mark, subject), OCI, tags).await.unwrap()
    }

    pub(super) async fn put(
        &self,
        name: &str,
        bytes: Bytes,
        media_type: &str,
        tags: &[&str],
    ) -> Result<Digest, RegistryError> {
        let tags = tags.iter().map(|tag| Tag::parse(tag).unwrap()).collect();
        let target = ManifestTarget::Digest { digest: digest_of(&bytes), tags };
        Ok(self.registry.put_manifest(&repository(name), target, Some(media_type), bytes).await?.digest)
    }

    pub(super) async fn run(&self, task: Task) -> RunReport {
        self.work.run(task, None, false).await.unwrap()
    }

    /// Whether the repository has the blob, without being promised anything.
    pub(super) async fn has(&self, name: &str, digest: &Digest) -> bool {
        match self.registry.load_local_blob(&repository(name), digest).await {
            Ok(_) => true,
            Err(RegistryError::BlobUnknown { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// The images of a repository with what is told about them.
    pub(super) async fn images(&self, name: &str) -> BTreeMap<Digest, Value> {
        match self.registry.list_manifests(&repository(name), None, 1000).await {
            Ok(page) => {
                let status = |status: Option<String>| serde_json::from_str(&status.unwrap_or("null".into())).unwrap();
                page.items.into_iter().map(|entry| (entry.manifest.digest, status(entry.manifest.gc_status))).collect()
            }
            Err(RegistryError::RepositoryUnknown { .. }) => BTreeMap::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes a blob out of a repository behind everybody's back.
    pub(super) async fn lose_mount(&self, name: &'static str, content: &'static [u8]) {
        let lost = self.registry.metadata().write(move |transaction| {
            let id = transaction.get_repository(&repository(name))?.unwrap();
            let blob = transaction.get_mounted_blob(id, &digest_of(content))?.unwrap();
            transaction.unmount_blob(id, blob.id)
        });
        lost.await.map_err(RegistryError::Metadata).unwrap();
    }

    /// The stored file of the one blob with this size.
    pub(super) fn file_of_size(&self, size_bytes: u64) -> std::path::PathBuf {
        fn walk(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), found),
                    false => found.push(entry.path()),
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.directory.path().join("storage"), &mut found);
        found.retain(|path| path.metadata().unwrap().len() == size_bytes);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }
}
