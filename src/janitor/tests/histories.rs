//! Random histories of clients with all tasks running beside every step, with crashes, against a model.
//!
//! The model knows what clients were told: a blob that they uploaded, mounted or asked for may be counted on for the grace
//! period; a manifest that was acknowledged stays with all it refers to, until it is deleted or retention deletes it. When
//! a history is over, nothing else is left after two passes.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::task::{Context, Waker};

use proptest::prelude::*;

use super::*;
use crate::storage::MemoryOptions;
use model::{Known, Place};

mod model;

const REPOSITORIES: [&str; 3] = ["acme/a", "acme/b", "acme/c"];
/// Untagged images of this age go while the policy is on, in seconds.
const UNTAGGED_AGE: i64 = 1800;

#[derive(Debug, Clone)]
enum Step {
    Upload {
        repository: usize,
        blob: u8,
    },
    Ask {
        repository: usize,
        blob: u8,
    },
    Mount {
        repository: usize,
        from: usize,
        blob: u8,
    },
    Push {
        repository: usize,
        blobs: Vec<u8>,
        mark: u8,
        subject: Option<usize>,
        tag: Option<u8>,
    },
    PushIndex {
        repository: usize,
        children: Vec<usize>,
        tag: Option<u8>,
    },
    Delete {
        repository: usize,
        which: usize,
    },
    Untag {
        repository: usize,
        tag: u8,
    },
    Abandon {
        repository: usize,
    },
    Policy {
        on: bool,
    },
    /// Time passes, in seconds.
    Wait {
        seconds: i64,
    },
    /// The process dies in the middle of a pass, after so many steps of it.
    Crash {
        after: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (repository, blob, tag) = (0..REPOSITORIES.len(), 0_u8..6, prop::option::of(0_u8..3));
    prop_oneof![
        4 => (repository.clone(), blob.clone()).prop_map(|(repository, blob)| Step::Upload { repository, blob }),
        2 => (repository.clone(), blob.clone()).prop_map(|(repository, blob)| Step::Ask { repository, blob }),
        2 => (repository.clone(), 0..REPOSITORIES.len(), blob.clone())
            .prop_map(|(repository, from, blob)| Step::Mount { repository, from, blob }),
        6 => (repository.clone(), prop::collection::vec(blob, 0..3), 0_u8..4, prop::option::weighted(0.3, 0_usize..5), tag.clone())
            .prop_map(|(repository, blobs, mark, subject, tag)| Step::Push { repository, blobs, mark, subject, tag }),
        2 => (repository.clone(), prop::collection::vec(0_usize..5, 1..3), tag)
            .prop_map(|(repository, children, tag)| Step::PushIndex { repository, children, tag }),
        2 => (repository.clone(), 0_usize..5).prop_map(|(repository, which)| Step::Delete { repository, which }),
        1 => (repository.clone(), 0_u8..3).prop_map(|(repository, tag)| Step::Untag { repository, tag }),
        1 => repository.prop_map(|repository| Step::Abandon { repository }),
        1 => any::<bool>().prop_map(|on| Step::Policy { on }),
        5 => (1_i64..GRACE).prop_map(|seconds| Step::Wait { seconds }),
        2 => (0_usize..40).prop_map(|after| Step::Crash { after }),
    ]
}

/// A registry that can die and come back, and what its clients were told.
struct World {
    registry: Registry,
    work: JanitorWork,
    storage: Storage,
    clock: Arc<ManualClock>,
    rules: Arc<Ruled>,
    directory: tempfile::TempDir,
    grace: i64,
    places: [Place; 3],
    policy: bool,
}

type Checked = Result<(), String>;

fn content(blob: u8) -> Vec<u8> {
    format!("blob {blob}").into_bytes()
}

fn open_on(
    directory: &std::path::Path,
    storage: &Storage,
    clock: &Arc<ManualClock>,
    rules: &Arc<Ruled>,
    grace: i64,
) -> (Registry, JanitorWork) {
    let metadata = Metadata::open(&directory.join("metadata.db"), &MetadataOptions::default()).unwrap();
    let registry_options = RegistryOptions { create_accounts_on_push: true, ..RegistryOptions::default() };
    let registry = Registry::new(registry_options, metadata, storage.clone(), clock.clone(), rules.clone());
    let work = JanitorWork::new(registry.clone(), None, options(grace));
    (registry, work)
}

/// All tasks, one after the other.
async fn pass(work: JanitorWork) -> Checked {
    for task in [
        Task::ImageGc,
        Task::ManifestValidation,
        Task::MountSweep,
        Task::BlobSweep,
        Task::StorageSweep,
        Task::BlobValidation,
        Task::AbandonedUploads,
    ] {
        let report = work.run(task, None, false).await.map_err(|error| format!("{}: {error}", task.as_str()))?;
        if report.faults > 0 {
            return Err(format!("{} found faults: {:?}", task.as_str(), report.lines));
        }
    }
    Ok(())
}

impl World {
    fn new(grace: i64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let storage = Storage::memory(MemoryOptions::new(1 << 20));
        let (clock, rules) = (Arc::new(ManualClock::new(100 * DAY)), Ruled::new());
        let (registry, work) = open_on(directory.path(), &storage, &clock, &rules, grace);
        let (places, policy) = (Default::default(), false);
        Self { registry, work, storage, clock, rules, directory, grace, places, policy }
    }

    fn now(&self) -> i64 {
        self.registry.now()
    }

    fn promise(&mut self, repository: usize, blob: Digest) {
        let until = self.now() + GRACE;
        self.places[repository].promises.insert(blob, until);
    }

    /// What a client does, and whether it was treated as it was promised.
    async fn act(&mut self, step: &Step) -> Checked {
        let registry = self.registry.clone();
        let now = self.now();
        match step {
            Step::Upload { repository: at, blob } => {
                let name = repository(REPOSITORIES[*at]);
                let put = put_blob(&registry, &name, &content(*blob)).await;
                let digest = put.map_err(|error| format!("upload: {error}"))?;
                self.promise(*at, digest);
            }
            Step::Ask { repository: at, blob } => {
                let digest = digest_of(&content(*blob));
                match registry.load_blob(&repository(REPOSITORIES[*at]), &digest, false).await {
                    Ok(_) => self.promise(*at, digest),
                    Err(RegistryError::BlobUnknown { .. }) => {
                        if self.places[*at].may_refer_to(&digest, now) {
                            return Err(format!("{digest} is lost"));
                        }
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
            Step::Mount { repository: at, from, blob } => {
                let digest = digest_of(&content(*blob));
                let source = repository(REPOSITORIES[*from]);
                let mounted = registry.mount_blob(&repository(REPOSITORIES[*at]), &digest, Some(&source)).await;
                match mounted.map_err(|error| error.to_string())? {
                    true => self.promise(*at, digest),
                    false if self.places[*from].may_refer_to(&digest, now) => return Err(format!("{digest} is lost")),
                    false => {}
                }
            }
            Step::Push { repository: at, blobs, mark, subject, tag } => {
                let mut layers: Vec<Digest> = blobs.iter().map(|blob| digest_of(&content(*blob))).collect();
                let name = repository(REPOSITORIES[*at]);
                put_blob(&registry, &name, b"{}").await.map_err(|error| error.to_string())?;
                self.promise(*at, digest_of(b"{}"));
                let subject = subject.and_then(|which| self.places[*at].manifests.keys().nth(which).copied());
                let bytes = image(&layers, &mark.to_string(), subject.as_ref());
                layers.push(digest_of(b"{}"));
                let known = Known {
                    blobs: layers.into_iter().collect(),
                    children: BTreeSet::new(),
                    subject,
                    subject_gone: false,
                    pushed_at: now,
                };
                self.put(*at, bytes, OCI, known, *tag).await?;
            }
            Step::PushIndex { repository: at, children, tag } => {
                let known = &self.places[*at].manifests;
                let children: BTreeSet<Digest> =
                    children.iter().filter_map(|which| known.keys().nth(*which).copied()).collect();
                let listed: Vec<Digest> = children.iter().copied().collect();
                let known =
                    Known { blobs: BTreeSet::new(), children, subject: None, subject_gone: false, pushed_at: now };
                self.put(*at, index(&listed, OCI), INDEX, known, *tag).await?;
            }
            Step::Delete { repository: at, which } => {
                let Some(digest) = self.places[*at].manifests.keys().nth(*which).copied() else { return Ok(()) };
                match registry.delete_manifest(&repository(REPOSITORIES[*at]), &digest).await {
                    Ok(()) => self.places[*at].remove(&digest),
                    Err(RegistryError::ManifestHasParent { .. }) if self.places[*at].has_parent(&digest) => {}
                    // Retention was quicker, as the model finds out below.
                    Err(RegistryError::ManifestUnknown { .. }) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Step::Untag { repository: at, tag } => {
                if self.places[*at].tags.remove(tag).is_some() {
                    let tag = Tag::parse(&format!("t{tag}")).unwrap();
                    let deleted = registry.delete_tag(&repository(REPOSITORIES[*at]), &tag).await;
                    deleted.map_err(|error| format!("a tag is lost: {error}"))?;
                }
            }
            Step::Abandon { repository: at } => {
                let name = repository(REPOSITORIES[*at]);
                let algorithm = keppel_federation::vocabulary::Algorithm::Sha256;
                let upload = registry.start_upload(&name, algorithm).await.map_err(|error| error.to_string())?;
                let body = stream::iter([Ok::<_, BodyError>(Bytes::from_static(b"never finished"))]);
                registry.append_upload(&name, &upload.id, None, None, body).await.map_err(|error| error.to_string())?;
            }
            Step::Policy { on } => {
                self.policy = *on;
                let policy = json!({"match_repository": ".*", "only_untagged": true, "action": "delete",
                    "time_constraint": {"on": "pushed_at", "older_than": {"value": UNTAGGED_AGE, "unit": "s"}}});
                self.rules.set(json!({"gc_policies": if *on { vec![policy] } else { Vec::new() }}));
            }
            Step::Wait { seconds } => self.clock.advance(*seconds),
            Step::Crash { .. } => {}
        }
        Ok(())
    }

    async fn put(&mut self, at: usize, bytes: Bytes, media_type: &str, known: Known, tag: Option<u8>) -> Checked {
        let place = &self.places[at];
        let promised = known.blobs.iter().all(|blob| place.may_refer_to(blob, known.pushed_at));
        // A child that retention may be deleting right now was promised to nobody.
        let children = known.children.clone();
        let digest = digest_of(&bytes);
        let tags = tag.map(|tag| Tag::parse(&format!("t{tag}")).unwrap()).into_iter().collect();
        let target = ManifestTarget::Digest { digest, tags };
        match self.registry.put_manifest(&repository(REPOSITORIES[at]), target, Some(media_type), bytes).await {
            Ok(_) => {
                let place = &mut self.places[at];
                place.insert(digest, known);
                if let Some(tag) = tag {
                    place.tags.insert(tag, digest);
                }
                Ok(())
            }
            Err(RegistryError::ManifestBlobsUnknown { digests }) => {
                match promised && !digests.iter().any(|digest| children.contains(digest)) {
                    true => Err(format!("a push was refused though all was promised: {digests:?}")),
                    false => Ok(()),
                }
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Dies in the middle of a pass, and comes back.
    async fn crash(&mut self, after: usize) {
        {
            let mut pass = pin!(pass(self.work.clone()));
            for _ in 0..after {
                let mut context = Context::from_waker(Waker::noop());
                if pass.as_mut().poll(&mut context).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(300)).await;
            }
        }
        let Self { directory, storage, clock, rules, grace, .. } = self;
        let (registry, work) = open_on(directory.path(), storage, clock, rules, *grace);
        (self.registry, self.work) = (registry, work);
    }

    /// Runs a step and a pass side by side, then passes until nothing changes, and compares.
    async fn step(&mut self, step: &Step) -> Checked {
        if let Step::Crash { after } = step {
            self.crash(*after).await;
        } else {
            let beside = tokio::spawn(pass(self.work.clone()));
            let acted = self.act(step).await;
            let passed = beside.await.map_err(|error| error.to_string())?;
            acted?;
            passed?;
        }
        // A child or a referrer goes one run after what kept it.
        for _ in 0..4 {
            pass(self.work.clone()).await?;
        }
        let (policy, now) = (self.policy, self.now());
        self.places.iter_mut().for_each(|place| place.collect(policy, now));
        self.compare().await
    }

    async fn compare(&self) -> Checked {
        for (place, name) in self.places.iter().zip(REPOSITORIES) {
            let repository = repository(name);
            let found: BTreeSet<Digest> = match self.registry.list_manifests(&repository, None, 1000).await {
                Ok(page) => page.items.into_iter().map(|entry| entry.manifest.digest).collect(),
                Err(RegistryError::RepositoryUnknown { .. }) => BTreeSet::new(),
                Err(error) => return Err(error.to_string()),
            };
            let known: BTreeSet<Digest> = place.manifests.keys().copied().collect();
            if found != known {
                return Err(format!("{name} has the manifests {found:?}, not {known:?}"));
            }
            for (tag, digest) in &place.tags {
                let reference = Reference::parse(&format!("t{tag}")).unwrap();
                let tagged = self.registry.load_manifest(&repository, &reference).await;
                if !tagged.is_ok_and(|manifest| manifest.digest == *digest) {
                    return Err(format!("{name}:t{tag} is not {digest}"));
                }
            }
            for blob in place.manifests.values().flat_map(|manifest| &manifest.blobs) {
                self.read(&repository, blob).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, repository: &RepositoryName, digest: &Digest) -> Checked {
        let lost = |error: RegistryError| format!("{repository}: {digest}: {error}");
        let blob = self.registry.load_local_blob(repository, digest).await.map_err(lost)?;
        let mut pieces = self.registry.open_blob(&blob, 0..blob.size_bytes).await.map_err(lost)?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(lost)?);
        }
        match digest_of(&bytes) == *digest {
            true => Ok(()),
            false => Err(format!("{repository}: {digest} has wrong bytes")),
        }
    }

    /// Once nobody counts on anything any more, two passes leave what manifests refer to, and nothing else.
    async fn end(&mut self) -> Checked {
        pass(self.work.clone()).await?;
        // Beyond the grace period, and beyond the time that upload sessions may be idle.
        self.clock.advance(GRACE.max(2 * DAY));
        let (policy, now) = (self.policy, self.now());
        for _ in 0..4 {
            self.work.run(Task::ImageGc, None, false).await.map_err(|error| error.to_string())?;
        }
        self.places.iter_mut().for_each(|place| place.collect(policy, now));
        pass(self.work.clone()).await?;
        self.clock.advance(GRACE);
        let (policy, now) = (self.policy, self.now());
        pass(self.work.clone()).await?;
        self.places.iter_mut().for_each(|place| place.collect(policy, now));
        self.compare().await?;
        let account = AccountName::parse("acme").unwrap();
        let stored = match self.registry.storage().list_spaces().await.map_err(|error| error.to_string())?.is_empty() {
            true => Vec::new(),
            false => self.registry.storage().list(&account).next_page(1000).await.map_err(|error| error.to_string())?,
        };
        let blobs: BTreeSet<Digest> = self
            .places
            .iter()
            .flat_map(|place| place.manifests.values())
            .flat_map(|manifest| manifest.blobs.iter().copied())
            .collect();
        match stored.len() == blobs.len() {
            true => Ok(()),
            false => {
                Err(format!("{} objects are stored, but {} blobs are needed: {stored:?}", stored.len(), blobs.len()))
            }
        }
    }
}

fn check(steps: &[Step], grace: i64) -> Checked {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(grace);
        for (at, step) in steps.iter().enumerate() {
            world.step(step).await.map_err(|fault| format!("step {at}, {step:?}: {fault}"))?;
        }
        world.end().await.map_err(|fault| format!("at the end: {fault}"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, max_shrink_iters: 40, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_is_needed_is_lost_and_nothing_else_stays(steps in prop::collection::vec(step(), 5..30)) {
        if let Err(fault) = check(&steps, GRACE) {
            prop_assert!(false, "{}", fault);
        }
    }
}

#[test]
fn the_model_catches_a_sweep_without_a_grace_period() {
    // An upload, time for two passes beside it, and the manifest that counts on it.
    let steps = [
        Step::Upload { repository: 0, blob: 1 },
        Step::Wait { seconds: 60 },
        Step::Push { repository: 0, blobs: vec![1], mark: 0, subject: None, tag: Some(0) },
    ];
    assert_eq!(check(&steps, GRACE), Ok(()));
    let fault = check(&steps, 0).unwrap_err();
    assert!(fault.contains("a push was refused though all was promised"), "{fault}");
}
