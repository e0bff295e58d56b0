//! A docker-registry behind a proxy that lets only so many requests for manifests through, as public registries do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{
    Client, Image,
    process::{Daemon, run, wait_until},
    server::free_port,
};
use crate::programs::Registry;
use crate::site::{Site, manifest};

/// How long the proxy tells those to wait who ask too much.
const RETRY_AFTER: Duration = Duration::from_secs(6);

/// nginx in front of a registry: six manifests at once, then one in three seconds.
struct Limiter {
    host: String,
    requests: PathBuf,
    _daemon: Daemon,
}

impl Limiter {
    fn start(home: &Path, upstream: &str) -> Self {
        let port = free_port();
        let (config, requests, log) = (home.join("nginx.conf"), home.join("requests"), home.join("nginx.log"));
        let folder = home.display();
        let text = format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx-errors warn;
            events {{ }}
            http {{
                access_log {folder}/requests;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
                uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                limit_req_zone $server_port zone=all:1m rate=20r/m;
                limit_req_status 429;
                map $status $wait {{ 429 {}; default \"\"; }}
                add_header Retry-After $wait always;
                server {{
                    listen 127.0.0.1:{port};
                    location / {{ proxy_pass http://{upstream}; proxy_set_header Host $http_host; }}
                    location ~ /manifests/ {{
                        limit_req zone=all burst=5 nodelay;
                        proxy_pass http://{upstream}; proxy_set_header Host $http_host;
                    }}
                }}
            }}",
            RETRY_AFTER.as_secs()
        );
        fs::write(&config, text).expect("a file can be written");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&config).arg("-e").arg(home.join("nginx-errors"));
        let mut daemon = Daemon::start(&mut command, &log, Duration::from_secs(10));
        wait_until(&mut daemon, &log, "nginx", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { host: format!("127.0.0.1:{port}"), requests, _daemon: daemon }
    }

    /// How many requests it has seen.
    fn seen(&self) -> usize {
        fs::read_to_string(&self.requests).unwrap_or_default().lines().count()
    }
}

#[tokio::test]
async fn a_registry_behind_a_limit_is_left_alone_until_it_may_be_asked_again() {
    let home = tempfile::tempdir().expect("a folder");
    let mut registry = Registry::start(home.path(), None);
    let origin = Client::new(&format!("http://{}", registry.host));
    let images: Vec<Image> = (0..12).map(Image::small).collect();
    for (number, image) in images.iter().enumerate() {
        origin.push_image("app", &format!("v{number}"), image).await;
    }
    let limiter = Limiter::start(home.path(), &registry.host);
    let site = Site::start(&["external.tag_freshness=0s"]);
    site.put_mirror(json!({ "url": limiter.host }), json!({})).await.expect(200);

    // The first come through, until the limit is reached.
    let mut pulled = 0;
    let refused = loop {
        let answer = site.client.get(&manifest("app", &format!("v{pulled}"))).await;
        if answer.status != 200 {
            break answer.expect_error(429, "TOOMANYREQUESTS");
        }
        assert_eq!(answer.body, images[pulled].manifest.bytes);
        pulled += 1;
        assert!(pulled < images.len(), "nothing is limited");
    };
    let since = Instant::now();
    assert!(pulled >= 2, "only {pulled} came through");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!(wait > 0 && wait <= RETRY_AFTER.as_secs(), "{wait}");
    // For so long it is not asked; what is known is served, marked.
    let seen = limiter.seen();
    for _ in 0..20 {
        let stale = site.client.get(&manifest("app", "v0")).await.expect(200);
        assert!(stale.body == images[0].manifest.bytes && stale.header("warning").starts_with("110 "));
        site.client.get(&manifest("app", "v11")).await.expect_error(429, "TOOMANYREQUESTS");
        site.client.get(&manifest("app", &images[0].digest())).await.expect(200);
    }
    assert!(since.elapsed() < RETRY_AFTER, "the machine is too slow for this test");
    assert_eq!(limiter.seen(), seen, "it was asked all the same");
    // After that it is, and a real client gets an image that was not here.
    tokio::time::sleep(RETRY_AFTER.saturating_sub(since.elapsed()) + Duration::from_millis(300)).await;
    let source = format!("docker://{}", site.server.reference("mirror/app:v11"));
    let target = format!("oci:{}:back", home.path().join("back").display());
    run("skopeo", ["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false", &source, &target])
        .text();
    assert_eq!(crate::harness::layout::read_layout(&home.path().join("back"), "back").digest(), images[11].digest());

    // The registry goes away behind its proxy: what is known stays, what is not is neither there nor denied.
    registry.kill();
    tokio::time::sleep(RETRY_AFTER).await;
    let stale = site.client.get(&manifest("app", "v11")).await.expect(200);
    assert!(stale.body == images[11].manifest.bytes && stale.header("warning").starts_with("110 "));
    let unknown = site.client.get(&manifest("app", "v99")).await.expect_error(503, "UNAVAILABLE");
    assert!(unknown.message().contains(&limiter.host), "{}", unknown.message());
}
