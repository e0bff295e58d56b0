//! Replicas that hold everything.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::copies::{has_all, rows};
use crate::federation::{Region, large_blob, three_regions, until};
use crate::harness::{Artifact, Content, Image, Index, Kind, client::send};
use crate::sources::RECEIVED;

/// Makes a replica of an account in a region, with this strategy.
pub async fn make_replica(primary: &Region, region: &Region, name: &str, strategy: &str) {
    let issued = primary.client.post(&format!("/keppel/v1/accounts/{name}/sublease")).await.expect(200).json();
    let token = issued["sublease_token"].as_str().expect("a token").to_owned();
    let tenant = primary.client.get(&format!("/keppel/v1/accounts/{name}")).await.expect(200).json();
    let account = json!({ "account": {
        "auth_tenant_id": tenant["account"]["auth_tenant_id"],
        "replication": {"strategy": strategy, "upstream": "eu"},
    }});
    let request = region.client.request(Method::PUT, &format!("/keppel/v1/accounts/{name}"));
    let made = send(request.header("X-Keppel-Sublease-Token", token).body(account.to_string())).await.expect(200);
    assert_eq!(made.json()["account"]["replication"]["strategy"], strategy);
}

/// What a region's status says about its copy of an account.
fn copy_of(region: &Region, account: &str) -> Value {
    let status: Value = serde_json::from_str(&region.told(&["status", "--json"])).expect("JSON");
    let copies = status["copies"].as_array().cloned().unwrap_or_default();
    copies.into_iter().find(|copy| copy["account"] == account).unwrap_or_default()
}

/// Whether a region has everything of an account, and has proven it.
pub fn is_whole(region: &Region, account: &str) -> bool {
    let copy = copy_of(region, account);
    let eager = &copy["eager"];
    eager["counted"] == true && eager["missing_blobs"] == 0 && eager["proven_ms"].is_number()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_holds_everything_has_what_was_pushed_before_and_since_and_referrers_too() {
    let [mut eu, us, ap] = three_regions();
    let index = Index::of(Kind::Oci, vec![Image::small(1), Image::small(2)]);
    eu.client.push_index("acme/app", "multi", &index).await;
    let signature = Artifact::new("application/vnd.example.signature", b"signed", Some(&index.images[0].manifest));
    eu.client.push_artifact("acme/app", &signature).await.expect(201);
    until("the account is known", || us.told(&["accounts"]).contains("acme"));
    make_replica(&eu, &us, "acme", "eager").await;
    until("all is here that was pushed before", || is_whole(&us, "acme"));
    // Nothing was pulled here, and another region was not meant.
    assert!(rows(&us, "SELECT count(*) FROM blobs") >= 5);
    assert_eq!(rows(&ap, "SELECT count(*) FROM blobs"), 0);
    let blobs_before = us.counter("keppel_backfilled_blobs_total").await;
    assert!(blobs_before >= 5, "{blobs_before}");

    let later = Image::small(3);
    ap.client.push_image("acme/later", "v1", &later).await;
    until("all is here that was pushed since", || {
        rows(&us, "SELECT count(*) FROM manifests") == rows(&eu, "SELECT count(*) FROM manifests")
            && is_whole(&us, "acme")
    });
    let peers = us.client.get("/keppel/v1/peers").await.expect(200).json();
    let lag = peers["peers"].as_array().expect("a list").iter().find(|peer| peer["region"] == "eu").expect("eu")["lag"]
        .clone();
    assert_eq!((&lag["events"], &lag["bytes"]), (&json!(0), &json!(0)), "{lag}");
    assert!(us.told(&["status"]).contains("all: proven"), "{}", us.told(&["status"]));

    eu.server.kill();
    for image in &index.images {
        assert!(has_all(&us, "acme/app", image).await);
    }
    assert!(has_all(&us, "acme/later", &later).await);
    us.client.assert_manifest("acme/app", &signature.manifest.digest(), &signature.manifest).await;
    for blob in &signature.blobs {
        let path = format!("/v2/acme/app/blobs/{}", blob.digest());
        assert_eq!(us.client.get(&path).await.expect(200).body, blob.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_while_it_fetches_everything_goes_on_where_it_was() {
    let [mut eu, mut us, _ap] = three_regions();
    let mut digests = Vec::new();
    for number in 0..12_u8 {
        let mut layer = large_blob(6);
        layer[0] = number;
        let repository = format!("acme/app{}", number % 3);
        let digest = eu.client.push_blob(&repository, &layer).await;
        let config = eu.client.push_blob(&repository, b"{}").await;
        let descriptor =
            |kind: &str, digest: &str, size: usize| json!({"mediaType": kind, "digest": digest, "size": size});
        let manifest = Content::json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor("application/vnd.oci.image.config.v1+json", &config, 2),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &digest, layer.len())],
            }),
        );
        eu.client.put_manifest(&repository, &format!("v{number}"), &manifest).await.expect(201);
        digests.push((repository, digest, layer));
    }
    until("the account is known", || us.told(&["accounts"]).contains("acme"));
    make_replica(&eu, &us, "acme", "eager").await;
    let start = Instant::now();
    let mut most_missing = 0;
    while us.counter("keppel_backfilled_blobs_total").await < 2 {
        let peers = us.client.get("/keppel/v1/peers").await.expect(200).json();
        let lags = peers["peers"].as_array().expect("a list").iter().map(|peer| peer["lag"]["bytes"].as_u64());
        most_missing = most_missing.max(lags.flatten().max().unwrap_or_default());
        assert!(start.elapsed() < Duration::from_secs(40), "the backfill does not begin");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    us.server.kill();
    assert!(most_missing > 6 << 20, "{most_missing} bytes are said to be missing");
    let held = rows(&us, "SELECT count(*) FROM blobs WHERE size_bytes > 1000") as u64;
    assert!(held < 12, "it was killed too late: it had all layers");
    us.restart();
    until("all is here", || is_whole(&us, "acme"));
    // One that was there may not have been noted as held for good yet; its bytes are not asked for again.
    let received = us.counter(RECEIVED).await;
    assert!(
        received <= (12 - held) * (6 << 20) + (1 << 20),
        "{received} bytes came, where {held} of 12 layers were there already"
    );
    eu.server.kill();
    for (repository, digest, layer) in &digests {
        assert!(us.client.get(&format!("/v2/{repository}/blobs/{digest}")).await.expect(200).body == *layer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_of_sets_find_what_a_replica_has_lost_unnoticed_and_it_is_fetched_again() {
    let [mut eu, us, _ap] = three_regions();
    let (image, other, later) = (Image::small(1), Image::small(2), Image::small(3));
    eu.client.push_image("acme/app", "v1", &image).await;
    eu.client.push_image("acme/app", "v2", &other).await;
    until("the account is known", || us.told(&["accounts"]).contains("acme"));
    make_replica(&eu, &us, "acme", "eager").await;
    until("all is here", || is_whole(&us, "acme"));
    // A blob of one image, and the other image with its tag, go behind the node's back.
    let layer = image.blobs().last().expect("a layer").digest();
    let hex = |digest: &str| digest.split_once(':').expect("a digest").1.to_uppercase();
    let lost = format!("(SELECT id FROM blobs WHERE hex(digest) LIKE '%{}')", hex(&layer));
    let gone = format!("(SELECT id FROM manifests WHERE hex(digest) LIKE '%{}')", hex(&other.digest()));
    let database = rusqlite::Connection::open(us.server.data().join("metadata.db")).expect("it opens");
    database.busy_timeout(Duration::from_secs(10)).expect("a timeout");
    database
        .execute_batch(&format!(
            "BEGIN IMMEDIATE; DELETE FROM manifest_blobs WHERE blob_id IN {lost}; DELETE FROM mounts WHERE blob_id IN {lost};
             DELETE FROM blobs WHERE id IN {lost}; DELETE FROM tags WHERE manifest_id IN {gone};
             DELETE FROM manifest_blobs WHERE manifest_id IN {gone}; DELETE FROM manifests WHERE id IN {gone}; COMMIT"
        ))
        .expect("they go");
    assert_eq!(rows(&us, "SELECT count(*) FROM manifests"), 1);
    assert_eq!(us.counter("keppel_backfill_found_missing_total").await, 0);
    // The next change is when it is looked again.
    eu.client.push_image("acme/later", "v1", &later).await;
    until("it was found", || {
        let found = us.server.log();
        found.contains("lacks blobs") && found.contains("listed anew")
    });
    assert!(us.server.log().contains(&layer), "the log names what was missing");
    until("all is here again", || rows(&us, "SELECT count(*) FROM manifests") == 3 && is_whole(&us, "acme"));
    assert!(us.counter("keppel_backfill_found_missing_total").await >= 1);
    eu.server.kill();
    for (repository, image) in [("acme/app", &image), ("acme/app", &other), ("acme/later", &later)] {
        assert!(has_all(&us, repository, image).await);
    }
    let tagged = us.client.get("/v2/acme/app/manifests/v2").await.expect(200);
    assert_eq!(tagged.body, other.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_may_begin_and_cease_to_hold_everything() {
    let [eu, us, _ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    until("the account is known", || us.told(&["accounts"]).contains("acme"));
    make_replica(&eu, &us, "acme", "on_first_use").await;
    us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
    let tenant = eu.client.get("/keppel/v1/accounts/acme").await.expect(200).json();
    let fields = |strategy: &str| {
        json!({ "auth_tenant_id": tenant["account"]["auth_tenant_id"],
                "replication": {"strategy": strategy, "upstream": "eu"} })
    };
    let change = async |strategy: &str| {
        let request = us.client.request(Method::PUT, "/keppel/v1/accounts/acme");
        let changed = send(request.body(json!({ "account": fields(strategy) }).to_string())).await.expect(200);
        assert_eq!(changed.json()["account"]["replication"]["strategy"], strategy);
    };
    assert!(copy_of(&us, "acme")["eager"].is_null());
    change("eager").await;
    until("all is here", || is_whole(&us, "acme"));
    let shown = us.client.get("/keppel/v1/accounts/acme").await.expect(200).json();
    let replica = &shown["account"]["replica"];
    assert_eq!((&replica["counted"], &replica["missing_blobs"]), (&json!(true), &json!(0)), "{shown}");
    assert!(replica["proven_seconds_ago"].is_number(), "{shown}");
    // The primary knows nothing of it in its own account, and whoever changes that does not end it.
    let shown = eu.client.get("/keppel/v1/accounts/acme").await.expect(200).json();
    assert!(
        shown["account"].get("replication").is_none() && shown["account"].get("eager_regions").is_none(),
        "{shown}"
    );
    let changed = json!({ "account": { "auth_tenant_id": shown["account"]["auth_tenant_id"], "copies": 2 }});
    let request = eu.client.request(Method::PUT, "/keppel/v1/accounts/acme");
    send(request.body(changed.to_string())).await.expect(200);
    let mut elsewhere = fields("eager");
    elsewhere["copies"] = 3.into();
    let request = us.client.request(Method::PUT, "/keppel/v1/accounts/acme");
    let refused = send(request.body(json!({ "account": elsewhere }).to_string())).await.expect(422);
    assert!(refused.text().contains("region eu"), "{}", refused.text());
    until("the change is known", || {
        let shown = std::process::Command::new(env!("CARGO_BIN_EXE_keppel"))
            .args(["account", "show", "acme", "--json", "--server", &format!("http://{}", us.server.address())])
            .output()
            .expect("it runs");
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        shown["copies"] == 2 && shown["replication"]["strategy"] == "eager"
    });
    change("on_first_use").await;
    until("it is a usual replica", || copy_of(&us, "acme")["eager"].is_null());
    us.client.assert_image("acme/app", "v1", &image).await;
}
