//! Two regions, with and without a witness, when one of them is lost.

use std::time::Instant;

use crate::harness::Image;
use crate::region::{Region, federate, until};

#[tokio::test]
async fn two_regions_and_a_witness_survive_the_loss_of_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut regions = ["eu", "us", "witness"].map(|name| Region::new(folder.path(), name));
    regions[2].command = "witness";
    federate(&mut regions, 3);
    let [mut eu, us, witness] = regions;
    assert!(!witness.data.join("metadata.db").exists(), "a witness keeps no content");
    assert_eq!(us.claim("before").await.status, 200);
    eu.kill();
    let lost = Instant::now();
    let claimed = loop {
        let claimed = us.claim("after").await;
        if claimed.status == 200 || lost.elapsed().as_secs() > 20 {
            break claimed;
        }
    };
    assert_eq!(claimed.status, 200, "{claimed:?}");
    println!("with one region lost, claims go on after {:?}", lost.elapsed());
    assert!(us.is_healthy() && us.told(&["status"]).starts_with("decisions are taken; "));
    assert!(us.accounts().contains(&("after".into(), "us".into())));
    eu.start();
    until("it is back", || eu.is_healthy() && eu.accounts().len() == 2);
}

#[tokio::test]
async fn two_regions_without_a_witness_say_why_claims_stop_and_go_on_with_all_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut regions = ["eu", "us"].map(|name| Region::new(folder.path(), name));
    federate(&mut regions, 1);
    let [mut eu, mut us] = regions;
    let image = Image::small(8);
    us.client().push_image("mine/app", "v1", &image).await;
    eu.kill();
    until("it is noticed", || !us.is_healthy());
    let refused = us.claim("new").await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(!refused.retry_after.is_empty() && refused.took.as_secs_f64() < 2.0, "{refused:?}");
    for words in ["no majority", "are missing", "bring them back", "federation recover"] {
        assert!(refused.words.contains(words), "{words}: {refused:?}");
    }
    let words = us.refused(&["invite", "--region", "ap"]);
    assert!(words.contains("no majority") && words.contains("recover"), "{words}");
    let table = us.told(&["status"]);
    assert!(table.starts_with("NO DECISIONS can be taken") && table.contains("recover"), "{table}");
    // All else works: pulls, pushes to what it owns, look-ups.
    us.client().assert_image("mine/app", "v1", &image).await;
    us.client().push_image("mine/app", "v2", &image).await;
    us.client().push_image("mine/other", "v1", &image).await;
    assert_eq!(us.accounts(), [("mine".to_owned(), "us".to_owned())]);

    assert!(us.refused(&["recover", "--yes"]).contains("in use by another keppel"));
    us.kill();
    assert!(us.refused(&["recover"]).contains("nothing was changed"), "without the typed name nothing happens");
    let words = us.told(&["recover", "--yes"]);
    assert!(words.contains("Whatever other members decided after entry"), "{words}");
    us.start();
    until("it decides alone", || us.is_healthy() && us.voters() == 1);
    us.told(&["invite", "--region", "ap"]);
    assert_eq!(us.claim("new").await.status, 200);
}
