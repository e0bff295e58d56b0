use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Content, Image, ImageBuilder, Index, Kind, Reply, Upstream, images::sha256};
use crate::site::{Lie, Site, manifest};

/// When the images of tests were made, in UNIX seconds.
const MADE_AT: i64 = 1_704_067_200;

/// Every pull of a tag asks the registry again.
const ASK_ALWAYS: &str = "external.tag_freshness=0s";

#[tokio::test]
async fn a_mirror_serves_what_its_upstream_has_and_keeps_it() {
    let (upstream, site) = (Upstream::start().await, Site::start(&["external.tag_freshness=1h"]));
    let (image, index) = (Image::small(1), Index::of_two(Kind::Oci, 2));
    upstream.add_image("library/app", "v1", &image);
    upstream.add_index("library/app", "multi", &index);
    site.mirror(&upstream).await;
    let pull = async || {
        site.client.assert_image("mirror/library/app", "v1", &image).await;
        site.client.assert_image("mirror/library/app", &image.digest(), &image).await;
        site.client.assert_manifest("mirror/library/app", "multi", &index.manifest).await;
        for part in &index.images {
            site.client.assert_image("mirror/library/app", &part.digest(), part).await;
        }
    };
    pull().await;
    let asked = upstream.asked().len();
    assert!(upstream.asked().iter().all(|asked| asked.path.starts_with("/v2/library/app/")), "{:?}", upstream.asked());
    pull().await;
    assert_eq!(upstream.asked().len(), asked, "nothing is asked twice while it is fresh");
    assert_eq!(site.client.tags("mirror/library/app").await, ["multi", "v1"]);
    // What was kept is there when the registry is gone for good.
    drop(upstream);
    pull().await;
}

#[tokio::test]
async fn names_begin_with_the_path_of_the_upstream() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    let image = Image::small(1);
    upstream.add_image("team/prod/app", "v1", &image);
    site.put_mirror(json!({ "url": format!("{}/team/prod", upstream.host()) }), json!({})).await.expect(200);
    site.client.assert_image("mirror/app", "v1", &image).await;
}

#[tokio::test]
async fn a_tag_is_asked_about_without_being_fetched_and_follows_the_upstream() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[ASK_ALWAYS, "external.absence_freshness=0s"]));
    let (first, second) = (Image::small(1), Image::small(2));
    upstream.add_image("app", "latest", &first);
    site.mirror(&upstream).await;
    for _ in 0..3 {
        site.client.assert_manifest("mirror/app", "latest", &first.manifest).await;
    }
    assert_eq!((upstream.count("GET", "latest"), upstream.count("HEAD", "latest")), (1, 2));
    upstream.add_image("app", "latest", &second);
    site.client.assert_image("mirror/app", "latest", &second).await;
    assert_eq!(upstream.count("GET", "latest"), 2);
    // A tag that goes back to what is here already costs no download.
    upstream.add_image("app", "latest", &first);
    site.client.assert_manifest("mirror/app", "latest", &first.manifest).await;
    assert_eq!(upstream.count("GET", "latest"), 2);
    // What is gone there is gone here, by its tag.
    upstream.remove_manifest("app", "latest");
    site.client.get(&manifest("app", "latest")).await.expect_error(404, "MANIFEST_UNKNOWN");
    site.client.assert_manifest("mirror/app", &first.digest(), &first.manifest).await;
    assert_eq!(site.client.tags("mirror/app").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_registry_without_head_is_asked_under_the_condition_that_something_changed() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[ASK_ALWAYS]));
    let image = Image::small(1);
    upstream.add_image("app", "latest", &image);
    upstream.rule(|asked, good| if asked.method == "HEAD" { Reply::new(405) } else { good });
    site.mirror(&upstream).await;
    for _ in 0..2 {
        site.client.assert_manifest("mirror/app", "latest", &image.manifest).await;
    }
    let conditions: Vec<_> = upstream
        .asked()
        .iter()
        .filter(|asked| asked.is("GET", "latest"))
        .map(|asked| asked.header("if-none-match").to_owned())
        .collect();
    assert_eq!(conditions, [String::new(), format!("\"{}\"", image.digest())]);
}

#[tokio::test]
async fn what_many_want_at_once_is_asked_once() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    let body = image.manifest.bytes.len() / 2;
    upstream.rule(move |_, good| Reply { stall_after: (good.status == 200).then_some(body), ..good });
    site.mirror(&upstream).await;
    let path = manifest("app", "v1");
    let pulls = async { join_all((0..20).map(|_| site.client.get(&path))).await };
    let let_go = async {
        upstream.wait_for("GET", "v1", 1).await;
        upstream.resume();
    };
    let (pulled, ()) = tokio::join!(pulls, let_go);
    for answer in pulled {
        assert_eq!(answer.expect(200).body, image.manifest.bytes);
    }
    assert_eq!(upstream.count("GET", "v1"), 1);
}

#[tokio::test]
async fn only_a_404_is_absence_and_it_is_remembered_for_a_moment() {
    let (upstream, site) = (Upstream::start().await, Site::start(&["external.absence_freshness=1h"]));
    site.mirror(&upstream).await;
    for _ in 0..3 {
        site.client.get(&manifest("app", "v1")).await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    assert_eq!(upstream.count("GET", "v1"), 1);
    let digest = sha256(b"nothing");
    site.client.get(&manifest("app", &digest)).await.expect_error(404, "MANIFEST_UNKNOWN");
    site.client.get(&crate::site::blob("app", &digest)).await.expect_error(404, "BLOB_UNKNOWN");
    site.client.head(&crate::site::blob("app", &digest)).await.expect(404);
}

#[tokio::test]
async fn an_upstream_in_trouble_is_told_apart_from_one_without_the_image() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    upstream.add_image("app", "v1", &Image::small(1));
    site.mirror(&upstream).await;
    let path = manifest("app", "v1");
    for status in [500, 502, 503, 504] {
        upstream.rule(move |_, _| Reply::new(status));
        let refused = site.client.get(&path).await.expect_error(503, "UNAVAILABLE");
        assert!(!refused.header("retry-after").is_empty());
        assert!(refused.message().contains(&format!("it answered {status}")), "{}", refused.message());
    }
    for (status, says) in [(401, "401"), (403, "403")] {
        upstream.rule(move |_, _| Reply::new(status));
        let refused = site.client.get(&path).await.expect_error(502, "UNAVAILABLE");
        let message = refused.message();
        assert!(message.contains("refuses us") && message.contains(says) && message.contains("username"), "{message}");
    }
    for odd in [204, 302, 400, 451] {
        upstream.rule(move |_, _| Reply::new(odd));
        site.client.get(&path).await.expect_error(502, "UNAVAILABLE");
    }
    // It answers too late, or its manifest never ends.
    upstream.rule(|_, good| Reply { stall_after: Some(10), ..good });
    let begun = Instant::now();
    site.client.get(&path).await.expect_error(503, "UNAVAILABLE");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    upstream.behave();
    site.client.get(&path).await.expect(200);
    let host = upstream.host();
    drop(upstream);
    let refused = site.client.get(&manifest("app", "v2")).await.expect_error(503, "UNAVAILABLE");
    assert!(refused.message().contains(&host), "{}", refused.message());
    let said = site.server.log().matches("a registry outside refuses us").count();
    assert_eq!(said, 1, "said once, however often it was asked");
}

#[tokio::test]
async fn what_is_known_is_served_as_stale_while_the_upstream_cannot_be_asked() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[ASK_ALWAYS]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    site.mirror(&upstream).await;
    site.client.assert_image("mirror/app", "v1", &image).await;
    for status in [500, 503, 401, 403, 429] {
        upstream.rule(move |_, _| Reply::new(status).with("retry-after", "1"));
        let stale = site.client.get(&manifest("app", "v1")).await.expect(200);
        assert_eq!(stale.body, image.manifest.bytes);
        assert!(stale.header("warning").starts_with("110 "), "{status}");
        // By digest nothing can be out of date.
        let kept = site.client.get(&manifest("app", &image.digest())).await.expect(200);
        assert!(kept.headers.get("warning").is_none());
    }
    assert_eq!(site.counter("keppel_stale_answers_total").await, 5);
    upstream.behave();
    tokio::time::sleep(Duration::from_millis(1100)).await; // as long as the last answer said to wait
    let fresh = site.client.get(&manifest("app", "v1")).await.expect(200);
    assert!(fresh.headers.get("warning").is_none());
    drop(upstream);
    let stale = site.client.get(&manifest("app", "v1")).await.expect(200);
    assert!(stale.header("warning").starts_with("110 "));
}

#[tokio::test]
async fn a_registry_that_has_enough_is_left_alone_for_as_long_as_it_says() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[ASK_ALWAYS]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    site.mirror(&upstream).await;
    site.client.assert_manifest("mirror/app", "v1", &image.manifest).await;
    upstream.rule(|_, _| Reply::new(429).with("retry-after", "3600"));
    let refused = site.client.get(&manifest("app", "v2")).await.expect_error(429, "TOOMANYREQUESTS");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((3500..=3600).contains(&wait), "{wait}");
    let asked = upstream.asked().len();
    upstream.behave();
    for reference in ["v2", "v3", &image.layers[0].digest()] {
        site.client.get(&manifest("app", reference)).await.expect_error(429, "TOOMANYREQUESTS");
    }
    site.client.get(&crate::site::blob("app", &image.layers[0].digest())).await.expect_error(429, "TOOMANYREQUESTS");
    let stale = site.client.get(&manifest("app", "v1")).await.expect(200);
    assert!(stale.header("warning").starts_with("110 "));
    assert_eq!(upstream.asked().len(), asked, "it was asked before its time");
    // Another account is another customer there.
    let fields = json!({ "account": { "auth_tenant_id": "acme", "replication": {
        "strategy": "from_external_on_first_use", "upstream": { "url": upstream.host() } } } });
    let request = site.client.request(reqwest::Method::PUT, "/keppel/v1/accounts/other");
    crate::harness::client::send(request.body(fields.to_string())).await.expect(200);
    site.client.assert_manifest("other/app", "v1", &image.manifest).await;
}

#[tokio::test]
async fn a_manifest_that_is_not_what_it_should_be_is_refused() {
    let (upstream, site) = (Upstream::start().await, Site::start(&["registry.manifest_size_max=64KiB"]));
    let image = Image::small(1);
    upstream.add_image("app", "v1", &image);
    site.mirror(&upstream).await;
    let changed = [&image.manifest.bytes[..], b" "].concat();
    let schema_1 = br#"{"schemaVersion":1,"name":"app","tag":"v1"}"#.to_vec();
    let lies: Vec<(&str, Lie)> = vec![
        ("other bytes", Box::new(move |good| good.body(changed.clone()))),
        ("no digest at all", Box::new(|good| good.with("docker-content-digest", "sha256:x"))),
        ("endless", Box::new(|good| Reply { endless: true, ..good })),
        ("too long", Box::new(|good| good.body(vec![b' '; 70 << 10]))),
        ("an old schema", Box::new(move |_| Reply::new(200).body(schema_1.clone()))),
        ("no manifest", Box::new(|_| Reply::new(200).with("content-type", "text/html").body("<html>log in</html>"))),
        ("not changed", Box::new(|_| Reply::new(304))),
    ];
    for (what, lie) in lies {
        upstream.rule(move |_, good| lie(good));
        for reference in ["v1", &image.digest()] {
            let refused = site.client.get(&manifest("app", reference)).await;
            assert_eq!(refused.status, 502, "{what}, {reference}: {}", refused.text());
        }
    }
    upstream.behave();
    site.client.assert_image("mirror/app", "v1", &image).await;
}

#[tokio::test]
async fn labels_and_times_of_an_image_are_known_as_soon_as_it_was_pulled() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[ASK_ALWAYS]));
    let image = ImageBuilder::new(5).layers(2).build();
    // Another image with the same configuration.
    let mut twin = image.clone();
    let mut manifest_of_twin = image.manifest.value();
    manifest_of_twin["annotations"] = json!({"note": "the same, signed"});
    twin.manifest = Content::json(&image.manifest.media_type, &manifest_of_twin);
    upstream.add_image("app", "v1", &image);
    site.mirror(&upstream).await;
    let listed = async |digest: &str| -> Value {
        let list = site.client.get("/keppel/v1/accounts/mirror/repositories/app/_manifests").await.expect(200).json();
        let all = list["manifests"].as_array().expect("a list").clone();
        all.into_iter().find(|manifest| manifest["digest"] == digest).expect("it is listed")
    };
    // It is fetched with the manifest, as whoever pulls that will want it next.
    let first = site.client.get(&manifest("app", "v1")).await.expect(200);
    assert_eq!(first.header("x-keppel-max-layer-created-at"), MADE_AT.to_string());
    let is_known = async |digest: &str| listed(digest).await["labels"] == json!({"seed": "5"});
    let known = listed(&image.digest()).await;
    assert!(is_known(&image.digest()).await, "{known}");
    assert_eq!((&known["min_layer_created_at"], &known["max_layer_created_at"]), (&json!(MADE_AT), &json!(MADE_AT)));
    assert_eq!(upstream.count("GET", &image.layers[0].digest()), 0);
    // Whoever comes later finds the configuration here; what is known is not forgotten with the next look at the tag.
    upstream.add_image("app", "v1", &twin);
    site.client.get(&manifest("app", "v1")).await.expect(200);
    assert_eq!(listed(&twin.digest()).await["labels"], json!({"seed": "5"}));
    upstream.add_image("app", "v1", &image);
    site.client.get(&manifest("app", "v1")).await.expect(200);
    assert!(is_known(&image.digest()).await);
    assert_eq!(upstream.count("GET", &image.config.digest()), 1);
}

#[tokio::test]
async fn a_configuration_that_does_not_come_holds_no_manifest_up() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[ASK_ALWAYS]));
    let (gone, slow) = (ImageBuilder::new(5).layers(1).build(), ImageBuilder::new(6).layers(1).build());
    upstream.add_image("app", "gone", &gone);
    upstream.add_image("app", "slow", &slow);
    let (gone_config, slow_config) = (gone.config.digest(), slow.config.digest());
    upstream.rule(move |asked, good| match &asked.path {
        path if path.contains(&gone_config) => Reply::new(500),
        path if path.contains(&slow_config) => Reply { stall_after: Some(10), ..good },
        _ => good,
    });
    site.mirror(&upstream).await;
    for (tag, image) in [("gone", &gone), ("slow", &slow)] {
        let start = Instant::now();
        site.client.assert_manifest("mirror/app", tag, &image.manifest).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{tag}: {:?}", start.elapsed());
    }
    upstream.behave();
    upstream.resume();
    site.client.assert_image("mirror/app", "gone", &gone).await;
    site.client.assert_image("mirror/app", "slow", &slow).await;
}

#[tokio::test]
async fn a_platform_filter_leaves_the_index_as_it_is_and_the_others_out() {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    let index = Index::of_two(Kind::Oci, 1);
    upstream.add_index("app", "multi", &index);
    let filter = json!({ "platform_filter": [{ "os": "linux", "architecture": "arm64" }] });
    site.put_mirror(json!({ "url": upstream.host() }), filter).await.expect(200);
    site.client.assert_manifest("mirror/app", "multi", &index.manifest).await;
    let [amd64, arm64] = &index.images[..] else { panic!("two images") };
    site.client.assert_image("mirror/app", &arm64.digest(), arm64).await;
    site.client.get(&manifest("app", &amd64.digest())).await.expect_error(404, "MANIFEST_UNKNOWN");
    assert_eq!(upstream.count("GET", &amd64.digest()), 0);
    // What no index lists is for no platform.
    let artifact = Image::small(7);
    upstream.add_image("app", "single", &artifact);
    site.client.assert_image("mirror/app", &artifact.digest(), &artifact).await;
}
