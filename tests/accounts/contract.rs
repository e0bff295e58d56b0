//! What readers of the contract found to be otherwise in the running program, each with the answer that it asks for.

use serde_json::{Value, json};

use crate::harness::images::sha256;
use crate::site::{Reply, Site, reply};

/// Sends bytes exactly as written, and reads until the server closes.
async fn raw(site: &Site, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(site.server.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).to_lowercase()
}

/// The first entry of an error of the distribution API.
fn refusal(answer: &Reply, status: u16, code: &str) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
    let entry = answer.json()["errors"][0].clone();
    assert_eq!(entry["code"], code, "{entry}");
    entry
}

#[tokio::test]
async fn subleases_are_issued_for_primaries_only() {
    let site = Site::start();
    let issue = async |account: &str| site.ask("POST", &format!("/keppel/v1/accounts/{account}/sublease"), "ada").await;
    let mirror =
        json!({"replication": {"strategy": "from_external_on_first_use", "upstream": {"url": "r.example.org"}}});
    site.put_account("acme-mirror", "ada", mirror).await.expect(200, "");
    issue("acme-mirror").await.expect(400, "account acme-mirror is a replica itself, of r.example.org");
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    issue("acme-prod").await.expect(200, "sublease_token");
    assert_eq!(site.ask("DELETE", "/keppel/v1/accounts/acme-prod", "ada").await.status, 204);
    issue("acme-prod").await.expect(400, "account acme-prod is being deleted");
    issue("acme-none").await.expect(404, "no such account: acme-none");
}

#[tokio::test]
async fn authorization_keppel_means_the_headers_of_the_driver() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let token = site.run(&["user", "token", "vi"]);
    let token = token.split_whitespace().last().unwrap().to_owned();
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let request = site.request("GET", path, "").header("authorization", "keppel");
        reply(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    };
    let (user, password) = ("x-keppel-username", "x-keppel-password");
    let tags = "/v2/acme-prod/web/tags/list";
    // Twice each: what was checked once is known after that.
    for _ in 0..2 {
        for secret in ["swordfish", &token] {
            let headers = [(user, "vi"), (password, secret)];
            assert_eq!(ask("/v2/", &headers).await.status, 200);
            refusal(&ask(tags, &headers).await, 404, "NAME_UNKNOWN");
            ask("/keppel/v1/accounts/acme-prod", &headers).await.expect(200, "acme-prod");
        }
        refusal(&ask(tags, &[(user, "stan"), (password, "swordfish")]).await, 403, "DENIED");
        for bad in [&[(user, "vi"), (password, "wrong")][..], &[(user, "vi")], &[(password, "swordfish")], &[]] {
            let refused = ask(tags, bad).await;
            refusal(&refused, 401, "UNAUTHORIZED");
            let challenge = refused.headers["www-authenticate"].to_str().unwrap();
            assert!(challenge.starts_with("Bearer realm=") && challenge.contains("repository:acme-prod/web:pull"));
        }
    }
    // Where it does not say keppel, nobody looks at them.
    let request = site.request("GET", "/v2/", "").header(user, "vi").header(password, "swordfish");
    assert_eq!(reply(request).await.status, 401);
    let request = site.request("GET", "/v2/", "stan").header(user, "ada").header(password, "swordfish");
    assert_eq!(reply(request).await.status, 200);
    let request = site.request("GET", tags, "stan").header(user, "vi").header(password, "swordfish");
    refusal(&reply(request).await, 403, "DENIED");
}

#[tokio::test]
async fn refusals_say_what_was_refused_and_nothing_of_what_is_hidden() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let repository = "/keppel/v1/accounts/acme-prod/repositories/web";
    let none = site.ask("DELETE", &format!("{repository}/_tags/nope"), "ed").await;
    none.expect(404, "tag nope is not known in acme-prod/web");
    for (method, path, user, words) in [
        ("DELETE", "/keppel/v1/accounts/acme-prod", "vi", "delete account acme-prod"),
        ("POST", "/keppel/v1/accounts/acme-prod/sublease", "vi", "issue sublease tokens for account acme-prod"),
        ("DELETE", repository, "vi", "delete anything in repository acme-prod/web"),
        ("GET", "/keppel/v1/quotas/acme", "stan", "see the quota of auth tenant acme"),
        ("GET", "/keppel/v1/quotas/never-heard-of", "stan", "see the quota of auth tenant never-heard-of"),
        ("GET", "/keppel/v1/audit?tenant=acme", "vi", "see the events of auth tenant acme"),
    ] {
        site.ask(method, path, user).await.expect(403, &format!("you are not allowed to {words}"));
    }
    let refused = site.put_account("acme-prod", "vi", json!({})).await;
    refused.expect(403, "not allowed to make or change accounts of auth tenant acme");
    let policies = "/keppel/v1/accounts/acme-prod/security_scan_policies";
    let refused = site.put(policies, "vi", json!({"policies": []})).await;
    refused.expect(403, "not allowed to change the security scan policies of account acme-prod");
    let quota = json!({"manifests": {"quota": 1}});
    let refused = site.put("/keppel/v1/quotas/acme", "ada", quota).await;
    refused.expect(403, "not allowed to change the quota of auth tenant acme");
    let refused = site.ask("PATCH", "/keppel/v1/accounts/acme-prod", "ada").await;
    refused.expect(405, "this endpoint knows the methods GET, HEAD, PUT, DELETE, and not PATCH");

    // What may not be seen is refused in the words for what is not there: with its own name, and no other difference.
    for (method, rest) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/sublease"),
        ("GET", "/security_scan_policies"),
        ("GET", "/repositories"),
        ("DELETE", "/repositories/web"),
        ("GET", "/repositories/web/_manifests"),
        ("DELETE", "/repositories/web/_tags/v1"),
    ] {
        let ask = async |account: &str| {
            let answer = site.ask(method, &format!("/keppel/v1/accounts/{account}{rest}"), "stan").await;
            answer.expect(404, &format!("no such account: {account}"));
            answer.text.replace(account, "it")
        };
        assert_eq!(ask("acme-prod").await, ask("acme-none").await, "{method} {rest}");
    }
    let refused = refusal(&site.ask("DELETE", "/v2/acme-prod/web/manifests/v1", "vi").await, 403, "DENIED");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.ends_with("denied: acme-prod/web may not be deleted from"),
        "it is there for who sees it: {message}"
    );
    for (method, action, verb) in
        [("GET", "pull", "pulled from"), ("DELETE", "delete", "deleted from"), ("PUT", "pull,push", "pushed to")]
    {
        let ask = async |account: &str| {
            let answer = site.ask(method, &format!("/v2/{account}/web/manifests/v1"), "stan").await;
            let entry = refusal(&answer, 403, "DENIED");
            assert_eq!(entry["detail"], json!({"scope": format!("repository:{account}/web:{action}")}));
            let message = entry["message"].as_str().unwrap();
            assert!(message.ends_with(&format!("{account}/web may not be {verb}, or does not exist")), "{entry}");
            answer.text.replace(account, "it")
        };
        assert_eq!(ask("acme-prod").await, ask("acme-none").await, "{method}");
    }
}

#[tokio::test]
async fn errors_of_the_distribution_api_say_what_was_needed_and_how_much_there_may_be() {
    let site = Site::start_with(&["limits.blob_pulls=3/s burst 2", "limits.manifest_pulls=1/h burst 1"]);
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let realm = format!("http://{}/keppel/v1/auth", site.server.address());
    let needed = |scope: Option<&str>| {
        let mut detail = json!({"realm": realm, "service": "keppel"});
        if let Some(scope) = scope {
            detail["scope"] = scope.into();
        }
        detail
    };
    for (path, scope) in [
        ("/v2/", None),
        ("/v2/_catalog", Some("registry:catalog:*")),
        ("/v2/acme-prod/web/tags/list", Some("repository:acme-prod/web:pull")),
    ] {
        let nobody = site.ask("GET", path, "").await;
        assert_eq!(refusal(&nobody, 401, "UNAUTHORIZED")["detail"], needed(scope), "{path}");
        let wrong = reply(site.client.request("GET".parse().unwrap(), path).basic_auth("vi", Some("wrong"))).await;
        assert_eq!(refusal(&wrong, 401, "UNAUTHORIZED")["detail"], needed(scope), "{path}");
    }
    let blob = format!("/v2/acme-prod/web/blobs/{}", sha256(b"{}"));
    let first = site.ask("GET", &blob, "vi").await;
    assert_eq!(first.headers["x-ratelimit-remaining"], "1", "of two at once, one is left");
    let manifest = "/v2/acme-prod/web/manifests/none";
    assert_eq!(site.ask("GET", manifest, "vi").await.status, 404);
    let refused = site.ask("GET", manifest, "vi").await;
    let entry = refusal(&refused, 429, "TOOMANYREQUESTS");
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    let detail = json!({"account": "acme-prod", "action": "manifest_pulls", "limit": 1, "window": "h", "burst": 1,
                        "retry_after": seconds});
    assert_eq!(entry["detail"], detail);
    assert!(entry["message"].as_str().unwrap().contains("account acme-prod is asked too often for manifest_pulls"));
}

#[tokio::test]
async fn every_answer_says_from_which_address_it_was_asked() {
    let site = Site::start();
    for path in [
        "/",
        "/v2",
        "/v2/",
        "/v2/what",
        "/v2/a%2fb/tags/list",
        "/keppel",
        "/keppel/v1",
        "/keppel/v1/auth",
        "/keppel/v1/x",
        "/keppel/v1/%ff",
        "/health/live",
        "/metrics",
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
            let answer = site.ask(method, path, "").await;
            assert_eq!(answer.headers.get("x-keppel-your-ip").unwrap(), "127.0.0.1", "{method} {path}");
        }
    }
    let large = "x".repeat(300_000);
    for (head, status) in [
        ("GET /v2/ HTTP/1.1\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("GET /v2/ HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        ("GET /v2/\u{1} HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (&*format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {large}\r\n\r\n"), 431),
        (&*format!("GET /v2/{} HTTP/1.1\r\nHost: a\r\n\r\n", &large[..100_000]), 414),
    ] {
        let answer = raw(&site, head.as_bytes()).await;
        let short = &head[..head.len().min(60)];
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{short:?}: {answer}");
        assert_eq!(answer.matches("x-keppel-your-ip: 127.0.0.1\r\n").count(), 1, "{short:?}: {answer}");
        // After an answer to a request that could be read, too.
        let good = "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n";
        let both = raw(&site, format!("{good}{head}").as_bytes()).await;
        assert!(
            both.starts_with("http/1.1 200 ") && both.contains(&format!("http/1.1 {status} ")),
            "{short:?}: {both}"
        );
        assert_eq!(both.matches("x-keppel-your-ip: 127.0.0.1\r\n").count(), 2, "{short:?}: {both}");
    }
}

#[tokio::test]
async fn each_interface_refuses_in_its_own_form_what_no_endpoint_gets_to_see() {
    let site = Site::start_with(&["http.public_hosts=registry.test"]);
    let large = format!("X: {}\r\n", "x".repeat(100_000));
    for (headers, status, words) in [
        ("", 400, "one host header"),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", 400, "transfer-encoding"),
        (&*format!("Host: a\r\n{large}"), 431, "the headers are longer than 65536 bytes"),
        ("Host: a.b.registry.test\r\n", 404, "there is no such endpoint at this host"),
    ] {
        for (path, is_plain) in [("/v2/", false), ("/v2/a/b/tags/list", false), ("/keppel/v1/accounts", true)] {
            let request = format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
            let answer = raw(&site, request.as_bytes()).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{path}: {answer}");
            assert!(body.contains(words), "{path}: {answer}");
            let kind = if is_plain { "content-type: text/plain" } else { "content-type: application/json" };
            assert!(head.contains(kind), "{path}: {answer}");
            match is_plain {
                true => assert_eq!(body.matches('\n').count(), 1, "{answer}"),
                false => assert_eq!(serde_json::from_str::<Value>(body).unwrap()["errors"][0]["code"], "unsupported"),
            }
        }
    }
}

#[tokio::test]
async fn content_that_looks_like_an_answer_is_served_as_it_is() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let rest = "x".repeat(2_000_000);
    for content in [head.to_owned(), format!("{head}{rest}"), format!("{rest}{head}")] {
        let digest = sha256(content.as_bytes());
        let path = format!("/v2/acme-prod/web/blobs/uploads/?digest={digest}");
        assert_eq!(reply(site.request("POST", &path, "ed").body(content.clone())).await.status, 201);
        let path = format!("/v2/acme-prod/web/blobs/{digest}");
        for from in [0, 1_999_999.min(content.len() - 1)] {
            let ranged = site.request("GET", &path, "ed").header("range", format!("bytes={from}-"));
            assert!(reply(ranged).await.text == content[from..], "from {from}");
        }
        // Two on one connection, the second while the first is on its way.
        let ed = data_encoding::BASE64.encode(b"ed:swordfish");
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {ed}\r\n");
        let both = raw(&site, format!("{request}\r\n{request}Connection: close\r\n\r\n").as_bytes()).await;
        assert_eq!(both.matches(&content.to_lowercase()).count(), 2);
        assert_eq!(both.matches("x-keppel-your-ip").count(), 2);
    }
}

#[tokio::test]
async fn a_repository_without_manifests_was_never_pushed_to() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let path = format!("/v2/acme-prod/web/blobs/uploads/?digest={}", sha256(b"{}"));
    assert_eq!(reply(site.request("POST", &path, "ed").body("{}")).await.status, 201);
    let list = "/keppel/v1/accounts/acme-prod/repositories";
    let shown = site.ask("GET", list, "vi").await.json();
    let repository = &shown["repositories"][0];
    assert_eq!((&repository["name"], &repository["manifest_count"]), (&json!("web"), &json!(0)));
    assert_eq!(repository.get("pushed_at"), Some(&Value::Null), "never, as for pulls: {shown}");
    site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let shown = site.ask("GET", list, "vi").await.json();
    assert!(shown["repositories"][0]["pushed_at"].as_i64().unwrap() > 1_700_000_000, "{shown}");
}

#[tokio::test]
async fn a_managed_policy_is_changed_by_its_manager_and_by_operators() {
    let site = Site::start();
    site.run(&["user", "role", "ed", "acme", "admin"]);
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let path = "/keppel/v1/accounts/acme-prod/security_scan_policies";
    let policy = |manager: &str| {
        json!({"policies": [{"managed_by_user": manager, "match_vulnerability_id": ".*",
                             "action": {"assessment": "", "ignore": true}}]})
    };
    site.put(path, "ada", policy("$REQUESTER")).await.expect(200, "");
    site.put(path, "ed", policy("ed")).await.expect(403, "policies[0]: is managed by user \"ada\"");
    let taken = site.put(path, "root", policy("$REQUESTER")).await.expect(200, "").json();
    assert_eq!(taken["policies"][0]["managed_by_user"], "root");
    site.put(path, "ada", policy("ada")).await.expect(403, "policies[0]: is managed by user \"root\"");
    site.put(path, "root", json!({"policies": []})).await.expect(200, "");
    site.put(path, "ada", policy("ada")).await.expect(200, "");
}

#[tokio::test]
async fn a_user_of_another_registry_needs_a_password_there() {
    let site = Site::start();
    let mirror = |username: &str, password: Option<&str>| {
        let mut upstream = json!({"url": "r.example.org", "username": username});
        if let Some(password) = password {
            upstream["password"] = password.into();
        }
        json!({"replication": {"strategy": "from_external_on_first_use", "upstream": upstream}})
    };
    let missing = "account.replication.upstream.password: must be set together with username";
    site.put_account("acme-mirror", "ada", mirror("us", None)).await.expect(422, missing);
    site.put_account("acme-mirror", "ada", mirror("us", Some(""))).await.expect(422, missing);
    site.ask("GET", "/keppel/v1/accounts/acme-mirror", "ada").await.expect(404, "no such account");
    site.put_account("acme-mirror", "ada", mirror("us", Some("x"))).await.expect(200, "");
    // What was shown is written back; the password of one user is not another's.
    site.put_account("acme-mirror", "ada", mirror("us", None)).await.expect(200, "");
    site.put_account("acme-mirror", "ada", mirror("them", None)).await.expect(422, missing);
    site.put_account("acme-mirror", "ada", mirror("", None)).await.expect(200, "");
    site.put_account("acme-mirror", "ada", mirror("us", None)).await.expect(422, missing);
}

#[tokio::test]
async fn accounts_with_odd_names_can_be_pushed_to() {
    let site = Site::start();
    let longest = "a".repeat(48);
    for name in ["0", "a--b", "0-0", &longest] {
        site.put_account(name, "ada", json!({})).await.expect(200, "");
        let path = format!("/v2/{name}/app/blobs/uploads/?digest={}", sha256(b"a blob"));
        let pushed = reply(site.request("POST", &path, "ada").body("a blob")).await;
        assert_eq!(pushed.status, 201, "{name}: {}", pushed.text);
        let path = format!("/v2/{name}/app/blobs/{}", sha256(b"a blob"));
        assert_eq!(reply(site.request("GET", &path, "ada")).await.text, "a blob");
    }
}
