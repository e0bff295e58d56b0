//! Docker's catalog of repositories.

use crate::harness::{Client, Image, Server, client::strings};

const NAMES: [&str; 5] = ["acme/app", "acme/app/sub", "acme/tool", "library/alpine", "other/app"];

async fn with_repositories() -> (Server, Client) {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(120);
    for name in ["other/app", "alpine", "acme/app/sub", "acme/tool", "acme/app"] {
        client.push_image(name, "v1", &image).await;
    }
    (server, client)
}

#[tokio::test]
async fn the_catalog_lists_all_repositories_in_order() {
    let (_server, client) = with_repositories().await;
    let answer = client.get("/v2/_catalog").await.expect(200);
    assert!(answer.header("content-type").starts_with("application/json"));
    assert_eq!(strings(&answer.json()["repositories"]), NAMES);
    assert_eq!(answer.next_page(), None);
}

#[tokio::test]
async fn pages_of_the_catalog_follow_their_links() {
    let (_server, client) = with_repositories().await;
    for size in 1..=6 {
        let mut seen = Vec::new();
        let mut next = Some(format!("/v2/_catalog?n={size}"));
        while let Some(path) = next {
            let answer = client.get(&path).await.expect(200);
            seen.extend(strings(&answer.json()["repositories"]));
            next = answer.next_page();
        }
        assert_eq!(seen, NAMES, "in pages of {size}");
    }
    let rest = client.get("/v2/_catalog?last=acme/app/sub").await.expect(200);
    assert_eq!(strings(&rest.json()["repositories"]), NAMES[2..]);
}

#[tokio::test]
async fn an_empty_registry_has_an_empty_catalog() {
    let server = Server::start();
    let answer = server.client().get("/v2/_catalog").await.expect(200);
    assert_eq!(answer.json()["repositories"], serde_json::json!([]));
}

#[tokio::test]
async fn a_bad_page_size_of_the_catalog_is_400() {
    let server = Server::start();
    for n in ["-1", "x", "1.5"] {
        let answer = server.client().get(&format!("/v2/_catalog?n={n}")).await;
        answer.expect_error(400, "PAGINATION_NUMBER_INVALID");
    }
}
