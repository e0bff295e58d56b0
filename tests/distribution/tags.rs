//! Listing tags.

use crate::harness::{Client, Image, Server, client::strings};

/// Tags whose bytewise order is neither that of numbers nor that of people.
const TAGS: [&str; 9] = ["0.9", "1.10", "1.2", "A", "Z", "_x", "a", "b", "z"];

async fn with_tags() -> (Server, Client) {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(110);
    for tag in ["z", "a", "_x", "1.2", "Z", "0.9", "b", "1.10", "A"] {
        client.push_image("acme/app", tag, &image).await;
    }
    (server, client)
}

#[tokio::test]
async fn tags_come_in_bytewise_order_with_the_name() {
    let (_server, client) = with_tags().await;
    let answer = client.get("/v2/acme/app/tags/list").await.expect(200);
    assert!(answer.header("content-type").starts_with("application/json"));
    assert_eq!(answer.json()["name"], "acme/app");
    assert_eq!(strings(&answer.json()["tags"]), TAGS);
    assert_eq!(answer.next_page(), None);
}

#[tokio::test]
async fn pages_follow_their_links_to_the_end() {
    let (_server, client) = with_tags().await;
    for size in 1..=10 {
        let (mut seen, mut pages) = (Vec::new(), 0);
        let mut next = Some(format!("/v2/acme/app/tags/list?n={size}"));
        while let Some(path) = next {
            let answer = client.get(&path).await.expect(200);
            let tags = strings(&answer.json()["tags"]);
            assert!(tags.len() <= size && !tags.is_empty(), "a page of {size} has {}", tags.len());
            seen.extend(tags);
            pages += 1;
            next = answer.next_page();
        }
        assert_eq!(seen, TAGS, "in pages of {size}");
        assert_eq!(pages, TAGS.len().div_ceil(size), "no empty page at the end");
    }
}

#[tokio::test]
async fn last_need_not_exist() {
    let (_server, client) = with_tags().await;
    for (last, rest) in [("A", &TAGS[4..]), ("1.9", &TAGS[3..]), ("zz", &[][..]), ("", &TAGS[..])] {
        let answer = client.get(&format!("/v2/acme/app/tags/list?last={last}")).await.expect(200);
        assert_eq!(strings(&answer.json()["tags"]), rest, "after {last:?}");
        assert_eq!(answer.next_page(), None);
    }
    let both = client.get("/v2/acme/app/tags/list?n=2&last=1.10").await.expect(200);
    assert_eq!(strings(&both.json()["tags"]), ["1.2", "A"]);
    assert!(both.next_page().is_some());
}

#[tokio::test]
async fn no_tags_is_an_empty_list_without_a_link() {
    let (_server, client) = with_tags().await;
    let zero = client.get("/v2/acme/app/tags/list?n=0").await.expect(200);
    assert_eq!(zero.json()["tags"], serde_json::json!([]));
    assert_eq!(zero.next_page(), None);
    let image = Image::small(111);
    client.push_image("acme/untagged", &image.digest(), &image).await;
    let none = client.get("/v2/acme/untagged/tags/list").await.expect(200);
    assert_eq!(none.json()["tags"], serde_json::json!([]));
}

#[tokio::test]
async fn a_bad_page_size_is_400() {
    let (_server, client) = with_tags().await;
    for n in ["-1", "x", "", "1.5", "0x10"] {
        client.get(&format!("/v2/acme/app/tags/list?n={n}")).await.expect_error(400, "PAGINATION_NUMBER_INVALID");
    }
}

#[tokio::test]
async fn an_unknown_repository_is_404_name_unknown() {
    let (_server, client) = with_tags().await;
    for name in ["acme/other", "nobody/app", "other"] {
        client.get(&format!("/v2/{name}/tags/list")).await.expect_error(404, "NAME_UNKNOWN");
        client.get(&format!("/v2/{name}/tags/list?n=0")).await.expect_error(404, "NAME_UNKNOWN");
    }
}
