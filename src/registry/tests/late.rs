//! Writes that were handed over and come too late.

use super::*;
use keppel_federation::vocabulary::NodeId;

#[tokio::test]
async fn a_write_that_comes_when_nobody_waits_any_more_changes_nothing() {
    let bench = open();
    let (registry, app) = (&bench.registry, repository("acme/app"));
    let config = put_blob(registry, &app, b"{}").await;
    let first = registry.put_manifest(&app, tag("v1"), Some(OCI), image(&config, "first")).await.unwrap().digest;
    let (spare, v1) = (put_blob(registry, &app, b"spare").await, Tag::parse("v1").unwrap());
    let other = repository("acme/other");
    let hour = Duration::from_secs(3600);
    let given_up = WriteWindow::until(uptime() + hour);
    assert!(given_up.close());
    for late in [WriteWindow::until(uptime()), given_up] {
        let node = NodeId::from_public_key([2; 32]);
        let put = registry.accept_manifest(&late, node, &app, tag("v1"), Some(OCI), image(&config, "second")).await;
        let outcomes = [
            put.map(drop),
            registry.delete_manifest_within(&late, &app, &first).await,
            registry.delete_tag_within(&late, &app, &v1).await,
            registry.delete_blob_within(&late, &app, &spare).await,
            registry.delete_repository_within(&late, &app).await,
            registry.mount_blob_within(&late, &other, &spare, Some(&app)).await.map(drop),
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Err(RegistryError::Overdue { .. })), "{outcome:?}");
        }
    }
    assert_eq!(registry.load_manifest(&app, &reference("v1")).await.unwrap().digest, first);
    assert_eq!(read_blob(registry, &app, &spare).await, b"spare");
    assert!(registry.load_blob(&other, &spare, true).await.is_err());
    // In time each is done.
    let in_time = || WriteWindow::until(uptime() + hour);
    assert!(registry.mount_blob_within(&in_time(), &other, &spare, Some(&app)).await.unwrap());
    registry.delete_blob_within(&in_time(), &app, &spare).await.unwrap();
    registry.delete_tag_within(&in_time(), &app, &v1).await.unwrap();
    registry.delete_repository_within(&in_time(), &app).await.unwrap();
    assert!(matches!(
        registry.load_manifest(&app, &reference("v1")).await,
        Err(RegistryError::RepositoryUnknown { .. })
    ));
}
