//! A small file system that fills up: clear errors, pulls go on, space comes back.

use std::{fs, path::Path};

use tokio::task::JoinSet;

use crate::harness::{
    Answer, Client, Image, ImageBuilder, Server,
    disk::wait_until_swept,
    images::{random_bytes, sha256},
    layout::Layout,
    process::run,
    small_disk::SmallDisk,
};

const MEBIBYTE: usize = 1 << 20;

/// Fails unless an answer says that the storage is full, in the status and in words that the operator of a client reads.
#[track_caller]
fn assert_says_full(answer: Answer) {
    let answer = answer.expect_error(507, "UNAVAILABLE");
    assert!(answer.message().contains("the registry's storage is full"), "{}", answer.text());
    assert!(!answer.header("retry-after").is_empty());
}

/// Sends pieces until one is refused; returns the location of the session.
async fn upload_until_refused(client: &Client, pieces: usize) -> String {
    let mut location = client.open_upload("acme/large").await;
    let piece = random_bytes(1, MEBIBYTE);
    for _ in 0..pieces {
        let answer = client.stream(&location, piece.clone()).await;
        if answer.status != 202 {
            assert_says_full(answer);
            return location;
        }
        location = answer.location();
    }
    panic!("{pieces} MiB fitted");
}

#[tokio::test]
async fn a_full_disk_refuses_pushes_clearly_serves_pulls_and_recovers() {
    let disk = SmallDisk::mount(32);
    let mut server = Server::start_on(&disk.path.join("data"));
    let client = server.client();
    let small = Image::small(300);
    client.push_image("acme/app", "v1", &small).await;
    let free = disk.free_bytes();

    let location = upload_until_refused(&client, 64).await;
    server.assert_alive();
    client.assert_image("acme/app", "v1", &small).await;
    assert_eq!(client.tags("acme/app").await, ["v1"]);
    // The session is over and its space there again, without anybody asking for it.
    disk.wait_until_free(free - 2 * MEBIBYTE as u64);
    client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");

    let next = ImageBuilder::new(301).layers(1).layer_bytes(8 * MEBIBYTE).build();
    client.push_image("acme/app", "v2", &next).await;
    client.assert_image("acme/app", "v2", &next).await;
    server.assert_alive();
    wait_until_swept(server.data());
    server.stop();
}

#[tokio::test]
async fn an_upload_in_one_go_that_does_not_fit_gives_its_space_back() {
    let disk = SmallDisk::mount(16);
    let mut server = Server::start_on(&disk.path.join("data"));
    let client = server.client();
    client.push_image("acme/app", "v1", &Image::small(302)).await;
    let free = disk.free_bytes();
    let bytes = random_bytes(303, 24 * MEBIBYTE);
    let request = [
        format!(
            "POST /v2/acme/app/blobs/uploads/?digest={} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            sha256(&bytes),
            bytes.len()
        )
        .as_bytes(),
        &bytes,
    ]
    .concat();
    let answer = client.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 507") && answer.contains("the registry's storage is full"), "{answer}");
    disk.wait_until_free(free - MEBIBYTE as u64);
    client.get(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(404);
    server.assert_alive();
    server.stop();
}

#[tokio::test]
async fn metadata_that_cannot_be_written_refuses_manifests_until_there_is_space() {
    let disk = SmallDisk::mount(16);
    let mut server = Server::start_on(&disk.path.join("data"));
    let client = server.client();
    let (old, new) = (Image::small(304), Image::small(305));
    client.push_image("acme/app", "old", &old).await;
    for blob in new.blobs() {
        client.push_blob("acme/app", &blob.bytes).await;
    }
    let filler = disk.fill();
    // The log of the metadata may have pages left; a few manifests use them up.
    let mut refused = None;
    for number in 0..2000 {
        let answer = client.put_manifest("acme/app", &format!("new-{number}"), &new.manifest).await;
        if answer.status != 201 {
            refused = Some((number, answer));
            break;
        }
    }
    let (number, answer) = refused.expect("a full disk takes no more manifests");
    assert_says_full(answer);
    // Many at once share a transaction, and each is told what is the matter.
    let mut pushes = JoinSet::new();
    for tag in 0..16 {
        let (client, manifest) = (client.clone(), new.manifest.clone());
        pushes.spawn(async move { client.put_manifest("acme/app", &format!("many-{tag}"), &manifest).await });
    }
    pushes.join_all().await.into_iter().filter(|answer| answer.status != 201).for_each(assert_says_full);
    client.assert_image("acme/app", "old", &old).await;
    assert!(!client.tags("acme/app").await.contains(&format!("new-{number}")), "what was refused is not there");
    fs::remove_file(filler).expect("the filler can be removed");
    client.put_manifest("acme/app", "after", &new.manifest).await.expect(201);
    client.assert_image("acme/app", "after", &new).await;
    server.assert_alive();
    server.restart();
    let client = server.client();
    client.assert_image("acme/app", "after", &new).await;
    if number > 0 {
        client.assert_image("acme/app", &format!("new-{}", number - 1), &new).await;
    }
}

#[tokio::test]
async fn clients_show_that_the_storage_is_full() {
    let disk = SmallDisk::mount(16);
    let server = Server::start_on(&disk.path.join("data"));
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let mut layout = Layout::create(home.path());
    layout.add_image("v1", &ImageBuilder::new(306).layers(1).layer_bytes(24 * MEBIBYTE).build());
    layout.finish();
    let source = format!("oci:{}:v1", home.path().display());
    let target = format!("docker://{}", server.reference("acme/app:v1"));
    let said = run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", &source, &target]).failure();
    assert!(said.contains("storage is full") || said.contains("507 Insufficient Storage"), "{said}");
}

#[tokio::test]
async fn a_server_that_starts_on_a_full_disk_says_so() {
    let disk = SmallDisk::mount(2);
    let data = disk.path.join("data");
    disk.fill();
    assert!(!Path::new(&data).exists());
    let output =
        run(env!("CARGO_BIN_EXE_keppel"), ["dev", "--listen", "127.0.0.1:0", "--data", &data.display().to_string()]);
    let said = output.failure();
    assert!(said.to_lowercase().contains("no space") || said.contains("full"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}
