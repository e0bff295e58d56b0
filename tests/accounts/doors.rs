//! Proxies, limits, and what strangers try on the paths and headers of the API.

use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use crate::harness::images::sha256;
use crate::site::{Site, reply};

#[tokio::test]
async fn the_address_of_a_client_is_believed_from_trusted_proxies_only() {
    let strict = Site::start();
    let answer = reply(strict.request("GET", "/v2/", "").header("x-forwarded-for", "203.0.113.7")).await;
    assert_eq!(answer.headers["x-keppel-your-ip"], "127.0.0.1");
    let answer = reply(strict.request("GET", "/v2/", "").header("x-forwarded-proto", "https")).await;
    assert!(answer.headers["www-authenticate"].to_str().unwrap().contains("realm=\"http://"));

    let site = Site::start_with(&["http.trusted_proxies=127.0.0.0/8"]);
    let policies = json!({"rbac_policies": [
        {"match_repository": ".*", "match_cidr": "203.0.113.0/24", "permissions": ["anonymous_pull"]},
    ]});
    site.put_account("acme-prod", "ada", policies).await.expect(200, "");
    let from = async |chain: &str| {
        let path = format!("/v2/acme-prod/web/blobs/{}", sha256(b"{}"));
        let request = site.request("GET", &path, "").header("x-forwarded-for", chain);
        let request = request.header("x-forwarded-proto", "https").header("x-forwarded-host", "r.example");
        reply(request).await
    };
    let inside = from("203.0.113.7").await;
    assert_eq!((inside.status.as_u16(), &inside.headers["x-keppel-your-ip"]), (404, &"203.0.113.7".parse().unwrap()));
    for chain in ["198.51.100.1", "203.0.113.7, 198.51.100.1", "203.0.113.7, unknown", "", "203.0.113.999"] {
        let outside = from(chain).await;
        assert_eq!(outside.status, 401, "{chain}");
        let challenge = outside.headers["www-authenticate"].to_str().unwrap().to_owned();
        assert!(challenge.contains("realm=\"https://r.example/keppel/v1/auth\""), "{challenge}");
    }
    let event = site.ask("GET", "/keppel/v1/audit?limit=1", "root").await.json();
    assert_eq!(event["events"][0]["initiator"]["host"]["address"], "127.0.0.1");

    // What the proxy does not write itself, the client wrote.
    let path = format!("/v2/acme-prod/web/blobs/{}", sha256(b"{}"));
    let chain = HeaderValue::from_bytes(b"\xff, 198.51.100.1").unwrap();
    let request = site.request("GET", &path, "").header("x-forwarded-for", chain);
    let answer = reply(request.header("forwarded", "for=203.0.113.7")).await;
    assert_eq!((answer.status.as_u16(), &answer.headers["x-keppel-your-ip"]), (401, &"198.51.100.1".parse().unwrap()));
    let answer = reply(site.request("GET", &path, "").header("forwarded", "for=203.0.113.7")).await;
    assert_eq!(answer.status, 401);
    let rfc = Site::start_with(&["http.trusted_proxies=127.0.0.0/8", "http.proxy_headers=forwarded"]);
    let request = rfc.request("GET", "/v2/", "").header("x-forwarded-for", "203.0.113.7");
    let answer = reply(request.header("forwarded", "for=198.51.100.1")).await;
    assert_eq!(answer.headers["x-keppel-your-ip"], "198.51.100.1");
}

#[tokio::test]
async fn what_is_asked_for_on_an_accounts_own_host_counts_for_that_account() {
    let site = Site::start_with(&["http.public_hosts=registry.test", "limits.manifest_pulls=60/h burst 2"]);
    for name in ["acme-prod", "acme-test"] {
        site.put_account(name, "ada", json!({})).await.expect(200, "");
    }
    let pull = async |host: &str, name: &str| {
        let request = site.request("GET", &format!("/v2/{name}/manifests/none"), "vi").header("host", host);
        reply(request).await.status.as_u16()
    };
    let on_host = "acme-prod.registry.test";
    // The first part of the name is a repository's there, whatever accounts there are of that name.
    assert_eq!((pull(on_host, "acme-test/web").await, pull(on_host, "other/web").await), (404, 404));
    assert_eq!(pull(on_host, "third/web").await, 429);
    assert_eq!(pull("registry.test", "acme-prod/web").await, 429);
    assert_eq!(pull("registry.test", "acme-test/web").await, 404);
}

#[tokio::test]
async fn an_account_that_is_asked_too_often_is_answered_with_429() {
    let site = Site::start_with(&["limits.blob_pulls=60/h burst 2", "limits.manifest_pulls=60/h burst 1"]);
    for name in ["acme-prod", "acme-test"] {
        site.put_account(name, "ada", json!({})).await.expect(200, "");
    }
    let pull = async |account: &str, what: &str| site.ask("GET", &format!("/v2/{account}/web/{what}"), "vi").await;
    let blob = format!("blobs/{}", sha256(b"{}"));
    for left in ["1", "0"] {
        let answer = pull("acme-prod", &blob).await;
        assert_eq!((answer.status.as_u16(), &answer.headers["x-ratelimit-remaining"]), (404, &left.parse().unwrap()));
    }
    let refused = pull("acme-prod", &blob).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["errors"][0]["code"], "TOOMANYREQUESTS");
    let header = |name: &str| refused.headers[name].to_str().unwrap();
    assert_eq!((header("x-ratelimit-action"), header("x-ratelimit-limit")), ("blob_pulls", "60"));
    let seconds: u64 = header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds) && header("x-ratelimit-reset").parse::<u64>().unwrap() > 60);
    assert_eq!(pull("acme-test", &blob).await.status, 404, "another account");
    assert_eq!(pull("acme-prod", "manifests/none").await.status, 404, "another action");
    assert_eq!(pull("acme-prod", "manifests/none").await.status, 429);
    let unlimited = pull("acme-prod", "tags/list").await;
    assert!(!unlimited.headers.contains_key("x-ratelimit-limit"));
    // Whoever may not pull learns nothing of limits, and uses none of them up.
    assert!(
        !site.ask("GET", &format!("/v2/acme-test/web/{blob}"), "stan").await.headers.contains_key("x-ratelimit-limit")
    );
}

#[tokio::test]
async fn reports_are_limited_like_other_things_and_refused_in_words() {
    let site = Site::start_with(&["limits.trivy_report_retrievals=60/h burst 1"]);
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let (digest, _) = site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let path = format!("/keppel/v1/accounts/acme-prod/repositories/web/_manifests/{digest}/trivy_report");
    let first = site.ask("GET", &path, "vi").await;
    let header = |reply: &crate::site::Reply, name: &str| reply.headers[name].to_str().unwrap().to_owned();
    assert_eq!(first.status, 204);
    assert_eq!(
        ["action", "limit", "remaining"].map(|name| header(&first, &format!("x-ratelimit-{name}"))),
        ["trivy_report_retrievals", "60", "0"]
    );
    let refused = site.ask("GET", &path, "vi").await;
    assert!(header(&refused, "content-type").starts_with("text/plain"));
    assert!((1..=60).contains(&header(&refused, "retry-after").parse::<u64>().unwrap()));
    refused.expect(429, "");
    // Whoever may not see the account uses none of it up, and learns nothing of it.
    let stranger = site.ask("GET", &path, "stan").await;
    assert!(!stranger.headers.contains_key("x-ratelimit-limit"));
    stranger.expect(404, "no such account");
}

#[tokio::test]
async fn a_body_that_is_announced_as_too_long_is_refused_without_waiting_for_it() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let ada = data_encoding::BASE64.encode(b"ada:swordfish");
    let begun = std::time::Instant::now();
    for line in [
        "PUT /keppel/v1/accounts/acme-prod",
        "PUT /keppel/v1/accounts/acme-prod/security_scan_policies",
        "PUT /keppel/v1/quotas/acme",
        "POST /keppel/v1/auth",
        "PUT /v2/acme-prod/web/manifests/v1",
    ] {
        let head =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {ada}\r\nContent-Length: 300000000");
        assert_eq!(raw(&site, &head).await, 413, "{line}");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "a body was waited for");
    // What says nothing of its length is counted.
    let long = reqwest::Body::wrap_stream(futures_util::stream::iter(
        (0..300).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1024])),
    ));
    reply(site.request("PUT", "/keppel/v1/accounts/acme-prod", "ada").body(long))
        .await
        .expect(413, "longer than 262144");
}

#[tokio::test]
async fn at_an_accounts_own_host_there_are_its_content_and_tokens_and_nothing_else() {
    let site = Site::start_with(&["http.public_hosts=registry.test"]);
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let ask = async |path: &str| reply(site.request("GET", path, "ed").header("host", "acme-prod.registry.test")).await;
    assert_eq!(ask("/v2/").await.status, 200);
    assert_eq!(ask("/keppel/v1/auth?service=keppel").await.status, 200);
    // Each interface refuses in its own form.
    for path in ["/keppel/v1", "/keppel/v1/accounts", "/keppel/v1/accounts/acme-prod", "/keppel/v1/openapi.json"] {
        let refused = ask(path).await;
        assert!(refused.headers["content-type"].to_str().unwrap().starts_with("text/plain"), "{path}");
        refused.expect(404, "there is no such endpoint");
    }
    for path in ["/metrics", "/health/live", "/"] {
        assert_eq!(ask(path).await.json()["errors"][0]["code"], "UNSUPPORTED", "{path}");
    }
}

#[tokio::test]
async fn the_api_describes_itself_to_anybody() {
    let site = Site::start();
    let document = site.ask("GET", "/keppel/v1/openapi.json", "").await.expect(200, "").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let page = site.ask("GET", "/keppel/v1/docs", "").await;
    assert!(
        page.text.starts_with("<!doctype html>") && page.headers["content-type"].to_str().unwrap().contains("html")
    );
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
}

/// Sends a request exactly as written; gives the status.
async fn raw(site: &Site, head: &str) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(site.server.address()).await.unwrap();
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {text}"))
}

#[tokio::test]
async fn tricks_with_paths_and_hosts_open_nothing() {
    let site = Site::start();
    let public = json!({"rbac_policies": [{"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]});
    site.put_account("acme-prod", "ada", public).await.expect(200, "");
    for repository in ["acme-prod/web", "acme-prod/public/web"] {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(b"{}"));
        assert_eq!(reply(site.request("POST", &path, "ed").body("{}")).await.status, 201);
    }
    let digest = sha256(b"{}");
    let hosts =
        ["localhost", "acme-prod.localhost", "ACME-PROD", "a/b", "localhost:x@acme-prod", "acme-prod, localhost"];
    for path in [
        format!("/v2/acme-prod/public/../web/blobs/{digest}"),
        format!("/v2/acme-prod/public/%2e%2e/web/blobs/{digest}"),
        format!("/v2/acme-prod/public%2f..%2fweb/blobs/{digest}"),
        format!("/v2/acme-prod/public%2F%2E%2E%2Fweb/blobs/{digest}"),
        format!("/v2/acme-prod/public/..%5cweb/blobs/{digest}"),
        format!("/v2/acme-prod/public//../web/blobs/{digest}"),
        format!("/v2/acme-prod/public/web/../../web/blobs/{digest}"),
        format!("/v2/acme-prod/web/blobs/../blobs/{digest}"),
        format!("/v2/ACME-PROD/web/blobs/{digest}"),
        format!("/v2/acme-prod/Web/blobs/{digest}"),
        format!("/v2/acme-prod/web/blobs/{}", digest.to_uppercase()),
        format!("/v2/acme-prod/public/web/blobs/{digest}/../../../../web/blobs/{digest}"),
        format!("/v2/acme-prod/web%00/blobs/{digest}"),
        format!("//v2/acme-prod/web/blobs/{digest}"),
        format!("/V2/acme-prod/web/blobs/{digest}"),
        "/keppel/v1/accounts/../audit".to_owned(),
        "/keppel/v1/docs/../accounts".to_owned(),
        "/keppel/v1/openapi.json/../accounts".to_owned(),
        "/keppel/v1/accounts/acme-prod".to_owned(),
        "/keppel/v1/accounts/acme-prod/repositories/web/_manifests".to_owned(),
        "/keppel/V1/accounts".to_owned(),
        "/keppel/v1/%61ccounts".to_owned(),
    ] {
        for host in hosts {
            let status = raw(&site, &format!("GET {path} HTTP/1.1\r\nHost: {host}")).await;
            assert!((400..500).contains(&status), "{path} as {host}: {status}");
        }
    }
    // What is public stays so; a slash that is written as an escape is part of no name.
    for (path, status) in [("acme-prod/public/web", 200), ("acme-prod/public%2Fweb", 400)] {
        let head = format!("GET /v2/{path}/blobs/{digest} HTTP/1.1\r\nHost: localhost");
        assert_eq!(raw(&site, &head).await, status, "{path}");
    }
}

#[tokio::test]
async fn a_user_who_is_removed_disabled_or_revoked_is_out_at_once() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let data = |token: &Value| token["token"].as_str().unwrap().to_owned();
    for (user, command) in [("ed", "revoke"), ("vi", "disable"), ("ada", "remove")] {
        let query = "scope=repository:acme-prod/web:pull&offline_token=true";
        let issued = site.token(user, "swordfish", query).await.expect(200, "").json();
        let refresh = issued["refresh_token"].as_str().unwrap();
        let with_token = async |token: String| {
            let request = site.client.request("GET".parse().unwrap(), "/v2/acme-prod/web/tags/list");
            reply(request.bearer_auth(token)).await.status.as_u16()
        };
        assert_eq!(with_token(data(&issued)).await, 404, "let through: there is no such repository");
        site.run(&["user", command, user]);
        assert_eq!(with_token(data(&issued)).await, 401, "{user} {command}");
        let form = format!("grant_type=refresh_token&refresh_token={refresh}");
        let request = site.client.request("POST".parse().unwrap(), "/keppel/v1/auth").body(form);
        assert_eq!(reply(request).await.status, 401, "{user} {command}");
    }
}
