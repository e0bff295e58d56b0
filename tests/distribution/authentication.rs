//! Who may come in: Docker's token flow and Basic, against a server with a password file.

use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::harness::{Answer, Client, Image, Server, client::send, images::sha256};

const NAME: &str = "alice";
const PASSWORD: &str = "correct horse";

fn with_server() -> (Server, Client) {
    let server = Server::start_guarded(&[(NAME, PASSWORD), ("bob", "another")]);
    let client = server.client();
    (server, client)
}

/// What the challenge of a 401 says, as key and value.
#[track_caller]
fn challenge(answer: &Answer) -> Vec<(String, String)> {
    let header = answer.header("www-authenticate");
    let fields = header.strip_prefix("Bearer ").unwrap_or_else(|| panic!("a Bearer challenge, not {header:?}"));
    // Commas also stand inside of quotes.
    let fields = fields.split("\",").map(|field| field.split_once("=\"").expect("key=\"value\""));
    fields.map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned())).collect()
}

#[track_caller]
fn assert_challenged(answer: &Answer, server: &Server, scope: Option<&str>, error: Option<&str>) {
    let mut expected =
        vec![("realm", format!("http://{}/keppel/v1/auth", server.address())), ("service", "keppel".to_owned())];
    expected.extend(scope.map(|scope| ("scope", scope.to_owned())));
    expected.extend(error.map(|error| ("error", error.to_owned())));
    let expected: Vec<_> = expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    assert_eq!(challenge(answer), expected, "{}", answer.asked);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0", "{}", answer.asked);
}

fn basic(request: RequestBuilder) -> RequestBuilder {
    request.basic_auth(NAME, Some(PASSWORD))
}

/// A token as Docker fetches it: from the realm of a challenge, for its service and scope.
async fn token_for(client: &Client, challenged: &Answer) -> String {
    let fields = challenge(challenged);
    let (_, realm) = &fields[0];
    let query: Vec<String> = fields[1..].iter().map(|(key, value)| format!("{key}={value}")).collect();
    let url = format!("{realm}?account={NAME}&{}", query.join("&"));
    let answer = send(basic(client.request(Method::GET, &url))).await.expect(200);
    let document: Value = answer.json();
    assert_eq!(document["token"], document["access_token"], "both kinds of clients find it");
    assert!(document["expires_in"].as_u64().is_some_and(|seconds| seconds >= 60), "{document}");
    document["token"].as_str().expect("a token is text").to_owned()
}

#[tokio::test]
async fn whoever_shows_nothing_is_challenged_with_the_scope_that_would_do() {
    let (server, client) = with_server();
    assert_challenged(&client.get("/v2/").await.expect_error(401, "UNAUTHORIZED"), &server, None, None);
    let digest = sha256(b"x");
    for (method, path, actions) in [
        (Method::GET, "manifests/v1", "pull"),
        (Method::HEAD, "manifests/v1", "pull"),
        (Method::GET, &format!("blobs/{digest}"), "pull"),
        (Method::GET, "tags/list", "pull"),
        (Method::GET, &format!("referrers/{digest}"), "pull"),
        (Method::PUT, "manifests/v1", "pull,push"),
        (Method::POST, "blobs/uploads/", "pull,push"),
        (Method::PATCH, "blobs/uploads/00000000000000000000000000000000", "pull,push"),
        (Method::DELETE, "manifests/v1", "delete"),
        (Method::DELETE, &format!("blobs/{digest}"), "delete"),
    ] {
        let is_head = method == Method::HEAD;
        let answer = send(client.request(method, &format!("/v2/acme/app/{path}"))).await.expect(401);
        assert_challenged(&answer, &server, Some(&format!("repository:acme/app:{actions}")), None);
        if !is_head {
            assert_eq!(answer.codes(), ["UNAUTHORIZED"]);
        }
    }
    let catalog = client.get("/v2/_catalog").await.expect_error(401, "UNAUTHORIZED");
    assert_challenged(&catalog, &server, Some("registry:catalog:*"), None);
}

#[tokio::test]
async fn a_token_opens_what_it_was_asked_for_and_nothing_else() {
    let (server, client) = with_server();
    let image = Image::small(180);
    let upload = |blob: &[u8]| {
        let path = format!("/v2/acme/app/blobs/uploads/?digest={}", sha256(blob));
        client.request(Method::POST, &path).body(blob.to_vec())
    };
    let challenged = send(upload(b"x")).await.expect(401);
    let pushing = token_for(&client, &challenged).await;
    for blob in image.blobs() {
        send(upload(&blob.bytes).bearer_auth(&pushing)).await.expect(201);
    }
    let manifest = |method| client.request(method, "/v2/acme/app/manifests/v1");
    let (media_type, bytes) = (&image.manifest.media_type, &image.manifest.bytes);
    let put = || manifest(Method::PUT).header("Content-Type", media_type).body(bytes.clone());
    send(put().bearer_auth(&pushing)).await.expect(201);

    let pulling = token_for(&client, &send(manifest(Method::GET)).await.expect(401)).await;
    // Twice, since the second comes from memory.
    for _ in 0..2 {
        let pulled = send(manifest(Method::GET).bearer_auth(&pulling)).await.expect(200);
        assert_eq!(pulled.body, image.manifest.bytes);
    }
    send(client.request(Method::GET, "/v2/").bearer_auth(&pulling)).await.expect(200);
    let elsewhere = client.request(Method::GET, "/v2/acme/other/tags/list");
    for (request, scope) in [
        (put(), "repository:acme/app:pull,push"),
        (manifest(Method::DELETE), "repository:acme/app:delete"),
        (elsewhere, "repository:acme/other:pull"),
        (client.request(Method::GET, "/v2/_catalog"), "registry:catalog:*"),
    ] {
        let answer = send(request.bearer_auth(&pulling)).await.expect_error(401, "UNAUTHORIZED");
        assert_challenged(&answer, &server, Some(scope), Some("insufficient_scope"));
    }
    let deleting = token_for(&client, &send(manifest(Method::DELETE)).await.expect(401)).await;
    send(manifest(Method::DELETE).bearer_auth(deleting)).await.expect(202);
}

#[tokio::test]
async fn basic_works_on_every_request_without_a_token() {
    let (_server, client) = with_server();
    let image = Image::small(181);
    let ask = |method, path: &str| basic(client.request(method, path));
    send(ask(Method::GET, "/v2/")).await.expect(200);
    for blob in image.blobs() {
        let path = format!("/v2/acme/app/blobs/uploads/?digest={}", blob.digest());
        send(ask(Method::POST, &path).body(blob.bytes.clone())).await.expect(201);
    }
    let put = ask(Method::PUT, "/v2/acme/app/manifests/v1").header("Content-Type", &image.manifest.media_type);
    send(put.body(image.manifest.bytes.clone())).await.expect(201);
    for _ in 0..2 {
        let pulled = send(ask(Method::GET, "/v2/acme/app/manifests/v1")).await.expect(200);
        assert_eq!(pulled.body, image.manifest.bytes);
    }
    let catalog = send(ask(Method::GET, "/v2/_catalog")).await.expect(200);
    assert_eq!(catalog.json()["repositories"], serde_json::json!(["acme/app"]));
    send(ask(Method::DELETE, "/v2/acme/app/manifests/v1")).await.expect(202);
}

#[tokio::test]
async fn bad_credentials_are_401_everywhere_and_say_nothing_about_what_is_wrong() {
    let (server, client) = with_server();
    let mut said = Vec::new();
    for (name, password) in [(NAME, "wrong"), ("nobody", PASSWORD), (NAME, ""), ("", ""), ("bob", PASSWORD)] {
        for path in ["/v2/", "/v2/acme/app/manifests/v1", "/v2/_catalog"] {
            let answer = send(client.request(Method::GET, path).basic_auth(name, Some(password))).await;
            let answer = answer.expect_error(401, "UNAUTHORIZED");
            assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
            challenge(&answer);
            said.push((path, answer.text()));
        }
        let token = client.request(Method::GET, "/keppel/v1/auth?service=keppel&scope=repository:acme/app:pull");
        let refused = send(token.basic_auth(name, Some(password))).await.expect(401);
        assert!(refused.header("www-authenticate").starts_with("Basic "), "{:?}", refused.headers);
    }
    // In the headers of the driver they are no better.
    for (name, password) in [("nobody", PASSWORD), (NAME, "wrong"), ("", "")] {
        let request = client.request(Method::GET, "/v2/").header("authorization", "keppel");
        let answer = send(request.header("x-keppel-username", name).header("x-keppel-password", password)).await;
        said.push(("/v2/", answer.expect_error(401, "UNAUTHORIZED").text()));
    }
    let request = client.request(Method::GET, "/v2/").header("authorization", "Keppel");
    send(request.header("x-keppel-username", NAME).header("x-keppel-password", PASSWORD)).await.expect(200);
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), 3, "a wrong name and a wrong password look alike on each path: {said:?}");
    for header in ["Bearer", "Bearer x.y.z", "Basic", "Basic !!!", "Digest a=b", "", "Bearer "] {
        let answer = client.get_with("/v2/", "Authorization", header).await.expect_error(401, "UNAUTHORIZED");
        challenge(&answer);
    }
    let token = client.get_with("/v2/acme/app/tags/list", "Authorization", "Bearer x.y.z").await.expect(401);
    assert_challenged(&token, &server, Some("repository:acme/app:pull"), Some("invalid_token"));
}

#[tokio::test]
async fn health_is_told_without_credentials() {
    let (_server, client) = with_server();
    client.get("/health/live").await.expect(200);
    client.get("/health/ready").await.expect(200);
}
