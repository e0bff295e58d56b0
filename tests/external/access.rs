//! Who may have something fetched that was not pulled before, and that nobody may push.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Answer, Image, Server, Upstream, client::send};
use crate::site::{blob, manifest};

/// A server with users, of whom `root` may do everything.
fn guarded() -> Server {
    let plain = ["--set", "external.plain_http_hosts=[\"127.0.0.1\"]"];
    Server::start_guarded_with(&[("root", "swordfish")], &plain)
}

async fn ask(server: &Server, method: &str, path: &str, user: &str, body: Option<Value>) -> Answer {
    let request = server.client().request(method.parse().expect("a method"), path);
    let request = if user.is_empty() { request } else { request.basic_auth(user, Some("swordfish")) };
    send(match body {
        Some(body) => request.body(body.to_string()),
        None => request,
    })
    .await
}

#[tokio::test]
async fn those_without_a_name_get_what_is_here_and_have_nothing_fetched() {
    let server = guarded();
    let upstream = Upstream::start().await;
    let (image, later) = (Image::small(1), Image::small(2));
    upstream.add_image("app", "v1", &image);
    upstream.add_image("app", "v2", &later);
    let account = |permissions: &[&str]| {
        json!({ "account": {
            "auth_tenant_id": "acme",
            "replication": { "strategy": "from_external_on_first_use", "upstream": { "url": upstream.host() } },
            "rbac_policies": [{ "match_repository": "app", "permissions": permissions }],
        }})
    };
    let put = async |permissions: &[&str]| {
        let path = "/keppel/v1/accounts/mirror";
        ask(&server, "PUT", path, "root", Some(account(permissions))).await.expect(200);
    };
    put(&["anonymous_pull"]).await;
    let (tag, layer) = (manifest("app", "v1"), blob("app", &image.layers[0].digest()));
    for path in [&tag, &manifest("app", &image.digest()), &layer] {
        let refused = ask(&server, "GET", path, "", None).await;
        // Whoever logs in may have it fetched.
        let refused = refused.expect_error(401, "UNAUTHORIZED");
        assert!(refused.header("www-authenticate").contains("repository:mirror/app:pull"), "{}", refused.text());
    }
    assert_eq!(upstream.asked().len(), 0, "{:?}", upstream.asked());
    // A stranger in a repository without a policy hears that there is nothing for them.
    ask(&server, "GET", &manifest("secret", "v1"), "", None).await.expect(401);
    ask(&server, "GET", &tag, "root", None).await.expect(200);
    ask(&server, "GET", &layer, "root", None).await.expect(200);
    let asked = upstream.asked().len();
    assert_eq!(ask(&server, "GET", &tag, "", None).await.expect(200).body, image.manifest.bytes);
    assert_eq!(ask(&server, "GET", &layer, "", None).await.expect(200).body, image.layers[0].bytes);
    assert_eq!(upstream.asked().len(), asked);
    put(&["anonymous_pull", "anonymous_first_pull"]).await;
    assert_eq!(ask(&server, "GET", &manifest("app", "v2"), "", None).await.expect(200).body, later.manifest.bytes);
}

#[tokio::test]
async fn nobody_pushes_to_a_mirror_and_the_upstreams_password_is_never_shown() {
    let site = crate::site::Site::start(&[]);
    let upstream = Upstream::start().await;
    let login = json!({ "url": upstream.host(), "username": "robot", "password": "swordfish" });
    let made = site.put_mirror(login, json!({})).await.expect(200);
    assert!(made.text().contains("robot") && !made.text().contains("swordfish"), "{}", made.text());
    let image = Image::small(1);
    let start = site.client.request(Method::POST, "/v2/mirror/app/blobs/uploads/").header("content-length", "0");
    let manifest = site.client.put_manifest("mirror/app", "v1", &image.manifest).await;
    for refused in [send(start).await, manifest] {
        let refused = refused.expect_error(405, "UNSUPPORTED");
        assert!(refused.message().contains("push there"), "{}", refused.message());
    }
    assert_eq!(upstream.asked().len(), 0);
}

#[tokio::test]
async fn nobody_has_services_of_this_machine_asked_that_the_operator_did_not_name() {
    let server = Server::start_with_options(&["--set", "external.answer_timeout=2s"]);
    let upstream = Upstream::start().await;
    upstream.add_image("app", "v1", &Image::small(1));
    let port = upstream.host().rsplit_once(':').expect("a port").1.to_owned();
    let hosts = ["127.0.0.1", "localhost", "[::1]", "127.1", "169.254.169.254"];
    for (name, host) in ["m0", "m1", "m2", "m3", "m4"].into_iter().zip(hosts) {
        let source =
            json!({ "strategy": "from_external_on_first_use", "upstream": { "url": format!("{host}:{port}") } });
        let account = json!({ "account": { "auth_tenant_id": "acme", "replication": source } });
        let made = ask(&server, "PUT", &format!("/keppel/v1/accounts/{name}"), "", Some(account)).await;
        if host == "127.1" && made.status == 422 {
            continue;
        }
        made.expect(200);
        let refused = ask(&server, "GET", &format!("/v2/{name}/app/manifests/v1"), "", None).await;
        let message = refused.message();
        assert!(refused.status >= 500 && message.contains("external.forbidden_networks"), "{host}: {message}");
    }
    assert_eq!(upstream.asked().len(), 0);
}
