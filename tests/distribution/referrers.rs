//! Listing what refers to a manifest.

use serde_json::{Value, json};

use crate::harness::{
    Answer, Artifact, Client, Content, Image, ImageBuilder, Server,
    images::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, sha256, sha512},
};

const NOTE: &str = "application/vnd.example.note";
const SIGNATURE: &str = "application/vnd.example.signature";

/// A pushed image, two notes and a signature that refer to it.
async fn with_referrers() -> (Server, Client, Image, Vec<Artifact>) {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(130);
    client.push_image("acme/app", "v1", &image).await;
    let artifacts = vec![
        Artifact::new(NOTE, b"one", Some(&image.manifest)),
        Artifact::new(NOTE, b"two", Some(&image.manifest)),
        Artifact::new(SIGNATURE, b"three", Some(&image.manifest)),
    ];
    for artifact in &artifacts {
        client.push_artifact("acme/app", artifact).await;
    }
    (server, client, image, artifacts)
}

/// Checks that this is an index, and returns its descriptors.
fn descriptors(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.header("content-type"), OCI_INDEX);
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&json!(2), &json!(OCI_INDEX)));
    index["manifests"].as_array().expect("an index has manifests").clone()
}

fn digests(descriptors: &[Value]) -> Vec<String> {
    let mut digests: Vec<String> =
        descriptors.iter().map(|one| one["digest"].as_str().expect("a descriptor has a digest").to_owned()).collect();
    digests.sort();
    digests
}

fn digests_of(artifacts: &[Artifact]) -> Vec<String> {
    let mut digests: Vec<String> = artifacts.iter().map(|artifact| artifact.manifest.digest()).collect();
    digests.sort();
    digests
}

#[tokio::test]
async fn referrers_are_descriptors_with_type_size_and_annotations() {
    let (_server, client, image, artifacts) = with_referrers().await;
    let answer = client.get(&format!("/v2/acme/app/referrers/{}", image.digest())).await.expect(200);
    let found = descriptors(&answer);
    assert_eq!(digests(&found), digests_of(&artifacts));
    assert_eq!(answer.header("oci-filters-applied"), "");
    for artifact in &artifacts {
        let digest = artifact.manifest.digest();
        let descriptor = found.iter().find(|one| one["digest"] == digest).expect("every artifact is listed");
        let manifest = artifact.manifest.value();
        assert_eq!(descriptor["mediaType"], OCI_MANIFEST);
        assert_eq!(descriptor["size"], artifact.manifest.bytes.len());
        assert_eq!(descriptor["artifactType"], manifest["artifactType"]);
        assert_eq!(descriptor["annotations"], manifest["annotations"]);
    }
}

#[tokio::test]
async fn the_filter_by_type_is_applied_and_says_so() {
    let (_server, client, image, artifacts) = with_referrers().await;
    for (filter, expected) in [(NOTE, &artifacts[..2]), (SIGNATURE, &artifacts[2..]), ("a/b", &[])] {
        let path = format!("/v2/acme/app/referrers/{}?artifactType={filter}", image.digest());
        let answer = client.get(&path).await.expect(200);
        assert_eq!(digests(&descriptors(&answer)), digests_of(expected), "{filter}");
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
    }
}

#[tokio::test]
async fn an_unknown_digest_has_an_empty_index() {
    let (_server, client, _image, _artifacts) = with_referrers().await;
    for (name, digest) in
        [("acme/app", sha256(b"nothing")), ("acme/app", sha512(b"nothing")), ("acme/none", sha256(b"nothing"))]
    {
        let answer = client.get(&format!("/v2/{name}/referrers/{digest}")).await.expect(200);
        assert_eq!(descriptors(&answer), Vec::<Value>::new(), "{name}");
    }
}

#[tokio::test]
async fn referrers_to_a_subject_that_is_not_there_yet_are_listed() {
    let server = Server::start();
    let client = server.client();
    let later = Image::small(131);
    let artifact = Artifact::new(NOTE, b"early", Some(&later.manifest));
    client.push_artifact("acme/app", &artifact).await;
    let path = format!("/v2/acme/app/referrers/{}", later.digest());
    assert_eq!(digests(&descriptors(&client.get(&path).await.expect(200))), [artifact.manifest.digest()]);
    client.push_image("acme/app", "v1", &later).await;
    assert_eq!(digests(&descriptors(&client.get(&path).await.expect(200))), [artifact.manifest.digest()]);
}

#[tokio::test]
async fn the_type_falls_back_to_the_configs_media_type_for_manifests_only() {
    let server = Server::start();
    let client = server.client();
    let subject = Image::small(132);
    client.push_image("acme/app", "v1", &subject).await;
    let image = ImageBuilder::new(133).subject(&subject.manifest).build();
    client.push_image("acme/app", &image.digest(), &image).await;
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": subject.manifest.descriptor() });
    let index = Content::json(OCI_INDEX, &index);
    client.put_manifest("acme/app", &index.digest(), &index).await.expect(201);
    let answer = client.get(&format!("/v2/acme/app/referrers/{}", subject.digest())).await.expect(200);
    let found = descriptors(&answer);
    let of = |digest: String| found.iter().find(|one| one["digest"] == digest).expect("it is listed");
    assert_eq!(of(image.digest())["artifactType"], OCI_CONFIG);
    assert_eq!(of(index.digest())["artifactType"], Value::Null);
    assert_eq!(of(index.digest())["mediaType"], OCI_INDEX);
}

#[tokio::test]
async fn deleted_referrers_are_no_longer_listed() {
    let (_server, client, image, artifacts) = with_referrers().await;
    client.delete(&format!("/v2/acme/app/manifests/{}", artifacts[0].manifest.digest())).await.expect(202);
    let answer = client.get(&format!("/v2/acme/app/referrers/{}", image.digest())).await.expect(200);
    assert_eq!(digests(&descriptors(&answer)), digests_of(&artifacts[1..]));
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let (_server, client, image, mut artifacts) = with_referrers().await;
    for index in 0..9 {
        let artifact = Artifact::new(NOTE, format!("more {index}").as_bytes(), Some(&image.manifest));
        client.push_artifact("acme/app", &artifact).await;
        artifacts.push(artifact);
    }
    let (mut seen, mut pages) = (Vec::new(), 0);
    let mut next = Some(format!("/v2/acme/app/referrers/{}?n=5", image.digest()));
    while let Some(path) = next {
        let answer = client.get(&path).await.expect(200);
        let page = descriptors(&answer);
        assert!(page.len() <= 5);
        seen.extend(page);
        pages += 1;
        next = answer.next_page();
    }
    assert_eq!(digests(&seen), digests_of(&artifacts));
    assert_eq!(pages, 3);
}

#[tokio::test]
async fn an_empty_page_a_bad_page_size_and_a_bad_place_are_told_apart() {
    let (_server, client, image, _artifacts) = with_referrers().await;
    let path = format!("/v2/acme/app/referrers/{}", image.digest());
    let none = client.get(&format!("{path}?n=0")).await.expect(200);
    assert_eq!((descriptors(&none), none.next_page()), (Vec::new(), None));
    client.get(&format!("{path}?n=x")).await.expect_error(400, "PAGINATION_NUMBER_INVALID");
    client.get(&format!("{path}?last=x")).await.expect_error(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn pages_keep_the_filter() {
    let (_server, client, image, _artifacts) = with_referrers().await;
    let first =
        client.get(&format!("/v2/acme/app/referrers/{}?n=1&artifactType={NOTE}", image.digest())).await.expect(200);
    let second = client.get(&first.next_page().expect("there are two notes")).await.expect(200);
    assert_eq!(descriptors(&second).len(), 1);
    assert_eq!(descriptors(&second)[0]["artifactType"], NOTE);
    assert_eq!(second.next_page(), None);
}

#[tokio::test]
async fn the_fallback_tag_of_older_clients_is_read_too() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(134);
    client.push_image("acme/app", "v1", &image).await;
    // An older client pushes the artifact without a subject and keeps the list itself, under a tag.
    let artifact = Artifact::new(NOTE, b"old way", None);
    client.push_artifact("acme/app", &artifact).await;
    let mut descriptor = artifact.manifest.descriptor();
    descriptor["artifactType"] = json!(NOTE);
    let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor] });
    let tag = image.digest().replace(':', "-");
    client.put_manifest("acme/app", &tag, &Content::json(OCI_INDEX, &list)).await.expect(201);
    let newer = Artifact::new(NOTE, b"new way", Some(&image.manifest));
    client.push_artifact("acme/app", &newer).await;
    let answer = client.get(&format!("/v2/acme/app/referrers/{}", image.digest())).await.expect(200);
    assert_eq!(digests(&descriptors(&answer)), digests_of(&[artifact, newer]));
}

#[tokio::test]
async fn a_subject_may_be_named_by_sha512() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(135);
    for blob in image.blobs() {
        client.push_blob("acme/app", &blob.bytes).await;
    }
    let digest = sha512(&image.manifest.bytes);
    client.put_manifest("acme/app", &digest, &image.manifest).await.expect(201);
    let artifact = Artifact::new(NOTE, b"strong", Some(&image.manifest));
    let text = String::from_utf8(artifact.manifest.bytes.clone()).expect("it is text");
    let manifest = Content::new(OCI_MANIFEST, text.replace(&image.digest(), &digest));
    let artifact = Artifact { manifest, blobs: artifact.blobs };
    assert_eq!(client.push_artifact("acme/app", &artifact).await.header("oci-subject"), digest);
    let answer = client.get(&format!("/v2/acme/app/referrers/{digest}")).await.expect(200);
    assert_eq!(digests(&descriptors(&answer)), [artifact.manifest.digest()]);
}
