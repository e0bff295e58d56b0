//! Artifacts: what supply-chain tools attach to images, with this project's own client and with ORAS.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::harness::{
    Artifact, Image, Server,
    images::{random_bytes, sha256},
    process::{require, run, run_in},
};

#[tokio::test]
async fn artifacts_attached_to_an_image_are_found_and_pulled() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(290);
    client.push_image("acme/app", "v1", &image).await;
    let sbom = Artifact::new("application/spdx+json", br#"{"spdxVersion":"SPDX-2.3"}"#, Some(&image.manifest));
    let signature = Artifact::new("application/vnd.dev.cosign.artifact.sig.v1+json", b"signed", Some(&sbom.manifest));
    client.push_artifact("acme/app", &sbom).await;
    client.push_artifact("acme/app", &signature).await;
    for (subject, artifact) in [(&image.manifest, &sbom), (&sbom.manifest, &signature)] {
        let index = client.get(&format!("/v2/acme/app/referrers/{}", subject.digest())).await.expect(200).json();
        let found = index["manifests"][0]["digest"].as_str().expect("one referrer").to_owned();
        assert_eq!(found, artifact.manifest.digest());
        client.assert_manifest("acme/app", &found, &artifact.manifest).await;
        let payload = &artifact.blobs[1];
        let answer = client.get(&format!("/v2/acme/app/blobs/{}", payload.digest())).await.expect(200);
        assert_eq!(answer.body, payload.bytes);
    }
}

/// ORAS for Python, from its package, in an environment of its own below the build directory.
pub fn oras_python() -> PathBuf {
    require("python3");
    let environment = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("oras");
    let python = environment.join("bin/python");
    let works =
        |python: &PathBuf| python.is_file() && run(&python.display().to_string(), ["-c", "import oras.client"]).success;
    if !works(&python) {
        run("python3", ["-m", "venv", "--clear", &environment.display().to_string()]).text();
        run(&python.display().to_string(), ["-m", "pip", "install", "--quiet", "oras==0.2.43"]).text();
        assert!(works(&python), "oras was installed but does not import");
    }
    python
}

#[tokio::test]
async fn oras_pushes_an_artifact_and_pulls_it_back() {
    let server = Server::start();
    let python = oras_python();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let content = random_bytes(291, 300_000);
    fs::write(home.path().join("model.bin"), &content).expect("a file can be written");
    fs::create_dir(home.path().join("out")).expect("a folder can be made");
    let script = "
import sys, oras.client
client, target = oras.client.OrasClient(insecure=True), sys.argv[1]
client.push(target=target, files=['model.bin:application/vnd.example.model'], manifest_annotations={'made-by': 'a journey'})
print(client.pull(target=target, outdir='out')[0])
print(client.get_tags(target))
";
    let target = server.reference("acme/model:v1");
    let said = run_in(home.path(), &[], &python.display().to_string(), ["-c", script, &target]).text();
    assert!(said.contains("model.bin") && said.contains("'v1'"), "{said}");
    assert!(fs::read(home.path().join("out/model.bin")).expect("the file came back") == content);
    let manifest: Value = server.client().get("/v2/acme/model/manifests/v1").await.expect(200).json();
    assert_eq!(manifest["layers"][0]["digest"], sha256(&content));
    assert_eq!(manifest["annotations"]["made-by"], "a journey");
}
