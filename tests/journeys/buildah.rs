//! `buildah`: an image built from scratch, pushed in both formats, pulled back and looked into.

use std::fs;

use serde_json::Value;

use crate::harness::{
    Server,
    images::{DOCKER_MANIFEST, OCI_MANIFEST, random_bytes},
    process::{Output, run},
};

#[tokio::test]
async fn buildah_builds_pushes_and_pulls_in_both_formats() {
    let server = Server::start();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| home.path().join(name).display().to_string();
    let buildah = |store: &str, arguments: &[&str]| -> Output {
        let (root, state) = (path(&format!("{store}-root")), path(&format!("{store}-state")));
        run("buildah", ["--root", &root, "--runroot", &state, "--storage-driver", "vfs"].iter().chain(arguments))
    };
    let content = random_bytes(250, 500_000);
    fs::write(path("file"), &content).expect("a file can be written");
    for (format, media_type) in [("oci", OCI_MANIFEST), ("docker", DOCKER_MANIFEST)] {
        let container = buildah("build", &["from", "scratch"]).text();
        buildah("build", &["copy", &container, &path("file"), "/deep/file"]).text();
        buildah("build", &["config", "--label", "made-by=a journey", "--entrypoint", "[\"/deep/file\"]", &container])
            .text();
        let name = format!("built-{format}");
        buildah("build", &["commit", "--format", format, &container, &name]).text();
        let (reference, digest_file) = (server.reference(&format!("acme/{name}:v1")), path("digest"));
        let target = format!("docker://{reference}");
        let format_of_push = if format == "oci" { "oci" } else { "v2s2" };
        let push =
            ["push", "--tls-verify=false", "--format", format_of_push, "--digestfile", &digest_file, &name, &target];
        buildah("build", &push).text();
        let digest = fs::read_to_string(&digest_file).expect("buildah wrote the digest");

        let answer = server.client().get(&format!("/v2/acme/{name}/manifests/v1")).await.expect(200);
        assert_eq!(
            (answer.header("content-type"), answer.header("docker-content-digest")),
            (media_type, digest.as_str())
        );

        buildah(format, &["pull", "--tls-verify=false", &target]).text();
        let inspected = buildah(format, &["inspect", "--type", "image", &reference]).text();
        let inspected: Value = serde_json::from_str(&inspected).expect("buildah prints JSON");
        assert_eq!(inspected["FromImageDigest"], digest.as_str());
        let container = buildah(format, &["from", "--pull-never", &reference]).text();
        let mounted = buildah(format, &["mount", &container]).text();
        assert!(fs::read(format!("{mounted}/deep/file")).expect("the file came back") == content);
        buildah(format, &["umount", &container]).text();
    }
}
