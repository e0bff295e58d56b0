//! `kill -9` amid pushes: whatever got a 2xx is there afterwards, and nothing else stays for good.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{sync::mpsc, task::JoinSet};

use crate::harness::{
    Client, Image, ImageBuilder, Server,
    client::try_send,
    disk::{mismatch, wait_until_swept},
    images::{random_bytes, sha256},
};

const ROUNDS: u64 = 20;
const PUSHERS: u64 = 16;
/// After so many acknowledged images of a round the server is killed, a little later in each round.
const ACKNOWLEDGED_AT_KILL: u64 = 8;

/// An image that got its 201, and where.
struct Pushed {
    repository: String,
    tag: String,
    image: Image,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_amid_sixteen_pushes_lose_nothing_that_was_acknowledged() {
    let mut server = Server::start();
    let mut all: Vec<Pushed> = Vec::new();
    for round in 0..ROUNDS {
        let (pushed, uploads) = push_until_killed(&mut server, round).await;
        assert!(pushed.len() as u64 >= ACKNOWLEDGED_AT_KILL);
        server.restart();
        let client = server.client();
        assert_all_served(&client, &pushed).await;
        for upload in uploads {
            upload.assert_resumes_or_is_gone(&client).await;
        }
        wait_until_swept(server.data());
        all.extend(pushed);
    }
    assert_all_served(&server.client(), &all).await;
    server.stop();
}

#[tokio::test]
async fn files_that_no_row_names_are_swept_at_the_next_start() {
    let mut server = Server::start();
    let image = Image::small(320);
    server.client().push_image("acme/app", "v1", &image).await;
    server.stop();
    let space = server.data().join("storage/acme");
    let key = "00112233445566778899aabbccddeeff";
    std::fs::create_dir_all(space.join("blobs/00")).expect("a folder can be made");
    for leftover in [format!("blobs/00/{key}"), format!("blobs/00/{key}.outboard"), format!("uploads/{key}")] {
        std::fs::write(space.join(leftover), b"left by a crash").expect("a file can be written");
    }
    assert_eq!(mismatch(server.data()).unreferenced.len(), 3, "the leftovers are seen");
    server.restart();
    wait_until_swept(server.data());
    server.client().assert_image("acme/app", "v1", &image).await;
}

/// Pushes from many tasks at once, kills the server in their midst, and returns what was acknowledged until then.
async fn push_until_killed(server: &mut Server, round: u64) -> (Vec<Pushed>, Vec<HalfDone>) {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let killed = Arc::new(AtomicBool::new(false));
    let (progress, mut acknowledgements) = mpsc::unbounded_channel();
    let mut pushers = JoinSet::new();
    for pusher in 0..PUSHERS {
        let (client, acknowledged, killed) = (server.client(), acknowledged.clone(), killed.clone());
        let progress = progress.clone();
        pushers.spawn(async move {
            for number in 0.. {
                let seed = (round * PUSHERS + pusher) * 1000 + number;
                let bytes = 1000 << (seed % 8); // up to 128 KB
                let image = ImageBuilder::new(seed).layers(2).layer_bytes(bytes).build();
                let (repository, tag) = (format!("acme/pusher-{pusher}"), format!("r{round}-{number}"));
                if !try_push(&client, &repository, &tag, &image).await {
                    assert!(killed.load(Ordering::SeqCst), "a push failed before the kill");
                    return;
                }
                acknowledged.lock().expect("no pusher panics").push(Pushed { repository, tag, image });
                let _ = progress.send(());
            }
        });
    }
    let mut uploads = Vec::new();
    for number in 0..3 {
        uploads.push(HalfDone::begin(&server.client(), round * 10 + number).await);
    }
    for _ in 0..ACKNOWLEDGED_AT_KILL + round {
        acknowledgements.recv().await.expect("the pushers go on until the kill");
    }
    killed.store(true, Ordering::SeqCst);
    server.kill();
    while let Some(pusher) = pushers.join_next().await {
        pusher.expect("a pusher only stops at the kill");
    }
    (std::mem::take(&mut acknowledged.lock().expect("no pusher panics")), uploads)
}

/// Pushes an image; false when the server went away before the 201.
async fn try_push(client: &Client, repository: &str, tag: &str, image: &Image) -> bool {
    for blob in image.blobs() {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest());
        let request = client.request(reqwest::Method::POST, &path).body(blob.bytes.clone());
        match try_send(request).await {
            Ok(answer) => drop(answer.expect(201)),
            Err(_) => return false,
        }
    }
    let request = client.request(reqwest::Method::PUT, &format!("/v2/{repository}/manifests/{tag}"));
    let request = request.header("Content-Type", &image.manifest.media_type).body(image.manifest.bytes.clone());
    match try_send(request).await {
        Ok(answer) => answer.expect(201).status == 201,
        Err(_) => false,
    }
}

async fn assert_all_served(client: &Client, pushed: &[Pushed]) {
    for Pushed { repository, tag, image } in pushed {
        client.assert_image(repository, tag, image).await;
        client.assert_manifest(repository, &image.digest(), &image.manifest).await;
    }
}

/// An upload of which a first part was acknowledged.
struct HalfDone {
    location: String,
    bytes: Vec<u8>,
    acknowledged: usize,
}

impl HalfDone {
    async fn begin(client: &Client, seed: u64) -> HalfDone {
        let bytes = random_bytes(seed, 300_000);
        let location = client.open_upload("acme/half-done").await;
        let acknowledged = 100_000;
        let location = client.chunk(&location, 0, &bytes[..acknowledged]).await.expect(202).location();
        HalfDone { location, bytes, acknowledged }
    }

    async fn assert_resumes_or_is_gone(&self, client: &Client) {
        let status = client.get(&self.location).await;
        if status.status == 404 {
            return;
        }
        let range = status.expect(204).header("range").to_owned();
        let last: usize = range.strip_prefix("0-").expect("a range from 0").parse().expect("a number");
        assert!(last + 1 >= self.acknowledged, "acknowledged bytes are durable: {range}");
        let location = client.chunk(&self.location, last + 1, &self.bytes[last + 1..]).await.expect(202).location();
        client.close_upload(&location, &sha256(&self.bytes), b"").await.expect(201);
        let answer = client.get(&format!("/v2/acme/half-done/blobs/{}", sha256(&self.bytes))).await.expect(200);
        assert!(answer.body == self.bytes);
    }
}
