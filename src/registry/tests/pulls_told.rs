//! Pull times on their way to the primary, from a process that dies before each of its writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::pair::{Pair, push};
use super::*;
use crate::metadata::MetadataError;

/// The latest pulls that a region knows of: of any manifest, and by any tag.
async fn latest(registry: &Registry) -> Option<(i64, i64)> {
    let read = registry.metadata().read(|reader| reader.latest_pulls());
    read.await.map_err(|error: MetadataError| RegistryError::from(error)).ok().flatten()
}

#[tokio::test]
async fn pull_times_reach_the_primary_whichever_write_of_telling_them_does_not_happen() {
    let acme = AccountName::parse("acme").unwrap();
    let mut deaths = 0;
    for dies_before in 1..=3 {
        let mut pair = Pair::new(Duration::from_millis(300));
        let (there, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
        push(&there, "acme/app", "v1", "one").await.unwrap();
        pair.catch_up().await;
        let pulled = here.load_manifest(&repository("acme/app"), &Reference::Tag(tag_of("v1"))).await.unwrap();
        here.note_pull(&pulled);
        // What is in memory only is lost with the process, as it is told.
        here.flush_pull_times().await.unwrap();
        let expected = latest(&here).await;
        assert!(expected.is_some());

        let writes = Arc::new(AtomicU64::new(0));
        let (counted, dead_until) = (writes.clone(), Arc::new(AtomicU64::new(u64::MAX)));
        let revived = dead_until.clone();
        here.metadata().gate_commits(move || {
            let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
            number < dies_before || number > dead_until.load(Ordering::SeqCst)
        });
        let told = here.hand_over_pull_times(&acme).await;
        assert_eq!(told.is_err(), writes.load(Ordering::SeqCst) >= dies_before, "write {dies_before}: {told:?}");
        deaths += u32::from(told.is_err());
        revived.store(0, Ordering::SeqCst);
        here.hand_over_pull_times(&acme).await.unwrap();
        assert_eq!(latest(&there).await, expected, "after write {dies_before}");
        here.hand_over_pull_times(&acme).await.unwrap();
        assert_eq!(latest(&there).await, expected);
    }
    assert!(deaths > 0, "nothing was written");
}

fn tag_of(text: &str) -> Tag {
    Tag::parse(text).unwrap()
}
