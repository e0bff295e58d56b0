use std::process::{Command, Output, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::federation::{Region, three_regions, until};
use crate::harness::client::{Answer, send};
use crate::harness::{Artifact, Image, Index, Kind};

fn wait(region: &Region, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
    command.arg("wait").args(arguments).arg("--data").arg(region.server.data()).stdin(Stdio::null());
    command.output().expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn after_waiting_for_an_image_its_primary_may_go() {
    let [mut eu, us, ap] = three_regions();
    let index = Index::of(Kind::Oci, vec![Image::small(1), Image::small(2)]);
    eu.client.push_index("acme/app", "multi", &index).await;
    let artifact = Artifact::new("application/vnd.example.signature", b"signed", Some(&index.images[0].manifest));
    eu.client.push_artifact("acme/app", &artifact).await.expect(201);
    let refused = wait(&eu, &["acme/app:multi", "--region", "nowhere"]);
    assert!(!refused.status.success());
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("no node of the federation is in region nowhere"), "{words}");

    let waited = wait(&us, &["acme/app:multi", "--region", "us", "--region", "ap", "--timeout", "40s"]);
    assert!(waited.status.success(), "{}", String::from_utf8_lossy(&waited.stderr));
    let told = String::from_utf8(waited.stdout).expect("text");
    assert!(told.starts_with(&index.manifest.digest()), "{told}");
    assert_eq!(told.matches(": 4 manifests").count(), 2, "{told}");
    eu.server.kill();
    for region in [&us, &ap] {
        let digest = index.manifest.digest();
        region.client.assert_manifest("acme/app", &digest, &index.manifest).await;
        for image in &index.images {
            region.client.assert_image("acme/app", &image.digest(), image).await;
        }
        region.client.assert_manifest("acme/app", &artifact.manifest.digest(), &artifact.manifest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_a_replica_has_the_images_that_its_platform_filter_lets_through() {
    let [mut eu, us, ap] = three_regions();
    let index = Index::of_two(Kind::Oci, 1);
    eu.client.push_index("acme/app", "multi", &index).await;
    until("the account is known", || us.told(&["accounts"]).contains("acme"));
    let refused = json!([{"architecture": "arm64"}]);
    replica(&eu, &us, json!({"platform_filter": refused, "replication": {"strategy": "eager", "upstream": "eu"}}), 422)
        .await;
    let filter = json!([{"os": "linux", "architecture": "arm64"}]);
    let made = replica(&eu, &us, json!({ "platform_filter": filter }), 200).await;
    assert_eq!(made.json()["account"]["platform_filter"], filter);
    for region in [&eu, &ap] {
        let shown = region.client.get("/keppel/v1/accounts/acme").await.expect(200).json();
        assert!(shown["account"].get("platform_filter").is_none(), "it is us that filters: {shown}");
    }
    let waited = wait(&us, &["acme/app:multi", "--region", "us", "--region", "ap", "--timeout", "40s"]);
    let told = String::from_utf8(waited.stdout).expect("text");
    assert!(waited.status.success() && told.contains("us: 2 manifests") && told.contains("ap: 3 manifests"), "{told}");
    let [amd64, arm64] = &index.images[..] else { panic!("two images") };
    let layer = format!("/v2/acme/app/blobs/{}", amd64.layers[0].digest());
    // The index is the same everywhere. What is left out comes from elsewhere, as if there were no replica.
    eu.server.kill();
    us.client.assert_manifest("acme/app", &index.digest(), &index.manifest).await;
    us.client.assert_image("acme/app", &arm64.digest(), arm64).await;
    assert_eq!(us.client.get(&layer).await.expect(200).body, amd64.layers[0].bytes, "it came from ap");
    let other = format!("/v2/acme/app/blobs/{}", amd64.config.digest());
    drop(ap);
    us.client.get(&other).await.expect_error(503, "UNAVAILABLE");
}

/// Makes a replica of the account `acme` of `eu` in a region.
async fn replica(eu: &Region, region: &Region, mut fields: Value, status: u16) -> Answer {
    let issued = eu.client.post("/keppel/v1/accounts/acme/sublease").await.expect(200).json();
    fields["auth_tenant_id"] = "default".into();
    if fields.get("replication").is_none() {
        fields["replication"] = json!({"strategy": "on_first_use", "upstream": "eu"});
    }
    let request =
        region.client.request(Method::PUT, "/keppel/v1/accounts/acme").body(json!({ "account": fields }).to_string());
    let token = issued["sublease_token"].as_str().expect("a token");
    send(request.header("X-Keppel-Sublease-Token", token)).await.expect(status)
}
