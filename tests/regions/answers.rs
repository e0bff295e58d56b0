//! All regions give the same answers: the primary, one that follows the account, and one that has just been asked for the
//! first time.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::federation::{LEASE, Region, three_regions, three_regions_with};
use crate::harness::client::send;
use crate::harness::images::sha256;
use crate::harness::{Answer, Artifact, Image, ImageBuilder, Index, Kind, Upstream};

/// What may differ: the time, the request's name.
const OF_THE_REQUEST: [&str; 2] = ["date", "x-request-id"];
/// The same as the contract has it; no pull that is only looked at counts.
const NO_COUNT: &str = "x-keppel-no-count-towards-last-pulled";
const MADE_AT: &str = "1704067200";
const PATIENCE: Duration = Duration::from_secs(40);

/// The names of what is in each account.
struct Content {
    index: Index,
    image: Image,
    untagged: Image,
    signature: Artifact,
}

impl Content {
    fn new() -> Self {
        let image = ImageBuilder::new(11).layers(2).build();
        let signature = Artifact::new("application/vnd.example.signature", b"signed", Some(&image.manifest));
        let index = Index::of_two(Kind::Oci, 21);
        Self { index, untagged: ImageBuilder::new(31).layers(1).kind(Kind::Docker).build(), image, signature }
    }

    /// An account with all kinds of content.
    async fn fill(&self, eu: &Region, account: &str) {
        let policies = json!([{"match_repository": "app", "match_tag": "v1", "action": "protect"}]);
        let body = json!({"account": {"auth_tenant_id": "acme", "gc_policies": policies}}).to_string();
        let path = format!("/keppel/v1/accounts/{account}");
        send(eu.client.request(Method::PUT, &path).body(body)).await.expect(200);
        let app = format!("{account}/app");
        eu.client.push_image(&app, "v1", &self.image).await;
        eu.client.push_index(&app, "multi", &self.index).await;
        eu.client.push_image(&app, &self.untagged.digest(), &self.untagged).await;
        eu.client.push_artifact(&app, &self.signature).await;
        eu.client.push_image(&format!("{account}/deep/tool"), "v2", &self.image).await;
        // A blob that no manifest needs counts as well, and a tag that moved was pushed when it moved.
        eu.client.push_blob(&app, b"for something to come").await;
        eu.client.put_manifest(&app, "moved", &self.untagged.manifest).await.expect(201);
        eu.client.put_manifest(&app, "moved", &self.image.manifest).await.expect(201);
    }

    /// Everything that may be read of an account, and what is not there.
    fn paths(&self, account: &str) -> Vec<String> {
        let absent = sha256(b"absent");
        let (v2, api) = (format!("/v2/{account}"), format!("/keppel/v1/accounts/{account}"));
        let mut paths: Vec<String> = ["v1", "multi", "moved", "absent", &absent, "not:a:digest"]
            .iter()
            .map(|reference| format!("{v2}/app/manifests/{reference}"))
            .collect();
        let digests = [self.image.digest(), self.index.digest(), self.index.images[0].digest(), self.untagged.digest()];
        for digest in digests.iter().chain([&self.signature.manifest.digest()]) {
            paths.push(format!("{v2}/app/manifests/{digest}"));
            paths.push(format!("{api}/repositories/app/_manifests/{digest}/trivy_report"));
        }
        let in_v2 = [
            format!("/app/blobs/{}", self.image.config.digest()),
            format!("/app/blobs/{}", self.image.layers[0].digest()),
            format!("/app/blobs/{absent}"),
            "/app/tags/list".into(),
            "/app/tags/list?n=1".into(),
            "/app/tags/list?last=moved".into(),
            "/absent/tags/list".into(),
            "/deep/tool/tags/list".into(),
            format!("/app/referrers/{}", self.image.digest()),
            format!("/app/referrers/{}?artifactType=none", self.image.digest()),
            format!("/app/referrers/{absent}"),
        ];
        paths.extend(in_v2.iter().map(|path| format!("{v2}{path}")));
        let in_api = [
            String::new(),
            "/security_scan_policies".into(),
            "/repositories".into(),
            "/repositories?limit=1".into(),
            "/repositories?marker=app".into(),
            "/repositories/app/_manifests".into(),
            "/repositories/app/_manifests?limit=2".into(),
            format!("/repositories/app/_manifests?marker={}", self.image.digest()),
            "/repositories/deep/tool/_manifests".into(),
            "/repositories/absent/_manifests".into(),
            format!("/repositories/app/_manifests/{absent}/trivy_report"),
        ];
        paths.extend(in_api.iter().map(|path| format!("{api}{path}")));
        paths
    }
}

/// What an answer says, but for what each has of its own.
fn essence(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let mut headers: Vec<(String, String)> = answer
        .headers
        .iter()
        .filter(|(name, _)| !OF_THE_REQUEST.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    headers.sort();
    (answer.status, headers, answer.text())
}

async fn ask(region: &Region, method: Method, path: &str) -> Answer {
    send(region.client.request(method, path).header(NO_COUNT, "1")).await
}

async fn assert_same(regions: &[(&str, &Region)], path: &str) {
    for method in [Method::GET, Method::HEAD] {
        // Those who have not been asked before come first.
        let mut answers = Vec::new();
        for (name, region) in regions.iter().rev() {
            answers.push((*name, ask(region, method.clone(), path).await));
        }
        let (_, primary) = answers.pop().expect("the primary's");
        for (name, other) in answers {
            assert_eq!(essence(&other), essence(&primary), "{method} {path} in {name}");
        }
    }
}

/// A list of the API that is as it is to be.
async fn until(region: &Region, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let found = region.client.get(path).await.expect(200).json();
        if holds(&found) {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{path} stays at {found}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the region follows an account.
async fn until_it_follows(region: &Region, account: &str) {
    let (start, path) = (Instant::now(), format!("/v2/{account}/app/manifests/v1"));
    loop {
        let asked = region.questions("manifest").await;
        ask(region, Method::GET, &path).await.expect(200);
        if region.questions("manifest").await == asked {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{account} is not followed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_region_gives_the_same_answers_byte_by_byte() {
    let [eu, us, ap] = three_regions_with(&["janitor.pulls_told_interval=1s", "registry.pull_times_interval=1s"]);
    let content = Content::new();
    // As many accounts as there are questions: the third region is asked each question about one that it does not know.
    let accounts: Vec<String> = (0..content.paths("").len()).map(|number| format!("acme-{number}")).collect();
    for account in &accounts {
        content.fill(&eu, account).await;
    }
    // A copy that is made later must not take its own time for that of the push.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let (first, manifests) = (&accounts[0], format!("/keppel/v1/accounts/{}/repositories/app/_manifests", accounts[0]));
    for account in &accounts {
        eu.client.get(&format!("/v2/{account}/app/manifests/v1")).await.expect(200);
        ask(&us, Method::GET, &format!("/v2/{account}/app/manifests/v1")).await.expect(200);
    }
    us.client.get(&format!("/v2/{first}/app/manifests/multi")).await.expect(200);
    for account in &accounts {
        until_it_follows(&us, account).await;
        eu.operate(&["janitor", "run", "image-gc", "--account", account]);
    }
    // The pull of the other region is told to the primary; then all of them say so.
    let listed = until(&eu, &manifests, |list| {
        let all = list["manifests"].as_array().expect("a list");
        all.iter().filter(|one| one["last_pulled_at"].is_number()).count() >= 2
    })
    .await;
    let all = listed["manifests"].as_array().expect("a list");
    assert!(all.iter().all(|one| one["gc_status"].is_object()), "{listed}");
    let tagged = ask(&eu, Method::GET, &format!("/v2/{first}/app/manifests/v1")).await.expect(200);
    assert_eq!(tagged.header("x-keppel-min-layer-created-at"), MADE_AT);
    for (account, path) in
        accounts.iter().enumerate().map(|(at, account)| (account, content.paths(account)[at].clone()))
    {
        until(&eu, &format!("/keppel/v1/accounts/{account}/repositories/app/_manifests"), |list| {
            list.to_string().contains("\"last_pulled_at\":1")
        })
        .await;
        assert_same(&[("eu", &eu), ("us", &us), ("ap", &ap)], &path).await;
    }
    // And once more of one that all of them follow.
    until_it_follows(&ap, first).await;
    let general = ["/keppel/v1", "/keppel/v1/accounts", "/v2/", "/v2/_catalog", "/v2/_catalog?n=3"];
    for path in content.paths(first).iter().map(String::as_str).chain(general) {
        assert_same(&[("eu", &eu), ("us", &us), ("ap", &ap)], path).await;
    }
    // Without the primary a region says what it last knew, and that it does: times are those of the pushes.
    let repositories = format!("/keppel/v1/accounts/{first}/repositories");
    let before = (eu.client.get(&repositories).await.json(), eu.client.get(&manifests).await.json());
    eu.signal(libc::SIGSTOP);
    tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
    let (listed, known) = (us.client.get(&repositories).await.expect(200), us.client.get(&manifests).await.expect(200));
    eu.signal(libc::SIGCONT);
    for answer in [&listed, &known] {
        assert!(answer.header("warning").starts_with("110 "), "{:?}", answer.headers);
    }
    let times = |list: &Value, of: &str, field: &str| -> Vec<Value> {
        list[of].as_array().expect("a list").iter().map(|one| one[field].clone()).collect()
    };
    for field in ["name", "pushed_at", "manifest_count", "tag_count"] {
        assert_eq!(times(&listed.json(), "repositories", field), times(&before.0, "repositories", field), "{field}");
    }
    for field in ["digest", "pushed_at", "size_bytes", "labels", "min_layer_created_at"] {
        assert_eq!(times(&known.json(), "manifests", field), times(&before.1, "manifests", field), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_through_another_region_has_its_times_there_at_once() {
    let [eu, us, _ap] = three_regions();
    for number in 0..5 {
        let (image, repository) = (ImageBuilder::new(number).layers(1).build(), format!("acme-{number}/app"));
        us.client.push_image(&repository, "v1", &image).await;
        for reference in ["v1", &image.digest()] {
            let path = format!("/v2/{repository}/manifests/{reference}");
            let (here, there) = (us.client.get(&path).await.expect(200), eu.client.get(&path).await.expect(200));
            assert_eq!(here.header("x-keppel-max-layer-created-at"), MADE_AT, "{path}");
            assert_eq!(there.header("x-keppel-max-layer-created-at"), MADE_AT, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_region_says_the_same_of_what_is_mirrored() {
    let [eu, us, ap] = three_regions();
    let upstream = Upstream::start().await;
    let (image, index) = (Image::small(1), Index::of_two(Kind::Oci, 2));
    upstream.add_image("app", "v1", &image);
    upstream.add_index("app", "multi", &index);
    let source = json!({"strategy": "from_external_on_first_use", "upstream": {"url": upstream.host()}});
    let body = json!({"account": {"auth_tenant_id": "acme", "replication": source}}).to_string();
    send(eu.client.request(Method::PUT, "/keppel/v1/accounts/mirror").body(body)).await.expect(200);
    let all = [("eu", &eu), ("us", &us), ("ap", &ap)];
    // The first answer of all, which comes through two regions.
    let first = ask(&us, Method::GET, "/v2/mirror/app/manifests/v1").await.expect(200);
    assert_eq!(first.header("x-keppel-min-layer-created-at"), MADE_AT);
    assert_same(&all, "/v2/mirror/app/manifests/v1").await;
    ask(&ap, Method::GET, "/v2/mirror/app/manifests/multi").await.expect(200);
    for child in &index.images {
        ask(&us, Method::GET, &format!("/v2/mirror/app/manifests/{}", child.digest())).await.expect(200);
    }
    let list = "/keppel/v1/accounts/mirror/repositories/app/_manifests";
    let listed = us.client.get(list).await.expect(200).json();
    let of = |digest: &str| {
        let all = listed["manifests"].as_array().expect("a list");
        all.iter().find(|one| one["digest"] == digest).unwrap_or_else(|| panic!("{digest} is not in {listed}"))
    };
    let size = |image: &Image| image.manifest.bytes.len() + image.blobs().map(|blob| blob.bytes.len()).sum::<usize>();
    let children: usize = index.images.iter().map(size).sum();
    assert_eq!(of(&index.digest())["size_bytes"], json!(index.manifest.bytes.len() + children));
    assert_eq!(of(&image.digest())["size_bytes"], json!(size(&image)));
    assert_eq!(of(&image.digest())["labels"], json!({"seed": "1"}));
    for path in
        [list, "/keppel/v1/accounts/mirror/repositories", "/v2/mirror/app/tags/list", "/keppel/v1/accounts/mirror"]
    {
        assert_same(&all, path).await;
    }
    // Without the primary a region lists what was pulled there, and says that it may not be all.
    eu.signal(libc::SIGSTOP);
    let known = us.client.get(list).await.expect(200);
    eu.signal(libc::SIGCONT);
    assert!(known.header("warning").starts_with("110 "), "{:?}", known.headers);
    assert!(known.text().contains(&image.digest()), "{}", known.text());
}
