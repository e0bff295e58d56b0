//! The distribution API and the token endpoint, with users, over HTTP.

use super::*;
use crate::auth::{LocalDriver, PasswordHasher, PasswordOptions, Role, UserDocument};
use crate::model::policy::{AccountSettings, Secret};

struct Guarded {
    node: Node,
    records: Arc<MemoryRecords>,
}

/// Who a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Stranger,
    Viewer,
    Editor,
    Operator,
}

impl Who {
    const ALL: [Self; 5] = [Self::Nobody, Self::Stranger, Self::Viewer, Self::Editor, Self::Operator];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::Stranger => "stranger",
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Operator => "operator",
        }
    }
}

impl Guarded {
    /// `acme/web` and `acme/public/web` hold an image; `acme` belongs to a tenant, and `public/` to everybody.
    async fn start() -> Self {
        let records = Arc::new(MemoryRecords::default());
        let hasher = PasswordHasher::new(PasswordOptions { memory_kib: 64, passes: 1, ..PasswordOptions::default() });
        for who in &Who::ALL[1..] {
            let mut user = UserDocument { operator: *who == Who::Operator, ..UserDocument::default() };
            user.set_password(hasher.hash(Secret::new("swordfish")).await.unwrap());
            match who {
                Who::Viewer => drop(user.roles.insert("tenant".parse().unwrap(), Role::Viewer)),
                Who::Editor => drop(user.roles.insert("tenant".parse().unwrap(), Role::Editor)),
                Who::Nobody | Who::Stranger | Who::Operator => {}
            }
            records.put(RecordKind::User, &format!("user:{}", who.name()), user.to_bytes());
        }
        let settings = json!({"rbac_policies": [{"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]});
        let settings = AccountSettings::from_request(settings).unwrap().to_stored();
        records.put_account("acme".parse().unwrap(), "tenant".parse().unwrap(), settings);
        let clock = Arc::new(ManualClock::new(1_000_000));
        let driver = Arc::new(LocalDriver::new(records.clone(), hasher, clock, 100));
        let node = Node::start_guarded(ServerOptions::default(), driver, records.clone());
        let guarded = Self { node, records };
        for repository in ["acme/web", "acme/public/web"] {
            let digest = Digest::from_sha256(sha2::Sha256::digest(b"{}").into()).to_string();
            let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
            let pushed = guarded.send(Method::POST, &path, Who::Editor, Some("{}".into())).await;
            assert_eq!(pushed.status, StatusCode::CREATED);
            let pushed = guarded.put_manifest(repository, Who::Editor).await;
            assert_eq!(pushed.status, StatusCode::CREATED, "{}", String::from_utf8_lossy(&pushed.body));
        }
        guarded
    }

    fn as_who(&self, request: RequestBuilder, who: Who) -> RequestBuilder {
        match who {
            Who::Nobody => request,
            who => request.basic_auth(who.name(), Some("swordfish")),
        }
    }

    async fn send(&self, method: Method, path: &str, who: Who, body: Option<String>) -> Answer {
        let request = self.as_who(self.node.ask(method, path), who);
        answer(match body {
            Some(body) => request.body(body),
            None => request,
        })
        .await
    }

    async fn put_manifest(&self, repository: &str, who: Who) -> Answer {
        let digest = Digest::from_sha256(sha2::Sha256::digest(b"{}").into()).to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
        });
        let request = self.as_who(self.node.ask(Method::PUT, &format!("/v2/{repository}/manifests/latest")), who);
        answer(request.header("content-type", MANIFEST).body(manifest.to_string())).await
    }

    async fn token(&self, query: &str, who: Who) -> Value {
        let answer = self.send(Method::GET, &format!("/keppel/v1/auth?service=keppel&{query}"), who, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(answer.header("cache-control"), "no-store");
        answer.json()
    }

    async fn with_token(&self, method: Method, path: &str, token: &str) -> Answer {
        answer(self.node.ask(method, path).bearer_auth(token)).await
    }
}

/// Whether an answer let the request through, whatever came of it then.
fn was_let_through(answer: &Answer) -> bool {
    !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

#[tokio::test]
async fn every_route_lets_through_exactly_those_who_may() {
    let guarded = Guarded::start().await;
    let digest = format!("sha256:{}", "0".repeat(64));
    // The route below a repository, its methods, and the least that has to be had.
    let routes = [
        ("manifests/latest", vec!["GET", "HEAD"], "pull"),
        ("manifests/none", vec!["GET"], "pull"),
        ("manifests/none", vec!["DELETE"], "delete"),
        ("manifests/new", vec!["PUT"], "push"),
        (&format!("blobs/{digest}"), vec!["GET", "HEAD"], "pull"),
        (&format!("blobs/{digest}"), vec!["DELETE"], "delete"),
        ("blobs/uploads/", vec!["POST"], "push"),
        ("blobs/uploads/00000000000000000000000000000000", vec!["GET", "PATCH", "PUT", "DELETE"], "push"),
        ("tags/list", vec!["GET", "HEAD"], "pull"),
        (&format!("referrers/{digest}"), vec!["GET", "HEAD"], "pull"),
    ];
    for repository in ["acme/web", "acme/public/web", "other/web", "acme/absent"] {
        for (route, methods, action) in &routes {
            for (method, who) in methods.iter().flat_map(|method| Who::ALL.map(|who| (method, who))) {
                let path = format!("/v2/{repository}/{route}");
                let answer = guarded.send(method.parse().unwrap(), &path, who, None).await;
                let expected = match (who, *action) {
                    (Who::Operator, _) => true,
                    _ if repository == "other/web" => false,
                    (Who::Editor, _) | (Who::Viewer, "pull") => true,
                    (_, "pull") => repository == "acme/public/web",
                    _ => false,
                };
                assert_eq!(was_let_through(&answer), expected, "{who:?} {method} {path}: {}", answer.status);
                if expected {
                    continue;
                }
                // Nothing in a refusal depends on whether the thing is there.
                let expected = if who == Who::Nobody { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
                assert_eq!(answer.status, expected, "{who:?} {method} {path}");
                if *method != "HEAD" {
                    let code = if who == Who::Nobody { "UNAUTHORIZED" } else { "DENIED" };
                    assert_eq!(answer.code(), code);
                }
                if who == Who::Nobody {
                    let actions = if *action == "push" { "pull,push" } else { action };
                    let challenge = format!(
                        "Bearer realm=\"http://{}/keppel/v1/auth\",service=\"keppel\",scope=\"repository:{repository}:{actions}\"",
                        guarded.node.server.addresses()[0]
                    );
                    assert_eq!(answer.header("www-authenticate"), challenge);
                }
            }
        }
    }
    guarded.node.stop().await;
}

#[tokio::test]
async fn a_client_logs_in_gets_tokens_and_uses_them() {
    let guarded = Guarded::start().await;
    let base = guarded.send(Method::GET, "/v2/", Who::Nobody, None).await;
    assert_eq!(
        (base.status, base.header("docker-distribution-api-version")),
        (StatusCode::UNAUTHORIZED, "registry/2.0")
    );
    assert!(base.header("www-authenticate").starts_with("Bearer realm=\"http://127.0.0.1:"));
    assert_eq!(guarded.send(Method::GET, "/v2/", Who::Stranger, None).await.status, StatusCode::OK);
    let info = guarded.node.get("/keppel/v1").await;
    assert_eq!(info.json(), json!({"auth_driver": "local"}));

    let response = guarded.token("scope=repository:acme/web:pull,push&offline_token=true", Who::Viewer).await;
    let token = response["token"].as_str().unwrap();
    assert_eq!((response["access_token"].as_str().unwrap(), &response["expires_in"]), (token, &json!(600)));
    assert_eq!(guarded.with_token(Method::GET, "/v2/", token).await.status, StatusCode::OK);
    // Twice, since the second is answered from memory.
    for _ in 0..2 {
        assert_eq!(
            guarded.with_token(Method::GET, "/v2/acme/web/manifests/latest", token).await.status,
            StatusCode::OK
        );
    }
    for (method, path) in [
        (Method::POST, "/v2/acme/web/blobs/uploads/"),
        (Method::GET, "/v2/acme/other/tags/list"),
        (Method::GET, "/v2/_catalog"),
    ] {
        let refused = guarded.with_token(method, path, token).await;
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"), "{path}");
        assert!(refused.header("www-authenticate").ends_with("error=\"insufficient_scope\""), "{path}");
    }
    let refresh = response["refresh_token"].as_str().unwrap();
    let form =
        format!("grant_type=refresh_token&service=keppel&refresh_token={refresh}&scope=repository:acme/web:pull");
    let fresh = answer(guarded.node.ask(Method::POST, "/keppel/v1/auth").body(form)).await;
    let fresh_token = fresh.json()["access_token"].as_str().unwrap().to_owned();
    assert_eq!(
        guarded.with_token(Method::HEAD, "/v2/acme/web/manifests/latest", &fresh_token).await.status,
        StatusCode::OK
    );

    guarded.records.remove(RecordKind::User, "user:viewer");
    for token in [token, &fresh_token] {
        let refused = guarded.with_token(Method::GET, "/v2/acme/web/manifests/latest", token).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "a user who is gone loses their tokens at once");
        assert!(refused.header("www-authenticate").ends_with("error=\"invalid_token\""));
    }
    let gone = guarded.send(Method::GET, "/v2/acme/web/manifests/latest", Who::Viewer, None).await;
    assert_eq!(gone.status, StatusCode::UNAUTHORIZED);
    guarded.node.stop().await;
}

#[tokio::test]
async fn the_token_endpoint_refuses_in_one_line_of_text() {
    let guarded = Guarded::start().await;
    let plain = |answer: Answer| {
        assert!(answer.header("content-type").starts_with("text/plain"));
        assert_eq!(answer.body.iter().filter(|b| **b == b'\n').count(), 1);
        answer.status
    };
    let wrong = guarded.node.ask(Method::GET, "/keppel/v1/auth").basic_auth("viewer", Some("wrong"));
    assert_eq!(plain(answer(wrong).await), StatusCode::UNAUTHORIZED);
    for query in ["scope=x", "service=other", "scope=%ff"] {
        let path = format!("/keppel/v1/auth?{query}");
        assert_eq!(plain(guarded.node.get(&path).await), StatusCode::BAD_REQUEST, "{query}");
    }
    let form = |form: &str| answer(guarded.node.ask(Method::POST, "/keppel/v1/auth").body(form.to_owned()));
    assert_eq!(plain(form("grant_type=password&username=viewer&password=wrong").await), StatusCode::UNAUTHORIZED);
    assert_eq!(plain(form("grant_type=refresh_token&refresh_token=x.y.z").await), StatusCode::UNAUTHORIZED);
    assert_eq!(plain(form("").await), StatusCode::BAD_REQUEST);
    assert_eq!(plain(form(&"a".repeat(40_000)).await), StatusCode::PAYLOAD_TOO_LARGE);
    let good = form("grant_type=password&username=viewer&password=swordfish&scope=repository:acme/web:pull").await;
    assert_eq!(good.json()["scope"], json!("repository:acme/web:pull"));
    guarded.node.stop().await;
}

#[tokio::test]
async fn the_catalog_shows_what_the_caller_may_see() {
    let guarded = Guarded::start().await;
    let list = async |who, query: &str| {
        let answer = guarded.send(Method::GET, &format!("/v2/_catalog{query}"), who, None).await;
        let link = answer.header("link").to_owned();
        (answer.status == StatusCode::OK).then(|| (answer.json()["repositories"].clone(), link))
    };
    let both = json!(["acme/public/web", "acme/web"]);
    assert_eq!(list(Who::Nobody, "").await, None);
    assert_eq!(list(Who::Stranger, "").await.unwrap(), (json!(["acme/public/web"]), String::new()));
    assert_eq!(list(Who::Stranger, "?n=1").await.unwrap(), (json!(["acme/public/web"]), String::new()));
    assert_eq!(list(Who::Viewer, "").await.unwrap().0, both);
    assert_eq!(list(Who::Operator, "").await.unwrap().0, both);
    let (first, link) = list(Who::Viewer, "?n=1").await.unwrap();
    assert_eq!(first, json!(["acme/public/web"]));
    assert!(link.contains("last=acme/public/web"), "{link}");
    guarded.node.stop().await;
}

#[tokio::test]
async fn a_mount_from_what_may_not_be_pulled_is_an_upload() {
    let guarded = Guarded::start().await;
    let secret = Digest::from_sha256(sha2::Sha256::digest(b"secret").into()).to_string();
    guarded.records.put_account("other".parse().unwrap(), "others".parse().unwrap(), Vec::new());
    let path = format!("/v2/other/web/blobs/uploads/?digest={secret}");
    let pushed = guarded.send(Method::POST, &path, Who::Operator, Some("secret".into())).await;
    assert_eq!(pushed.status, StatusCode::CREATED);
    let mount = async |from: &str, digest: &str, who| {
        let path = format!("/v2/acme/web/blobs/uploads/?mount={digest}{from}");
        guarded.send(Method::POST, &path, who, None).await.status
    };
    let absent = format!("sha256:{}", "0".repeat(64));
    for digest in [&secret, &absent] {
        assert_eq!(mount("&from=other/web", digest, Who::Editor).await, StatusCode::ACCEPTED);
    }
    let shared = Digest::from_sha256(sha2::Sha256::digest(b"{}").into()).to_string();
    assert_eq!(mount("&from=acme/public/web", &shared, Who::Editor).await, StatusCode::CREATED);
    assert_eq!(mount("", &secret, Who::Editor).await, StatusCode::ACCEPTED);
    guarded.node.stop().await;
}

#[tokio::test]
async fn tricks_with_paths_and_headers_open_nothing() {
    let guarded = Guarded::start().await;
    for path in [
        "/v2/acme/public/..%2fweb/manifests/latest",
        "/v2/acme/public/../web/manifests/latest",
        "/v2/acme%2Fweb/manifests/latest",
        "/v2/acme//web/manifests/latest",
        "/v2/./acme/web/manifests/latest",
        "/v2/ACME/web/manifests/latest",
        "/v2/acme/Public/web/manifests/latest",
        "/v2/acme/web/manifests/latest?scope=repository:acme/web:pull",
        "//v2/acme/web/manifests/latest",
        "/v2/acme/public/%2e%2e/web/manifests/latest",
    ] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: acme.evil\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-user: operator\r\n\
             connection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(guarded.node.server.addresses()[0]).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        let status = String::from_utf8_lossy(&response[9..12]).into_owned();
        assert!(matches!(status.as_str(), "400" | "401" | "404"), "{path}: {status}");
    }
    guarded.node.stop().await;
}
