//! Clients at work while every task of the janitor runs back to back: none of them notices.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::harness::{Client, ImageBuilder, Server, disk::mismatch};

const CLIENTS: u64 = 16;
const DURATION: Duration = Duration::from_secs(12);
const TASKS: [&str; 7] = [
    "image-gc",
    "manifest-validation",
    "mount-sweep",
    "blob-sweep",
    "storage-sweep",
    "blob-validation",
    "abandoned-uploads",
];

/// Pushes images as clients do, whose layers others have or had, pulls them, and deletes a third of their tags.
async fn work(client: Client, number: u64, end: Instant) -> u64 {
    let repository = format!("acme/app{}", number % 3);
    let mut pushed = 0;
    while Instant::now() < end {
        // Some blobs are the same as those of another client and another time.
        let image = ImageBuilder::new(pushed % 7 * 100 + number % 4).layers(2).layer_bytes(3000).build();
        let tag = format!("c{number}-{}", pushed % 5);
        for blob in image.blobs() {
            let path = format!("/v2/{repository}/blobs/{}", blob.digest());
            let status = client.head(&path).await.status;
            assert!(matches!(status, 200 | 404), "HEAD of a blob: {status}");
            if status == 404 {
                client.push_blob(&repository, &blob.bytes).await;
            }
        }
        client.put_manifest(&repository, &tag, &image.manifest).await.expect(201);
        client.assert_image(&repository, &tag, &image).await;
        if pushed % 3 == 2 {
            let path = format!("/v2/{repository}/manifests/{tag}");
            client.delete(&path).await.expect(202);
        }
        pushed += 1;
    }
    pushed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_because_every_task_runs_back_to_back() {
    let server = Server::start_with_options(&["--set", "janitor.grace=60s"]);
    let end = Instant::now() + DURATION;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(work(server.client(), number, end));
    }
    let (data, ended) = (server.data().to_owned(), Arc::new(AtomicBool::new(false)));
    let stop = ended.clone();
    let janitor = std::thread::spawn(move || {
        let mut rounds = 0;
        while !stop.load(Ordering::SeqCst) {
            for task in TASKS {
                let mut command = Command::new(env!("CARGO_BIN_EXE_keppel"));
                command.args(["janitor", "run", task, "--data"]).arg(&data).stdin(Stdio::null());
                let output = command.output().expect("it runs");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let words = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success() && said.contains(", 0 faults"), "{task}: {said}{words}");
            }
            rounds += 1;
        }
        rounds
    });
    let mut pushed = 0;
    while let Some(client) = clients.join_next().await {
        pushed += client.expect("no client is let down");
    }
    ended.store(true, Ordering::SeqCst);
    let rounds = janitor.join().expect("no task finds a fault");
    assert!(pushed > CLIENTS && rounds > 1, "{pushed} images, {rounds} rounds");
    let found = mismatch(server.data());
    assert!(found.lost.is_empty(), "rows without bytes: {:?}", found.lost);
}
