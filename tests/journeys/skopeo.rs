//! `skopeo`: copy, sync, inspect, delete, list-tags, and whole multi-architecture indexes.

use std::path::Path;

use serde_json::Value;

use crate::harness::{
    Content, ImageBuilder, Index, Kind, Server,
    client::strings,
    images::sha256,
    layout::{Layout, read_layout},
    process::{Output, run},
};

fn skopeo(arguments: &[&str]) -> Output {
    run("skopeo", ["--insecure-policy"].iter().chain(arguments))
}

/// Copies everything under a tag of a layout, digests unchanged, to the registry.
pub fn copy_in(layout: &Path, tag: &str, target: &str) {
    let source = format!("oci:{}:{tag}", layout.display());
    let copy =
        ["copy", "--all", "--preserve-digests", "--dest-tls-verify=false", &source, &format!("docker://{target}")];
    skopeo(&copy).text();
}

/// Copies it back into a new layout and returns the manifest there.
pub fn copy_out(source: &str, layout: &Path) -> Content {
    let target = format!("oci:{}:back", layout.display());
    let copy =
        ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", &format!("docker://{source}"), &target];
    skopeo(&copy).text();
    read_layout(layout, "back")
}

pub fn raw_digest(reference: &str) -> String {
    // The bytes must not be touched, so no trimming: the digest is that of all of standard output.
    let output = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    assert!(output.success, "{}", output.stderr);
    sha256(output.stdout.as_bytes())
}

#[tokio::test]
async fn skopeo_copies_oci_images_there_and_back() {
    let server = Server::start();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let one = ImageBuilder::new(260).build();
    let hundred = ImageBuilder::new(261).layers(100).layer_bytes(500).build();
    let multi = Index::of_two(Kind::Oci, 262);
    let layout_path = home.path().join("in");
    let mut layout = Layout::create(&layout_path);
    layout.add_image("one", &one);
    layout.add_image("hundred", &hundred);
    layout.add_index("multi", &multi);
    layout.finish();
    for (tag, manifest) in [("one", &one.manifest), ("hundred", &hundred.manifest), ("multi", &multi.manifest)] {
        let reference = server.reference(&format!("acme/skopeo:{tag}"));
        copy_in(&layout_path, tag, &reference);
        assert_eq!(raw_digest(&reference), manifest.digest(), "{tag}");
        let back = copy_out(&reference, &home.path().join(tag));
        assert_eq!((back.digest(), back.media_type), (manifest.digest(), manifest.media_type.clone()), "{tag}");
    }
}

#[tokio::test]
async fn skopeo_copies_docker_images_and_lists_there_and_back() {
    let server = Server::start();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let single = ImageBuilder::new(265).kind(Kind::Docker).build();
    let multi = Index::of_two(Kind::Docker, 266);
    server.client().push_image("acme/docker", "single", &single).await;
    server.client().push_index("acme/docker", "multi", &multi).await;
    for (tag, digest) in [("single", single.digest()), ("multi", multi.digest())] {
        let source = server.reference(&format!("acme/docker:{tag}"));
        let target = server.reference(&format!("elsewhere/docker:{tag}"));
        let directory = format!("dir:{}", home.path().join(tag).display());
        let keep = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
        skopeo(&[&keep[..], &[&format!("docker://{source}"), &directory]].concat()).text();
        skopeo(&[&keep[..], &[&directory, &format!("docker://{target}")]].concat()).text();
        assert_eq!(raw_digest(&target), digest, "{tag}");
    }
    server.client().assert_image("elsewhere/docker", &multi.images[1].digest(), &multi.images[1]).await;
}

#[tokio::test]
async fn skopeo_copies_between_repositories_of_one_registry() {
    let server = Server::start();
    let image = ImageBuilder::new(270).build();
    server.client().push_image("acme/source", "v1", &image).await;
    let [source, target] =
        ["acme/source:v1", "acme/target:v2"].map(|name| format!("docker://{}", server.reference(name)));
    skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &source, &target]).text();
    server.client().assert_image("acme/target", "v2", &image).await;
}

#[tokio::test]
async fn skopeo_lists_inspects_and_deletes() {
    let server = Server::start();
    let (first, second) = (ImageBuilder::new(271).build(), ImageBuilder::new(272).build());
    for (tag, image) in [("v1", &first), ("v2", &second), ("latest", &second)] {
        server.client().push_image("acme/app", tag, image).await;
    }
    let repository = format!("docker://{}", server.reference("acme/app"));
    let listed = || -> Vec<String> {
        let listed = skopeo(&["list-tags", "--tls-verify=false", &repository]).text();
        let listed: Value = serde_json::from_str(&listed).expect("skopeo prints JSON");
        strings(&listed["Tags"])
    };
    assert_eq!(listed(), ["latest", "v1", "v2"]);
    let inspected = skopeo(&["inspect", "--tls-verify=false", &format!("{repository}:v1")]).text();
    let inspected: Value = serde_json::from_str(&inspected).expect("skopeo prints JSON");
    assert_eq!(inspected["Digest"], first.digest());
    assert_eq!(inspected["Labels"]["seed"], "271");
    skopeo(&["delete", "--tls-verify=false", &format!("{repository}:v2")]).text();
    assert_eq!(listed(), ["v1"], "skopeo deletes by digest, and the tags go with it");
    assert!(!skopeo(&["inspect", "--tls-verify=false", &format!("{repository}:v2")]).success);
    let gone = skopeo(&["delete", "--tls-verify=false", &format!("{repository}:v2")]).failure();
    assert!(gone.contains("may not exist"), "{gone}");
}

#[tokio::test]
async fn skopeo_syncs_a_repository_out_and_in_again() {
    let server = Server::start();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let images: Vec<_> = (275..278).map(|seed| ImageBuilder::new(seed).build()).collect();
    let multi = Index::of_two(Kind::Oci, 278);
    for (number, image) in images.iter().enumerate() {
        server.client().push_image("acme/app", &format!("v{number}"), image).await;
    }
    server.client().push_index("acme/app", "multi", &multi).await;
    let directory = home.path().display().to_string();
    let out = ["sync", "--all", "--src-tls-verify=false", "--src", "docker", "--dest", "dir"];
    skopeo(&[&out[..], &[&server.reference("acme/app"), &directory]].concat()).text();
    let back = ["sync", "--all", "--dest-tls-verify=false", "--src", "dir", "--dest", "docker"];
    skopeo(&[&back[..], &[&directory, &server.reference("mirror")]].concat()).text();
    for (number, image) in images.iter().enumerate() {
        server.client().assert_image("mirror/app", &format!("v{number}"), image).await;
    }
    server.client().assert_manifest("mirror/app", "multi", &multi.manifest).await;
    for image in &multi.images {
        server.client().assert_image("mirror/app", &image.digest(), image).await;
    }
}
