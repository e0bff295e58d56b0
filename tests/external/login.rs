use serde_json::json;

use crate::harness::{Image, Reply, Upstream};
use crate::site::{Site, manifest};

const BASIC: &str = "Basic cm9ib3Q6c3dvcmRmaXNo"; // robot:swordfish

/// Lets in those who show a token of the service on the same host, which gives one for the right password.
fn guard(upstream: &Upstream, lifetime: u64) {
    let host = upstream.host();
    upstream.rule(move |asked, good| {
        if asked.path.starts_with("/token?") {
            let body = json!({ "token": "good", "expires_in": lifetime }).to_string();
            return match asked.header("authorization") {
                BASIC => Reply::new(200).body(body),
                _ => Reply::new(401),
            };
        }
        if asked.header("authorization") == "Bearer good" {
            return good;
        }
        let challenge =
            format!(r#"Bearer realm="http://{host}/token",service="a service",scope="repository:app:pull""#);
        Reply::new(401).with("www-authenticate", challenge)
    });
}

#[tokio::test]
async fn a_token_is_fetched_with_the_password_and_used_until_it_runs_out() {
    let (upstream, site) = (Upstream::start().await, Site::start(&["external.tag_freshness=0s"]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    guard(&upstream, 300);
    let login = json!({ "url": upstream.host(), "username": "robot", "password": "swordfish" });
    site.put_mirror(login, json!({})).await.expect(200);
    site.client.assert_image("mirror/app", "v1", &image).await;
    site.client.assert_image("mirror/app", "v1", &image).await;
    assert_eq!(upstream.count("GET", "/token"), 1);
    let asked = upstream.asked();
    let token = asked.iter().find(|asked| asked.is("GET", "/token")).expect("it was asked");
    assert!(
        token.path.contains("service=a+service") && token.path.contains("scope=repository%3Aapp%3Apull"),
        "{token:?}"
    );
    assert!(asked.iter().all(|asked| asked.header("authorization") != BASIC || asked.is("GET", "/token")));
    // One that has run out by the next question is fetched again.
    guard(&upstream, 0);
    upstream.add_image("other", "v1", &image);
    site.client.assert_manifest("mirror/other", "v1", &image.manifest).await;
    let before = upstream.count("GET", "/token");
    site.client.assert_manifest("mirror/other", "v1", &image.manifest).await;
    assert!(upstream.count("GET", "/token") > before);
}

#[tokio::test]
async fn a_wrong_password_is_the_owners_mistake_and_a_new_one_is_tried_at_once() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    guard(&upstream, 300);
    let login = |password: &str| json!({ "url": upstream.host(), "username": "robot", "password": password });
    for upstream in [json!({ "url": upstream.host() }), login("wrong")] {
        site.put_mirror(upstream, json!({})).await.expect(200);
        let refused = site.client.get(&manifest("app", "v1")).await.expect_error(502, "UNAVAILABLE");
        let message = refused.message();
        assert!(message.contains("401 of its token service"), "{message}");
        assert!(!message.contains("wrong") && !message.contains("swordfish"));
    }
    site.put_mirror(login("swordfish"), json!({})).await.expect(200);
    site.client.assert_image("mirror/app", "v1", &image).await;
    assert!(!site.server.log().contains("swordfish"));
}

#[tokio::test]
async fn a_registry_that_wants_the_password_itself_gets_it_at_once_the_next_time() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    upstream.rule(|asked, good| match asked.header("authorization") {
        BASIC => good,
        _ => Reply::new(401).with("www-authenticate", "Basic realm=\"registry\""),
    });
    let login = json!({ "url": upstream.host(), "username": "robot", "password": "swordfish" });
    site.put_mirror(login, json!({})).await.expect(200);
    site.client.assert_image("mirror/app", "v1", &image).await;
    assert_eq!(upstream.asked().iter().filter(|asked| asked.header("authorization").is_empty()).count(), 1);
}

#[tokio::test]
async fn credentials_stay_with_the_registry_when_it_sends_us_elsewhere() {
    let (upstream, storage) = (Upstream::start().await, Upstream::start().await);
    let site = Site::start(&[]);
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    for blob in image.blobs() {
        storage.add_blob(&blob.bytes);
    }
    let host = storage.host();
    upstream.rule(move |asked, good| match asked.header("authorization") {
        BASIC if asked.path.contains("/blobs/") => {
            Reply::new(307).with("location", format!("http://{host}{}", asked.path))
        }
        BASIC => good,
        _ => Reply::new(401).with("www-authenticate", "Basic realm=\"registry\""),
    });
    let login = json!({ "url": upstream.host(), "username": "robot", "password": "swordfish" });
    site.put_mirror(login, json!({})).await.expect(200);
    site.client.assert_image("mirror/app", "v1", &image).await;
    assert_eq!(storage.asked().len(), 3);
    assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_empty()), "{:?}", storage.asked());
}

#[tokio::test]
async fn redirects_are_bounded_and_do_not_lead_inside() {
    let (upstream, site) = (Upstream::start().await, Site::start(&["external.plain_http_hosts=[\"127.0.0.1\"]"]));
    site.mirror(&upstream).await;
    let path = manifest("app", "v1");
    let (host, times) = (upstream.host(), 7);
    upstream.rule(move |_, _| Reply::new(302).with("location", format!("http://{host}/again")));
    let refused = site.client.get(&path).await.expect_error(502, "UNAVAILABLE");
    assert!(refused.message().contains("more than 5 times"), "{}", refused.message());
    assert!(upstream.asked().len() <= times);
    for inside in ["http://169.254.169.254/latest/meta-data", "http://localhost:1/x", "file:///etc/passwd", "http:///"]
    {
        upstream.rule(move |_, _| Reply::new(302).with("location", inside));
        site.client.get(&path).await.expect_error(502, "UNAVAILABLE");
    }
    // Nor does a token service.
    upstream.rule(|_, _| Reply::new(401).with("www-authenticate", "Bearer realm=\"http://169.254.169.254/token\""));
    site.client.get(&path).await.expect_error(502, "UNAVAILABLE");
}

#[tokio::test]
async fn a_host_that_the_registry_sends_us_to_cannot_ask_for_the_password() {
    let (upstream, storage) = (Upstream::start().await, Upstream::start().await);
    let site = Site::start(&[]);
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    let host = storage.host();
    storage.rule(move |asked, _| match asked.path.starts_with("/token") {
        true => Reply::new(200).body(json!({ "token": "good" }).to_string()),
        false => Reply::new(401).with("www-authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    let host = storage.host();
    upstream.rule(move |asked, _| Reply::new(307).with("location", format!("http://{host}{}", asked.path)));
    let login = json!({ "url": upstream.host(), "username": "robot", "password": "swordfish" });
    site.put_mirror(login, json!({})).await.expect(200);
    let refused = site.client.get(&manifest("app", "v1")).await.expect_error(502, "UNAVAILABLE");
    assert!(refused.message().contains("which wants a login"), "{}", refused.message());
    assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_empty()), "{:?}", storage.asked());
    assert_eq!((storage.count("GET", "/token"), upstream.count("GET", "/token")), (0, 0));
}
