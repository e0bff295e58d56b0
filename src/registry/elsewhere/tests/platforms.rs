//! What the platform filter of a replica leaves out is as if there were no replica.

use keppel_federation::vocabulary::TenantId;
use serde_json::{Value, json};

use super::*;
use crate::model::policy::{AccountSettings, CompiledPolicies, PlatformFilter, ReplicaSettings};
use crate::registry::manifest_push::record_from_elsewhere;
use crate::registry::{AccountClaims, AccountRules, ClaimRefusal, Quota};

/// An account with these policies, whose primary is elsewhere.
struct Filtered(Arc<CompiledPolicies>);

#[async_trait]
impl AccountClaims for Filtered {
    async fn ensure_primary(&self, _: &AccountName, _: bool) -> Result<(), ClaimRefusal> {
        Err(ClaimRefusal::Elsewhere { region: "eu".into() })
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        false
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        let tenant = TenantId::parse("payer").unwrap();
        Some(AccountRules { tenant, policies: Some(self.0.clone()), quota: Quota::default() })
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

fn filtered(filter: &Value) -> Arc<Filtered> {
    let mut settings = AccountSettings::default();
    let platform_filter: Vec<PlatformFilter> = serde_json::from_value(filter.clone()).unwrap();
    settings.set_replica("us", ReplicaSettings { platform_filter, ..ReplicaSettings::default() });
    Arc::new(Filtered(Arc::new(CompiledPolicies::compile_in(&settings, Some("us")).unwrap())))
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    let media_type = format!("application/vnd.oci.image.{kind}");
    json!({ "mediaType": media_type, "digest": digest_of_bytes(bytes), "size": bytes.len() })
}

/// Which of the layers of an amd64 image, an arm64 image and one that both share are left in a replica in which there is no
/// room for anything that need not be there.
async fn left_with(filter: Value) -> [bool; 3] {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = open(&there);
    let clock = Arc::new(ManualClock::new(1_000_000));
    let metadata = Metadata::open(&here.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(here.path().join("storage"))).unwrap();
    let options = RegistryOptions { pulled_blobs_max_bytes: Some(0), ..RegistryOptions::default() };
    let registry = Registry::new(options, metadata, storage, clock.clone(), filtered(&filter));
    let layers = [b"for amd64".as_slice(), b"for arm64", b"for both"];
    for layer in layers {
        let body = stream::iter([Ok::<_, crate::registry::BodyError>(Bytes::copy_from_slice(layer))]);
        other.put_blob(&app(), &digest_of_bytes(layer), None, body).await.unwrap();
    }
    let (fault, blob) = (Fault::None, digest_of_bytes(layers[0]));
    registry.connect(Arc::new(OtherRegion {
        registry: other,
        fault,
        asked: AtomicUsize::new(0),
        blob,
        is_replica: true,
    }));
    registry.ensure_accounts(vec![app().account()]).await.unwrap();
    let record = async |kind: &str, manifest: &Value| {
        let bytes = Bytes::from(manifest.to_string());
        let digest = digest_of_bytes(&bytes);
        let target = ManifestTarget::Digest { digest, tags: Vec::new() };
        let media_type = format!("application/vnd.oci.image.{kind}");
        record_from_elsewhere(&registry.inner, &app(), &digest, target, &media_type, bytes.clone(), None)
            .await
            .unwrap();
        bytes
    };
    let mut listed = Vec::new();
    for (layer, architecture) in layers.iter().zip(["amd64", "arm64"]) {
        let of = |layer: &[u8]| descriptor("layer.v1.tar", layer);
        let image = json!({"schemaVersion": 2, "config": descriptor("config.v1+json", b"{}"),
            "layers": [of(layer), of(layers[2])]});
        let mut entry = descriptor("manifest.v1+json", &record("manifest.v1+json", &image).await);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        listed.push(entry);
    }
    record("index.v1+json", &json!({"schemaVersion": 2, "manifests": listed})).await;
    for layer in layers {
        let blob = registry.load_blob(&app(), &digest_of_bytes(layer), true).await.unwrap();
        let stream = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().concat(), layer);
        settled(&registry, &digest_of_bytes(layer)).await;
    }
    clock.advance(10_000);
    registry.evict_pulled().await.unwrap();
    let mut left = [false; 3];
    for (left, layer) in left.iter_mut().zip(layers) {
        let digest = digest_of_bytes(layer);
        let row = registry.metadata().read(move |reader| reader.get_blob_by_name(app().as_str(), &digest)).await;
        *left = row.unwrap().is_some();
    }
    left
}

#[tokio::test]
async fn a_replica_keeps_what_its_platform_filter_lets_through_and_no_more() {
    assert_eq!(left_with(json!([])).await, [true, true, true]);
    assert_eq!(left_with(json!([{"architecture": "arm64"}])).await, [false, true, true]);
    assert_eq!(left_with(json!([{"architecture": "s390x"}])).await, [false, false, false]);
}
