//! A region whose disk is full: what others have still comes through it.

use crate::federation::{large_blob, three_regions_on, until};
use crate::harness::small_disk::SmallDisk;
use crate::harness::{Image, images::sha256};

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_streams_through_a_region_whose_disk_is_full() {
    let disk = SmallDisk::mount(40);
    let data = disk.path.join("data");
    let [eu, mut us, ap] = three_regions_on([None, Some(&data), None], &[]);
    let (layer, first, second) = (large_blob(64), Image::small(1), Image::small(2));
    eu.client.push_image("acme/app", "v1", &first).await;
    eu.client.push_image("acme/app", "v2", &second).await;
    let path = format!("/v2/acme/app/blobs/{}", eu.client.push_blob("acme/app", &layer).await);
    us.client.assert_image("acme/app", "v1", &first).await;
    // More than the disk holds, for several clients, whole and in part.
    let whole = || us.client.get(&path);
    let (one, two, part) =
        tokio::join!(whole(), whole(), us.client.get_with(&path, "range", "bytes=50000000-50999999"));
    for pulled in [one, two] {
        assert!(pulled.expect(200).body == layer);
    }
    assert!(part.expect(206).body == layer[50_000_000..51_000_000]);
    us.client.assert_image("acme/app", "v1", &first).await;
    us.server.assert_alive();

    // Not a byte is left, for blobs or for what is known of them.
    until("what did not fit is gone", || disk.free_bytes() > 8 << 20);
    let filler = disk.fill();
    us.client.assert_image("acme/app", "v2", &second).await;
    assert!(us.client.get(&path).await.expect(200).body == layer);
    // Nothing is acknowledged that has no place.
    let start = us.client.post("/v2/acme/app/blobs/uploads/").await;
    if start.status == 202 {
        let bytes = large_blob(2);
        let refused = us.client.close_upload(&start.location(), &sha256(&bytes), &bytes).await;
        assert!(matches!(refused.status, 503 | 507), "{}: {}", refused.status, refused.text());
    } else {
        assert!(matches!(start.status, 503 | 507), "{}: {}", start.status, start.text());
    }
    us.server.assert_alive();
    std::fs::remove_file(filler).expect("the filler can be removed");

    // With room again it keeps what it pulls, and needs nobody for it.
    let small = large_blob(3);
    let path = format!("/v2/acme/app/blobs/{}", ap.client.push_blob("acme/app", &small).await);
    let manifest = crate::pushes::manifest_of(&small);
    for blob in [&small[..], b"{}"] {
        ap.client.push_blob("acme/app", blob).await;
    }
    ap.client.put_manifest("acme/app", "v3", &manifest).await.expect(201);
    assert!(us.client.get(&path).await.expect(200).body == small);
    until("it is stored", || {
        crate::copies::rows(&us, &format!("SELECT count(*) FROM blobs WHERE size_bytes = {}", small.len())) == 1
    });
    us.restart();
    us.client.assert_image("acme/app", "v2", &second).await;
}
