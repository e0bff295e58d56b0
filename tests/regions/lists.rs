//! Lists in every region: they are as current as tags are, or marked.

use std::time::{Duration, Instant};

use crate::federation::{LEASE, Region, three_regions, until};
use crate::harness::client::strings;
use crate::harness::{Answer, Artifact, Image, ImageBuilder};
use crate::leases::until_it_answers_alone;

fn names(answer: &Answer) -> Vec<String> {
    strings(&answer.json()["repositories"])
}

/// The whole catalog, by pages; none may be marked.
async fn catalog(region: &Region, page: usize) -> Vec<String> {
    let (mut found, mut next) = (Vec::new(), Some(format!("/v2/_catalog?n={page}")));
    while let Some(path) = next {
        let answer = region.client.get(&path).await.expect(200);
        assert!(answer.headers.get("warning").is_none(), "{path} is marked");
        found.extend(names(&answer));
        next = answer.next_page();
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_of_every_region_has_what_was_pushed_in_any() {
    let [eu, us, ap] = three_regions();
    let image = ImageBuilder::new(1).layers(1).build();
    let mut all = Vec::new();
    for (number, region) in [&eu, &us, &ap, &us, &eu].into_iter().enumerate() {
        for path in ["app", "deep/tool"] {
            let name = format!("team-{number}/{path}");
            region.client.push_image(&name, "v1", &image).await;
            all.push(name);
            // No region has to have heard of the account.
            for region in [&eu, &us, &ap] {
                assert_eq!(catalog(region, 100).await, all);
            }
        }
    }
    for page in [1, 3, 10] {
        assert_eq!(catalog(&ap, page).await, all, "in pages of {page}");
    }
    // A repository that is only about to be pushed to is in no list, here or elsewhere.
    us.client.push_blob("team-0/coming", b"a blob that no manifest needs").await;
    for region in [&eu, &us, &ap] {
        assert_eq!(catalog(region, 100).await, all);
    }
    // What a region answers for by itself is as current: 40 times something new that it has not been asked about.
    for number in [0, 1, 3, 4] {
        let path = format!("/v2/team-{number}/app/manifests/v1");
        ap.client.get(&path).await.expect(200);
        until_it_answers_alone(&ap, &path).await;
    }
    for number in 0..40 {
        let name = format!("team-1/new-{number:02}");
        [&us, &eu][number % 2].client.push_image(&name, "v1", &image).await;
        all.push(name);
        all.sort();
        assert_eq!(catalog(&ap, 100).await, all, "after {number}");
    }
    let start = Instant::now();
    loop {
        let asked = ap.questions("list").await;
        assert_eq!(catalog(&ap, 100).await, all);
        if ap.questions("list").await == asked {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "it asks for every catalog");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_marked_from_the_moment_a_region_is_alone_and_never_deny_what_they_cannot_know() {
    let [mut eu, mut us, ap] = three_regions();
    let (image, later) = (Image::small(1), Image::small(2));
    eu.client.push_image("acme/app", "v1", &image).await;
    us.client.push_image("other/app", "v1", &image).await;
    ap.client.push_image("local/app", "v1", &image).await;
    let sbom = Artifact::new("application/spdx+json", b"first", Some(&image.manifest));
    eu.client.push_artifact("acme/app", &sbom).await;
    ap.client.assert_image("acme/app", "v1", &image).await;
    until_it_answers_alone(&ap, "/v2/acme/app/manifests/v1").await;
    let referrers = format!("/v2/acme/app/referrers/{}", image.digest());
    let digests = |answer: &Answer| -> Vec<String> {
        let listed = answer.json()["manifests"].as_array().expect("a list").clone();
        listed.iter().map(|one| one["digest"].as_str().expect("a digest").to_owned()).collect()
    };
    for path in ["/keppel/v1/accounts/acme/repositories", "/keppel/v1/accounts/acme/repositories/app/_manifests"] {
        let listed = ap.client.get(path).await.expect(200);
        assert!(listed.headers.get("warning").is_none(), "{path}");
    }
    // As long as it may answer by itself, every new tag and referrer is in its lists at once.
    let mut known = vec![sbom.manifest.digest()];
    for number in 0..20 {
        let artifact = Artifact::new("application/spdx+json", format!("n {number}").as_bytes(), Some(&image.manifest));
        [&eu, &us][number % 2].client.push_artifact("acme/app", &artifact).await;
        known.push(artifact.manifest.digest());
        known.sort();
        let listed = ap.client.get(&referrers).await.expect(200);
        assert!(listed.headers.get("warning").is_none());
        assert_eq!(digests(&listed), known, "after {number}");
        let tag = format!("t{number:02}");
        eu.client.put_manifest("acme/app", &tag, &image.manifest).await.expect(201);
        let tags = ap.client.get("/v2/acme/app/tags/list").await.expect(200);
        assert!(tags.headers.get("warning").is_none());
        assert_eq!(strings(&tags.json()["tags"]).len(), number + 2);
    }
    // Alone: stopped, the others have not even closed their connections.
    eu.signal(libc::SIGSTOP);
    us.signal(libc::SIGSTOP);
    tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
    let start = Instant::now();
    for path in [&*referrers, "/v2/acme/app/tags/list", "/v2/_catalog"] {
        let marked = ap.client.get(path).await.expect(200);
        assert!(marked.header("warning").starts_with("110 "), "{path}: {:?}", marked.headers);
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // The lists of the API know no better: neither of what is elsewhere, nor of what was this region's own when last heard.
    let (repositories, own) = ("/keppel/v1/accounts/acme/repositories", "/keppel/v1/accounts/local/repositories");
    for (path, name) in [
        (repositories, "repositories"),
        ("/keppel/v1/accounts/acme/repositories/app/_manifests", "manifests"),
        (own, "repositories"),
        ("/keppel/v1/accounts/local/repositories/app/_manifests", "manifests"),
    ] {
        let marked = ap.client.get(path).await.expect(200);
        assert!(marked.header("warning").starts_with("110 "), "{path}: {:?}", marked.headers);
        assert!(!marked.json()[name].as_array().expect("a list").is_empty(), "{path}");
    }
    for path in [
        "/keppel/v1/accounts/acme/repositories/none/_manifests",
        "/keppel/v1/accounts/acme/repositories?marker=app",
        "/keppel/v1/accounts/other/repositories",
        "/keppel/v1/accounts/never/repositories",
    ] {
        let unknown = ap.client.get(path).await.expect(503);
        assert!(!unknown.header("retry-after").is_empty(), "{path}");
    }
    let listed = ap.client.get("/v2/_catalog").await.expect(200);
    assert_eq!(names(&listed), ["acme/app", "local/app"], "what it knows of");
    // What it never heard of it does not deny; nor does an empty list stand for what it cannot know.
    for path in ["/v2/other/app/tags/list", "/v2/acme/none/tags/list", "/v2/_catalog?last=local/app"] {
        let unknown = ap.client.get(path).await.expect_error(503, "UNAVAILABLE");
        assert!(!unknown.header("retry-after").is_empty(), "{path}");
    }
    let absent = format!("/v2/acme/app/referrers/{}", later.digest());
    ap.client.get(&absent).await.expect_error(503, "UNAVAILABLE");
    eu.signal(libc::SIGCONT);
    us.signal(libc::SIGCONT);
    until("it is among the others again", || ap.sees_alive("eu") && ap.sees_alive("us"));
    eu.client.push_image("acme/late", "v1", &later).await;
    let all = ["acme/app", "acme/late", "local/app", "other/app"];
    let start = Instant::now();
    loop {
        let answer = ap.client.get("/v2/_catalog").await.expect(200);
        if answer.headers.get("warning").is_none() {
            assert_eq!(names(&answer), all);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "still marked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eu.server.assert_alive();
    us.server.assert_alive();
}
