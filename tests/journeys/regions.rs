//! Three regions, each a process of its own, and real clients: what one pushes in a region others pull at once in the
//! others, and the next version as well.
//!
//! `KEPPEL_TEST_LAYER_MIB` sets the size of the large layer; 1024 in the long form, which a busy machine needs
//! `KEPPEL_TEST_COMMAND_SECONDS` for.

use std::fs;
use std::path::Path;

use crate::artifacts::oras_python;
use crate::containerd::Containerd;
use crate::docker::Docker;
use crate::federation::{Region, three_regions};
use crate::harness::images::{random_bytes, sha256};
use crate::harness::layout::{Layout, read_layout};
use crate::harness::process::{run, run_in};
use crate::harness::{Artifact, Image, ImageBuilder, Index, Kind};
use crate::podman::Podman;
use crate::skopeo::{copy_in, copy_out, raw_digest};

fn layer_mebibytes() -> usize {
    let given = std::env::var("KEPPEL_TEST_LAYER_MIB").ok();
    given.map_or(64, |given| given.parse().expect("KEPPEL_TEST_LAYER_MIB is a number"))
}

/// A layout with one image under a tag.
fn layout_of(folder: &Path, tag: &str, image: &Image) {
    let mut layout = Layout::create(folder);
    layout.add_image(tag, image);
    layout.finish();
}

#[tokio::test]
async fn skopeo_pushes_in_any_region_and_pulls_at_once_in_the_others_and_so_does_the_next_version() {
    let [eu, us, ap] = three_regions();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| home.path().join(name);
    // An index of two platforms, Docker's kind too, by tag and by digest.
    for (number, (kind, pusher, pullers)) in
        [(Kind::Oci, &us, [&eu, &ap]), (Kind::Docker, &eu, [&ap, &us])].into_iter().enumerate()
    {
        let multi = Index::of_two(kind, 500 + 2 * number as u64);
        let name = format!("acme/multi-{number}");
        match kind {
            Kind::Oci => {
                let folder = path("multi");
                let mut layout = Layout::create(&folder);
                layout.add_index("multi", &multi);
                layout.finish();
                copy_in(&folder, "multi", &pusher.server.reference(&format!("{name}:v1")));
            }
            Kind::Docker => pusher.client.push_index(&name, "v1", &multi).await,
        }
        for region in pullers {
            assert_eq!(raw_digest(&region.server.reference(&format!("{name}:v1"))), multi.digest());
            let by_digest = region.server.reference(&format!("{name}@{}", multi.digest()));
            assert_eq!(raw_digest(&by_digest), multi.digest());
            for image in &multi.images {
                region.client.assert_image(&name, &image.digest(), image).await;
            }
        }
    }
    // The next version, pushed now here, now there.
    for round in 0..6 {
        let image = ImageBuilder::new(520 + round).layers(2).layer_bytes(50_000).build();
        let order = [&eu, &us, &ap];
        let (pusher, pullers) =
            (order[round as usize % 3], [order[(round as usize + 1) % 3], order[(round as usize + 2) % 3]]);
        layout_of(&path(&format!("next-{round}")), "v", &image);
        copy_in(&path(&format!("next-{round}")), "v", &pusher.server.reference("acme/next:latest"));
        for (number, region) in pullers.into_iter().enumerate() {
            let back = copy_out(&region.server.reference("acme/next:latest"), &path(&format!("back-{round}-{number}")));
            assert_eq!(back.digest(), image.digest(), "round {round}: the old one");
        }
    }
}

#[tokio::test]
async fn a_large_layer_is_pulled_in_two_regions_while_the_third_has_hardly_taken_it() {
    let [eu, us, ap] = three_regions();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let folder = home.path().join("large");
    let mut layout = Layout::create(&folder);
    let manifest = layout.add_large_image("large", layer_mebibytes());
    layout.finish();
    copy_in(&folder, "large", &us.server.reference("acme/large:v1"));
    fs::remove_dir_all(&folder).expect("the layout can be removed");
    let pull = |region: &Region, name: &str| {
        let source = format!("docker://{}", region.server.reference("acme/large:v1"));
        let back = home.path().join(name);
        let target = format!("oci:{}:back", back.display());
        std::thread::spawn(move || {
            let copy = ["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", &source, &target];
            run("skopeo", copy).text();
            // Every blob is hashed on the way.
            let digest = read_layout(&back, "back").digest();
            fs::remove_dir_all(&back).expect("the layout can be removed");
            digest
        })
    };
    let pulls = [pull(&eu, "eu"), pull(&ap, "ap")];
    for pulled in pulls {
        assert_eq!(pulled.join().expect("skopeo pulls it"), manifest.digest());
    }
    for region in [&eu, &us, &ap] {
        let resident = region.server.resident_bytes();
        assert!(resident < 300 << 20, "{resident} bytes are resident");
    }
}

#[tokio::test]
async fn docker_pushes_in_one_region_and_pulls_in_the_others() {
    let [eu, us, ap] = three_regions();
    let docker = Docker::start();
    for (round, (pusher, pullers)) in [(&us, [&eu, &ap]), (&eu, [&us, &ap]), (&ap, [&eu, &us])].into_iter().enumerate()
    {
        let image = ImageBuilder::new(540 + round as u64).layers(3).layer_bytes(200_000).build();
        let pushed = pusher.server.reference("acme/docker:latest");
        docker.load(&pushed, &image);
        docker.run(&["push", &pushed]).text();
        let digest = docker.repository_digest(&pushed);
        docker.forget_everything();
        for region in pullers {
            let by_tag = region.server.reference("acme/docker:latest");
            let by_digest = region.server.reference(&format!("acme/docker@{digest}"));
            for reference in [&by_tag, &by_digest] {
                docker.run(&["pull", reference]).text();
                assert_eq!(docker.image_id(reference), image.config.digest(), "round {round}");
                assert_eq!(docker.repository_digest(reference), digest, "round {round}");
                docker.forget_everything();
            }
        }
    }
    // Its own platform out of an index, from a region that has never seen it.
    let multi = Index::of_two(Kind::Docker, 550);
    us.client.push_index("acme/multi", "v1", &multi).await;
    let reference = ap.server.reference("acme/multi:v1");
    docker.run(&["pull", "--platform", "linux/amd64", &reference]).text();
    assert_eq!(docker.image_id(&reference), multi.images[0].config.digest());
}

#[tokio::test]
async fn podman_and_containerd_pull_in_their_region_what_the_other_pushed_in_another() {
    let [eu, us, ap] = three_regions();
    let (podman, containerd) = (Podman::new(), Containerd::start());
    let image = ImageBuilder::new(560).layers(4).layer_bytes(100_000).build();
    layout_of(&podman.home.path().join("layout"), "v1", &image);
    let pulled = podman.run(&["pull", "oci:layout:v1"]).text();
    let id = pulled.lines().last().expect("podman prints the id").to_owned();
    let (file, pushed) = (podman.path("digest"), us.server.reference("acme/podman:v1"));
    podman.run(&["push", "--tls-verify=false", "--format", "oci", "--digestfile", &file, &id, &pushed]).text();
    let digest = fs::read_to_string(&file).expect("podman wrote the digest");
    podman.forget_everything();
    for region in [&eu, &ap] {
        for reference in ["acme/podman:v1".to_owned(), format!("acme/podman@{digest}")] {
            let reference = region.server.reference(&reference);
            containerd.pull(&reference, &[]);
            assert_eq!(containerd.digest(&reference), digest);
            containerd.forget_everything();
            podman.run(&["pull", "--tls-verify=false", &reference]).text();
            podman.forget_everything();
        }
    }
    // The other way round, with all platforms.
    let multi = Index::of_two(Kind::Oci, 570);
    let directory = containerd.home.path().join("layout");
    let mut layout = Layout::create(&directory);
    layout.add_index("multi", &multi);
    layout.finish();
    let archive = format!("{}.tar", directory.display());
    let mut tar = tar::Builder::new(fs::File::create(&archive).expect("a file can be made"));
    tar.append_dir_all(".", &directory).expect("the archive can be written");
    tar.finish().expect("the archive can be written");
    let base = ap.server.reference("acme/ctr");
    let import = ["images", "import", "--all-platforms", "--no-unpack", "--base-name", &base, &archive];
    containerd.run(&import).text();
    containerd.run(&["images", "push", "--plain-http", &format!("{base}:multi")]).text();
    containerd.forget_everything();
    for region in [&us, &eu] {
        let reference = region.server.reference("acme/ctr:multi");
        for (image, platform) in multi.images.iter().zip(["linux/amd64", "linux/arm64"]) {
            podman.run(&["pull", "--tls-verify=false", "--platform", platform, &reference]).text();
            let id = podman.run(&["image", "inspect", "--format", "{{.Id}}", &reference]).text();
            assert_eq!(format!("sha256:{id}"), image.config.digest(), "{platform}");
            podman.forget_everything();
        }
        containerd.pull(&reference, &["--all-platforms"]);
        assert_eq!(containerd.digest(&reference), multi.digest());
        containerd.forget_everything();
    }
}

#[tokio::test]
async fn artifacts_attached_in_one_region_are_found_and_pulled_in_the_others() {
    let [eu, us, ap] = three_regions();
    let python = oras_python();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let content = random_bytes(580, 300_000);
    fs::write(home.path().join("model.bin"), &content).expect("a file can be written");
    let oras = |what: &str, target: &str| {
        let script = format!(
            "import sys, oras.client\nclient, target = oras.client.OrasClient(insecure=True), sys.argv[1]\n{what}"
        );
        run_in(home.path(), &[], &python.display().to_string(), ["-c", &script, target]).text()
    };
    let push = "client.push(target=target, files=['model.bin:application/vnd.example.model'])";
    oras(push, &us.server.reference("acme/model:v1"));
    for (region, name) in [(&eu, "eu"), (&ap, "ap")] {
        fs::create_dir(home.path().join(name)).expect("a folder can be made");
        oras(&format!("client.pull(target=target, outdir='{name}')"), &region.server.reference("acme/model:v1"));
        let pulled = fs::read(home.path().join(name).join("model.bin")).expect("the file came back");
        assert_eq!(sha256(&pulled), sha256(&content), "{name}");
    }
    // Attached to an image of one region in a second, and to that in a third.
    let image = Image::small(581);
    eu.client.push_image("acme/app", "v1", &image).await;
    let sbom = Artifact::new("application/spdx+json", br#"{"spdxVersion":"SPDX-2.3"}"#, Some(&image.manifest));
    let signature = Artifact::new("application/vnd.dev.cosign.artifact.sig.v1+json", b"signed", Some(&sbom.manifest));
    us.client.push_artifact("acme/app", &sbom).await;
    ap.client.push_artifact("acme/app", &signature).await;
    for region in [&eu, &us, &ap] {
        for (subject, artifact) in [(&image.manifest, &sbom), (&sbom.manifest, &signature)] {
            let path = format!("/v2/acme/app/referrers/{}", subject.digest());
            let listed = region.client.get(&path).await.expect(200);
            assert!(listed.headers.get("warning").is_none());
            let found = listed.json()["manifests"][0]["digest"].as_str().expect("one referrer").to_owned();
            assert_eq!(found, artifact.manifest.digest());
            region.client.assert_manifest("acme/app", &found, &artifact.manifest).await;
            let payload = &artifact.blobs[1];
            let blob = region.client.get(&format!("/v2/acme/app/blobs/{}", payload.digest())).await.expect(200);
            assert_eq!(blob.body, payload.bytes);
        }
    }
}
