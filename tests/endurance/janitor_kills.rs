//! `kill -9` amid the tasks of the janitor: whatever they were at, their next runs finish.

use std::time::{Duration, Instant};

use crate::harness::{
    Image, ImageBuilder, Server,
    disk::{blob_rows, mismatch},
    images::random_bytes,
};

const KILLS: u64 = 12;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn kills_amid_every_task_leave_nothing_that_the_next_run_does_not_finish() {
    let rhythms =
        ["image_gc", "mount_sweep", "blob_sweep", "account_deletion", "manifest_validation", "blob_validation"];
    let mut settings: Vec<String> = rhythms.iter().map(|task| format!("janitor.{task}_interval=1s")).collect();
    settings.push("janitor.grace=5s".to_owned());
    let options: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let mut server = Server::start_with_options(&options);
    let client = server.client();
    let image = |seed| ImageBuilder::new(seed).layers(2).layer_bytes(2000).build();
    let images: Vec<Image> = (0..12).map(image).collect();
    for (number, image) in images.iter().enumerate() {
        client.push_image("acme/app", &format!("v{number}"), image).await;
        client.push_image("gone/app", &format!("v{number}"), image).await;
    }
    let (kept, deleted) = images.split_at(6);
    for image in deleted {
        let path = format!("/v2/acme/app/manifests/{}", image.digest());
        client.delete(&path).await.expect(202);
    }
    for seed in 0..3 {
        client.push_blob("acme/app", &random_bytes(1000 + seed, 3000)).await;
    }
    client.delete("/keppel/v1/accounts/gone").await.expect(204);
    for round in 0..KILLS {
        // Another moment each time, over the seconds in which all of this is swept.
        tokio::time::sleep(Duration::from_millis(80 + 97 * round % 700)).await;
        server.restart();
    }
    let (client, start) = (server.client(), Instant::now());
    let blobs = kept.iter().flat_map(Image::blobs).map(|blob| blob.digest());
    let blobs: std::collections::BTreeSet<String> = blobs.collect();
    loop {
        let found = mismatch(server.data());
        let rows = blob_rows(server.data());
        let gone = client.get("/keppel/v1/accounts/gone").await.status == 404;
        if found.unreferenced.is_empty() && rows == blobs.len() && gone {
            assert!(found.lost.is_empty(), "rows without bytes: {:?}", found.lost);
            break;
        }
        let left = format!("{found:?}, {rows} blobs for {}, account gone: {gone}", blobs.len());
        assert!(start.elapsed() < PATIENCE, "not finished: {left}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!server.data().join("storage/gone").exists());
    for (number, image) in kept.iter().enumerate() {
        client.assert_image("acme/app", &format!("v{number}"), image).await;
    }
    server.assert_alive();
}
