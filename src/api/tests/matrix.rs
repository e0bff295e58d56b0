//! Who is let through where: every route of both APIs, every kind of caller, by password and by token, at places that are
//! private, public, another tenant's, and not there. What is expected comes from tables that know nothing of the code under
//! test. A route without a line in them does not compile, or fails the test that lists them.

use std::collections::BTreeSet;

use super::*;
use crate::api::distribution::Endpoint as Content;
use crate::api::keppel::Endpoint as Own;
use crate::auth::{
    Action, ActionSet, LocalDriver, PasswordHasher, PasswordOptions, Records as _, RobotDocument, Role, UserDocument,
};
use crate::model::policy::{AccountSettings, Secret};

use tables::*;

mod tables;

const NOW: i64 = 1_000_000;
const PASSWORD: &str = "swordfish";
const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Accounts that can be looked at, and a federation that decides nothing.
struct Book {
    records: Arc<MemoryRecords>,
    /// Whether it says what was decided.
    answers: bool,
}

#[async_trait::async_trait]
impl AccountBook for Book {
    fn get(&self, name: &AccountName) -> Option<AccountEntry> {
        let record = self.records.get_account(name)?;
        Some(AccountEntry {
            name: name.clone(),
            tenant: record.tenant,
            settings: record.settings,
            settings_revision: record.settings_revision,
            region: "eu".into(),
            primary: "eu".into(),
            is_ours: true,
            region_here: "eu".into(),
            is_replica_here: false,
            deleting: false,
            replicas: Vec::new(),
        })
    }
    fn list(&self, after: Option<&AccountName>, _: usize) -> Vec<AccountEntry> {
        let names = ["acme", "other"].map(|name| AccountName::parse(name).unwrap());
        names.iter().filter(|name| after.is_none_or(|after| *name > after)).filter_map(|name| self.get(name)).collect()
    }
    async fn catch_up(&self) -> Result<(), Undecided> {
        if self.answers { Ok(()) } else { Err(Undecided("nobody says what was decided".into())) }
    }
    fn peers(&self) -> Vec<PeerEntry> {
        Vec::new()
    }
    async fn claim(&self, _: &AccountName, _: &TenantId, _: Vec<u8>) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    async fn put_settings(&self, _: &AccountName, _: Vec<u8>, _: u64) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    async fn set_deleting(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    async fn forfeit(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    async fn redeem_sublease(&self, _: &AccountName, _: &str) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    async fn detach_replica(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    fn get_quota(&self, _: &TenantId) -> Option<(bytes::Bytes, u64)> {
        None
    }
    async fn put_quota(&self, _: &TenantId, _: Vec<u8>, _: u64) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
    async fn issue_sublease(&self, _: &AccountName, _: &str, _: Duration) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody decides".into()))
    }
}

/// A node with all callers, and what each logs in with; `answers`: whether the federation says what was decided.
async fn start(answers: bool) -> (Node, Vec<(Who, String)>) {
    let records = Arc::new(MemoryRecords::default());
    let hasher = PasswordHasher::new(PasswordOptions { memory_kib: 64, passes: 1, ..PasswordOptions::default() });
    let mut secrets = Vec::new();
    for who in Who::ALL {
        let (tenant, role) = match who {
            Nobody => continue,
            Robot => {
                let document = br#"{"scopes":[{"match_repository":"web","actions":["pull","push"]}]}"#;
                let mut robot = RobotDocument::from_bytes(document).unwrap();
                secrets.push((who, robot.rotate_secret(NOW, 0).reveal().to_owned()));
                records.put(RecordKind::User, "robot:tenant+ci", robot.to_bytes());
                continue;
            }
            Stranger | Granted | Operator => ("tenant", None),
            Viewer => ("tenant", Some(Role::Viewer)),
            Editor | Forbidden => ("tenant", Some(Role::Editor)),
            Admin | Limited => ("tenant", Some(Role::Admin)),
            AdminElsewhere => ("others", Some(Role::Admin)),
        };
        let mut user = UserDocument { operator: who == Operator, ..UserDocument::default() };
        user.set_password(hasher.hash(Secret::new(PASSWORD)).await.unwrap());
        user.roles.extend(role.map(|role| (tenant.parse().unwrap(), role)));
        let pull: ActionSet = [Action::Pull].into_iter().collect();
        secrets.push(match who {
            Limited => (who, user.add_token("", pull, None, NOW).unwrap().1.reveal().to_owned()),
            _ => (who, PASSWORD.to_owned()),
        });
        records.put(RecordKind::User, &format!("user:{}", who.username()), user.to_bytes());
    }
    let policies = json!({"rbac_policies": [
        {"match_repository": "public/.*", "permissions": ["anonymous_pull"]},
        {"match_repository": "web", "match_username": "granted", "permissions": ["pull", "push", "delete"]},
        {"match_username": "forbidden", "forbidden_permissions": ["push"]},
    ]});
    let settings = AccountSettings::from_request(policies).unwrap().to_stored();
    records.put_account("acme".parse().unwrap(), "tenant".parse().unwrap(), settings);
    records.put_account("other".parse().unwrap(), "others".parse().unwrap(), b"{}".to_vec());
    let driver = Arc::new(LocalDriver::new(records.clone(), hasher, Arc::new(ManualClock::new(NOW)), 100));
    let book = Arc::new(Book { records: records.clone(), answers });
    let node = Node::start_with_book(ApiOptions::default(), driver, records, book);
    (node, secrets)
}

/// Every route of the distribution API below a repository.
const CONTENT: [Content<'static>; 6] = [
    Content::Manifest { name: "", reference: "none" },
    Content::Blob { name: "", digest: DIGEST },
    Content::Uploads { name: "" },
    Content::Upload { name: "", id: "00000000000000000000000000000000" },
    Content::Tags { name: "" },
    Content::Referrers { name: "", digest: DIGEST },
];

fn outcome_of(answer: &Answer, is_head: bool) -> Outcome {
    let text = String::from_utf8_lossy(&answer.body);
    match answer.status {
        StatusCode::UNAUTHORIZED => Challenged,
        StatusCode::FORBIDDEN => Refused,
        StatusCode::NOT_FOUND if text.starts_with("no such account: ") => Hidden,
        // Without a body, the two kinds of absence are one.
        StatusCode::NOT_FOUND if is_head && text.is_empty() => Hidden,
        _ => Through,
    }
}

/// A token for all that can be asked for at a place.
async fn token(node: &Node, who: Who, secret: &str, place: Place) -> String {
    let (account, repository) = place.parts();
    let path = format!(
        "/keppel/v1/auth?service=keppel&scope=repository:{account}/{repository}:pull,push,delete&scope=keppel:api:*"
    );
    let request = node.ask(Method::GET, &path);
    let request = if who == Nobody { request } else { request.basic_auth(who.username(), Some(secret)) };
    answer(request).await.json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_route_lets_through_exactly_those_whom_the_tables_let_through() {
    let (node, secrets) = start(true).await;
    let secret_of = |who| secrets.iter().find(|(known, _)| *known == who).map_or("", |(_, secret)| secret.as_str());
    let mut asked = 0;
    for place in Place::ALL {
        let (account, repository) = place.parts();
        for who in Who::ALL {
            let token = token(&node, who, secret_of(who), place).await;
            for by_token in [false, true] {
                let send = async |method: &str, path: &str| {
                    let request = node.ask(method.parse().unwrap(), path);
                    let request = match (by_token, who) {
                        (true, _) => request.bearer_auth(&token),
                        (false, Nobody) => request,
                        (false, who) => request.basic_auth(who.username(), Some(secret_of(who))),
                    };
                    let body = match path {
                        path if path.contains("/quotas/") => r#"{"manifests":{"quota":1}}"#,
                        path if path.ends_with("/security_scan_policies") => r#"{"policies":[]}"#,
                        _ => r#"{"account":{"auth_tenant_id":"tenant"}}"#,
                    };
                    answer(if method == "PUT" { request.body(body) } else { request }).await
                };
                for (endpoint, method) in CONTENT.iter().flat_map(|e| e.allow().split(", ").map(move |m| (*e, m))) {
                    let (rest, action) = content_rule(endpoint, method).unwrap();
                    let path = format!("/v2/{account}/{repository}/{rest}");
                    let expected = match (who.may(action, place), who, by_token) {
                        (true, _, _) => Through,
                        (false, Nobody, _) | (false, _, true) => Challenged,
                        (false, _, false) => Refused,
                    };
                    let actual = match send(method, &path).await.status {
                        StatusCode::UNAUTHORIZED => Challenged,
                        StatusCode::FORBIDDEN => Refused,
                        _ => Through,
                    };
                    assert_eq!(actual, expected, "{who:?} {method} {path}, by token: {by_token}");
                    asked += 1;
                }
                for (endpoint, method) in
                    own(place).into_iter().flat_map(|e| e.allow().split(", ").map(move |m| (e, m)))
                {
                    let (path, expected) = own_rule(endpoint, method, who, place);
                    let found = send(method, &path).await;
                    let actual = outcome_of(&found, method == "HEAD");
                    // Let through to something that is not there looks like hidden, without a body.
                    let same = actual == expected || (method == "HEAD" && (actual, expected) == (Hidden, Through));
                    let text = String::from_utf8_lossy(&found.body).into_owned();
                    assert!(same, "{who:?} {method} {path}, by token: {by_token}: {actual:?} {} {text}", found.status);
                    asked += 1;
                }
            }
        }
    }
    assert_eq!(asked, 5 * 11 * 2 * (16 + 26));
    node.stop().await;
}

#[tokio::test]
async fn while_nobody_says_what_was_decided_what_is_hidden_and_what_is_not_there_are_503_in_the_same_words() {
    let (node, secrets) = start(false).await;
    let (mut unsaid, mut said) = (0, 0);
    for place in Place::ALL {
        let (account, _) = place.parts();
        for (who, secret) in &secrets {
            for (endpoint, method) in own(place).into_iter().flat_map(|e| e.allow().split(", ").map(move |m| (e, m))) {
                let (path, expected) = own_rule(endpoint, method, *who, place);
                if !matches!(method, "GET" | "DELETE" | "POST") || expected == Through && method != "GET" {
                    continue;
                }
                let request = node.ask(method.parse().unwrap(), &path).basic_auth(who.username(), Some(secret));
                let found = answer(request).await;
                let text = String::from_utf8_lossy(&found.body).into_owned();
                if expected == Hidden {
                    let words = format!(
                        "whether there is an account {account} cannot be told now: nobody says what was decided\n"
                    );
                    assert_eq!((found.status.as_u16(), text), (503, words), "{who:?} {method} {path}");
                    assert!(!found.header("retry-after").is_empty());
                    unsaid += 1;
                } else {
                    assert_ne!(found.status, StatusCode::SERVICE_UNAVAILABLE, "{who:?} {method} {path}: {text}");
                    said += 1;
                }
            }
        }
    }
    assert!(unsaid > 100 && said > 100, "{unsaid} {said}");
    node.stop().await;
}

#[test]
fn every_route_is_in_the_lists() {
    let content: BTreeSet<String> = CONTENT.iter().map(|endpoint| word(format!("{endpoint:?}"))).collect();
    assert_eq!(content.len() + 2, Content::COUNT, "all but the base and the catalog");
    let own: BTreeSet<String> = own(Private).iter().map(|endpoint| word(format!("{endpoint:?}"))).collect();
    assert_eq!(own.len(), Own::COUNT);
}

fn word(text: String) -> String {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn an_account_answers_at_its_own_host_and_no_host_opens_anything() {
    let records = Arc::new(MemoryRecords::default());
    let hasher = PasswordHasher::new(PasswordOptions { memory_kib: 64, passes: 1, ..PasswordOptions::default() });
    let mut user = UserDocument::default();
    user.set_password(hasher.hash(Secret::new(PASSWORD)).await.unwrap());
    user.roles.insert("tenant".parse().unwrap(), Role::Editor);
    records.put(RecordKind::User, "user:editor", user.to_bytes());
    let policies = json!({"rbac_policies": [{"match_repository": "web", "permissions": ["anonymous_pull"]}]});
    let settings = AccountSettings::from_request(policies).unwrap().to_stored();
    records.put_account("acme".parse().unwrap(), "tenant".parse().unwrap(), settings);
    records.put_account("other".parse().unwrap(), "others".parse().unwrap(), b"{}".to_vec());
    let driver = Arc::new(LocalDriver::new(records.clone(), hasher, Arc::new(ManualClock::new(NOW)), 100));
    let options = ApiOptions { public_hosts: vec!["registry.example.org".into()], ..ApiOptions::default() };
    let book = Arc::new(Book { records: records.clone(), answers: true });
    let node = Node::start_with_book(options, driver, records, book);
    let at = |host: &str, method: Method, path: &str| {
        node.ask(method, path).header("host", host).basic_auth("editor", Some(PASSWORD))
    };
    let host = "ACME.registry.example.org:5000";
    let digest = Digest::from_sha256(sha2::Sha256::digest(b"{}").into()).to_string();
    for name in ["web", "deep/er"] {
        let blob = at(host, Method::POST, &format!("/v2/{name}/blobs/uploads/?digest={digest}")).body("{}");
        let pushed = answer(blob).await;
        assert_eq!(pushed.header("location"), format!("/v2/{name}/blobs/{digest}"), "{}", pushed.status);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
        });
        let put = at(host, Method::PUT, &format!("/v2/{name}/manifests/v1")).header("content-type", MANIFEST);
        assert_eq!(answer(put.body(manifest.to_string())).await.status, StatusCode::CREATED);
    }
    // Both ways lead to the same; twice, since the second answer comes from memory.
    for (host, path) in [
        (host, "/v2/web/manifests/v1"),
        (host, "/v2/deep/er/manifests/v1"),
        ("registry.example.org", "/v2/acme/web/manifests/v1"),
        ("registry.example.org", "/v2/acme/deep/er/manifests/v1"),
        ("127.0.0.1", "/v2/acme/deep/er/manifests/v1"),
    ] {
        for _ in 0..2 {
            assert_eq!(answer(at(host, Method::GET, path)).await.status, StatusCode::OK, "{host} {path}");
        }
    }
    let list = answer(at(host, Method::GET, "/v2/_catalog?n=1")).await;
    assert_eq!(list.json(), json!({"repositories": ["deep/er"]}));
    assert_eq!(list.header("link"), "</v2/_catalog?n=1&last=deep/er>; rel=\"next\"");
    let rest = answer(at(host, Method::GET, "/v2/_catalog?n=5&last=deep/er")).await;
    assert_eq!((rest.json(), rest.header("link")), (json!({"repositories": ["web"]}), ""));
    // A token from there is for the full name.
    let scope = "/keppel/v1/auth?service=keppel&scope=repository:deep/er:pull";
    let token = answer(at(host, Method::GET, scope)).await.json()["token"].as_str().unwrap().to_owned();
    for (host, path, status) in [
        (host, "/v2/deep/er/tags/list", 200),
        ("registry.example.org", "/v2/acme/deep/er/tags/list", 200),
        ("registry.example.org", "/v2/deep/er/tags/list", 401),
        ("other.registry.example.org", "/v2/deep/er/tags/list", 401),
    ] {
        let request = node.ask(Method::GET, path).header("host", host).bearer_auth(&token);
        assert_eq!(answer(request).await.status.as_u16(), status, "{host} {path}");
    }
    let nobody = answer(node.ask(Method::GET, "/v2/deep/er/tags/list").header("host", host)).await;
    let challenge = "Bearer realm=\"http://ACME.registry.example.org:5000/keppel/v1/auth\",service=\"keppel\",\
                     scope=\"repository:deep/er:pull\"";
    assert_eq!(nobody.header("www-authenticate"), challenge);
    // Nothing else is served there, and no name of a host opens anything.
    for (host, path, status) in [
        (host, "/keppel/v1/accounts", 404),
        (host, "/keppel/v1", 404),
        (host, "/metrics", 404),
        (host, "/health/ready", 404),
        ("a.b.registry.example.org", "/v2/", 404),
        ("-.registry.example.org", "/v2/web/manifests/v1", 404),
        ("other.registry.example.org", "/v2/web/manifests/v1", 401),
        ("acme.registry.example.org.evil.example", "/v2/web/manifests/v1", 401),
        (host, "/v2/acme/web/manifests/v1", 401),
        (host, "/v2/web/manifests/v1", 200),
        ("acme.registry.example.org.", "/v2/web/manifests/v1", 200),
    ] {
        let found = answer(node.ask(Method::GET, path).header("host", host)).await;
        assert_eq!(found.status.as_u16(), status, "{host} {path}");
    }
    node.stop().await;
}
