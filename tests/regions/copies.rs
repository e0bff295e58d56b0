//! Accounts that ask for copies of what is pushed in several regions.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::federation::{LEASE, Region, three_regions, until};
use crate::harness::{Answer, Image, Index, Kind, client::send};

/// Makes or changes an account.
pub async fn put_account(region: &Region, name: &str, mut fields: Value) -> Answer {
    fields["auth_tenant_id"] = "acme".into();
    let request = region.client.request(Method::PUT, &format!("/keppel/v1/accounts/{name}"));
    send(request.body(json!({ "account": fields }).to_string())).await
}

/// Whether a region gives every byte of an image, by digest.
pub async fn has_all(region: &Region, repository: &str, image: &Image) -> bool {
    let manifest = region.client.get(&format!("/v2/{repository}/manifests/{}", image.digest())).await;
    let mut whole = manifest.status == 200 && manifest.body == image.manifest.bytes;
    for blob in image.blobs() {
        let answer = region.client.get(&format!("/v2/{repository}/blobs/{}", blob.digest())).await;
        whole &= answer.status == 200 && answer.body == blob.bytes;
    }
    whole
}

/// A number from the metadata of a region.
pub fn rows(region: &Region, query: &str) -> i64 {
    let database = rusqlite::Connection::open(region.server.data().join("metadata.db")).expect("it opens");
    database.query_row(query, [], |row| row.get(0)).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_with_two_copies_outlives_its_primary_from_the_moment_of_its_201() {
    let [mut eu, us, ap] = three_regions();
    put_account(&eu, "acme", json!({"copies": 2})).await.expect(200);
    // Pushed by way of another region than the primary's, and there.
    let (first, last) = (Image::small(1), Image::small(2));
    us.client.push_image("acme/app", "v1", &first).await;
    let index = Index::of(Kind::Oci, vec![Image::small(3), Image::small(4)]);
    eu.client.push_index("acme/other", "multi", &index).await;
    eu.client.push_image("acme/app", "v2", &last).await;
    eu.server.kill();

    let mut held = Vec::new();
    for region in [&us, &ap] {
        let mut all = has_all(region, "acme/app", &first).await & has_all(region, "acme/app", &last).await;
        for image in &index.images {
            all &= has_all(region, "acme/other", image).await;
        }
        held.push(all);
    }
    assert!(held.contains(&true), "no other region has every byte");
    // The one that was chosen; another may have what it gave a moment ago.
    let is_holder = |region: &&Region| rows(region, "SELECT count(*) FROM pulled_blobs") == 0;
    let holder = [&us, &ap].into_iter().find(is_holder).expect("one to which nothing was given in passing");
    tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
    let marked = holder.client.get("/v2/acme/app/manifests/v2").await.expect(200);
    assert_eq!(marked.body, last.manifest.bytes);
    assert!(marked.header("warning").starts_with("110 "));
    // It did not pass through, and so does not go when room is wanted.
    let blobs = [&first, &last].into_iter().chain(&index.images).flat_map(|image| image.blobs()).count();
    assert!(rows(holder, "SELECT count(*) FROM blobs") >= blobs as i64 / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_without_enough_regions_is_not_acknowledged_and_is_completed_when_it_is_sent_again() {
    let [eu, mut us, ap] = three_regions();
    for (copies, words) in [(0, "between 1 and 8"), (9, "between 1 and 8")] {
        let refused = put_account(&eu, "acme", json!({ "copies": copies })).await.expect(422);
        assert!(refused.text().starts_with("account.copies: ") && refused.text().contains(words), "{}", refused.text());
    }
    put_account(&eu, "acme", json!({"copies": 3})).await.expect(200);
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    us.server.kill();
    let next = Image::small(2);
    for blob in next.blobs() {
        eu.client.push_blob("acme/app", &blob.bytes).await;
    }
    let start = Instant::now();
    let refused = eu.client.put_manifest("acme/app", "v1", &next.manifest).await.expect_error(503, "UNAVAILABLE");
    assert!(refused.message().contains("asks for 3 copies"), "{}", refused.message());
    assert!(!refused.header("retry-after").is_empty());
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    // Nobody was told that it is there, and it is not: the blobs come before the manifest.
    assert_eq!(eu.client.get("/v2/acme/app/manifests/v1").await.expect(200).body, image.manifest.bytes);
    us.restart();
    until("all regions are there", || {
        let status: Value = serde_json::from_str(&eu.told(&["status", "--json"])).expect("JSON");
        status["members"].as_array().is_some_and(|members| members.iter().all(|member| member["health"] == "alive"))
    });
    eu.client.put_manifest("acme/app", "v1", &next.manifest).await.expect(201);
    let mut eu = eu;
    eu.server.kill();
    for region in [&us, &ap] {
        assert!(has_all(region, "acme/app", &next).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_may_have_pushes_acknowledged_by_its_primary_alone() {
    let [eu, us, _ap] = three_regions();
    put_account(&eu, "acme", json!({"ack": "soon"})).await.expect(422);
    put_account(&eu, "quick", json!({"ack": "primary"})).await.expect(200);
    let image = Image::small(1);
    for account in ["quick", "slow"] {
        eu.client.push_image(&format!("{account}/app"), "v1", &image).await;
        us.client.assert_image(&format!("{account}/app"), "v1", &image).await;
        crate::leases::until_it_answers_alone(&us, &format!("/v2/{account}/app/manifests/v1")).await;
    }
    us.signal(libc::SIGSTOP);
    let pushed_in = async |repository: &str| {
        let start = Instant::now();
        eu.client.put_manifest(repository, "v2", &image.manifest).await.expect(201);
        eu.client.get(&format!("/v2/{repository}/manifests/v2")).await.expect(200);
        start.elapsed()
    };
    let quick = pushed_in("quick/app").await;
    let slow = pushed_in("slow/app").await;
    us.signal(libc::SIGCONT);
    assert!(quick < LEASE / 4, "{quick:?} without waiting for a silent region");
    assert!(slow > LEASE / 4, "{slow:?}: the silent region held a lease, or this test shows nothing");
    let answer = eu.client.get("/keppel/v1/accounts/quick").await.expect(200).json();
    assert_eq!(answer["account"]["ack"], "primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_region_that_has_less_than_another_is_refused_and_names_the_other() {
    let [mut eu, us, mut ap] = three_regions();
    put_account(&eu, "acme", json!({"copies": 2})).await.expect(200);
    let images: Vec<Image> = (1..=4).map(Image::small).collect();
    eu.client.push_image("acme/app", "v1", &images[0]).await;
    for region in [&us, &ap] {
        region.client.assert_image("acme/app", "v1", &images[0]).await;
        crate::leases::until_it_answers_alone(region, "/v2/acme/app/manifests/v1").await;
    }
    // What is pushed now has its second copy in the region that goes on.
    us.signal(libc::SIGSTOP);
    // The last question of the other is still to be answered: this may come to it when it goes on.
    eu.client.push_image("acme/app", "perhaps", &images[1]).await;
    eu.client.push_image("acme/app", "v2", &images[2]).await;
    eu.client.delete("/v2/acme/app/manifests/v1").await.expect(202);
    eu.server.kill();
    us.signal(libc::SIGCONT);
    until("they find a leader", || us.told(&["status"]).starts_with("decisions are taken"));
    let words = us.refuse(&["account", "failover", "acme", "--to", "us", "--yes"]);
    assert!(words.contains("region ap has ") && words.contains("--force"), "{words}");
    assert_eq!(us.primary_of("acme"), "eu");
    // Nor is it done while the other cannot be asked.
    ap.signal(libc::SIGSTOP);
    let words = us.refuse(&["account", "failover", "acme", "--to", "us", "--yes"]);
    assert!(words.contains("cannot be told now") || words.contains("majority"), "{words}");
    ap.signal(libc::SIGCONT);
    until("they find a leader again", || us.told(&["status"]).starts_with("decisions are taken"));
    us.operate(&["account", "failover", "acme", "--to", "ap", "--yes"]);
    for region in [&us, &ap] {
        let start = Instant::now();
        loop {
            let answer = region.client.get("/v2/acme/app/manifests/v2").await;
            if answer.status == 200 && answer.headers.get("warning").is_none() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(40), "{}", answer.status);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(has_all(region, "acme/app", &images[2]).await);
        region.client.get("/v2/acme/app/manifests/v1").await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    // The one that is refused may be forced, for whoever wants that.
    eu.restart();
    ap.server.kill();
    until("they find a leader once more", || us.told(&["status"]).starts_with("decisions are taken"));
    us.operate(&["account", "failover", "acme", "--to", "us", "--yes", "--force"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_copies_the_loss_of_the_primary_for_good_and_a_failover_lose_nothing() {
    let [mut eu, us, ap] = three_regions();
    put_account(&eu, "acme", json!({"copies": 2})).await.expect(200);
    let images: Vec<Image> = (1..=6).map(Image::small).collect();
    for (number, image) in images.iter().enumerate() {
        let region = [&eu, &us, &ap][number % 3];
        region.client.push_image("acme/app", &format!("v{number}"), image).await;
    }
    eu.server.kill();
    // The region that was chosen, and nobody else, was asked to keep what the others took.
    let kept = |region: &Region| {
        let named = images.iter().flat_map(|image| image.blobs().map(|blob| blob.digest())).collect::<Vec<_>>();
        let is_here = |digest: &String| {
            let hex = digest.split_once(':').expect("a digest").1.to_uppercase();
            rows(region, &format!("SELECT count(*) FROM blobs WHERE hex(digest) LIKE '%{hex}'")) == 1
        };
        named.iter().all(is_here)
    };
    let (holder, name) = match kept(&us) {
        true => (&us, "us"),
        false => (&ap, "ap"),
    };
    assert!(kept(holder), "no other region has every blob");
    until("they find a leader", || holder.told(&["status"]).starts_with("decisions are taken"));
    holder.operate(&["account", "failover", "acme", "--to", name, "--yes"]);
    for region in [&us, &ap] {
        for (number, image) in images.iter().enumerate() {
            let start = Instant::now();
            loop {
                let answer = region.client.get(&format!("/v2/acme/app/manifests/v{number}")).await;
                if answer.status == 200 && answer.headers.get("warning").is_none() {
                    assert_eq!(answer.body, image.manifest.bytes);
                    break;
                }
                assert!(start.elapsed() < Duration::from_secs(40), "v{number}: {}", answer.status);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(has_all(region, "acme/app", image).await, "v{number}");
        }
    }
}
