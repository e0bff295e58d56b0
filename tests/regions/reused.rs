//! A name that is claimed again after its account was deleted.

use std::time::{Duration, Instant};

use crate::federation::{Region, three_regions_with};
use crate::harness::Image;
use crate::harness::client::send;
use crate::leases::until_it_answers_alone;

const PATIENCE: Duration = Duration::from_secs(40);

async fn put_account(region: &Region, name: &str, tenant: &str) -> u16 {
    let path = format!("/keppel/v1/accounts/{name}");
    let body = serde_json::json!({"account": {"auth_tenant_id": tenant}});
    send(region.client.request(reqwest::Method::PUT, &path).json(&body)).await.status
}

/// Asks for all that a former account of the name had; what is found is not of it.
async fn shows_nothing_of(region: &Region, name: &str, image: &Image, when: &str) {
    let repository = format!("{name}/secret");
    let mut paths = vec![
        format!("/v2/{repository}/tags/list"),
        format!("/v2/{repository}/manifests/former"),
        format!("/v2/{repository}/manifests/{}", image.digest()),
        format!("/v2/{repository}/referrers/{}", image.digest()),
        format!("/keppel/v1/accounts/{name}/repositories"),
        format!("/keppel/v1/accounts/{name}/repositories/secret/_manifests"),
        "/v2/_catalog".to_owned(),
    ];
    paths.extend(image.blobs().map(|blob| format!("/v2/{repository}/blobs/{}", blob.digest())));
    for path in paths {
        let answer = region.client.get(&path).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let says = |word: &str| answer.status == 200 && text.contains(word);
        assert!(!says("former") && !says(&image.digest()) && !says(&repository), "{when}: {path}: {text}");
        let is_content = path.contains("/blobs/") || path.contains("/manifests/");
        assert!(!is_content || matches!(answer.status, 404 | 503), "{when}: {path}: {}", answer.status);
        assert!(answer.status != 503 || !answer.header("retry-after").is_empty(), "{when}: {path}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_the_name_of_a_deleted_account_in_another_region_gets_nothing_of_what_it_held() {
    let [eu, us, ap] = three_regions_with(&["janitor.account_deletion_interval=1s"]);
    for is_cut_off in [false, true] {
        let name = if is_cut_off { "behind" } else { "prompt" };
        let (repository, secret) = (format!("{name}/secret"), Image::small(u64::from(is_cut_off)));
        assert_eq!(put_account(&eu, name, "acme").await, 200);
        eu.client.push_image(&repository, "former", &secret).await;
        for region in [&us, &ap] {
            region.client.assert_image(&repository, "former", &secret).await;
            until_it_answers_alone(region, &format!("/v2/{repository}/manifests/former")).await;
        }
        if is_cut_off {
            us.signal(libc::SIGSTOP);
        }
        let (path, start) = (format!("/keppel/v1/accounts/{name}"), Instant::now());
        assert_eq!(eu.client.delete(&path).await.status, 204);
        while is_cut_off && eu.client.get(&path).await.status != 404 {
            assert!(start.elapsed() < PATIENCE, "it is not gone at its primary");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if is_cut_off {
            us.signal(libc::SIGCONT);
        }
        // Somebody else has been waiting for the name.
        while put_account(&us, name, "other").await != 200 {
            assert!(start.elapsed() < 2 * PATIENCE, "the name cannot be had");
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            for region in [&us, &ap, &eu] {
                shows_nothing_of(region, name, &secret, &format!("{:?} after the claim", begun.elapsed())).await;
            }
        }
        // It is theirs, in every region; the bytes of the other one are gone.
        let image = Image::small(77);
        us.client.push_image(&repository, "v1", &image).await;
        for region in [&us, &ap, &eu] {
            region.client.assert_image(&repository, "v1", &image).await;
            assert_eq!(region.client.tags(&repository).await, ["v1"]);
            assert_eq!(region.client.get(&format!("/v2/{repository}/manifests/{}", secret.digest())).await.status, 404);
        }
    }
}
