//! Against Debian's docker-registry, with a real client.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::json;

use crate::harness::{
    Client, Image, Index, Kind,
    layout::read_layout,
    process::{Daemon, run, wait_until},
    server::free_port,
};
use crate::site::Site;

/// A docker-registry on a free port; with a password, only `robot` gets in.
pub struct Registry {
    pub host: String,
    daemon: Daemon,
}

impl Registry {
    pub fn start(home: &Path, password: Option<&str>) -> Self {
        Self::start_with(home, password, None)
    }

    /// With a certificate and its key it speaks HTTPS.
    pub fn start_with(home: &Path, password: Option<&str>, tls: Option<(&Path, &Path)>) -> Self {
        let (port, config) = (free_port(), home.join("registry.yml"));
        let tls = tls.map_or_else(String::new, |(certificate, key)| {
            format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display())
        });
        let users = home.join("htpasswd");
        let auth = match password {
            None => String::new(),
            Some(password) => {
                let hash = bcrypt::hash(password, 4).expect("a password can be hashed");
                fs::write(&users, format!("robot:{hash}\n")).expect("a file can be written");
                format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display())
            }
        };
        let storage = home.join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"{tls}}}\n{auth}",
            storage.display()
        );
        fs::write(&config, text).expect("a file can be written");
        let log = home.join("registry.log");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let mut daemon = Daemon::start(&mut command, &log, Duration::from_secs(10));
        wait_until(&mut daemon, &log, "docker-registry", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { host: format!("127.0.0.1:{port}"), daemon }
    }

    /// It is gone at once.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }
}

#[tokio::test]
async fn skopeo_pulls_through_what_docker_registry_has() {
    let home = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(home.path(), None);
    let site = Site::start(&["external.tag_freshness=0s"]);
    let (index, docker) = (Index::of_two(Kind::Oci, 1), Image::small(5));
    let origin = Client::new(&format!("http://{}", registry.host));
    origin.push_index("library/app", "v1", &index).await;
    origin.push_image("library/app", "one", &docker).await;
    site.put_mirror(json!({ "url": registry.host }), json!({})).await.expect(200);
    let copy = |tag: &str, folder: &str| {
        let source = format!("docker://{}", site.server.reference(&format!("mirror/library/app:{tag}")));
        let folder = home.path().join(folder);
        let target = format!("oci:{}:back", folder.display());
        let arguments = ["--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false"];
        run("skopeo", arguments.iter().copied().chain([source.as_str(), target.as_str()])).text();
        read_layout(&folder, "back").digest()
    };
    assert_eq!(copy("v1", "first"), index.digest());
    assert_eq!(copy("v1", "second"), index.digest());
    // The next version is there at once.
    origin.put_manifest("library/app", "v1", &docker.manifest).await.expect(201);
    assert_eq!(copy("v1", "third"), docker.digest());
    site.client.get("/v2/mirror/library/app/manifests/v9").await.expect_error(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_docker_registry_with_users_is_mirrored_with_the_accounts_login() {
    let home = tempfile::tempdir().expect("a folder");
    let registry = Registry::start(home.path(), Some("swordfish"));
    let site = Site::start(&[]);
    let layout = home.path().join("layout");
    let image = Image::small(3);
    let mut files = crate::harness::layout::Layout::create(&layout);
    files.add_image("v1", &image);
    files.finish();
    let (source, target) = (format!("oci:{}:v1", layout.display()), format!("docker://{}/app:v1", registry.host));
    let push = ["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds"];
    run("skopeo", push.iter().copied().chain(["robot:swordfish", source.as_str(), target.as_str()])).text();
    site.put_mirror(json!({ "url": registry.host }), json!({})).await.expect(200);
    let refused = site.client.get("/v2/mirror/app/manifests/v1").await.expect_error(502, "UNAVAILABLE");
    assert!(refused.message().contains("refuses us"), "{}", refused.message());
    let login = json!({ "url": registry.host, "username": "robot", "password": "swordfish" });
    site.put_mirror(login, json!({})).await.expect(200);
    site.client.assert_image("mirror/app", "v1", &image).await;
}
