//! A docker-registry that speaks HTTPS, with a certificate of an authority that only the configuration trusts.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::harness::{Image, layout::Layout, process::run};
use crate::programs::Registry;
use crate::site::{Site, manifest};

/// Writes an authority (`ca.pem`), and a certificate of it for this machine with its key.
fn certify(home: &Path) {
    let key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "An authority of the tests");
    let certificate = authority.self_signed(&key).expect("a certificate");
    fs::write(home.join("ca.pem"), certificate.pem()).expect("a file can be written");
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    fs::write(home.join("server.pem"), certificate.pem()).expect("a file can be written");
    fs::write(home.join("server.key"), key.serialize_pem()).expect("a file can be written");
}

#[tokio::test]
async fn a_registry_with_a_certificate_of_ones_own_is_mirrored_where_that_is_trusted_and_nowhere_else() {
    let home = tempfile::tempdir().expect("a folder");
    certify(home.path());
    let path = |name: &str| home.path().join(name);
    let registry =
        Registry::start_with(home.path(), Some("swordfish"), Some((&path("server.pem"), &path("server.key"))));
    let image = Image::small(1);
    let layout = path("layout");
    let mut files = Layout::create(&layout);
    files.add_image("v1", &image);
    files.finish();
    // skopeo finds authorities in a folder.
    fs::create_dir(path("authorities")).expect("a folder can be made");
    fs::copy(path("ca.pem"), path("authorities").join("ca.crt")).expect("a file can be copied");
    let certificates = format!("--dest-cert-dir={}", path("authorities").display());
    let (source, target) = (format!("oci:{}:v1", layout.display()), format!("docker://{}/app:v1", registry.host));
    let push = ["--insecure-policy", "copy", "--preserve-digests", &certificates, "--dest-creds", "robot:swordfish"];
    run("skopeo", push.iter().copied().chain([source.as_str(), target.as_str()])).text();

    let upstream = json!({ "url": registry.host, "username": "robot", "password": "swordfish" });
    // HTTPS, since no host is listed as a plain one.
    let secure = "external.plain_http_hosts=[]";
    let near = "external.forbidden_networks=[]";
    let strict = Site::start(&[secure, near]);
    strict.put_mirror(upstream.clone(), json!({})).await.expect(200);
    let refused = strict.client.get(&manifest("app", "v1")).await.expect_error(503, "UNAVAILABLE");
    assert!(refused.message().contains(&registry.host), "{}", refused.message());
    let trusted = format!("external.ca_file={}", path("ca.pem").display());
    let trusting = Site::start(&[secure, near, &trusted]);
    trusting.put_mirror(upstream, json!({})).await.expect(200);
    trusting.client.assert_image("mirror/app", "v1", &image).await;
    trusting.client.get(&manifest("app", "v2")).await.expect_error(404, "MANIFEST_UNKNOWN");
    let wrong = json!({ "url": registry.host, "username": "robot", "password": "wrong" });
    trusting.put_mirror(wrong, json!({})).await.expect(200);
    trusting.client.get(&manifest("other", "v1")).await.expect_error(502, "UNAVAILABLE");
}

#[test]
fn a_file_of_authorities_that_is_none_keeps_a_node_from_starting() {
    let home = tempfile::tempdir().expect("a folder");
    let data = home.path().join("data").display().to_string();
    let file = home.path().join("ca.pem");
    let start = |file: &Path| {
        let setting = format!("external.ca_file={}", file.display());
        run(env!("CARGO_BIN_EXE_keppel"), ["dev", "--listen", "127.0.0.1:0", "--data", &data, "--set", &setting])
            .failure()
    };
    let said = start(&file);
    assert!(said.contains("external.ca_file") && said.contains("cannot be read"), "{said}");
    fs::write(&file, "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").expect("a file");
    let said = start(&file);
    assert!(said.contains("registries outside"), "{said}");
}
