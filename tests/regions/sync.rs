//! The net under following: copies that are not what their primaries have are put right, and pull times go home.

use std::time::Duration;

use crate::copies::rows;
use crate::federation::{Region, three_regions, three_regions_with, until};
use crate::harness::Image;

/// Runs a statement on the metadata of a region behind its back.
fn spoil(region: &Region, statements: &str) {
    let database = rusqlite::Connection::open(region.server.data().join("metadata.db")).expect("it opens");
    database.busy_timeout(Duration::from_secs(10)).expect("a timeout");
    database.execute_batch(statements).expect("it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_went_wrong_is_put_right_by_the_janitor_and_pull_times_reach_the_primary() {
    let [eu, us, _ap] = three_regions();
    let (first, second) = (Image::small(1), Image::small(2));
    eu.client.push_image("acme/app", "v1", &first).await;
    eu.client.push_image("acme/app", "v2", &second).await;
    us.client.assert_image("acme/app", "v1", &first).await;
    let pulled = "SELECT count(*) FROM manifests WHERE last_pulled_at IS NOT NULL";
    let tags_pulled = "SELECT count(*) FROM tags WHERE last_pulled_at IS NOT NULL";
    until("all manifests are here", || rows(&us, "SELECT count(*) FROM tags") == 2);
    us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
    assert_eq!(rows(&eu, pulled), 0);
    let report = us.operate(&["janitor", "run", "manifest-sync", "--account", "acme"]);
    assert!(!report.contains("not those of the primary"), "{report}");
    assert_eq!((rows(&eu, pulled), rows(&eu, tags_pulled)), (1, 1), "{report}");

    // A tag names the wrong image, another one is lost, and a third was never set.
    spoil(
        &us,
        "BEGIN IMMEDIATE; UPDATE tags SET manifest_id = (SELECT max(id) FROM manifests) WHERE name = 'v1';
        DELETE FROM tags WHERE name = 'v2';
        INSERT INTO tags SELECT repository_id, 'v3', id, 1, NULL FROM manifests LIMIT 1; COMMIT",
    );
    let dry = us.operate(&["janitor", "run", "manifest-sync", "--account", "acme", "--dry-run"]);
    assert!(dry.contains("acme/app: its tags are not those of the primary"), "{dry}");
    assert_eq!(rows(&us, "SELECT count(*) FROM tags WHERE name = 'v3'"), 1, "a dry run changes nothing");
    us.operate(&["janitor", "run", "manifest-sync"]);
    until("the tags are right again", || {
        rows(&us, "SELECT count(*) FROM tags WHERE name = 'v3'") == 0 && rows(&us, "SELECT count(*) FROM tags") == 2
    });
    let right = us.operate(&["janitor", "run", "manifest-sync", "--account", "acme"]);
    assert!(!right.contains("not those of the primary"), "{right}");
    for (tag, image) in [("v1", &first), ("v2", &second)] {
        let answer = us.client.get(&format!("/v2/acme/app/manifests/{tag}")).await.expect(200);
        assert_eq!(answer.body, image.manifest.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_in_another_region_counts_at_the_primary_soon() {
    let [eu, us, _ap] = three_regions_with(&["janitor.pulls_told_interval=1s", "registry.pull_times_interval=1s"]);
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    us.client.assert_image("acme/app", "v1", &image).await;
    let start = std::time::Instant::now();
    while rows(&eu, "SELECT count(*) FROM manifests WHERE last_pulled_at IS NOT NULL") != 1 {
        assert!(start.elapsed() < std::time::Duration::from_secs(40), "the primary does not hear of the pull");
        // It counts once the account is followed, which the first pull began.
        us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}
