//! `docker` pushes and pulls.

pub use crate::harness::docker::Docker;
use crate::harness::{Image, ImageBuilder, Index, Kind, Server};

#[tokio::test]
async fn docker_pushes_an_image_and_pulls_the_same_one_into_a_clean_store() {
    let server = Server::start();
    let docker = Docker::start();
    for (name, image) in [
        ("acme/docker:v1", ImageBuilder::new(200).build()),
        ("acme/docker:hundred", ImageBuilder::new(201).layers(100).layer_bytes(300).build()),
        ("one-component:v1", ImageBuilder::new(202).layers(1).layer_bytes(3_000_000).build()),
    ] {
        let reference = server.reference(name);
        docker.load(&reference, &image);
        let id = docker.image_id(&reference);
        assert_eq!(id, image.config.digest(), "the image that was made is the one that was loaded");
        docker.run(&["push", &reference]).text();
        let pushed = docker.repository_digest(&reference);
        docker.forget_everything();
        docker.run(&["pull", &reference]).text();
        assert_eq!(docker.image_id(&reference), id, "{name}");
        assert_eq!(docker.repository_digest(&reference), pushed, "{name}");
        docker.forget_everything();
        let by_digest = format!("{}@{pushed}", reference.rsplit_once(':').expect("there is a tag").0);
        docker.run(&["pull", &by_digest]).text();
        assert_eq!(docker.image_id(&by_digest), id, "{name} by digest");
        docker.forget_everything();
    }
}

#[tokio::test]
async fn docker_pulls_what_others_pushed_in_every_format() {
    let server = Server::start();
    let client = server.client();
    let docker = Docker::start();
    for (seed, kind) in [(210, Kind::Oci), (220, Kind::Docker)] {
        let image = ImageBuilder::new(seed).kind(kind).build();
        client.push_image("acme/single", "v1", &image).await;
        let index = Index::of_two(kind, seed + 1);
        client.push_index("acme/multi", "v1", &index).await;
        for (name, digest, config) in [
            ("acme/single:v1", image.digest(), image.config.digest()),
            ("acme/multi:v1", index.digest(), index.images[0].config.digest()),
        ] {
            let reference = server.reference(name);
            docker.run(&["pull", "--platform", "linux/amd64", &reference]).text();
            assert_eq!(docker.image_id(&reference), config, "{name} {kind:?}");
            assert_eq!(docker.repository_digest(&reference), digest, "{name} {kind:?}");
            docker.forget_everything();
        }
    }
}

#[tokio::test]
async fn docker_mounts_layers_instead_of_sending_them_again() {
    let server = Server::start();
    let docker = Docker::start();
    let image = Image::small(230);
    let (first, second) = (server.reference("acme/first:v1"), server.reference("acme/second:v1"));
    docker.load(&first, &image);
    docker.run(&["push", &first]).text();
    docker.run(&["tag", &first, &second]).text();
    let said = docker.run(&["push", &second]).text();
    assert!(said.contains("Mounted from acme/first") || said.contains("Layer already exists"), "{said}");
    docker.forget_everything();
    docker.run(&["pull", &second]).text();
    assert_eq!(docker.image_id(&second), image.config.digest());
}
