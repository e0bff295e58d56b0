use std::process::{Command, Output, Stdio};

use crate::federation::{Region, three_regions};
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
