//! Stored bytes that go bad in one region, and are right in another.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::federation::three_regions;
use crate::harness::{Image, ImageBuilder};

pub const DAMAGED: usize = 100;

/// The files of an account's blobs, in no order.
pub fn blob_files(data: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(data.join("storage/acme/blobs")).expect("the account has blobs");
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.expect("an entry").path()).expect("a folder"));
    let files = files.map(|file| file.expect("an entry").path());
    files.filter(|path| path.extension().is_none_or(|extension| extension != "outboard")).collect()
}

/// Flips a bit, cuts the end off, fills with zeros, or deletes, in turns.
fn damage(files: &[PathBuf]) {
    for (number, path) in files.iter().enumerate() {
        let bytes = std::fs::read(path).expect("a file");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("the owner may");
        let written = match number % 4 {
            0 => {
                let mut bytes = bytes.clone();
                let at = number % bytes.len();
                bytes[at] ^= 1 << (number % 8);
                std::fs::write(path, bytes)
            }
            1 => std::fs::write(path, &bytes[..bytes.len() / 2]),
            2 => std::fs::write(path, vec![0; bytes.len()]),
            _ => std::fs::remove_file(path),
        };
        written.expect("it can be damaged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_damaged_blobs_are_healed_by_one_scrub_and_no_other_region_gives_wrong_bytes() {
    let [eu, us, ap] = three_regions();
    let images: Vec<Image> =
        (0..34).map(|seed| ImageBuilder::new(seed).layers(2).layer_bytes(20_000).build()).collect();
    for (number, image) in images.iter().enumerate() {
        eu.client.push_image("acme/app", &format!("v{number}"), image).await;
        us.client.assert_image("acme/app", &format!("v{number}"), image).await;
    }
    let mut files = blob_files(eu.server.data());
    assert!(files.len() >= DAMAGED, "{}", files.len());
    files.truncate(DAMAGED);
    damage(&files);

    // A region that has nothing asks the damaged one: what comes is right, or nothing comes.
    let clients = [us.server.client(), ap.server.client()];
    let blobs: Vec<(String, Vec<u8>)> =
        images.iter().flat_map(Image::blobs).map(|blob| (blob.digest(), blob.bytes.to_vec())).collect();
    let pulls = tokio::spawn(async move {
        let mut right = 0;
        for (digest, bytes) in &blobs {
            for client in &clients {
                let pulled = client.get(&format!("/v2/acme/app/blobs/{digest}")).await;
                match pulled.status {
                    200 => assert!(pulled.body == *bytes, "{digest} came wrong"),
                    status => assert!(matches!(status, 404 | 503), "{digest}: {status}"),
                }
                right += usize::from(pulled.status == 200);
            }
        }
        right
    });
    let scrub: serde_json::Value =
        serde_json::from_str(&eu.operate(&["scrub", "--account", "acme", "--now", "--json"])).expect("JSON");
    assert_eq!(scrub["bad"], scrub["healed"], "{scrub}");
    assert_eq!(scrub["blobs_done"], scrub["blobs_total"]);
    let right = pulls.await.expect("no pull gives wrong bytes");
    // Pulls find, and heal, what has lost its bytes by themselves, and may be at it when the scrub ends.
    let start = std::time::Instant::now();
    while eu.counter("keppel_blobs_repaired_total").await != DAMAGED as u64 {
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "not all are repaired, or some twice");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(right >= images.len() * 3, "only {right} pulls succeeded");
    for region in [&eu, &us, &ap] {
        for (number, image) in images.iter().enumerate() {
            region.client.assert_image("acme/app", &format!("v{number}"), image).await;
        }
    }
    let again: serde_json::Value =
        serde_json::from_str(&eu.operate(&["scrub", "--account", "acme", "--now", "--json"])).expect("JSON");
    assert_eq!(again["bad"], 0, "{again}");

    // What is lost without anybody having noticed is served from another region at once, and is here again soon.
    let files = blob_files(eu.server.data());
    files.iter().for_each(|path| std::fs::remove_file(path).expect("it can be deleted"));
    for (number, image) in images.iter().enumerate() {
        eu.client.assert_image("acme/app", &format!("v{number}"), image).await;
    }
}
