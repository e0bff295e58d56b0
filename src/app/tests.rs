use std::path::Path;

use keppel_federation::vocabulary::{Digest, RepositoryName};
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::config::{self, Flag, Sources};
use crate::registry::BodyError;

/// A configuration on a free port with its data below `folder`.
fn config_in(folder: &Path, more: &[(&str, &str)]) -> Config {
    let data = folder.join("data");
    let given = [("http.listen", "127.0.0.1:0"), ("node.data", data.to_str().expect("text"))];
    let flag = |(key, value): &(&str, &str)| Flag { name: "test".into(), key: (*key).into(), value: (*value).into() };
    let flags = given.iter().chain(more).map(flag).collect();
    config::load(&Sources { flags, ..Sources::default() }).expect("valid").config
}

async fn get(node: &RunningNode, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(node.addresses()[0]).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn two_nodes_live_in_one_process_and_end_one_by_one() {
    let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let first = start(&config_in(one.path(), &[])).await.expect("the first starts");
    let second = start(&config_in(two.path(), &[])).await.expect("the second starts");
    assert!(get(&first, "/health/ready").await.starts_with("HTTP/1.1 200 "));
    first.shutdown().await;
    assert!(get(&second, "/health/ready").await.starts_with("HTTP/1.1 200 "));
    assert!(get(&second, "/metrics").await.contains("keppel_http_connections_accepted_total"));
    second.shutdown().await;
}

#[tokio::test]
async fn a_node_that_ended_lets_its_data_and_its_address_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = start(&config_in(folder.path(), &[("registry.accounts", "team")])).await.expect("it starts");
    let address = node.addresses()[0].to_string();
    node.shutdown().await;
    let again = start(&config_in(folder.path(), &[("http.listen", &address)])).await.expect("it starts again");
    assert_eq!(again.addresses()[0].to_string(), address);
    again.shutdown().await;
}

#[tokio::test]
async fn a_node_that_cannot_listen_lets_its_data_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("an address").to_string();
    let error = start(&config_in(folder.path(), &[("http.listen", &address)])).await.err().expect("it must not start");
    assert!(error.is_address_in_use(), "{error}");
    // Nothing of it runs any more, the keeper of the keys included.
    let tasks = tokio::runtime::Handle::current().metrics();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while tasks.num_alive_tasks() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} tasks still run", tasks.num_alive_tasks());
        tokio::task::yield_now().await;
    }
    start(&config_in(folder.path(), &[])).await.expect("the folder is free").shutdown().await;
}

#[tokio::test]
async fn blobs_whose_metadata_is_lost_are_not_swept_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config_in(folder.path(), &[("registry.accounts", "team")]);
    let node = start(&config).await.expect("it starts");
    let repository = RepositoryName::parse("team/app").expect("a name");
    let digest = Digest::from_sha256(sha2::Sha256::digest(b"hello").into());
    let body = futures_util::stream::iter([Ok::<_, BodyError>(bytes::Bytes::from_static(b"hello"))]);
    node.registry.put_blob(&repository, &digest, Some(5), body).await.expect("stored");
    node.shutdown().await;
    let (database, kept) = (config.metadata_path(), folder.path().join("kept.db"));
    std::fs::rename(&database, &kept).expect("moved");
    for _ in 0..2 {
        let error = start(&config).await.err().expect("it must not start");
        assert!(matches!(&error, StartError::MetadataLost { path, .. } if *path == database), "{error}");
    }
    std::fs::rename(&kept, &database).expect("moved back");
    let node = start(&config).await.expect("all is there again");
    node.registry.load_blob(&repository, &digest, true).await.expect("the blob too");
    node.shutdown().await;
}

#[tokio::test]
async fn a_folder_in_use_is_refused_before_its_database_is_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = start(&config_in(folder.path(), &[])).await.expect("it starts");
    let error = start(&config_in(folder.path(), &[])).await.err().expect("it must not start");
    assert!(matches!(error, StartError::DataFolder(DataFolderError::Locked { .. })), "{error}");
    assert!(get(&node, "/health/ready").await.starts_with("HTTP/1.1 200 "));
    node.shutdown().await;
}
