//! A layer of a gibibyte, there and back.

use crate::harness::{
    Server,
    layout::{Layout, read_layout},
    process::run,
};

/// The server must not hold a layer in memory; this is far below its size.
const RESIDENT_BYTES_MAX: u64 = 200 << 20;

#[tokio::test]
async fn a_layer_of_one_gibibyte_goes_there_and_back_without_filling_memory() {
    let server = Server::start();
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let (into, back) = (home.path().join("in"), home.path().join("back"));
    let mut layout = Layout::create(&into);
    let manifest = layout.add_large_image("large", 1024);
    layout.finish();
    let registry = format!("docker://{}", server.reference("acme/large:v1"));
    let copy = ["--insecure-policy", "copy", "--preserve-digests"];
    let push = ["--dest-tls-verify=false".to_owned(), format!("oci:{}:large", into.display()), registry.clone()];
    run("skopeo", copy.iter().map(ToString::to_string).chain(push)).text();
    std::fs::remove_dir_all(&into).expect("the layout can be removed");
    let pull = ["--src-tls-verify=false".to_owned(), registry, format!("oci:{}:large", back.display())];
    run("skopeo", copy.iter().map(ToString::to_string).chain(pull)).text();
    assert_eq!(read_layout(&back, "large").digest(), manifest.digest(), "every blob was hashed on the way");
    let resident = server.resident_bytes();
    assert!(resident < RESIDENT_BYTES_MAX, "{resident} bytes are resident");
}
