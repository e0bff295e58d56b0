//! Clients of a region whose own files go bad while they pull: they get right bytes, or none.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::federation::{Region, large_blob, three_regions};
use crate::harness::client::{Answer, send, try_send};
use crate::harness::images::sha256;
use crate::harness::{Client, Image, ImageBuilder};
use crate::healing::{DAMAGED, blob_files};

const CLIENTS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// Digests and bytes.
type Blobs = Arc<Vec<(String, Vec<u8>)>>;

/// Flips a bit, cuts the end off, fills with zeros, or deletes, in turns; every other time the time of the file is set
/// back to what it was, as if nobody had written to it.
fn damage(path: &Path, number: usize) {
    let mut bytes = std::fs::read(path).expect("a file");
    let modified = std::fs::metadata(path).and_then(|found| found.modified()).expect("it has a time");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the owner may");
    match number % 4 {
        0 => {
            let at = number * 977 % bytes.len();
            bytes[at] ^= 1 << (number % 8);
        }
        1 => bytes.truncate(bytes.len() / 2),
        2 => bytes.fill(0),
        _ => return std::fs::remove_file(path).expect("it can be deleted"),
    }
    std::fs::write(path, bytes).expect("it can be damaged");
    if number % 8 < 4 {
        File::options().write(true).open(path).and_then(|file| file.set_modified(modified)).expect("it can be set");
    }
}

fn path_of(digest: &str) -> String {
    format!("/v2/acme/app/blobs/{digest}")
}

/// Pulls blobs, whole and in part, again and again; every answer must be right. Gives how many there were.
async fn pull(client: Client, blobs: Blobs, first: usize, ended: Arc<AtomicBool>) -> usize {
    let mut pulled = 0;
    while !ended.load(Ordering::SeqCst) {
        let (digest, bytes) = &blobs[(first + pulled * 7) % blobs.len()];
        if pulled % 5 == 4 {
            let (from, to) = (bytes.len() / 3, bytes.len() / 3 * 2);
            let range = format!("bytes={from}-{}", to - 1);
            let answer = client.get_with(&path_of(digest), "range", &range).await.expect(206);
            assert!(answer.body == bytes[from..to], "{digest}: a range came wrong");
        } else {
            let answer = client.get(&path_of(digest)).await.expect(200);
            assert!(answer.body == *bytes, "{digest} came wrong");
        }
        pulled += 1;
    }
    pulled
}

/// Pulls all blobs until they are sent without being hashed once more.
async fn warm_up(region: &Region, blobs: &Blobs) {
    let start = Instant::now();
    loop {
        let before = region.counter("keppel_storage_verified_bytes_total").await;
        for (digest, bytes) in blobs.iter() {
            assert!(region.client.get(&path_of(digest)).await.expect(200).body == *bytes);
        }
        if region.counter("keppel_storage_verified_bytes_total").await == before {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "what is pulled again and again is hashed again and again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_right_bytes_while_the_files_of_their_region_go_bad_and_are_healed() {
    let [eu, us, _ap] = three_regions();
    let images: Vec<Image> =
        (0..34).map(|seed| ImageBuilder::new(seed).layers(2).layer_bytes(20_000).build()).collect();
    for (number, image) in images.iter().enumerate() {
        eu.client.push_image("acme/app", &format!("v{number}"), image).await;
        us.client.assert_image("acme/app", &format!("v{number}"), image).await;
    }
    let blobs = images.iter().flat_map(Image::blobs).map(|blob| (blob.digest(), blob.bytes.to_vec()));
    let blobs: Blobs = Arc::new(blobs.collect());
    warm_up(&eu, &blobs).await;

    let ended = Arc::new(AtomicBool::new(false));
    let pulls = (0..CLIENTS).map(|number| pull(eu.server.client(), blobs.clone(), number * 25, ended.clone()));
    let pulls: Vec<_> = pulls.map(tokio::spawn).collect();
    let mut files = blob_files(eu.server.data());
    files.truncate(DAMAGED);
    assert_eq!(files.len(), DAMAGED);
    // Some before the scrub, the rest while it goes on.
    for (number, path) in files.iter().enumerate() {
        damage(path, number);
        if number == DAMAGED / 2 {
            eu.operate(&["scrub", "--account", "acme", "--now"]);
        }
    }
    eu.operate(&["scrub", "--account", "acme", "--now"]);
    ended.store(true, Ordering::SeqCst);
    let mut pulled = 0;
    for pull in pulls {
        pulled += pull.await.expect("no client gets a wrong byte, or none");
    }
    assert!(pulled > DAMAGED, "only {pulled} pulls");
    assert_eq!(eu.counter("keppel_blobs_repaired_total").await, DAMAGED as u64);
    for (number, image) in images.iter().enumerate() {
        eu.client.assert_image("acme/app", &format!("v{number}"), image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_that_went_bad_comes_right_from_another_region_and_not_at_all_where_nobody_has_it() {
    let [eu, us, _ap] = three_regions();
    let (held, lonely, small) = (large_blob(4), large_blob(3), ImageBuilder::new(7).layer_bytes(900).build());
    let small = small.blobs().next().expect("a layer").bytes.to_vec();
    for bytes in [&held, &lonely, &small] {
        eu.client.push_blob("acme/app", bytes).await;
    }
    assert!(us.client.get(&path_of(&sha256(&held))).await.expect(200).body == held);
    let all: Blobs = Arc::new([&held, &lonely, &small].map(|bytes| (sha256(bytes), bytes.clone())).to_vec());
    warm_up(&eu, &all).await;

    let files = blob_files(eu.server.data());
    let by_digest: HashMap<String, &PathBuf> =
        files.iter().map(|path| (sha256(&std::fs::read(path).expect("a file")), path)).collect();
    let flip = |bytes: &[u8], at: usize| {
        let mut wrong = bytes.to_vec();
        wrong[at] ^= 0x10;
        let path = by_digest[&sha256(bytes)];
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the owner may");
        std::fs::write(path, wrong).expect("it can be damaged");
    };
    // In the middle: the beginning is from here, the rest from the other region, and the client notices nothing.
    flip(&held, 2 << 20);
    let pulled = eu.client.get(&path_of(&sha256(&held))).await.expect(200);
    assert!(pulled.body == held);
    let start = Instant::now();
    while eu.counter("keppel_blobs_repaired_total").await == 0 {
        assert!(start.elapsed() < PATIENCE, "it is not healed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let range = eu.client.get_with(&path_of(&sha256(&held)), "range", "bytes=2097100-2097200").await.expect(206);
    assert!(range.body == held[2_097_100..=2_097_200]);

    // Nobody else has these: what has begun breaks off, what has not is refused, and a part that is right still comes.
    flip(&lonely, lonely.len() - 1);
    flip(&small, 0);
    let request = |bytes: &[u8]| eu.client.request("GET".parse().expect("a method"), &path_of(&sha256(bytes)));
    let part = request(&lonely).header("range", "bytes=0-999");
    assert!(send(part).await.expect(206).body == lonely[..1000]);
    let is_refused = |answer: Result<Answer, _>| answer.map_or(true, |answer| matches!(answer.status, 404 | 500));
    assert!(is_refused(try_send(request(&lonely)).await), "wrong bytes came as a success");
    assert!(is_refused(try_send(request(&small)).await), "wrong bytes came as a success");
    // Pushing them again repairs them.
    for bytes in [&lonely, &small] {
        eu.client.push_blob("acme/app", bytes).await;
        assert!(eu.client.get(&path_of(&sha256(bytes))).await.expect(200).body == *bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_region_gets_what_the_primary_has_lost_from_whoever_has_it() {
    let [eu, us, ap] = three_regions();
    let images: Vec<Image> =
        (0..8).map(|seed| ImageBuilder::new(seed).layers(1).layer_bytes(300_000).build()).collect();
    for (number, image) in images.iter().enumerate() {
        eu.client.push_image("acme/app", &format!("v{number}"), image).await;
        us.client.assert_image("acme/app", &format!("v{number}"), image).await;
    }
    for path in blob_files(eu.server.data()) {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("the owner may");
        let bytes = std::fs::read(&path).expect("a file");
        // Deleted, cut, and emptied, in turns.
        let done = match bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>() % 3 {
            0 => std::fs::remove_file(&path),
            1 => std::fs::write(&path, &bytes[..bytes.len() / 2]),
            _ => std::fs::write(&path, b""),
        };
        done.expect("it can be damaged");
    }
    for image in &images {
        for blob in image.blobs() {
            let pulled = ap.client.get(&path_of(&blob.digest())).await.expect(200);
            assert!(pulled.body == blob.bytes, "{} came wrong", blob.digest());
        }
    }
}
