//! Tag policies, validation and quotas, where they are enforced.

use std::sync::Mutex;

use keppel_federation::vocabulary::{Algorithm, TenantId, UploadId};
use serde_json::{Value, json};

use super::*;
use crate::model::policy::{AccountSettings, CompiledPolicies};

/// An account with rules that a test can change.
struct Ruled(Mutex<AccountRules>);

#[async_trait::async_trait]
impl AccountClaims for Ruled {
    async fn ensure_primary(&self, _: &AccountName, _: bool) -> Result<(), ClaimRefusal> {
        Ok(())
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        false
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        Some(self.0.lock().unwrap().clone())
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
    fn set(&self, settings: Value, quota: Quota) {
        let settings = AccountSettings::from_request(settings).unwrap();
        let policies = Some(Arc::new(CompiledPolicies::compile(&settings).unwrap()));
        *self.0.lock().unwrap() = AccountRules { tenant: tenant(), policies, quota };
    }
}

fn tenant() -> TenantId {
    TenantId::parse("payer").unwrap()
}

fn ruled() -> (Registry, Arc<Ruled>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::memory(crate::storage::MemoryOptions::new(1 << 30));
    let rules = AccountRules { tenant: tenant(), policies: None, quota: Quota::default() };
    let claims = Arc::new(Ruled(Mutex::new(rules)));
    claims.set(json!({}), Quota::default());
    let clock = Arc::new(ManualClock::new(1_000_000));
    (Registry::new(options(), metadata, storage, clock, claims.clone()), claims, directory)
}

/// An image whose configuration has labels; `number` makes it differ from others.
async fn push(registry: &Registry, name: &str, tag: &str, number: usize) -> Result<Digest, RegistryError> {
    let config = json!({"config": {"Labels": {"number": number.to_string()}}}).to_string().into_bytes();
    let digest = digest_of(&config);
    let blob = stream::iter([Ok::<_, BodyError>(Bytes::from(config.clone()))]);
    registry.put_blob(&repository(name), &digest, None, blob).await?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": config.len()},
    });
    let target = ManifestTarget::Tag(Tag::parse(tag).unwrap());
    let put = registry.put_manifest(&repository(name), target, Some(OCI), manifest.to_string().into()).await?;
    Ok(put.digest)
}

fn protected(result: Result<impl std::fmt::Debug, RegistryError>) -> String {
    match result.unwrap_err() {
        error @ RegistryError::TagProtected { .. } => error.to_string(),
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn tag_policies_stop_pushes_moves_and_deletions() {
    let (registry, rules, _directory) = ruled();
    let first = push(&registry, "acme/web", "v1", 1).await.unwrap();
    push(&registry, "acme/web", "latest", 1).await.unwrap();
    push(&registry, "acme/other", "v1", 1).await.unwrap();
    let policies = json!({"tag_policies": [
        {"match_repository": "web", "match_tag": "v.*", "block_overwrite": true},
        {"match_repository": "web", "match_tag": "v.*", "block_delete": true},
        {"match_repository": "web", "match_tag": "frozen", "block_push": true},
    ]});
    rules.set(policies, Quota::default());
    assert_eq!(push(&registry, "acme/web", "v1", 1).await.unwrap(), first, "the same again changes nothing");
    let web = repository("acme/web");
    let moved = protected(push(&registry, "acme/web", "v1", 2).await);
    assert_eq!(moved, "tag v1 is protected: account.tag_policies[0] sets block_overwrite");
    let pushed = protected(push(&registry, "acme/web", "frozen", 1).await);
    assert_eq!(pushed, "tag frozen is protected: account.tag_policies[2] sets block_push");
    push(&registry, "acme/web", "latest", 2).await.unwrap();
    push(&registry, "acme/other", "v1", 2).await.unwrap();
    let v1 = Tag::parse("v1").unwrap();
    let deleted = "tag v1 is protected: account.tag_policies[1] sets block_delete";
    assert_eq!(protected(registry.delete_tag(&web, &v1).await), deleted);
    assert_eq!(protected(registry.delete_manifest(&web, &first).await), deleted);
    assert_eq!(protected(registry.delete_repository(&web).await), deleted);
    registry.load_manifest(&web, &reference("latest")).await.unwrap();
    registry.delete_tag(&web, &Tag::parse("latest").unwrap()).await.unwrap();
    registry.delete_tag(&repository("acme/other"), &v1).await.unwrap();
    rules.set(json!({}), Quota::default());
    registry.delete_manifest(&web, &first).await.unwrap();
}

#[tokio::test]
async fn manifests_that_do_not_meet_the_rule_are_refused() {
    let (registry, rules, _directory) = ruled();
    rules.set(json!({"validation": {"rule_for_manifest": "labels['number'] == '1'"}}), Quota::default());
    push(&registry, "acme/web", "v1", 1).await.unwrap();
    let Err(RegistryError::ManifestInvalid { reason }) = push(&registry, "acme/web", "v2", 2).await else { panic!() };
    assert!(reason.contains("account.validation.rule_for_manifest") && reason.contains("labels['number']"), "{reason}");
    let web = repository("acme/web");
    // What an index lists was checked already; it has no labels.
    let child = registry.load_manifest(&web, &reference("v1")).await.unwrap();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": OCI, "digest": child.digest, "size": child.bytes.len()}]});
    registry.put_manifest(&web, tag("all"), Some(INDEX), index.to_string().into()).await.unwrap();
    rules.set(json!({"validation": {"rule_for_manifest": "!media_type.contains('index')"}}), Quota::default());
    let refused = registry.put_manifest(&web, tag("all"), Some(INDEX), index.to_string().into()).await;
    assert!(matches!(refused, Err(RegistryError::ManifestInvalid { .. })));
    rules.set(json!({"validation": {"required_labels": ["number", "team"]}}), Quota::default());
    assert!(push(&registry, "acme/web", "v3", 1).await.is_err());
    *rules.0.lock().unwrap() = AccountRules { tenant: tenant(), policies: None, quota: Quota::default() };
    assert!(matches!(push(&registry, "acme/web", "v1", 1).await, Err(RegistryError::PoliciesUnusable { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_holds_exactly_while_64_push_at_once() {
    let (registry, rules, _directory) = ruled();
    rules.set(json!({}), Quota { manifests: Some(10), size_bytes: None });
    let pushes = (0..64).map(|number| {
        let registry = registry.clone();
        // Two accounts of the tenant share what it has.
        let name = if number % 2 == 0 { "acme/web" } else { "more/web" };
        tokio::spawn(async move { push(&registry, name, "v1", number).await })
    });
    let mut stored = 0;
    for push in pushes.collect::<Vec<_>>() {
        match push.await.unwrap() {
            Ok(_) => stored += 1,
            Err(RegistryError::QuotaExceeded { what: "manifests", quota: 10, usage: 10, .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(stored, 10);
    let usage = |registry: &Registry| {
        let metadata = registry.metadata().clone();
        async move { metadata.read(|reader| reader.tenant_usage("payer")).await.unwrap() }
    };
    let full = usage(&registry).await;
    assert_eq!(full.manifests, 10);
    // Less than there is only stops new pushes; what is there can be pushed again.
    rules.set(json!({}), Quota { manifests: Some(3), size_bytes: Some(full.size_bytes + 100) });
    let again = registry.list_manifests(&repository("acme/web"), None, 1).await.unwrap().items.remove(0);
    let known =
        registry.load_manifest(&repository("acme/web"), &Reference::Digest(again.manifest.digest)).await.unwrap();
    registry.put_manifest(&repository("acme/web"), tag("v9"), Some(OCI), known.bytes.clone()).await.unwrap();

    rules.set(json!({}), Quota { manifests: None, size_bytes: Some(full.size_bytes + 1000) });
    let blobs = (0..64_u8).map(|number| {
        let registry = registry.clone();
        tokio::spawn(async move {
            let content = vec![number; 300];
            let digest = digest_of(&content);
            let body = stream::iter([Ok::<_, BodyError>(Bytes::from(content))]);
            registry.put_blob(&repository("acme/web"), &digest, None, body).await
        })
    });
    let mut stored = 0;
    for blob in blobs.collect::<Vec<_>>() {
        match blob.await.unwrap() {
            Ok(()) => stored += 1,
            Err(RegistryError::QuotaExceeded { what: "bytes", .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((stored, usage(&registry).await.size_bytes), (3, full.size_bytes + 900));
}

#[tokio::test]
async fn uploads_that_are_never_finished_hold_no_more_than_the_quota_and_a_little() {
    let (registry, rules, _directory) = ruled();
    rules.set(json!({}), Quota { manifests: None, size_bytes: Some(1 << 20) });
    let web = repository("acme/web");
    let append = async |id: &UploadId, size: usize, length: Option<u64>| {
        let pieces = vec![Ok::<_, BodyError>(Bytes::from(vec![7; 1 << 10])); size >> 10];
        registry.append_upload(&web, id, None, length, stream::iter(pieces)).await
    };
    let is_refused = |outcome: Result<UploadStatus, RegistryError>| {
        matches!(outcome, Err(RegistryError::QuotaExceeded { what: "bytes", .. }))
    };
    let session = registry.start_upload(&web, Algorithm::Sha256).await.unwrap();
    append(&session.id, 600 << 10, None).await.unwrap();
    assert!(is_refused(append(&session.id, 600 << 10, None).await), "both chunks are more than the quota");
    assert!(matches!(append(&session.id, 1 << 10, None).await, Err(RegistryError::UploadUnknown { .. })));
    let session = registry.start_upload(&web, Algorithm::Sha256).await.unwrap();
    assert!(is_refused(append(&session.id, 2 << 20, Some(2 << 20)).await), "refused by what is announced");
    // Each of these would fit by itself.
    let mut open = Vec::new();
    loop {
        let session = registry.start_upload(&web, Algorithm::Sha256).await.unwrap();
        match append(&session.id, 1 << 20, None).await {
            Ok(_) => open.push(session.id),
            refused => break assert!(is_refused(refused)),
        }
    }
    assert!((32..=65).contains(&open.len()), "{}", open.len());
    for id in &open {
        registry.cancel_upload(&web, id).await.unwrap();
    }
    let session = registry.start_upload(&web, Algorithm::Sha256).await.unwrap();
    append(&session.id, 1 << 20, Some(1 << 20)).await.unwrap();
}

#[tokio::test]
async fn counters_equal_a_recount_after_ten_thousand_mixed_operations() {
    let (registry, rules, _directory) = ruled();
    rules.set(json!({}), Quota { manifests: Some(60), size_bytes: Some(20_000) });
    let mut state = 7_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut done, mut refused) = (0, 0);
    let names = ["acme/web", "acme/api", "acme/deep/er/still", "more/web"];
    // In groups, since writes that wait together share one commit.
    for _ in 0..200 {
        let operations = (0..50).map(|_| {
            let (registry, name) = (registry.clone(), names[random(names.len())]);
            let (kind, number, tag) = (random(20), random(40), format!("v{}", random(6)));
            async move {
                let repository = repository(name);
                let listed = async |registry: &Registry| registry.list_manifests(&repository, None, 100).await;
                match kind {
                    0..=8 => push(&registry, name, &tag, number).await.map(|_| ()),
                    9..=12 => match listed(&registry).await?.items.get(number) {
                        Some(entry) => registry.delete_manifest(&repository, &entry.manifest.digest).await,
                        None => Ok(()),
                    },
                    13..=15 => registry.delete_tag(&repository, &Tag::parse(&tag).unwrap()).await,
                    16 | 17 => {
                        let config = json!({"config": {"Labels": {"number": number.to_string()}}}).to_string();
                        registry.delete_blob(&repository, &digest_of(config.as_bytes())).await
                    }
                    18 => {
                        let config = json!({"config": {"Labels": {"number": number.to_string()}}}).to_string();
                        registry.mount_blob(&repository, &digest_of(config.as_bytes()), None).await.map(|_| ())
                    }
                    _ if number < 4 => registry.delete_repository(&repository).await,
                    _ => Ok(()),
                }
            }
        });
        for outcome in futures_util::future::join_all(operations.collect::<Vec<_>>()).await {
            match outcome {
                Ok(()) => done += 1,
                Err(_) => refused += 1,
            }
        }
        let miscounted = registry.metadata().read(|reader| reader.miscounted()).await.unwrap();
        assert_eq!(miscounted, Vec::<String>::new());
    }
    assert_eq!(done + refused, 10_000);
    assert!(done > 4000 && refused > 500, "{done} {refused}");
}

#[tokio::test]
async fn a_repository_is_deleted_with_all_that_it_holds_and_nothing_else() {
    let (registry, _, _directory) = ruled();
    for number in 0..450 {
        push(&registry, "acme/web", &format!("v{number}"), number).await.unwrap();
    }
    let kept = push(&registry, "acme/web/more", "v1", 3).await.unwrap();
    registry.load_manifest(&repository("acme/web"), &reference("v7")).await.unwrap();
    registry.delete_repository(&repository("acme/web")).await.unwrap();
    let gone = registry.load_manifest(&repository("acme/web"), &reference("v7")).await;
    assert!(matches!(gone, Err(RegistryError::RepositoryUnknown { .. })));
    assert!(matches!(
        registry.delete_repository(&repository("acme/web")).await,
        Err(RegistryError::RepositoryUnknown { .. })
    ));
    assert_eq!(registry.load_manifest(&repository("acme/web/more"), &reference("v1")).await.unwrap().digest, kept);
    let page = registry.list_account_repositories(&AccountName::parse("acme").unwrap(), None, 10).await.unwrap();
    assert_eq!((page.items.len(), page.more), (1, false));
    assert_eq!(registry.metadata().read(|reader| reader.tenant_usage("payer")).await.unwrap().manifests, 1);
}
